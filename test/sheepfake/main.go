// Command sheepfake runs a Sheepdog cluster in memory (package
// backing/sheepdog/sheepfake), for tests from outside:
//
//	sheepfake -listen unix:/tmp/sock -listen tcp:127.0.0.1:7001 -vdi disk=1G
//
// It prints "ready" once the volumes exist, and ends at SIGTERM or SIGINT. SIGUSR1
// stops the first sheep and SIGUSR2 brings it back.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"blockgate/backing"
	"blockgate/backing/sheepdog"
	"blockgate/backing/sheepdog/sheepfake"
)

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "sheepfake:", err)
		os.Exit(1)
	}
}

func run() error {
	var listen, vdis list
	var o sheepfake.Options
	flag.Var(&listen, "listen", "a sheep at unix:PATH or tcp:HOST:PORT; may be repeated")
	flag.Var(&vdis, "vdi", "a volume NAME=SIZE to make; may be repeated")
	copies := flag.Int("copies", 2, "copies of new volumes")
	shift := flag.Int("shift", 22, "objects of 2^shift bytes")
	flag.BoolVar(&o.Locks, "locks", false, "keep locks (format -l)")
	flag.BoolVar(&o.Shuffle, "shuffle", false, "answer out of order")
	faults := flag.Int("faults", 0, "one in so many requests goes wrong")
	flag.Parse()
	if len(listen) == 0 || flag.NArg() != 0 {
		return fmt.Errorf("want -listen and no arguments; see -help")
	}
	o.Copies, o.BlockShift = uint8(*copies), uint8(*shift)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGUSR2)

	c := sheepfake.New(o)
	defer c.Close()
	var first *sheepfake.Sheep
	for _, l := range listen {
		network, address, _ := strings.Cut(l, ":")
		s, err := c.Start(network, address)
		if err != nil {
			return err
		}
		if first == nil {
			first = s
		}
	}
	for _, v := range vdis {
		name, size, _ := strings.Cut(v, "=")
		n, err := backing.ParseSize(size)
		if err != nil {
			return err
		}
		s, err := sheepdog.Open(context.Background(), listen[0]+":"+name, backing.OpenOptions{Create: true, CreateSize: n})
		if err != nil {
			return err
		}
		if err := s.Close(); err != nil {
			return err
		}
	}
	if *faults > 0 {
		c.SetFault(sheepfake.RandomFaults(*faults, 1))
	}
	fmt.Println("ready")
	for s := range signals {
		switch s {
		case syscall.SIGUSR1:
			first.Stop()
		case syscall.SIGUSR2:
			if err := first.Start(); err != nil {
				return err
			}
		default:
			return c.Check()
		}
	}
	return nil
}

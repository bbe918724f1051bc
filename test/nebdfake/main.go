// Command nebdfake runs a nebd-server with its volumes in memory (package
// backing/curve/nebdfake), for tests from outside:
//
//	nebdfake -listen /data/nebd/nebd.sock -volume cbd:pool//iscsi_test_=10G -snapshots 127.0.0.1:5555
//
// It prints "ready" once it listens, and ends at SIGTERM or SIGINT. SIGUSR1 kills
// the server and SIGUSR2 brings it back.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"blockgate/backing"
	"blockgate/backing/curve"
	"blockgate/backing/curve/nebdfake"
)

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "nebdfake:", err)
		os.Exit(1)
	}
}

func run() error {
	var volumes list
	var o nebdfake.Options
	flag.Var(&volumes, "volume", "a volume NAME=SIZE; may be repeated")
	listen := flag.String("listen", curve.DefaultSocket, "path of the socket")
	block := flag.Int("block", 4096, "block size of the volumes")
	snapshots := flag.String("snapshots", "", "address (HOST:PORT) of the snapshot and clone service")
	flag.BoolVar(&o.Shuffle, "shuffle", false, "answer out of order")
	flag.BoolVar(&o.DropOnError, "drop", false, "do not answer when I/O fails, as nebd-server does by default")
	faults := flag.Int("faults", 0, "one in so many requests is torn, and one in so many fails if -drop is given")
	flag.Parse()
	if len(volumes) == 0 || flag.NArg() != 0 {
		return fmt.Errorf("want -volume and no arguments; see -help")
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGUSR2)

	s := nebdfake.New(o)
	pool := ""
	for _, v := range volumes {
		name, size, _ := strings.Cut(v, "=")
		n, err := backing.ParseSize(size)
		if err != nil {
			return err
		}
		l, err := curve.ParseLocation(name)
		if err != nil {
			return err
		}
		pool = l.Pool
		s.Create(name, n, *block)
	}
	if *faults > 0 {
		s.SetFault(func(nebdfake.Request) nebdfake.Fault {
			if rand.IntN(*faults) != 0 {
				return nebdfake.Fault{}
			}
			kinds := []nebdfake.Kind{nebdfake.CloseBefore, nebdfake.CloseAfter, nebdfake.Torn}
			if o.DropOnError {
				kinds = append(kinds, nebdfake.Fail)
			}
			return nebdfake.Fault{Kind: kinds[rand.IntN(len(kinds))], Bytes: rand.IntN(5000)}
		})
	}
	if *snapshots != "" {
		l, err := net.Listen("tcp", *snapshots)
		if err != nil {
			return err
		}
		defer l.Close()
		go func() { _ = http.Serve(l, nebdfake.NewSnapshotService(s, pool)) }()
	}
	if err := s.Start(*listen); err != nil {
		return err
	}
	defer s.Stop()
	fmt.Println("ready")
	for sig := range signals {
		switch sig {
		case syscall.SIGUSR1:
			s.Stop()
		case syscall.SIGUSR2:
			if err := s.Start(*listen); err != nil {
				return err
			}
		default:
			return s.Check()
		}
	}
	return nil
}

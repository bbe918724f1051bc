//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"blockgate/test/bench/limit"
)

// target is a server that can be measured.
type target struct {
	Name  string
	About string
	needs []string // commands
	asked bool     // only if it is asked for by name
	start func(ctx context.Context, r *rig, s *server) error
	load  func(r *rig, s *server, w workload, d time.Duration) []string // the client's command line
}

func (t target) name() string    { return t.Name }
func (t target) byDefault() bool { return !t.asked }

var targets = []target{
	{Name: tgtdRdwr, About: "tgtd, --bstype rdwr", needs: []string{"tgtd", "tgtadm"}, start: startTgtd("rdwr"), load: iscsiLoad},
	{Name: tgtdAio, About: "tgtd, --bstype aio", needs: []string{"tgtd", "tgtadm"}, start: startTgtd("aio"), load: iscsiLoad},
	{Name: istgt, About: "istgt", needs: []string{"istgt"}, start: startIstgt, load: iscsiLoad},
	{Name: ourFile, About: "blockgate serve, the same file", start: startBlockgate(ourFile), load: iscsiLoad},
	{Name: ourRAM, About: "blockgate serve, a RAM store", start: startBlockgate(ourRAM), load: iscsiLoad},
	{Name: ourBeside, About: "blockgate, a RAM store, while four reads at a time wait a millisecond each in a second unit of the session", asked: true, start: startBeside, load: besideLoad},
	{Name: otherFile, About: "the binary of -other, the same file", asked: true, start: startBlockgate(otherFile), load: iscsiLoad},
	{Name: otherRAM, About: "the binary of -other, a RAM store", asked: true, start: startBlockgate(otherRAM), load: iscsiLoad},
	{Name: nbdOurs, About: "blockgate serve --nbd, the same file", asked: true, start: startBlockgateNBD, load: nbdLoadOf("")},
	{Name: nbdkit, About: "nbdkit file, the same file over NBD", asked: true, needs: []string{"nbdkit"}, start: startNbdkit, load: nbdLoadOf("")},
	{Name: limitFile, About: "no protocol, pread and pwrite of the same file", start: startLimit(limit.File), load: limitLoadCommand},
	{Name: limitMemory, About: "no protocol, the same file mapped", start: startLimit(limit.Memory), load: limitLoadCommand},
}

const iqnPrefix = "iqn.2026-01.io.blockgate.bench:"

func startTgtd(bstype string) func(context.Context, *rig, *server) error {
	return func(ctx context.Context, r *rig, s *server) error {
		// It ignores SIGTERM while it has targets.
		s.deaf = true
		// tgtd makes its control socket where this says, and the number after it.
		socket := filepath.Join(r.dir, s.name+".ctl")
		s.env = []string{"TGT_IPC_SOCKET=" + socket}
		control := strconv.Itoa(s.port % 32768)
		if err := s.run(ctx, "tgtd", "-f", "-C", control, "--iscsi", "portal="+s.addr()); err != nil {
			return err
		}
		iqn := iqnPrefix + s.name
		s.url = "iscsi://" + s.addr() + "/" + iqn + "/1" // LUN 0 is its controller
		for _, args := range [][]string{
			{"--op", "new", "--mode", "target", "--tid", "1", "-T", iqn},
			{"--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", r.disk, "--bstype", bstype},
			{"--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"},
		} {
			if err := s.tell(ctx, "tgtadm", append([]string{"-C", control, "--lld", "iscsi"}, args...)...); err != nil {
				return err
			}
		}
		return nil
	}
}

func startIstgt(ctx context.Context, r *rig, s *server) error {
	auth, conf := filepath.Join(r.dir, "istgt-auth.conf"), filepath.Join(r.dir, "istgt.conf")
	if err := os.WriteFile(auth, nil, 0o600); err != nil {
		return err
	}
	// The largest lengths that it takes. InitialR2T No is "not supported".
	text := fmt.Sprintf(`[Global]
NodeBase "iqn.2026-01.io.blockgate.bench"
PidFile %[1]s/istgt.pid
AuthFile %[2]s
MediaDirectory %[1]s
LogFacility "local7"
Timeout 30
NopInInterval 20
DiscoveryAuthMethod None
MaxSessions 64
MaxConnections 4
MaxR2T 32
MaxOutstandingR2T 16
DefaultTime2Wait 2
DefaultTime2Retain 60
FirstBurstLength 262144
MaxBurstLength 1048576
MaxRecvDataSegmentLength 262144
InitialR2T Yes
ImmediateData Yes
DataPDUInOrder Yes
DataSequenceInOrder Yes
ErrorRecoveryLevel 0
[UnitControl]
AuthMethod None
Portal UC1 127.0.0.1:%[3]d
Netmask 127.0.0.1
[PortalGroup1]
Portal DA1 %[4]s
[InitiatorGroup1]
InitiatorName "ALL"
Netmask 127.0.0.0/8
[LogicalUnit1]
TargetName %[5]s
Mapping PortalGroup1 InitiatorGroup1
AuthMethod None
UseDigest Auto
UnitType Disk
QueueDepth 64
LUN0 Storage %[6]s %[7]dMB
`, r.dir, auth, s.port+100, s.addr(), s.name, r.disk, r.size>>20)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	s.url = "iscsi://" + s.addr() + "/" + iqnPrefix + s.name + "/0"
	return s.run(ctx, "istgt", "-D", "-c", conf, "-p", filepath.Join(r.dir, "istgt.pid"))
}

func startBlockgate(name string) func(context.Context, *rig, *server) error {
	return func(ctx context.Context, r *rig, s *server) error {
		binary, store := r.binary, r.disk
		if name == otherFile || name == otherRAM {
			if binary, store = r.other, r.otherDisk(); binary == "" {
				return errors.New("-other names its binary")
			}
		}
		ram := name == ourRAM || name == otherRAM
		if ram {
			store = fmt.Sprintf("ram:%dM", r.size>>20)
		}
		iqn := iqnPrefix + s.name
		s.url = "iscsi://" + s.addr() + "/" + iqn + "/0"
		if err := s.run(ctx, binary, "serve", store, "--listen", s.addr(), "--name", iqn, "--socket", filepath.Join(r.dir, s.name+".sock")); err != nil {
			return err
		}
		if ram {
			return r.fill(ctx, s)
		}
		return nil
	}
}

// startBeside exports the RAM store as LUN 0 and a store that takes a
// millisecond as LUN 1.
func startBeside(ctx context.Context, r *rig, s *server) error {
	socket := filepath.Join(r.dir, s.name+".sock")
	if err := s.runUntil(ctx, "unix", socket, r.binary, "daemon", "--state", filepath.Join(r.dir, s.name), "--socket", socket); err != nil {
		return err
	}
	iqn := iqnPrefix + s.name
	s.url = "iscsi://" + s.addr() + "/" + iqn + "/0"
	for _, args := range [][]string{
		{"volume", "create", "fast", fmt.Sprintf("ram:%dM", r.size>>20)},
		{"volume", "create", "slow", "null:1T", "--layer", "delay,read=1ms"},
		{"target", "create", iqn, "--volume", "fast", "--volume", "slow", "--allow", "all"},
		{"portal", "add", s.addr()},
	} {
		if err := s.tell(ctx, r.binary, append([]string{"--socket", socket}, args...)...); err != nil {
			return err
		}
	}
	return r.fill(ctx, s)
}

func besideLoad(r *rig, s *server, w workload, d time.Duration) []string {
	command := iscsiLoad(r, s, w, d)
	url := len(command) - 1
	return append(command[:url:url], "--beside", "1", command[url])
}

// fill writes every block of a RAM store: memory that was never written is not
// there yet, and reading it measures something else.
func (r *rig) fill(ctx context.Context, s *server) error {
	const block = 1 << 20
	w := workload{Write: true, Sequential: true, BlockSize: block, Depth: 8, Sessions: 1}
	for d := 2 * time.Second; d < 5*time.Minute; d *= 2 {
		c, err := r.client(ctx, s, iscsiLoad(r, s, w, d), d)
		if err != nil {
			return fmt.Errorf("filling it: %w", err)
		}
		if c.All.Count >= r.size/block {
			return nil
		}
	}
	return errors.New("filling it takes too long")
}

func iscsiLoad(r *rig, s *server, w workload, d time.Duration) []string {
	args := []string{r.binary, "-o", "json", "bench", "--pattern", "rand", "--block-size", strconv.Itoa(w.BlockSize),
		"--depth", strconv.Itoa(w.Depth), "--sessions", strconv.Itoa(w.Sessions), "--duration", d.String()}
	if w.Sequential {
		args[5] = "seq"
	}
	if w.Write {
		args = append(args, "--write-percent", "100", "--allow-write")
	}
	if w.Each > 1 {
		args = append(args, "--connections", strconv.Itoa(w.Each))
	}
	if w.Unbatched {
		args = append(args, "--unbatched")
	}
	if w.Digests {
		args = append(args, "--digests")
	}
	return append(args, s.url)
}

func startLimit(way string) func(context.Context, *rig, *server) error {
	return func(ctx context.Context, r *rig, s *server) error {
		return s.run(ctx, r.self, "limit-server", s.addr(), way, r.disk)
	}
}

func limitLoadCommand(r *rig, s *server, w workload, d time.Duration) []string {
	return []string{r.self, "limit-load", fmt.Sprintf("-write=%t", w.Write), fmt.Sprintf("-sequential=%t", w.Sequential),
		fmt.Sprintf("-block-size=%d", w.BlockSize), fmt.Sprintf("-depth=%d", w.Depth/max(w.Each, 1)), fmt.Sprintf("-connections=%d", w.Sessions*max(w.Each, 1)),
		fmt.Sprintf("-duration=%v", d), fmt.Sprintf("-size=%d", r.size), s.addr()}
}

// limitServer is the process of a limit-* target: ADDRESS WAY FILE.
func limitServer(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("limit-server wants ADDRESS, memory or file, and FILE")
	}
	addr, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	s, err := limit.Listen(addr, args[1], args[2])
	if err != nil {
		return err
	}
	return s.Serve(ctx)
}

// limitLoad is the process that puts load on it.
func limitLoad(ctx context.Context, args []string) error {
	var o limit.Options
	f := flag.NewFlagSet("limit-load", flag.ContinueOnError)
	f.BoolVar(&o.Write, "write", false, "")
	f.BoolVar(&o.Sequential, "sequential", false, "")
	f.IntVar(&o.BlockSize, "block-size", 4096, "bytes")
	f.IntVar(&o.Depth, "depth", 1, "of a connection")
	f.IntVar(&o.Connections, "connections", 1, "")
	f.DurationVar(&o.Duration, "duration", time.Second, "")
	f.Int64Var(&o.Size, "size", 0, "bytes of the disk")
	if err := f.Parse(args); err != nil {
		return err
	}
	addr, err := netip.ParseAddrPort(f.Arg(0))
	if err != nil {
		return err
	}
	r, err := limit.Load(ctx, addr, o)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

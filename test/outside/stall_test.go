package outside

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"syscall"
	"testing"
	"time"

	v1 "blockgate/internal/api/v1"
	"blockgate/iscsi"
	"blockgate/iscsi/initiator"
	"blockgate/scsi"
)

// stalled is a target with a disk at LUN 0 whose store keeps what where names, and a
// sound disk at LUN 1.
type stalled struct {
	*gatewayd
	iqn, url string
}

func newStalled(t *testing.T, policy, where string) *stalled {
	s := &stalled{gatewayd: newDaemon(t), iqn: "iqn.2025-01.io.blockgate.test:stall"}
	s.start(t, "--listen", "127.0.0.1:0")
	s.cli(t, "volume", "create", "hung", "ram:512M", "--stall", policy, "--layer", "fault,rule=op=read+write "+where+" action=stick")
	s.cli(t, "volume", "create", "sound", "ram:64M")
	s.cli(t, "target", "create", s.iqn, "--volume", "hung", "--allow", "all")
	s.cli(t, "lun", "add", s.iqn, "sound")
	s.url = fmt.Sprintf("iscsi://%s/%s/", s.portal(t), s.iqn)
	return s
}

// state is what the volume at LUN 0 is said to be.
func (s *stalled) state(t *testing.T) v1.VolumeStatus {
	t.Helper()
	v, err := s.api.Volume(context.Background(), "hung")
	if err != nil {
		t.Fatal(err)
	}
	return v.Status
}

// wire is one connection, spoken by hand.
type wire struct {
	*initiator.Raw
	t   *testing.T
	itt uint32
}

func (s *stalled) wire(t *testing.T) *wire {
	t.Helper()
	cfg := initiator.Config{Addrs: []string{s.portal(t)}, TargetName: s.iqn, LoginTimeout: 20 * time.Second}
	raw, err := cfg.DialRaw(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	w := &wire{Raw: raw, t: t}
	for lun := range uint64(2) { // the attention of a new nexus
		w.send(lun, make([]byte, 6), 0, 0x81, nil)
		w.recv(10 * time.Second)
	}
	return w
}

// send sends a command and gives its tag.
func (w *wire) send(lun uint64, cdb []byte, edtl int, flags byte, data []byte) uint32 {
	w.t.Helper()
	w.itt++
	h := new(iscsi.BHS)
	h.SetOpcode(iscsi.OpSCSICmd, false)
	h.SetFlags(flags)
	h.SetLUN(lun << 48)
	h.SetITT(w.itt)
	h.SetEDTL(uint32(edtl))
	h.SetCmdSN(w.CmdSN)
	h.SetExpStatSN(w.ExpStatSN)
	copy(h.CDB(), cdb)
	w.CmdSN++
	w.SetDeadline(time.Now().Add(20 * time.Second))
	if err := w.Send(h, nil, data); err != nil {
		w.t.Fatal(err)
	}
	return w.itt
}

func rw10(op byte, lba uint32, n int) []byte {
	cdb := make([]byte, 10)
	cdb[0] = op
	binary.BigEndian.PutUint32(cdb[2:], lba)
	binary.BigEndian.PutUint16(cdb[7:], uint16(n/512))
	return cdb
}

func (w *wire) read(lun uint64, lba uint32) uint32 {
	return w.send(lun, rw10(0x28, lba, 4096), 4096, 0xc1, nil)
}

func (w *wire) write(lun uint64, lba uint32, data []byte) uint32 {
	return w.send(lun, rw10(0x2a, lba, len(data)), len(data), 0xa1, data)
}

// recv takes the next PDU, nil if there is none in time.
func (w *wire) recv(limit time.Duration) *initiator.PDU {
	w.t.Helper()
	w.SetDeadline(time.Now().Add(limit))
	for {
		p, err := w.Recv()
		if err != nil {
			return nil
		}
		if p.Opcode() != iscsi.OpNopIn {
			return p
		}
	}
}

// answer is the outcome of the command with the tag, which must be the next.
func (w *wire) answer(itt uint32, limit time.Duration) string {
	w.t.Helper()
	p := w.recv(limit)
	switch {
	case p == nil:
		return "nothing"
	case p.ITT() != itt:
		return fmt.Sprintf("answer to task %d, not %d", p.ITT(), itt)
	case scsi.Status(p.Status()) == scsi.Good:
		return "good"
	case scsi.Status(p.Status()) == scsi.Busy:
		return "busy"
	case len(p.Data) >= 16:
		return fmt.Sprintf("%x/%02x/%02x", p.Data[4]&15, p.Data[14], p.Data[15])
	}
	return fmt.Sprintf("status %02x", p.Status())
}

func (w *wire) expect(what, got, want string) {
	w.t.Helper()
	if got != want {
		w.t.Errorf("%s: %s, want %s", what, got, want)
	}
}

// manage sends a task management function for LUN 0 and wants it done in time.
func (w *wire) manage(fn scsi.TMF, ref uint32) {
	w.t.Helper()
	h := new(iscsi.BHS)
	h.SetOpcode(iscsi.OpTaskReq, true)
	h.SetFlags(iscsi.FlagFinal | byte(fn))
	h.SetITT(0xabcd)
	h.SetRefTag(ref)
	h.SetCmdSN(w.CmdSN)
	h.SetExpStatSN(w.ExpStatSN)
	if err := w.Send(h, nil, nil); err != nil {
		w.t.Fatal(err)
	}
	if p := w.recv(8 * time.Second); p == nil || p.ITT() != 0xabcd || p.Response() != 0 {
		w.t.Errorf("task management function %d: %v", fn, p)
	}
}

// neighbour wants the disk beside to work as if nothing were wrong, on the same
// connection.
func (w *wire) neighbour() {
	w.t.Helper()
	data := bytes.Repeat([]byte{0x5a}, 4096)
	w.expect("a write to the neighbour", w.answer(w.write(1, 8, data), 2*time.Second), "good")
	w.read(1, 8)
	if p := w.recv(2 * time.Second); p == nil || !bytes.Equal(p.Data, data) {
		w.t.Error("the neighbour has not what was written")
	}
}

// A disk that holds says nothing, however long; what ends a command is its
// initiator. Aborts, resets, logouts and the end of a connection do not wait for
// the store.
func TestStallHold(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newStalled(t, "hold", "range=0+64K")
	w := s.wire(t)
	itt := w.read(0, 0)
	w.expect("a command of a disk that holds", w.answer(itt, 3*time.Second), "nothing")
	w.neighbour()
	w.expect("elsewhere on the same disk", w.answer(w.read(0, 1024), 2*time.Second), "good")
	w.manage(scsi.AbortTask, itt)
	w.write(0, 0, make([]byte, 4096))
	w.manage(scsi.LUNReset, iscsi.ReservedTag)
	w.expect("", w.answer(w.send(0, make([]byte, 6), 0, 0x81, nil), 2*time.Second), "6/29/03")
	w.expect("after the reset", w.answer(w.read(0, 1024), 2*time.Second), "good")
	w.read(0, 0)
	w.Close()
	other := s.wire(t)
	other.neighbour()
	p := spawn(t, nil, "qemu-io", "-f", "raw", "-r", "-c", "read 0 4k", s.url+"0")
	<-time.After(3 * time.Second)
	if !p.alive() {
		t.Errorf("qemu-io ended: %s", p.err.String())
	}
	p.kill()
	s.stop(t)
}

// A disk that fails answers in time, and at once while the store lets nothing go.
func TestStallFail(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newStalled(t, "fail=2s", "")
	w := s.wire(t)
	began := time.Now()
	r, wr := w.read(0, 0), w.write(0, 8, make([]byte, 4096))
	w.neighbour()
	w.expect("a read", w.answer(r, 5*time.Second), "b/08/01")
	w.expect("a write", w.answer(wr, 5*time.Second), "b/08/01")
	took := time.Since(began)
	if took < 2*time.Second || took > 6*time.Second {
		t.Errorf("answered after %v", took)
	}
	figure(t, "fail=2s: answered after %v", took.Round(10*time.Millisecond))
	if st := s.state(t); st.State != v1.Stalled || st.Health == nil || st.Health.Inside != 2 || st.Health.Reason == "" {
		t.Errorf("state %+v", st)
	}
	w.neighbour()
	w.expect("TEST UNIT READY", w.answer(w.send(0, make([]byte, 6), 0, 0x81, nil), 2*time.Second), "2/04/00")
	began = time.Now()
	for range 100 {
		w.expect("elsewhere on the disk", w.answer(w.read(0, 1024), 6*time.Second), "b/08/01")
	}
	if took := time.Since(began); took > 1900*time.Millisecond {
		t.Errorf("while the store is known to hang, 100 answers take %v", took)
	}

	// A flood of writes as large as they may be.
	before := rss(t, s.pid())
	data := make([]byte, 64<<10)
	for range 4000 {
		if got := w.answer(w.write(0, 0, data), 8*time.Second); got != "b/08/01" {
			t.Fatalf("in a flood of writes: %s", got)
		}
	}
	grown := rss(t, s.pid()) - before
	figure(t, "4000 writes of 64 KiB to a store that hangs: %d MiB more resident", grown>>20)
	if grown > 64<<20 {
		t.Errorf("they took %d MiB", grown>>20)
	}
	w.neighbour()
	w.manage(scsi.LUNReset, iscsi.ReservedTag)

	began = time.Now()
	q := run(t, 30*time.Second, "qemu-io", "-f", "raw", "-r", "-c", "read 0 4k", s.url+"0")
	if q.code == 0 && !bytes.Contains([]byte(q.both()), []byte("rror")) {
		t.Errorf("qemu-io could read: %s", q.both())
	}
	figure(t, "qemu-io of a disk that fails: %v, %q", time.Since(began).Round(10*time.Millisecond), tail(q.both(), 1))
	s.stop(t)
}

// A disk that is busy says so to new commands; those inside wait.
func TestStallBusy(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newStalled(t, "busy=4s", "")
	w := s.wire(t)
	itt := w.read(0, 0)
	eventually(t, 20*time.Second, "the store is known to hang", func() bool { return s.state(t).State == v1.Stalled })
	w.expect("new", w.answer(w.read(0, 1024), 2*time.Second), "busy")
	w.expect("new write", w.answer(w.write(0, 1024, make([]byte, 512)), 2*time.Second), "busy")
	w.expect("TEST UNIT READY", w.answer(w.send(0, make([]byte, 6), 0, 0x81, nil), 2*time.Second), "good")
	w.neighbour()
	// The policy changes while commands wait: what is inside gets its answer.
	s.cli(t, "volume", "set", "hung", "--stall", "fail=500ms")
	w.expect("what is inside, by the new policy", w.answer(itt, 8*time.Second), "b/08/01")
	p := spawn(t, nil, "qemu-io", "-f", "raw", "-r", "-c", "read 1M 4k", s.url+"0")
	p.ended(t, 20*time.Second)
	s.cli(t, "volume", "set", "hung", "--stall", "busy=500ms")
	q := spawn(t, nil, "qemu-io", "-f", "raw", "-r", "-c", "read 1M 4k", s.url+"0")
	<-time.After(3 * time.Second)
	if !q.alive() {
		t.Errorf("qemu-io did not try again: %s", q.err.String())
	}
	q.kill()
	s.cli(t, "volume", "set", "hung", "--stall", "hold")
	w.expect("held again", w.answer(w.read(0, 1024), 2*time.Second), "nothing")
	s.stop(t)
}

// stop ends the daemon, which must not wait for the store.
func (s *stalled) stop(t *testing.T) {
	t.Helper()
	syscall.Kill(s.pid(), syscall.SIGTERM)
	s.ended(t, 25*time.Second)
}

// What Linux makes of each policy, with its times cut short.
func TestGuestStall(t *testing.T) {
	needsAll(t)
	h := newGuestHost(t)
	for lun, d := range []struct{ policy, bad string }{
		{"hold", "32M+64K"},
		{"fail=5s", "1M+62M"}, // all but where the kernel looks for partitions
		{"busy=10s", "32M+64K"},
	} {
		name := fmt.Sprint("v", lun)
		h.cli(t, "volume", "create", name, "ram:64M", "--stall", d.policy, "--layer", "fault,rule=op=read range="+d.bad+" action=stick")
		h.cli(t, "lun", "add", guestIQN, name, "--number", fmt.Sprint(lun))
	}
	h.disk(t, "sound", 3, 64<<20)
	guestWith(t, h.work, 8*time.Minute, []string{"stall.sh"}, h.vars(t))
}

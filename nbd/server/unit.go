package server

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net"
	"sync"
	"sync/atomic"

	"blockgate/nbd"
	"blockgate/scsi"
)

// UnitExport is a logical unit as an export. Each connection is an I_T nexus of
// its own: reservations, write protection, access states, range locks and resets
// count for it as they do for every initiator. Since NBD knows no way to register
// or reserve, an NBD client never holds a reservation.
type UnitExport struct {
	Name, Description string
	// Device is a device that has the unit at LUN 0.
	Device *scsi.Device
	// Port is the target port that the connections come in by.
	Port scsi.TargetPort
	// ReadOnly refuses writes of clients, whatever the unit allows.
	ReadOnly bool
	// FastZeroes says that the store zeroes without writing, so that WRITE_ZEROES
	// with FAST_ZERO may be done.
	FastZeroes bool
}

var _ Export = (*UnitExport)(nil)

func (e *UnitExport) unit() *scsi.Unit { return e.Device.Units()[0] }

// Info implements Export. Without a unit it is an export of no bytes.
func (e *UnitExport) Info() Info {
	i := Info{Name: e.Name, Description: e.Description, BlockSize: nbd.DefaultBlockSize(), Allocation: true,
		Flags: nbd.SendFlush | nbd.SendFUA | nbd.SendCache | nbd.CanMultiConn}
	u := e.unit()
	if u == nil {
		return i
	}
	i.Allocation = u.TellsMapped()
	c := u.Config()
	bs := uint32(u.BlockSize())
	i.Size = u.Blocks() * uint64(bs)
	i.BlockSize.Min = bs
	i.BlockSize.Preferred = min(max(bs, nbd.DefaultPreferredBlock, uint32(u.PhysicalBlockSize())), nbd.DefaultMaxPayload)
	if u.Rotational() {
		i.Flags |= nbd.Rotational
	}
	switch {
	case e.ReadOnly || c.ReadOnly || u.SoftwareWriteProtected() || c.Type != scsi.TypeDirectAccess:
		i.Flags |= nbd.ReadOnly
	default:
		i.Flags |= nbd.SendWriteZeroes | nbd.SendFastZero
		if u.Limits().Unmap > 0 {
			i.Flags |= nbd.SendTrim
		}
	}
	return i
}

var nexuses atomic.Uint64

// Open implements Export.
func (e *UnitExport) Open(c *Client) (Session, error) {
	u := e.unit()
	if u == nil {
		return nil, &Refusal{nbd.RepErrUnknown, fmt.Sprintf("export %q has no volume now", e.Name)}
	}
	host, name := hostOf(c)
	s := &unitSession{export: e, shift: uint8(bits.TrailingZeros(uint(u.BlockSize())))}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.unit.Store(u)
	var isid [6]byte
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], nexuses.Add(1))
	copy(isid[:], n[2:])
	s.nexus = e.Device.Attach(scsi.NexusConfig{
		Initiator: scsi.InitiatorPort{Name: name, ISID: isid}, Port: e.Port, Host: host,
	})
	return s, nil
}

// hostOf is where a client comes from and the name of its initiator port: who it
// has proved to be, or else again where it comes from.
func hostOf(c *Client) (host, name string) {
	host = c.From()
	if t, ok := c.Remote.(*net.TCPAddr); ok {
		host = t.AddrPort().Addr().Unmap().String()
	}
	name = "nbd:" + host
	if c.Identity != nil && len(c.Identity.Names) > 0 {
		host += " authenticated"
		name = "nbd:" + c.Identity.Names[0]
	}
	return host, name
}

// unitSession is one connection's nexus.
type unitSession struct {
	export *UnitExport
	nexus  *scsi.Nexus
	shift  uint8 // of the block size that the client was told: 1<<shift bytes
	unit   atomic.Pointer[scsi.Unit]
	ctx    context.Context
	cancel context.CancelFunc
	batch  scsi.Batch // of the goroutine that calls Submit

	mu     sync.Mutex // Admit is called by one goroutine at a time
	closed bool
}

var _ Beginner = (*unitSession)(nil)

// Begin implements Beginner.
func (s *unitSession) Begin() { s.batch.Start() }

// Size implements Session.
func (s *unitSession) Size() uint64 {
	u := s.unit.Load()
	return u.Blocks() * uint64(u.BlockSize())
}

// Submit implements Session. What is one command runs as far as it goes here;
// what takes several gets a goroutine.
func (s *unitSession) Submit(r *Request) {
	t, _ := r.State.(*unitTask)
	if t == nil {
		t = &unitTask{s: s}
		r.State = t
	}
	t.r = r
	if r.Type == nbd.CmdBlockStatus && !s.unit.Load().TellsMapped() {
		// The client was told of another unit, or of none yet. That all is data is
		// always a true answer.
		r.Extents = append(r.Extents, nbd.Extent{Length: r.Length})
		r.Done(nbd.None, "")
		return
	}
	if n := t.build(0); n < r.Length || t.extra() {
		go t.slow(outcome{})
		return
	}
	t.loans = nil
	if r.Type == nbd.CmdRead {
		if l := r.MayLend(); l != nil {
			t.loans = l
		}
	}
	if !t.start() {
		t.done()
	}
}

// EndLoan implements Session.
func (s *unitSession) EndLoan(r *Request, keep bool) error {
	t := r.State.(*unitTask)
	if !keep {
		t.task.In = nil
	}
	err := t.task.Own()
	r.In = t.task.In
	return err
}

// CopyLent implements Session.
func (s *unitSession) CopyLent(r *Request, dst, v []byte) error {
	return r.State.(*unitTask).task.CopyLent(dst, v)
}

// Distrust implements Session.
func (s *unitSession) Distrust(r *Request) { r.State.(*unitTask).task.Distrust() }

// Release implements Session.
func (s *unitSession) Release(r *Request) {
	if t, ok := r.State.(*unitTask); ok {
		t.task.Reset()
		t.used = false
		t.dropJoined()
	}
}

// Close implements Session.
func (s *unitSession) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.nexus.Detach(nil)
}

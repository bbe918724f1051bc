package scsi

import (
	"cmp"
	"slices"
	"sync/atomic"

	"blockgate/scsi/pr"
)

// InitiatorPort is a SCSI initiator port: an iSCSI name and ISID (RFC 7143 §3.4.1).
type InitiatorPort struct {
	Name string
	ISID [6]byte
}

// TargetPort is the SCSI target port a nexus came in by.
type TargetPort struct {
	Name  string // the target's iSCSI name
	RelID uint16 // relative target port identifier, 1 to 65535
	Group uint16 // target port group (ALUA)
}

// NexusConfig is what an I_T nexus is made of.
type NexusConfig struct {
	Initiator InitiatorPort
	Port      TargetPort
	// Host is what the fabric knows of who is behind the initiator port besides
	// the name it gave itself: its address, how it has proved itself. A host may
	// copy from and to a unit that it sees by another device if Host is the same
	// there; a name alone, which one device takes on trust, opens no other's
	// units.
	Host string
	// LUNs, if not nil, tells which LUNs the nexus sees. It is asked when the
	// nexus is attached and when the unit at a LUN changes; it must not call
	// the Device.
	LUNs func(lun uint64) bool
}

// Nexus is an I_T nexus: one initiator port's relation to the device through one
// target port (SAM-5 §4.6.4). An iSCSI session has one.
//
// Admit is called by one goroutine at a time; everything else is safe for
// concurrent use.
type Nexus struct {
	dev    *Device
	cfg    NexusConfig
	luns   atomic.Pointer[lunMap]
	absent *itl
	wlun   *itl

	// left are units that were taken away while tasks of this nexus ran on them;
	// under the device's mutex.
	left []*itl
}

// itl is the state of one I_T_L nexus.
type itl struct {
	nexus *Nexus
	unit  *Unit
	lun   uint64
	port  pr.Nexus // the nexus as persistent reservations know it
	attn  attentions
	// access is the AccessState of the port group.
	access atomic.Uint32

	// Under the unit's mutex.
	prevent bool // medium removal is prevented by this nexus
	media   byte // media event that GET EVENT STATUS NOTIFICATION has to report
	gone    bool // the nexus or the LUN went away: no new tasks
	ntasks  int  // in the unit's task set
	stats   NexusStats
	copies  []*copyRecord // third-party copies that came by this nexus, oldest first
}

// NexusStats counts what an I_T nexus did with one unit. Commands that the unit
// refused at once, and those that were aborted, are among Commands and by their
// kind among In and Out.
type NexusStats struct {
	LUN      uint64
	Commands uint64
	In, Out  TransferStats // commands whose data goes to the initiator, or comes from it
	Errors   uint64        // commands that ended with CHECK CONDITION
}

// TransferStats counts commands of one direction, whatever they do, and their data
// in bytes: what was transferred or, of a command that ended with CHECK CONDITION,
// what the initiator expected, as tgt has it.
type TransferStats struct{ Commands, Bytes uint64 }

// Attach adds an I_T nexus. Every unit it sees has POWER ON OCCURRED pending for it.
func (d *Device) Attach(cfg NexusConfig) *Nexus {
	n := &Nexus{dev: d, cfg: cfg}
	n.absent = &itl{nexus: n, unit: d.absent}
	n.wlun = &itl{nexus: n, unit: d.wlun}
	d.mu.Lock()
	defer d.mu.Unlock()
	m := &lunMap{}
	for lun, u := range d.units {
		if cfg.LUNs != nil && !cfg.LUNs(lun) {
			continue
		}
		i := u.join(n, lun)
		if lun < 256 {
			if len(m.low) <= int(lun) {
				m.low = append(m.low, make([]*itl, int(lun)+1-len(m.low))...)
			}
			m.low[lun] = i
			continue
		}
		if m.high == nil {
			m.high = make(map[uint64]*itl)
		}
		m.high[lun] = i
	}
	n.luns.Store(m)
	d.nexuses[n] = struct{}{}
	return n
}

// Initiator is the initiator port of the nexus.
func (n *Nexus) Initiator() InitiatorPort { return n.cfg.Initiator }

// Port is the target port of the nexus.
func (n *Nexus) Port() TargetPort { return n.cfg.Port }

// Stats tells what the nexus did with each unit that it sees, by LUN.
func (n *Nexus) Stats() []NexusStats {
	var all []NexusStats
	n.luns.Load().all(func(i *itl) {
		i.unit.mu.Lock()
		s := i.stats
		i.unit.mu.Unlock()
		s.LUN = i.lun
		all = append(all, s)
	})
	slices.SortFunc(all, func(a, b NexusStats) int { return cmp.Compare(a.LUN, b.LUN) })
	return all
}

// count adds a finished task to the counters; the unit's mutex is held.
func (s *NexusStats) count(t *Task) {
	s.Commands++
	in, out := int64(len(t.In)), int64(len(t.Out))
	if t.answered() || t.Status == CheckCondition {
		s.Errors++
		in, out = t.MaxIn, t.MaxOut
	}
	if t.MaxIn > 0 {
		s.In.Commands++
		s.In.Bytes += uint64(in)
	}
	if t.MaxOut > 0 {
		s.Out.Commands++
		s.Out.Bytes += uint64(out)
	}
}

func (n *Nexus) prNexus() pr.Nexus {
	return pr.Nexus{
		Initiator: pr.Port{Name: n.cfg.Initiator.Name, ISID: n.cfg.Initiator.ISID, HasISID: true},
		RelPort:   n.cfg.Port.RelID,
	}
}

// find looks a LUN field up; never nil.
func (n *Nexus) find(field uint64) *itl {
	if lun, ok := ParseLUN(field); ok {
		if i := n.luns.Load().find(lun); i != nil {
			return i
		}
	} else if field == lunReportLUNs {
		return n.wlun
	}
	return n.absent
}

// updateLocked follows a change of one LUN; the device's mutex is held.
func (n *Nexus) updateLocked(lun uint64, u *Unit) {
	m := n.luns.Load()
	old := m.find(lun)
	var i *itl
	if u != nil {
		i = u.join(n, lun)
	}
	m = m.with(lun, i)
	n.luns.Store(m)
	if old != nil {
		old.unit.leave(old)
		n.left = append(slices.DeleteFunc(n.left, func(i *itl) bool { return !i.unit.holds(i) }), old)
	}
	m.all(func(i *itl) { i.attn.raise(attnReportedLUNs) })
}

func (n *Nexus) clearReportedLUNs() {
	n.luns.Load().all(func(i *itl) { i.attn.clear(attnReportedLUNs) })
}

// Detach ends the nexus (I_T nexus loss, SAM-5 §6.3.4): its tasks are aborted,
// its RESERVE(6/10) and PREVENT are released; persistent registrations stay.
// TaskDone comes for every task, with Aborted, when the store has let go of it;
// tasks still waiting for Run end when the transport calls Run or Abandon. done,
// if not nil, is called once, from any goroutine, after the last TaskDone of a
// task that had been Run. No task may be admitted any more. Detaching twice
// calls done at once.
func (n *Nexus) Detach(done func()) {
	if done == nil {
		done = func() {}
	}
	d := n.dev
	d.mu.Lock()
	_, attached := d.nexuses[n]
	delete(d.nexuses, n)
	m := n.luns.Swap(&lunMap{})
	left := n.left
	n.left = nil
	d.mu.Unlock()
	if !attached {
		done()
		return
	}
	op := newManagement(func(TMFResult) { done() })
	abort := func(i *itl) {
		i.unit.leave(i)
		i.unit.abort(op, func(t *Task) bool { return t.Nexus == n }, nil)
	}
	m.all(abort)
	for _, i := range left {
		abort(i)
	}
	abort(n.absent)
	abort(n.wlun)
	op.release()
}

// join makes the I_T_L nexus and makes it known to the unit.
func (u *Unit) join(n *Nexus, lun uint64) *itl {
	i := &itl{nexus: n, unit: u, lun: lun, port: n.prNexus()}
	i.attn.raise(attnPowerOn)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.itls == nil {
		u.itls = make(map[*itl]struct{})
	}
	u.itls[i] = struct{}{}
	u.takeAccessLocked(i)
	return i
}

// leave forgets the I_T_L nexus and what it held.
func (u *Unit) leave(i *itl) {
	u.mu.Lock()
	defer u.mu.Unlock()
	i.gone = true
	delete(u.itls, i)
	i.prevent = false
	u.reserve6.CompareAndSwap(i, nil)
}

// holds reports whether a task of the I_T_L nexus is in the task set.
func (u *Unit) holds(i *itl) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for t := u.head; t != nil; t = t.set.next {
		if t.itl == i {
			return true
		}
	}
	return false
}

// raise establishes an attention for every nexus of the unit except one (or nil).
func (u *Unit) raise(a attention, except *itl) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.raiseLocked(a, except)
}

func (u *Unit) raiseLocked(a attention, except *itl) {
	for i := range u.itls {
		if i != except {
			i.attn.raise(a)
		}
	}
}

package iscsi

import "blockgate/scsi"

// abandonAll ends the commands of a dead connection. nexusGone: its nexus has
// been detached, which aborts what runs. A command that scsiCommand is still busy
// with sees by itself that the connection is closed.
func (c *TargetConn) abandonAll(nexusGone bool) {
	c.mu.Lock()
	cmds := make([]*command, 0, len(c.tasks))
	for _, cmd := range c.tasks {
		cmd.pins++
		cmds = append(cmds, cmd)
	}
	c.mu.Unlock()
	for _, cmd := range cmds {
		c.abandon(cmd, nexusGone)
		c.unpin(cmd)
	}
	// What a store still holds is over for the initiator: with its connection the
	// places in the command window come back.
	c.forgetAborted()
}

func (c *TargetConn) abandon(cmd *command, nexusGone bool) {
	c.mu.Lock()
	cmd.later = false // there is nobody to answer
	collects, runs := cmd.phase == gathering, cmd.phase == running && !cmd.gone
	if collects {
		cmd.phase = running
	}
	if cmd.undelivered() && c.forget(cmd) && cmd.numbered {
		c.sess.answered()
	}
	c.mu.Unlock()
	switch {
	case collects:
		cmd.task.Abandon(nil)
	case runs && !nexusGone:
		c.sess.nexus.Manage(scsi.AbortTask, cmd.lun, c.tag(cmd.itt), func(scsi.TMFResult) {})
	}
}

// silent: the task was aborted, and the initiator expects no answer. Caller holds
// mu.
func (cmd *command) silent() bool { return !cmd.later && cmd.task.Aborted() }

// forget takes an aborted command out of the table; it reports whether it was
// still there. Caller holds mu.
func (c *TargetConn) forget(cmd *command) bool {
	first := !cmd.gone
	cmd.gone = true
	if c.tasks[cmd.itt] == cmd {
		delete(c.tasks, cmd.itt)
	}
	return first
}

// undelivered: the task is over, but its response waits for the end of
// unsolicited data. Caller holds mu.
func (cmd *command) undelivered() bool { return cmd.phase == finished && cmd.unsol && !cmd.gone }

// forgetUndelivered ends commands of which only a held-back response is left;
// the device server does not know them any more. It returns how many there were.
func (c *TargetConn) forgetUndelivered(match func(*command) bool) int {
	var free []*command
	n := 0
	c.mu.Lock()
	for _, cmd := range c.tasks {
		if !cmd.undelivered() || cmd.later || !match(cmd) {
			continue
		}
		c.forget(cmd)
		if cmd.numbered {
			c.sess.answered()
		}
		n++
		if cmd.free() {
			free = append(free, cmd)
		}
	}
	c.mu.Unlock()
	for _, cmd := range free {
		c.recycle(cmd)
	}
	return n
}

// forgetAborted ends commands that task management aborted: those that still
// collect data, and, in the initiator's eyes, those that are still inside a
// store: it may use their tags and window places again.
func (c *TargetConn) forgetAborted() {
	var stop []*command
	n := 0
	c.mu.Lock()
	for _, cmd := range c.tasks {
		switch {
		case cmd.phase == gathering && cmd.task.Aborted():
			cmd.phase = running
			stop = append(stop, cmd)
		case cmd.phase == running && cmd.silent() && c.forget(cmd) && cmd.numbered:
			n++
		}
	}
	c.mu.Unlock()
	for range n {
		c.sess.answered()
	}
	for _, cmd := range stop {
		cmd.task.Abandon(nil)
	}
}

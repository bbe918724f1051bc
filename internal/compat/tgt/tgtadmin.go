package tgt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"blockgate/internal/api/client"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/compat/tgtconf"
	"blockgate/internal/state"
)

// RunTgtAdmin carries out one tgt-admin command line (without the program's
// name) and returns the exit status: 0; 1 for what is wrong with the command
// line or the file, 2 for a file that is not there; that of tgtadm where the
// daemon refuses. getenv is asked for TGT_IPC_SOCKET.
func RunTgtAdmin(args []string, stdout, stderr io.Writer, getenv func(string) string) int {
	o, end := parseTgtAdmin(args, stdout, stderr)
	if end != nil {
		return end.status
	}
	out := bufio.NewWriterSize(stdout, 64<<10)
	defer out.Flush()
	m := &manager{adminOptions: o, src: tgtconf.OS(), conf: &tgtconf.Config{ControlPort: -1}, out: out, stderr: stderr}
	if o.action == adminExecute || o.action == adminUpdate {
		if err := m.load(); err != nil {
			return m.end(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := client.New(socketPath(getenv, m.port))
	defer c.Close()
	m.ctx, m.api = ctx, c
	return m.end(m.run())
}

// manager carries out one tgt-admin command line.
type manager struct {
	*adminOptions
	conf   *tgtconf.Config
	src    tgtconf.Source
	ctx    context.Context
	api    apiClient
	out    *bufio.Writer
	stderr io.Writer

	running map[string]*v1.Target
	byID    map[int]string
	volumes map[string]*v1.Volume
	secrets map[string]string // of accounts, as far as the file has named them
	users   *openFiles
}

// ended is an end that has been said already.
type ended struct{ status int }

func (e *ended) Error() string { return fmt.Sprintf("exit status %d", e.status) }

// end gives the exit status.
func (m *manager) end(err error) int {
	if err == nil {
		return exitOK
	}
	if e, ok := errors.AsType[*ended](err); ok {
		return e.status
	}
	m.out.Flush()
	return report(m.stderr, err)
}

// say ends with a status and a line on standard output, as tgt-admin does.
func (m *manager) say(status int, format string, a ...any) error {
	fmt.Fprintf(m.out, format+"\n", a...)
	return &ended{status}
}

// show prints what is done, if that is asked for.
func (m *manager) show(lines ...string) {
	if m.verbose || m.pretend {
		for _, l := range lines {
			fmt.Fprintln(m.out, l)
		}
	}
}

// warn says what is not as the file wants it.
func (m *manager) warn(format string, a ...any) {
	m.out.Flush()
	fmt.Fprintf(m.stderr, "tgt-admin: "+format+"\n", a...)
}

// failed reports a command that the daemon has refused, in tgt-admin's way, and
// says whether that is the end.
func (m *manager) failed(command string, err error) error {
	if err == nil {
		return nil
	}
	m.out.Flush()
	status := report(m.stderr, err)
	if m.ignoreErrors || m.conf.IgnoreErrors {
		return nil
	}
	fmt.Fprintf(m.out, "Command:\n\t%s\nexited with code: %d.\n", command, status)
	return &ended{status}
}

// load reads the file.
func (m *manager) load() error {
	c, err := tgtconf.Load(m.src, m.adminOptions.conf)
	switch {
	case errors.Is(err, fs.ErrNotExist) && isMissing(m.adminOptions.conf):
		fmt.Fprintf(m.stderr, "Config file %s not found. Exiting...\n", m.adminOptions.conf)
		return &ended{2}
	case err != nil:
		fmt.Fprintf(m.stderr, "tgt-admin: %v\n", err)
		return &ended{1}
	}
	if c.ControlPort >= 0 {
		if m.port != 0 {
			return m.say(1, "The control port is given on the command line and in the file; remove one of them")
		}
		m.port = c.ControlPort
	}
	m.conf = c
	m.show(fmt.Sprintf("# Using %s as configuration file\n", m.adminOptions.conf))
	if m.verbose {
		for _, w := range c.Warnings {
			m.warn("%v", w)
		}
	}
	if c.DefaultDriver == "" {
		m.show("# default-driver not defined, defaulting to iscsi.\n")
	}
	return nil
}

func isMissing(file string) bool {
	_, err := os.Stat(file)
	return errors.Is(err, fs.ErrNotExist)
}

func (m *manager) run() error {
	switch m.action {
	case adminShow:
		a := &admin{request: &request{tid: -1}, ctx: m.ctx, api: m.api, out: m.out}
		return m.failed(m.adm()+" --op show --mode target", a.showTargets())
	}
	if err := m.look(); err != nil {
		// A stop script empties a daemon that may be gone already.
		if m.action == adminUpdate && m.value == "ALL" && len(m.conf.Targets) == 0 {
			report(m.stderr, err)
			return nil
		}
		return m.failed(m.adm()+" --op show --mode target", err)
	}
	switch m.action {
	case adminDump:
		return m.dump()
	case adminExecute:
		return m.execute()
	case adminUpdate:
		return m.update()
	case adminDelete:
		return m.delete()
	}
	return m.switchState()
}

// look asks the daemon what there is.
func (m *manager) look() error {
	targets, err := m.api.Targets(m.ctx)
	if err != nil {
		return err
	}
	volumes, err := m.api.Volumes(m.ctx)
	if err != nil {
		return err
	}
	m.running, m.byID, m.volumes = map[string]*v1.Target{}, map[int]string{}, map[string]*v1.Volume{}
	for i := range targets {
		m.running[targets[i].Name] = &targets[i]
		m.byID[targets[i].ID] = targets[i].Name
	}
	for i := range volumes {
		m.volumes[volumes[i].Name] = &volumes[i]
	}
	if m.secrets == nil {
		m.secrets, m.users = map[string]string{}, &openFiles{}
	}
	return nil
}

// names are those of the running targets, by number.
func (m *manager) names() []string {
	var out []string
	for name := range m.running {
		out = append(out, name)
	}
	slices.SortFunc(out, func(a, b string) int { return m.running[a].ID - m.running[b].ID })
	return out
}

// execute makes what is missing and removes what is too much.
func (m *manager) execute() error {
	if err := m.globals(); err != nil {
		return err
	}
	for _, t := range m.conf.Targets {
		if m.running[t.Name] != nil {
			m.show(fmt.Sprintf("# Target %s already exists!\n", t.Name))
			continue
		}
		if err := m.add(t); err != nil {
			return err
		}
	}
	if len(m.conf.Targets) == 0 {
		return nil // an empty file does not empty a daemon
	}
	for _, name := range m.names() {
		if m.conf.Target(name) != nil {
			continue
		}
		if err := m.remove(m.running[name], m.force); err != nil {
			return err
		}
	}
	return nil
}

// update makes targets what the file says.
func (m *manager) update() error {
	if m.value == "ALL" {
		if err := m.globals(); err != nil {
			return err
		}
		for _, name := range m.names() {
			if m.conf.Target(name) == nil {
				if err := m.updateOne(name); err != nil {
					return err
				}
			}
		}
		for _, t := range m.conf.Targets {
			if err := m.updateOne(t.Name); err != nil {
				return err
			}
		}
		return nil
	}
	name := m.value
	if tid, ok := byTID(m.value); ok {
		if name = m.byID[tid]; name == "" {
			return m.say(1, "There is no target with tid %d, can't continue!", tid)
		}
	}
	if m.running[name] == nil && m.conf.Target(name) == nil {
		return m.say(1, "Target %s is currently not configured\nand does not exist in the config file - can't continue!", name)
	}
	return m.updateOne(name)
}

func (m *manager) updateOne(name string) error {
	t, now := m.conf.Target(name), m.running[name]
	switch {
	case now == nil:
		m.show(fmt.Sprintf("# Target with name %s does not exist!", name))
		return m.add(t)
	case now.Status.Sessions > 0 && !m.force:
		m.show(fmt.Sprintf("# Target with tid %d (%s) is in use, it won't be updated.", now.ID, name))
		return nil
	case t == nil:
		return m.remove(now, m.force)
	}
	return m.change(t, now)
}

// delete removes targets.
func (m *manager) delete() error {
	if m.value == "ALL" {
		for _, name := range m.names() {
			if err := m.remove(m.running[name], m.force); err != nil {
				return err
			}
		}
		return nil
	}
	name := m.value
	if tid, ok := byTID(m.value); ok {
		if name = m.byID[tid]; name == "" {
			m.show(fmt.Sprintf("# Target with tid %d does not exist!", tid))
			return nil
		}
	}
	if m.running[name] == nil {
		m.show(fmt.Sprintf("# Target with name %s does not exist!", name))
		return nil
	}
	return m.remove(m.running[name], m.force)
}

// remove deletes a target, unless it is in use and that is not forced.
func (m *manager) remove(t *v1.Target, force bool) error {
	if t.Status.Sessions > 0 && !force {
		m.show(fmt.Sprintf("# Target with tid %d (%s) is in use, it won't be deleted.", t.ID, t.Name))
		return nil
	}
	line := m.lineDelete(t.ID)
	m.show("# Removing target: "+t.Name, line+"\n")
	if m.pretend {
		return nil
	}
	a := &admin{request: &request{tid: t.ID, force: force}, named: t.Name, ctx: m.ctx, api: m.api}
	err := a.deleteTarget()
	if f := (*failure)(nil); errors.As(err, &f) && f.message == msgNoTarget {
		err = nil // somebody else was quicker
	}
	if err == nil {
		delete(m.running, t.Name)
		delete(m.byID, t.ID)
	}
	return m.failed(line, err)
}

// switchState puts targets offline or back.
func (m *manager) switchState() error {
	word := "ready"
	if m.action == adminOffline {
		word = "offline"
	}
	names := m.names()
	if tid, ok := byTID(m.value); ok {
		line := fmt.Sprintf("%s --op update --mode target --tid=%d -n state -v %s", m.adm(), tid, word)
		if m.byID[tid] == "" {
			m.show(line)
			return m.failed(line, fail(msgNoTarget))
		}
		names = []string{m.byID[tid]}
	} else if m.value != "ALL" {
		if m.running[m.value] == nil {
			return m.say(1, "There is no target with name %q, can't %s it!", m.value, word)
		}
		names = []string{m.value}
	}
	for _, name := range names {
		line := fmt.Sprintf("%s --op update --mode target --tid=%d -n state -v %s", m.adm(), m.running[name].ID, word)
		m.show(line)
		if m.pretend {
			continue
		}
		a := &admin{request: &request{}, ctx: m.ctx, api: m.api}
		err := a.changeTarget(name, func(t *state.Target) error { return setTargetParam(t, "state", word) })
		if err := m.failed(line, err); err != nil {
			return err
		}
	}
	return nil
}

// globals sets what stands outside of targets. All of it may be there already.
func (m *manager) globals() error {
	for _, p := range m.conf.ISNS {
		line := fmt.Sprintf("%s --op update --mode sys --name %s -v %s", m.adm(), p.Name, p.Value)
		m.show(line)
		if m.pretend {
			continue
		}
		a := &admin{request: &request{}, ctx: m.ctx, api: m.api}
		if err := a.changeSystem(func(s *state.System) error { return setSystem(s, p.Name, p.Value) }); err != nil {
			f := asFailure(err)
			if f.status == exitNotConn {
				return m.failed(line, err)
			}
			m.warn("%s: %s", p.Pos, first(f.detail, f.message)) // targets are served all the same
		} else if p.Name == "iSNS" && p.Value == "On" {
			m.warn("%s: %s", p.Pos, noISNS)
		}
	}
	for _, u := range []struct {
		account  *tgtconf.Account
		outgoing bool
		ending   string
	}{{m.conf.DiscoveryIncoming, false, " "}, {m.conf.DiscoveryOutgoing, true, "  --outgoing"}} {
		if u.account == nil {
			continue
		}
		m.show(fmt.Sprintf("%s --mode account --op new --user=%s --password=%s", m.adm(), u.account.User, hidden))
		line := fmt.Sprintf("%s --mode account --op bind --user=%s%s", m.adm(), u.account.User, u.ending)
		m.show(line)
		if m.pretend {
			continue
		}
		if err := m.failed(line, m.guardDiscovery(u.account, u.outgoing)); err != nil {
			return err
		}
	}
	return nil
}

func (m *manager) guardDiscovery(acc *tgtconf.Account, outgoing bool) error {
	op := m.putAccount(*acc)
	if _, err := m.api.Apply(m.ctx, op); err != nil {
		return err
	}
	a := &admin{request: &request{}, ctx: m.ctx, api: m.api}
	return a.changeSystem(func(s *state.System) error {
		if outgoing {
			s.DiscoveryOutgoingAccount = acc.User
		} else if !slices.Contains(s.DiscoveryAccounts, acc.User) {
			s.DiscoveryAccounts = append(s.DiscoveryAccounts, acc.User)
		}
		return nil
	})
}

// putAccount makes an account or gives it the password of the file. Of two
// passwords for one user the first counts, as with tgt. What --dump prints for
// one leaves the password as it is.
func (m *manager) putAccount(acc tgtconf.Account) state.Op {
	secret, known := m.secrets[acc.User]
	if known && secret != acc.Password {
		m.warn("%s: user %s has another password above; that one is used", acc.Pos, acc.User)
	}
	if !known {
		m.secrets[acc.User] = acc.Password
		secret = acc.Password
	}
	if secret == hidden {
		secret = ""
	}
	return state.Op{Verb: state.Put, Kind: state.KindAccount, Name: acc.User, Account: &state.Account{User: acc.User, Secret: secret}}
}

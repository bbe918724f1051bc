package tgt

import (
	"fmt"
	"strconv"
	"strings"

	"blockgate/internal/compat/tgtconf"
)

// The tgtadm command lines that tgt-admin prints, in its own spelling.

func (m *manager) adm() string { return fmt.Sprintf("tgtadm -C %d", m.port) }

func (m *manager) lineTarget(t *tgtconf.Target, tid int) string {
	return fmt.Sprintf("%s --lld %s --op new --mode target --tid %d -T %s", m.adm(), m.driver(t), tid, t.Name)
}

func (m *manager) lineDelete(tid int) string {
	return fmt.Sprintf("%s --mode target --op delete --tid=%d", m.adm(), tid)
}

func (m *manager) lineUnit(t *tgtconf.Target, s *tgtconf.Store, tid int) string {
	option := func(name, value string) string {
		if value == "" {
			return " "
		}
		return " --" + name + " " + value
	}
	b := fmt.Sprintf("%s --lld %s --op new --mode logicalunit --tid %d --lun %d", m.adm(), m.driver(t), tid, s.LUN)
	if !s.NoMedium {
		b += fmt.Sprintf(" -b %q", s.Path)
	}
	return b + option("device-type", s.DeviceType) + option("bstype", s.Bstype) + option("bsopts", s.Bsopts) +
		option("bsoflags", s.Bsoflags) + option("blocksize", s.BlockSize)
}

func (m *manager) lineParam(t *tgtconf.Target, p tgtconf.Param, tid int) string {
	return fmt.Sprintf("%s --lld %s --mode target --op update --tid %d --name %s --value %s", m.adm(), m.driver(t), tid, p.Name, p.Value)
}

func (m *manager) lineAddress(t *tgtconf.Target, a tgtconf.Value, tid int) string {
	return fmt.Sprintf("%s --lld %s --op bind --mode target --tid %d -I %s", m.adm(), m.driver(t), tid, a.Text)
}

// linesStore are the lines that make one store.
func (m *manager) linesStore(t *tgtconf.Target, s *tgtconf.Store, tid int) []string {
	out := []string{m.lineUnit(t, s, tid)}
	param := func(text string) {
		out = append(out, fmt.Sprintf("%s --lld %s --op update --mode logicalunit --tid %d --lun=%d --params %s", m.adm(), m.driver(t), tid, s.LUN, text))
	}
	if !s.WriteCache {
		param("mode_page=" + tgtconf.CacheOffPage)
	}
	for _, p := range s.Params {
		if p.Name == "" {
			param(strconv.Quote(substitute(p.Value, tid, s.LUN)))
		} else {
			param(p.Name + "=" + strconv.Quote(p.Value))
		}
	}
	if s.WriteCache {
		out = append(out, fmt.Sprintf("# Write cache is enabled (default) for lun %d.", s.LUN))
	}
	return out
}

// linesRest are the lines for what is not a store, after its parameters.
func (m *manager) linesRest(t *tgtconf.Target, tid int) (params, rest []string) {
	lld := fmt.Sprintf("%s --lld %s", m.adm(), m.driver(t))
	account := func(a tgtconf.Account, ending string) {
		rest = append(rest, fmt.Sprintf("%s --mode account --op new --user=%s --password=%s", lld, a.User, hidden),
			fmt.Sprintf("%s --mode account --op bind --tid=%d --user=%s%s", lld, tid, a.User, ending))
	}
	for _, a := range t.Incoming {
		account(a, "")
	}
	for _, v := range t.Addresses {
		rest = append(rest, m.lineAddress(t, v, tid))
	}
	for _, v := range t.Names {
		rest = append(rest, fmt.Sprintf("%s --op bind --mode target --tid %d -Q %s", lld, tid, v.Text))
	}
	if t.Outgoing != nil {
		account(*t.Outgoing, " --outgoing")
	}
	for _, p := range t.Params {
		if strings.HasPrefix(p.Name, "state") {
			rest = append(rest, m.lineParam(t, p, tid))
		} else {
			params = append(params, m.lineParam(t, p, tid))
		}
	}
	if t.OpenToAll() && len(t.Names) == 0 {
		rest = append(rest, fmt.Sprintf("%s --op bind --mode target --tid %d -I ALL", lld, tid))
	}
	return params, rest
}

// hidden stands for a password in what is printed.
const hidden = "PLEASE_CORRECT_THE_PASSWORD"

// substitute puts the numbers into a params directive.
func substitute(text string, tid int, lun uint64) string {
	return strings.NewReplacer("${tid}", strconv.Itoa(tid), "${lun}", strconv.FormatUint(lun, 10)).Replace(text)
}

func (m *manager) driver(t *tgtconf.Target) string {
	return first(t.Driver, m.conf.DefaultDriver, "iscsi")
}

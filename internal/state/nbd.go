package state

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Export is a volume that NBD clients can use.
type Export struct {
	// Name is what clients ask for; as a volume's name, which it mostly is.
	Name        string `json:"name"`
	Volume      string `json:"volume"`
	Description string `json:"description,omitempty"` // shown to clients
	ReadOnly    bool   `json:"readOnly,omitempty"`
	// Default makes it what clients get that ask for no name; at most one export is.
	Default bool `json:"default,omitempty"`
	// ACL: a client may use the export if any rule matches. No rule refuses
	// everyone. Name is here one that TLS has proved: of a certificate, or of a
	// pre-shared key.
	ACL []ACLRule `json:"acl,omitempty"`

	// Scope owns the resource: the name in the declared file that it came from
	// (see Config). Empty: it was made by hand.
	Scope string `json:"scope,omitempty" yaml:"-"`
}

// NBDPortal is an address that NBD is served on.
type NBDPortal struct {
	Address string `json:"address"` // ip:port, [ip6]:port or unix:/path; canonical
	// TLS is "" (off, unless there are files), "optional" or "required". The files
	// are read at each connection, so that a renewed certificate counts at once.
	TLS          string `json:"tls,omitempty"`
	CertFile     string `json:"certFile,omitempty"`     // PEM, with what leads to its authority
	KeyFile      string `json:"keyFile,omitempty"`      // PEM
	ClientCAFile string `json:"clientCaFile,omitempty"` // PEM; clients then need a certificate of these authorities
	// PSKFile holds pre-shared keys, a line "identity:hexadecimal key" each, as
	// psktool of GnuTLS writes them; in place of certificates.
	PSKFile string `json:"pskFile,omitempty"`

	// Scope owns the resource: the name in the declared file that it came from
	// (see Config). Empty: it was made by hand.
	Scope string `json:"scope,omitempty" yaml:"-"`
}

// Words of NBDPortal.TLS.
const (
	TLSOptional = "optional"
	TLSRequired = "required"
)

// DefaultNBDPort is the port that IANA has assigned to NBD.
const DefaultNBDPort = 10809

// Export finds an export by name.
func (s *Snapshot) Export(name string) (Stored[Export], bool) {
	v, ok := s.exports.find(name)
	return v, ok
}

// Exports lists the exports by name.
func (s *Snapshot) Exports() []Stored[Export] { return sorted(s.exports) }

// ExportsOf names the exports of a volume, sorted.
func (s *Snapshot) ExportsOf(volume string) []string {
	var l []string
	for name, e := range s.exports.all() {
		if e.Value.Volume == volume {
			l = append(l, name)
		}
	}
	slices.Sort(l)
	return l
}

// NBDPortal finds an NBD portal by its canonical address.
func (s *Snapshot) NBDPortal(addr string) (Stored[NBDPortal], bool) {
	v, ok := s.nbdPortals.find(addr)
	return v, ok
}

// NBDPortals lists the NBD portals by address.
func (s *Snapshot) NBDPortals() []Stored[NBDPortal] { return sorted(s.nbdPortals) }

// ParseNBDPortal makes an NBD portal's address canonical: "unix:/path", or what
// ParsePortal takes, with port 10809 if absent.
func ParseNBDPortal(addr string) (string, error) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		// sun_path has 108 bytes with its end.
		if !filepath.IsAbs(path) || len(path) > 107 || strings.ContainsRune(path, 0) {
			return "", invalid(CodeInvalidValue, KindNBDPortal, addr, "write it as unix:/run/blockgate/nbd.sock", "is not an absolute path of at most 107 bytes")
		}
		return "unix:" + filepath.Clean(path), nil
	}
	canonical, err := parsePortal(KindNBDPortal, addr, DefaultNBDPort)
	if err != nil {
		return "", err
	}
	return canonical, nil
}

func (e *Export) normalize() error {
	if err := checkName(KindExport, "an export", e.Name); err != nil {
		return err
	}
	if err := checkOwner(KindExport, e.Name, e.Scope); err != nil {
		return err
	}
	if len(e.Description) > 255 || !printable(e.Description) {
		return invalid(CodeInvalidValue, KindExport, e.Name, "", "a description has at most 255 printable bytes")
	}
	if len(e.ACL) > maxRules {
		return invalid(CodeInvalidValue, KindExport, e.Name, "", "too many access rules")
	}
	for i, r := range e.ACL {
		if err := checkRule(KindExport, e.Name, r); err != nil {
			return err
		}
		if len(r.LUNs) > 0 {
			return invalid(CodeInvalidValue, KindExport, e.Name, "", "access rule %s: NBD has no LUNs", r)
		}
		if slices.ContainsFunc(e.ACL[:i], r.same) {
			return conflict(CodeACLExists, KindExport, e.Name, "", "the access rule %s is there already", r)
		}
	}
	return nil
}

func (p *NBDPortal) normalize() error {
	addr, err := ParseNBDPortal(p.Address)
	if err != nil {
		return err
	}
	p.Address = addr
	if err := checkOwner(KindNBDPortal, addr, p.Scope); err != nil {
		return err
	}
	bad := func(hint, format string, a ...any) error {
		return invalid(CodeInvalidValue, KindNBDPortal, addr, hint, format, a...)
	}
	if strings.HasSuffix(addr, ":0") && !strings.HasPrefix(addr, "unix:") {
		return bad("", "a portal that is kept needs a port other than 0")
	}
	for _, f := range []string{p.CertFile, p.KeyFile, p.ClientCAFile, p.PSKFile} {
		if f != "" && (!filepath.IsAbs(f) || len(f) > 4096 || strings.ContainsRune(f, 0)) {
			return bad("the daemon has another working directory", "%q is not an absolute path", f)
		}
	}
	x509, psk := p.CertFile != "" || p.KeyFile != "" || p.ClientCAFile != "", p.PSKFile != ""
	switch {
	case p.TLS != "" && p.TLS != TLSOptional && p.TLS != TLSRequired:
		return bad("use optional or required", "there is no TLS %q", p.TLS)
	case x509 && psk:
		return bad("listen on two addresses", "certificates and pre-shared keys do not go together")
	case x509 && (p.CertFile == "" || p.KeyFile == ""):
		return bad("", "TLS needs a certificate and its key")
	case p.TLS != "" && !x509 && !psk:
		return bad("", "TLS needs a certificate and its key, or a file of pre-shared keys")
	case p.TLS == "" && (x509 || psk):
		p.TLS = TLSRequired
	}
	return nil
}

func (b *builder) applyExport(op *Op) error {
	if op.Export != nil {
		op.Name = op.Export.Name
	}
	old, exists := b.exports.find(op.Name)
	if err := checkVerb(op, exists, old.Revision, op.Export != nil, CodeExportNotFound, CodeExportExists); err != nil {
		return err
	}
	b.own(KindExport)
	if op.Verb == Delete {
		b.exports.delete(op.Name)
		b.touch(KindExport, op.Name)
		return nil
	}
	e := *op.Export
	e.ACL = slices.Clone(e.ACL)
	if err := e.normalize(); err != nil {
		return err
	}
	op.keepScope(&e.Scope, old.Value.Scope)
	b.exports.set(e.Name, Stored[Export]{Value: e, Revision: old.Revision})
	b.touch(KindExport, e.Name)
	return nil
}

func (b *builder) applyNBDPortal(op *Op) error {
	var p NBDPortal
	if op.NBDPortal != nil {
		p = *op.NBDPortal
		if err := p.normalize(); err != nil {
			return err
		}
		op.Name = p.Address
	} else if addr, err := ParseNBDPortal(op.Name); err == nil {
		op.Name = addr
	}
	old, exists := b.nbdPortals.find(op.Name)
	if err := checkVerb(op, exists, old.Revision, op.NBDPortal != nil, CodePortalNotFound, CodePortalExists); err != nil {
		return err
	}
	b.own(KindNBDPortal)
	b.touch(KindNBDPortal, op.Name)
	if op.Verb == Delete {
		b.nbdPortals.delete(op.Name)
		return nil
	}
	op.keepScope(&p.Scope, old.Value.Scope)
	b.nbdPortals.set(p.Address, Stored[NBDPortal]{Value: p, Revision: old.Revision})
	return nil
}

// checkExport makes sure that the volume exists and that one export at most is the
// default.
func (b *builder) checkExport(name string) error {
	st, ok := b.exports.find(name)
	if !ok {
		return nil
	}
	if _, ok := b.volumes.find(st.Value.Volume); !ok {
		e := missing(CodeVolumeNotFound, KindVolume, st.Value.Volume, "blockgate volume list")
		e.Reason = fmt.Sprintf("does not exist (wanted as export %q)", name)
		return e
	}
	if !st.Value.Default {
		return nil
	}
	for other, e := range b.exports.all() {
		if e.Value.Default && other != name {
			return conflict(CodeInvalidValue, KindExport, name, "let one of the two not be it", "export %q is the default already", other)
		}
	}
	return nil
}

// releaseExports refuses to delete a volume with exports or, with Force, deletes
// them with it.
func (b *builder) releaseExports(op *Op) error {
	l := b.ExportsOf(op.Name)
	if len(l) > 0 && !op.Force {
		return conflict(CodeVolumeInUse, KindVolume, op.Name, fmt.Sprintf("blockgate nbd unexport %s, or delete it with --force", l[0]),
			"is NBD export %q%s", l[0], andMore(len(l)-1))
	}
	for _, name := range l {
		b.own(KindExport)
		b.exports.delete(name)
		b.touch(KindExport, name)
	}
	return nil
}

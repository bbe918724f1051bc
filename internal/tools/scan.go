package tools

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"blockgate/iscsi"
	"blockgate/iscsi/initiator"
)

// Target is what a portal says about one of its targets.
type Target struct {
	Name    string   `json:"name"`
	Alias   string   `json:"alias,omitempty"`
	Portals []string `json:"portals"` // "address:port,tag"
	LUNs    []LUN    `json:"luns"`
	// Error is why the units are not known, "" if they are.
	Error string `json:"error,omitempty"`
}

// LUN is one logical unit of a target.
type LUN struct {
	Number    uint64 `json:"number"`
	Type      string `json:"type"` // disk, cd, controller, …
	Vendor    string `json:"vendor,omitempty"`
	Product   string `json:"product,omitempty"`
	Revision  string `json:"revision,omitempty"`
	Serial    string `json:"serial,omitempty"`
	Size      int64  `json:"size,omitempty"`      // bytes
	BlockSize int    `json:"blockSize,omitempty"` // bytes
	Thin      bool   `json:"thin,omitempty"`
	Error     string `json:"error,omitempty"`
}

// Scan asks the portal of an iSCSI URL for its targets and logs in to each (or
// to the one the URL names) to see its units. Credentials in the URL serve for
// both. Targets that refuse are listed with the reason.
func Scan(ctx context.Context, url string) ([]Target, error) {
	u, err := initiator.ParseURL(url)
	if err != nil {
		return nil, err
	}
	records, err := discover(ctx, u)
	if err != nil {
		return nil, err
	}
	targets := make([]Target, 0, len(records))
	for _, r := range records {
		if u.Target != "" && u.Target != r.Name {
			continue
		}
		t := Target{Name: r.Name, Alias: r.Alias, Portals: r.Portals, LUNs: []LUN{}}
		cfg := u.Config()
		cfg.TargetName = r.Name
		cfg.Addrs = []string{portalFor(u.Addr, r)}
		if t.LUNs, err = scanUnits(ctx, cfg); err != nil {
			t.Error = err.Error()
		}
		targets = append(targets, t)
	}
	if u.Target != "" && len(targets) == 0 {
		return nil, fmt.Errorf("%s does not offer the target %s: %w", u.Addr, u.Target, errNotThere)
	}
	return targets, ctx.Err()
}

// portalFor chooses by which portal to reach a target: the one that was asked,
// if the target is there too, since it is known to be reachable.
func portalFor(asked string, r iscsi.TargetRecord) string {
	var first string
	for _, p := range r.Portals {
		addr, _, _ := strings.Cut(p, ",")
		if addr == asked {
			return asked
		}
		if first == "" {
			first = addr
		}
	}
	if first == "" {
		return asked // a target without address is where it was found (RFC 7143 appendix C)
	}
	return first
}

func scanUnits(ctx context.Context, cfg initiator.Config) ([]LUN, error) {
	s, err := initiator.Dial(ctx, cfg)
	if err != nil {
		return []LUN{}, err
	}
	defer s.Close()
	numbers, err := s.ReportLUNs(ctx)
	if err != nil {
		return []LUN{}, err
	}
	slices.Sort(numbers)
	luns := make([]LUN, 0, len(numbers))
	for _, n := range numbers {
		l := LUN{Number: n}
		if err := l.fill(ctx, s.Unit(n)); err != nil {
			l.Error = err.Error()
		}
		luns = append(luns, l)
	}
	return luns, s.Logout(ctx)
}

func (l *LUN) fill(ctx context.Context, u *initiator.Unit) error {
	q, err := u.Inquiry(ctx)
	if err != nil {
		return err
	}
	l.Type, l.Vendor, l.Product, l.Revision = typeName(q.Type), q.Vendor, q.Product, q.Revision
	if serial, err := u.Serial(ctx); err == nil {
		l.Serial = serial
	}
	if q.Type != typeDisk && q.Type != typeCD {
		return nil
	}
	c, err := u.ReadCapacity(ctx)
	if err != nil {
		return err
	}
	l.Size, l.BlockSize, l.Thin = c.Bytes(), c.BlockSize, c.Thin
	return nil
}

// Peripheral device types (SPC-4 table 142).
const (
	typeDisk = 0x00
	typeCD   = 0x05
)

func typeName(t byte) string {
	switch t {
	case typeDisk:
		return "disk"
	case 0x01:
		return "tape"
	case typeCD:
		return "cd"
	case 0x08:
		return "changer"
	case 0x0c:
		return "controller"
	case 0x0d:
		return "enclosure"
	case 0x1e:
		return "well-known"
	case 0x1f:
		return "none"
	}
	return fmt.Sprintf("type %02xh", t)
}

// Formats of List.
const (
	FormatTable = "table"
	FormatJSON  = "json"
)

// List writes what Scan finds: a table for people (the format "" too) or JSON.
func List(ctx context.Context, w io.Writer, url, format string) error {
	if format != "" && format != FormatTable && format != FormatJSON {
		return fmt.Errorf("%w: format %q, there are %s and %s", ErrUsage, format, FormatTable, FormatJSON)
	}
	targets, err := Scan(ctx, url)
	if err != nil {
		return err
	}
	if format == FormatJSON {
		return writeJSON(w, targets)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, x := range targets {
		fmt.Fprintf(t, "%s\n", x.Name)
		for _, p := range x.Portals {
			fmt.Fprintf(t, "  portal %s\n", p)
		}
		if x.Error != "" {
			fmt.Fprintf(t, "  %s\n", x.Error)
		}
		for _, l := range x.LUNs {
			size := "-"
			if l.Size > 0 {
				size = byteSize(l.Size)
			}
			fmt.Fprintf(t, "  lun %d\t%s\t%s\t%s\t%s\t%s\n", l.Number, l.Type, size, l.Vendor, l.Product, l.Error)
		}
	}
	return t.Flush()
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// byteSize writes a size in the largest binary unit that leaves at most one
// decimal digit needed.
func byteSize(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	s := strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0")
	return s + " " + units[i:i+1] + "iB"
}

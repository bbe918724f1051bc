package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"blockgate/backing"
	"blockgate/internal/api/client"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

func (a *app) volumeCommand() *cobra.Command {
	return noun(&cobra.Command{
		Use: "volume", Short: "Volumes: named stores",
		Long: `A volume is a named store: a file, a block device, memory, or what another
engine holds. It becomes a disk for initiators when it is mapped into a target
as a LUN (see: blockgate lun).`,
		Example: examples("blockgate volume create db /srv/db.img --size 100G", "blockgate volume list", "blockgate volume delete db"),
	}, a.volumeCreate(), a.volumeList(), a.volumeShow(), a.volumeSet(), a.volumeResize(), a.volumeClone(), a.volumeRetry(), a.volumeDelete())
}

func (a *app) volumeCreate() *cobra.Command {
	var size, layers = "", []string{}
	var cd bool
	v := state.Volume{}
	c := &cobra.Command{
		Use: "create NAME STORE", Short: "Create a volume",
		Long: `Create a volume NAME on STORE: a path, or an engine and its place ("ram:1G",
"null:1T"; see: blockgate engine list). With --size a file that does not exist
is made, sparse; what exists is never cut or overwritten.`,
		Example: examples("blockgate volume create db /srv/db.img --size 100G", "blockgate volume create fast /dev/nvme0n1p4 --block-size 4096",
			"blockgate volume create scratch ram:1G"),
		Args: args(2, 2),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			v.Name = args[0]
			var err error
			if v.URL, err = storeURL(args[1]); err != nil {
				return err
			}
			if v.Size, err = parseSize(size); err != nil {
				return err
			}
			if v.Layers, err = parseLayers(layers); err != nil {
				return err
			}
			if cd {
				asDisc(&v)
			}
			got, err := c.CreateVolume(ctx, v)
			if err != nil {
				return err
			}
			a.warnings(got.Warnings)
			got.Warnings = nil
			return a.volumes(got)
		}),
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&size, "size", "", "create the store with this size if it does not exist: 512M, 10G, 2T")
	f.IntVar(&v.BlockSize, "block-size", 512, "logical block size in bytes, 512 or 4096")
	f.BoolVar(&v.ReadOnly, "read-only", false, "open it read-only; initiators find it write-protected")
	f.BoolVar(&v.Unit.Removable, "removable", false, "a disk that initiators may eject")
	f.BoolVar(&cd, "cd", false, "a CD or DVD drive with an ISO image in it")
	f.BoolVar(&v.Direct, "direct", false, "bypass the page cache")
	f.BoolVar(&v.NoAIO, "no-aio", false, "with --direct: a thread for each call, without Linux AIO")
	f.BoolVar(&v.Sync, "sync", false, "make every write durable before it is answered")
	stallFlag(c, &v.Stall)
	partialBlockFlag(c, &v.PartialBlock)
	f.StringArrayVar(&layers, "layer", nil, "stack a layer on it, for example delay,read=1ms (repeat for more)")
	return c
}

// asDisc makes a volume a drive with a disc that nothing changes.
func asDisc(v *state.Volume) {
	v.Unit.Type, v.ReadOnly, v.BlockSize = "cd", true, 0 // the size is a disc's
}

func parseLayers(list []string) ([]state.Layer, error) {
	var out []state.Layer
	for _, s := range list {
		kind, rest, more := strings.Cut(s, ",")
		l := state.Layer{Kind: kind}
		if more {
			l.Params = map[string]string{}
			for kv := range strings.SplitSeq(rest, ",") {
				k, v, ok := strings.Cut(kv, "=")
				if !ok {
					return nil, &state.Error{Class: state.Usage, Code: "usage", Object: "layer " + s, Reason: fmt.Sprintf("%q is not NAME=VALUE", kv)}
				}
				l.Params[k] = v
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// storeURL makes a path absolute, since the daemon is elsewhere, and leaves
// other engines' places as they are.
func storeURL(s string) (string, error) {
	scheme, rest := backing.SplitURL(s)
	if rest == "" {
		return "", &state.Error{Class: state.Usage, Code: "usage", Object: fmt.Sprintf("store %q", s), Reason: "has no place", Hint: "for example /srv/disk.img or ram:1G"}
	}
	if scheme != "file" {
		return s, nil
	}
	abs, err := filepath.Abs(rest)
	if err != nil {
		return "", err
	}
	return "file:" + abs, nil
}

func parseSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := backing.ParseSize(s)
	if err == nil && n <= 0 {
		err = fmt.Errorf("size %q: a store needs at least one block", s)
	}
	if err != nil {
		return 0, &state.Error{Class: state.Usage, Code: "usage", Reason: err.Error(), Hint: "for example --size 10G", Err: err}
	}
	return n, nil
}

func (a *app) volumes(list ...v1.Volume) error {
	var v any = list
	if len(list) == 1 {
		v = list[0]
	}
	return a.answer(v, func() *table { return volumeTable(list, volumeState) })
}

// volumeState is a volume's state with what is wrong with it, if anything.
func volumeState(s *v1.VolumeStatus) string {
	st := s.State
	if s.Error != "" {
		st += ": " + s.Error + attempts(s)
	} else if s.ReadOnly {
		st += ", read-only"
	}
	return st + healthText(s)
}

// shortState leaves to "volume show" what can be long.
func shortState(s *v1.VolumeStatus) string {
	switch {
	case s.Health != nil:
		return s.State + " since " + s.Health.Since.Local().Format(time.DateTime)
	case s.Error == "" && s.ReadOnly:
		return s.State + ", read-only"
	}
	return s.State + attempts(s)
}

// unwell has a line for people that says where to read what shortState left out.
func (a *app) unwell(l []v1.Volume) {
	for _, v := range l {
		if a.output == "table" && (v.Status.Error != "" || v.Status.Health != nil) {
			a.note("what is wrong: blockgate volume show %s", v.Name)
			return
		}
	}
}

func volumeTable(list []v1.Volume, stateOf func(*v1.VolumeStatus) string) *table {
	t := &table{head: []string{"NAME", "SIZE", "BLOCK", "STATE", "STORE", "USED BY"}}
	for _, v := range list {
		var used []string
		for _, u := range v.Status.UsedBy {
			used = append(used, fmt.Sprintf("%s lun %d", u.Target, u.Number))
		}
		for _, e := range v.Status.Exports {
			used = append(used, "nbd "+e)
		}
		if n := len(used) - 3; n > 0 {
			used = append(used[:3], fmt.Sprintf("and %d more", n))
		}
		url := v.URL
		if url == "" {
			url = "no medium"
		}
		t.add(v.Name, formatSize(v.Status.Size), fmt.Sprint(v.Status.BlockSize), stateOf(&v.Status), url, strings.Join(used, ", "))
	}
	return t
}

// healthText says what is wrong with a store, if anything.
func healthText(s *v1.VolumeStatus) string {
	h := s.Health
	if h == nil {
		return ""
	}
	return fmt.Sprintf(" since %s: %s", h.Since.Local().Format(time.DateTime), h.Reason)
}

func (a *app) volumeList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the volumes", Args: args(0, 0),
		Example: examples("blockgate volume list", "blockgate volume list -o json", "blockgate volume list -o yaml"),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			l, err := c.Volumes(ctx)
			if err != nil {
				return err
			}
			defer a.unwell(l)
			return a.answer(l, func() *table { return volumeTable(l, shortState) })
		}),
	}
}

func (a *app) volumeShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show a volume with everything known of it", Args: args(1, 1),
		Example:           examples("blockgate volume show db", "blockgate volume show db -o json", "blockgate volume show db -o yaml"),
		ValidArgsFunction: a.complete(volumeNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			v, err := c.Volume(ctx, args[0])
			if err != nil {
				return err
			}
			return a.show(v)
		}),
	}
}

// show prints one object: as YAML, which people read well, unless JSON is asked for.
func (a *app) show(v any) error {
	if a.output == "table" {
		a.output = "yaml"
	}
	return a.answer(v, nil)
}

func (a *app) volumeResize() *cobra.Command {
	return &cobra.Command{
		Use: "resize NAME [SIZE]", Short: "Grow a volume; initiators are told",
		Long: `Grow a volume to SIZE. Without SIZE the size that its store has grown to by
itself is taken over. Volumes never shrink.`,
		Args:              args(1, 2),
		Example:           examples("blockgate volume resize db 200G", "blockgate volume resize lv0", "blockgate volume resize db 1T -o json"),
		ValidArgsFunction: a.complete(volumeNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			size := int64(0)
			if len(args) == 2 {
				var err error
				if size, err = parseSize(args[1]); err != nil {
					return err
				}
			}
			v, err := c.ResizeVolume(ctx, args[0], size)
			if err != nil {
				return err
			}
			return a.volumes(v)
		}),
	}
}

func (a *app) volumeRetry() *cobra.Command {
	return &cobra.Command{
		Use: "retry NAME", Short: "Open a failed volume again, or one whose store has failed", Args: args(1, 1),
		Example:           examples("blockgate volume retry db", "blockgate volume retry db -o json", "blockgate volume list"),
		ValidArgsFunction: a.complete(volumeNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			v, err := c.RetryVolume(ctx, args[0])
			if err != nil {
				return err
			}
			return a.volumes(v)
		}),
	}
}

func (a *app) volumeDelete() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "delete NAME", Short: "Forget a volume; its data stay", Args: args(1, 1),
		Example:           examples("blockgate volume delete db", "blockgate volume delete db --force", "blockgate volume list"),
		ValidArgsFunction: a.complete(volumeNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := c.DeleteVolume(ctx, args[0], force)
			if err != nil {
				return err
			}
			a.warnings(r.Warnings)
			return a.done("volume %q deleted; its data are untouched", args[0])
		}),
	}
	c.Flags().BoolVar(&force, "force", false, "also when it is mapped: initiators will see the LUN vanish")
	return c
}

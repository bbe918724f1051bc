package tgtconf

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// unitParams are directives that are parameters of a unit, in the order in
// which they are set. mode_page and params may be repeated.
var unitParams = []string{
	"mode_page", "scsi_id", "scsi_sn", "vendor_id", "product_id", "product_rev", "sense_format", "removable",
	"readonly", "lbppbe", "la_lba", "optimal_xfer_gran", "optimal_xfer_len", "params", "path", "online",
}

// storeOptions are the other directives of a store.
var storeOptions = []string{
	"lun", "write-cache", "device-type", "bs-type", "bsopts", "bsoflags", "block-size", "allow-in-use",
}

func repeatable(key string) bool { return key == "mode_page" || key == "params" }

func ofStore(key string) bool {
	return slices.Contains(unitParams, key) || slices.Contains(storeOptions, key)
}

// reader reads one target.
type reader struct {
	*Config
	target   *Target
	defaults []*Node // directives of stores that stand in the target itself
}

func (r *reader) read(nodes []*Node) error {
	t := r.target
	first := map[string]*Node{}
	var backing, direct []*Node
	for _, n := range nodes {
		isStore := n.Key == "backing-store" || n.Key == "direct-store"
		if n.Block && !isStore {
			r.warn(n.Pos, "<%s> is not known in a target and has no effect", n.title())
			continue
		}
		if n.Value == "" && !n.Block {
			return failf(n.Pos, "%s has no value", n.Key)
		}
		was, again := first[n.Key], first[n.Key] != nil
		if !again {
			first[n.Key] = n
		}
		switch {
		case n.Key == "backing-store":
			backing = append(backing, n)
		case n.Key == "direct-store":
			direct = append(direct, n)
		case ofStore(n.Key):
			if again && !repeatable(n.Key) && n.Key != "allow-in-use" {
				return failf(n.Pos, "%s is there twice, first at %s", n.Key, was.Pos)
			}
			r.defaults = append(r.defaults, n)
		case n.Key == "initiator-address":
			t.Addresses = append(t.Addresses, Value{n.Pos, n.Value})
		case n.Key == "initiator-name":
			t.Names = append(t.Names, Value{n.Pos, n.Value})
		case n.Key == "incominguser", n.Key == "outgoinguser":
			if err := r.user(n, again); err != nil {
				return err
			}
		case n.Key == "driver", n.Key == "controller_tid":
			if again {
				return failf(n.Pos, "%s is there twice, first at %s", n.Key, was.Pos)
			}
			if n.Key == "driver" {
				t.Driver = n.Value
			} else if id, err := strconv.ParseInt(n.Value, 0, 32); err != nil || id < 1 {
				return failf(n.Pos, "controller_tid %q is not a number from 1", n.Value)
			} else {
				t.TID = int(id)
			}
		case IsTargetParam(n.Key):
			if again {
				r.warn(n.Pos, "only one %s is allowed, the first counts", n.Key)
			} else {
				t.Params = append(t.Params, Param{n.Pos, n.Key, n.Value})
			}
		default:
			r.warn(n.Pos, "%s is not known in a target and has no effect", n.Key)
		}
	}
	// Upper case comes first, and so "state" last.
	slices.SortStableFunc(t.Params, func(a, b Param) int { return cmp.Compare(a.Name, b.Name) })
	for _, list := range [][]*Node{backing, direct} {
		if err := r.stores(list); err != nil {
			return err
		}
	}
	return r.number()
}

func (r *reader) user(n *Node, again bool) error {
	if again && n.Key == "outgoinguser" {
		r.warn(n.Pos, "only one outgoinguser is allowed, the first counts")
		return nil
	}
	a, err := r.account(n)
	if err != nil {
		return err
	}
	if n.Key == "outgoinguser" {
		r.target.Outgoing = a
	} else {
		r.target.Incoming = append(r.target.Incoming, *a)
	}
	return nil
}

// stores reads the stores of one kind, in the order of their paths. Blocks of
// one path are one store.
func (r *reader) stores(list []*Node) error {
	slices.SortStableFunc(list, func(a, b *Node) int { return cmp.Compare(a.Value, b.Value) })
	for i := 0; i < len(list); i++ {
		n, nodes := list[i], list[i].Nodes
		if n.Value == "" {
			return failf(n.Pos, "%s has no path", n.Key)
		}
		for n.Block && i+1 < len(list) && list[i+1].Block && list[i+1].Value == n.Value {
			i++
			nodes = slices.Concat(nodes, list[i].Nodes)
		}
		s := &Store{Pos: n.Pos, Path: n.Value, Direct: n.Key == "direct-store", NoMedium: strings.HasPrefix(n.Value, "NONE:"), WriteCache: true}
		if err := r.store(s, nodes, n.Block); err != nil {
			return err
		}
		r.target.Stores = append(r.target.Stores, s)
	}
	return nil
}

// store reads the directives of a store; those of the target stand in for what
// the store does not have itself.
func (r *reader) store(s *Store, nodes []*Node, block bool) error {
	own := map[string]*Node{}
	params := map[string][]*Node{}
	take := func(n *Node) error {
		if repeatable(n.Key) || slices.Contains(unitParams, n.Key) {
			params[n.Key] = append(params[n.Key], n)
			return nil
		}
		return r.option(s, n)
	}
	for _, n := range nodes {
		switch {
		case n.Block || !ofStore(n.Key):
			r.warn(n.Pos, "%s is not known in a store and has no effect", n.title())
			continue
		case n.Value == "":
			return failf(n.Pos, "%s has no value", n.Key)
		case own[n.Key] != nil && !repeatable(n.Key):
			return failf(n.Pos, "%s is there twice, first at %s", n.Key, own[n.Key].Pos)
		}
		own[n.Key] = n
		if err := take(n); err != nil {
			return err
		}
	}
	for _, n := range r.defaults {
		// A block size stands in a store's own block, as with tgt-admin.
		if own[n.Key] != nil || n.Key == "block-size" && !block {
			continue
		}
		if err := take(n); err != nil {
			return err
		}
	}
	for _, key := range unitParams {
		for _, n := range params[key] {
			name := n.Key
			if name == "params" {
				name = ""
			}
			s.Params = append(s.Params, Param{n.Pos, name, n.Value})
		}
	}
	return nil
}

func (r *reader) option(s *Store, n *Node) error {
	switch n.Key {
	case "lun":
		lun, err := strconv.ParseUint(n.Value, 0, 64)
		if err != nil {
			return failf(n.Pos, "lun %q is not a number", n.Value)
		}
		s.LUN, s.Given = lun, true
	case "write-cache":
		switch n.Value {
		case "on", "off":
			s.WriteCache = n.Value == "on"
		default: // tgt-admin leaves it on without a word
			r.warn(n.Pos, "write-cache is on or off; %q is taken for on", n.Value)
		}
	case "device-type":
		s.DeviceType = n.Value
	case "bs-type":
		s.Bstype = n.Value
	case "bsopts":
		s.Bsopts = n.Value
	case "bsoflags":
		s.Bsoflags = n.Value
	case "block-size":
		s.BlockSize = n.Value
	case "allow-in-use":
		s.AllowInUse = n.Value == "yes"
	}
	return nil
}

// number gives the stores without a number the first that are free from 1, in
// their order. tgt-admin does not look ahead and may give out one that a later
// store has; the result is the same where it succeeds.
func (r *reader) number() error {
	taken := map[uint64]*Store{}
	for _, s := range r.target.Stores {
		if !s.Given {
			continue
		}
		if was := taken[s.LUN]; was != nil {
			return failf(s.Pos, "LUN %d is that of %s already, at %s", s.LUN, was.Path, was.Pos)
		}
		taken[s.LUN] = s
	}
	next := uint64(1)
	for _, s := range r.target.Stores {
		if s.Given {
			continue
		}
		for taken[next] != nil {
			next++
		}
		s.LUN = next
		taken[next] = s
	}
	return nil
}

package declare

import (
	"slices"

	"blockgate/internal/state"
)

func (p *planner) nbdPortals(configs []state.Config) error {
	want, err := collect(state.KindNBDPortal, configs, func(c state.Config) []state.NBDPortal { return slices.Clone(c.NBDPortals) },
		func(v *state.NBDPortal) (string, *string) {
			if addr, err := state.ParseNBDPortal(v.Address); err == nil {
				v.Address = addr
			}
			return v.Address, &v.Scope
		})
	if err != nil {
		return err
	}
	for _, name := range names(want) {
		if old, ok := p.s.NBDPortal(name); ok {
			if err := p.mayTake(object(state.KindNBDPortal, name), old.Value.Scope, want[name].Scope); err != nil {
				return err
			}
		}
		p.put(state.Op{Kind: state.KindNBDPortal, NBDPortal: want[name]})
	}
	for _, old := range p.s.NBDPortals() {
		if v := old.Value; p.scopes[v.Scope] && want[v.Address] == nil {
			p.delete(state.Op{Kind: state.KindNBDPortal, Name: v.Address})
		}
	}
	return nil
}

func (p *planner) exports(configs []state.Config) error {
	want, err := collect(state.KindExport, configs, func(c state.Config) []state.Export { return slices.Clone(c.Exports) },
		func(v *state.Export) (string, *string) { return v.Name, &v.Scope })
	if err != nil {
		return err
	}
	for _, name := range names(want) {
		if old, ok := p.s.Export(name); ok {
			if err := p.mayTake(object(state.KindExport, name), old.Value.Scope, want[name].Scope); err != nil {
				return err
			}
		}
		p.put(state.Op{Kind: state.KindExport, Export: want[name]})
	}
	for _, old := range p.s.Exports() {
		if v := old.Value; p.scopes[v.Scope] && want[v.Name] == nil {
			p.delete(state.Op{Kind: state.KindExport, Name: v.Name})
		}
	}
	return nil
}

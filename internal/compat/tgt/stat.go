package tgt

import (
	"fmt"
	"io"

	v1 "blockgate/internal/api/v1"
)

// statRow is one line of the counters: of one LUN and one session.
type statRow struct {
	tid int
	lun uint64
	sid uint64
	v1.NexusStat
}

// stats are the counters of all LUNs and sessions, zeroes included.
type statTable []statRow

// stats asks for the counters of a target, or of all with an empty name.
func (a *admin) stats(target string) (statTable, error) {
	targets, err := a.api.Targets(a.ctx)
	if err != nil {
		return nil, err
	}
	sessions, err := a.sessions(target)
	if err != nil {
		return nil, err
	}
	counted, err := a.api.Stats(a.ctx, target)
	if err != nil {
		return nil, err
	}
	return tabulate(targets, sessions, counted, target), nil
}

// tabulate makes a row for every LUN of a target and every session of it.
func tabulate(targets []v1.Target, sessions []v1.Session, counted []v1.NexusStat, only string) statTable {
	type key struct {
		target   string
		lun, sid uint64
	}
	counters := make(map[key]v1.NexusStat, len(counted))
	for _, c := range counted {
		counters[key{c.Target, c.LUN, c.Session}] = c
	}
	bySession := map[string][]uint64{}
	for _, s := range sessions {
		bySession[s.Target] = append(bySession[s.Target], s.ID)
	}
	var table statTable
	for _, t := range targets {
		if only != "" && t.Name != only {
			continue
		}
		sids := bySession[t.Name]
		if len(sids) == 0 {
			continue
		}
		luns := make([]uint64, 0, len(t.LUNs)+1)
		if t.ControllerLUN0 {
			luns = append(luns, 0)
		}
		for _, l := range t.LUNs {
			luns = append(luns, l.Number)
		}
		for _, lun := range luns {
			for _, sid := range sids {
				table = append(table, statRow{t.ID, lun, sid, counters[key{t.Name, lun, sid}]})
			}
		}
	}
	return table
}

func (t statTable) rows(want func(statRow) bool) []statRow {
	var out []statRow
	for _, r := range t {
		if want(r) {
			out = append(out, r)
		}
	}
	return out
}

// stat prints the counters of the rows that are wanted.
func (a *admin) stat(want func(statRow) bool, target string) error {
	t, err := a.stats(target)
	if err != nil {
		return err
	}
	writeStats(a.out, t.rows(want))
	return nil
}

// writeStats prints the table. A command is counted when it is done, so what
// was submitted and what is done are the same.
func writeStats(w io.Writer, rows []statRow) {
	fmt.Fprintln(w, "tgt lun sid rd_subm(bytes,cmds) rd_done(bytes,cmds) wr_subm(bytes,cmds) wr_done(bytes,cmds) errs")
	for _, r := range rows {
		fmt.Fprintf(w, "%3d %3d %3d %12d %6d %12d %6d %12d %6d %12d %6d %4d\n", r.tid, r.lun, r.sid,
			r.ReadBytes, r.ReadCommands, r.ReadBytes, r.ReadCommands,
			r.WriteBytes, r.WriteCommands, r.WriteBytes, r.WriteCommands, r.Errors)
	}
}

func writeConnStats(w io.Writer, sid uint64, conns []v1.Connection) {
	fmt.Fprintln(w, "sid cid rxdata_octets txdata_octets dataout_pdus datain_pdus cmd_pdus rsp_pdus")
	for _, c := range conns {
		fmt.Fprintf(w, "%3d %3d %13d %13d %12d %11d %8d %8d\n", sid, c.CID, c.RxBytes, c.TxBytes,
			c.DataOutPDU, c.DataInPDU, c.Commands, c.Responses)
	}
}

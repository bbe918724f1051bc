package curve

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func FuzzSnapshotAnswer(f *testing.F) {
	f.Add([]byte(`{"Code":"0","Message":"Exec success.","RequestId":"r","UUID":"u"}`))
	f.Add([]byte(`{"Code":"0","TotalCount":1,"Snapshots":[{"UUID":"u","File":"/v","SeqNum":3,"Name":"s","Time":1700000000000000,"FileLength":10737418240,"Status":0,"Progress":"100"}]}`))
	f.Add([]byte(`{"Code":"0","TotalCount":1,"TaskInfos":[{"UUID":"u","File":"/v","TaskStatus":7}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(b)
		if err != nil {
			if d := cmp.Diff(serviceAnswer{}, a); d != "" {
				t.Errorf("an error with an answer: %s", d)
			}
			return
		}
		for i := range a.Snapshots {
			snapshotOf(&a.Snapshots[i])
		}
	})
}

func FuzzClientConf(f *testing.F) {
	f.Add("nebdserver.serverAddress=unix:/data/nebd/nebd.sock\n# x\nmetacache.fileLockPath=/data/nebd/lock")
	f.Fuzz(func(t *testing.T, s string) {
		socket, locks, err := readClientConf(strings.NewReader(s))
		if err == nil && strings.ContainsAny(socket+locks, "\n#") {
			t.Errorf("%q, %q", socket, locks)
		}
	})
}

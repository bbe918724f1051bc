package initiator

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"blockgate/iscsi"
	"blockgate/scsi/sense"
)

func TestParseURL(t *testing.T) {
	const iqn = "iqn.2025-01.test:a"
	tests := []struct {
		url  string
		want URL
	}{
		{"iscsi://h", URL{Addr: "h:3260"}},
		{"iscsi://h:99/", URL{Addr: "h:99"}},
		{"iscsi://[::1]/" + iqn, URL{Addr: "[::1]:3260", Target: iqn}},
		{"iscsi://[::1]:99/" + iqn + "/5", URL{Addr: "[::1]:99", Target: iqn, LUN: 5, HasLUN: true}},
		{"iscsi://joe%s3c@ret%41@h/" + iqn + "/0", URL{Addr: "h:3260", Target: iqn, HasLUN: true, Auth: &iscsi.Account{User: "joe", Secret: "s3c@ret%41"}}},
		{"iscsi://joe%a@h/" + iqn + "/0?target_user=t&target_password=b&header_digest=crc32c,none&data_digest=CRC32C",
			URL{Addr: "h:3260", Target: iqn, HasLUN: true, Auth: &iscsi.Account{User: "joe", Secret: "a"},
				Mutual:        &iscsi.Account{User: "t", Secret: "b"},
				HeaderDigests: []string{"CRC32C", "None"}, DataDigests: []string{"CRC32C"}}},
	}
	for _, tt := range tests {
		u, err := ParseURL(tt.url)
		if err != nil {
			t.Errorf("%s: %v", tt.url, err)
			continue
		}
		if d := cmp.Diff(&tt.want, u); d != "" {
			t.Errorf("%s: %s", tt.url, d)
		}
	}
}

func TestParseURLErrors(t *testing.T) {
	for _, s := range []string{"", "http://h/", "iscsi://", "iscsi://:99/x", "iscsi://h:0", "iscsi://h:99999", "iscsi://h//0",
		"iscsi://h/x/y", "iscsi://h/x/-1", "iscsi://%topsecret@h/x", "iscsi://h/x/0?nonsense=1", "iscsi://joe%topsecret@h/x/0?target_password=b",
		"iscsi://h/x/0?target_user=t&target_password=topsecret", "iscsi://joe%topsecret@h/x/0?data_digest=md5"} {
		u, err := ParseURL(s)
		if err == nil {
			t.Errorf("%q was taken: %+v", s, u)
		} else if strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%q: the error tells the secret: %v", s, err)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("iscsi://joe%secret@[::1]:3260/iqn.2025-01.test:a/7?header_digest=none")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURL(s)
		if err != nil {
			return
		}
		again, err := ParseURL(u.String())
		if err != nil || again.Addr != u.Addr || again.Target != u.Target || again.LUN != u.LUN {
			t.Errorf("%q reads as %q, which reads as %+v, %v", s, u, again, err)
		}
	})
}

// TestParseSense: what package sense encodes is read back.
func TestParseSense(t *testing.T) {
	var buf [sense.MaxLen]byte
	for _, want := range []sense.Sense{sense.LBAOutOfRange(1234), sense.InvalidFieldInCDB(2, 3), sense.NexusLoss(), sense.MiscompareAt(9)} {
		for _, descriptor := range []bool{false, true} {
			got, ok := ParseSense(want.Encode(buf[:], descriptor))
			if d := cmp.Diff(want, got); !ok || d != "" {
				t.Errorf("%v: %s", want, d)
			}
		}
	}
}

func TestLUNField(t *testing.T) {
	for n, field := range map[uint64]uint64{0: 0, 7: 7 << 48, 255: 255 << 48, 256: 0x4100 << 48, 16383: 0x7fff << 48} {
		if LUN(n) != field || LUNNumber(field) != n {
			t.Errorf("%d: %x, back %d", n, LUN(n), LUNNumber(field))
		}
	}
}

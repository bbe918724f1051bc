package tgtconf

import "testing"

func TestRBDOptions(t *testing.T) {
	for _, c := range []struct{ image, opts, want string }{
		{"rbd:rbd/image", "", "rbd:rbd/image"},
		{"rbd:rbd/image@s", "conf=/etc/ceph/b.conf;id=tgt;cluster=b", "rbd:rbd/image@s?conf=/etc/ceph/b.conf&id=tgt&cluster=b"},
		{"rbd:p/i", "id=a b&c;conf=", "rbd:p/i?id=a%20b%26c"},
		{"rbd:p/i", "virsecretuuid=8f2a;", "rbd:p/i?secret=8f2a"},
		{"rbd:p/i", "cephx_key=AQ==", ""},
		{"rbd:p/i", "id=a;id=b", ""},
		{"rbd:p/i", "pool=x", ""},
	} {
		got, err := RBDOptions(c.image, c.opts)
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("RBDOptions(%q, %q) = %q, %v; want %q", c.image, c.opts, got, err, c.want)
		}
	}
}

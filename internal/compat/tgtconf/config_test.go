package tgtconf

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func load(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse(FS(fstest.MapFS{}), "f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestMeaning(t *testing.T) {
	c := load(t, `
default-driver iscsi
ignore-errors yes
control-port 77
iSNS On
iSNSServerIP 10.0.0.9
incomingdiscoveryuser duser dsecret
<target iqn.x:two>
    vendor_id ACME
    write-cache off
    backing-store /b
    backing-store /a
    direct-store /c
    incominguser   u1   p1
    incominguser u2 p2
    outgoinguser o1 po1
    initiator-name iqn.i:1
    state offline
    MaxBurstLength 65536
    HeaderDigest CRC32C
    lbppbe 3
</target>
<target iqn.x:one>
    <backing-store /dev/vg/lv>
        lun 2
        params thin_provisioning=1
        mode_page 8:0
        mode_page 0x0a:0
        scsi_sn SN5
        write-cache off
        bs-type aio
        bsoflags direct
        block-size 4096
    </backing-store>
    <backing-store NONE:cd>
        device-type cd
    </backing-store>
    initiator-address 10.0.0.0/8
    controller_tid 21
</target>
<target iqn.x:one>
    initiator-address ALL
</target>
`)
	ignore := cmp.Options{cmpopts.IgnoreTypes(Position{}), cmpopts.EquateEmpty()}
	want := &Config{
		DefaultDriver: "iscsi", IgnoreErrors: true, ControlPort: 77,
		ISNS:              []Param{{Name: "iSNSServerIP", Value: "10.0.0.9"}, {Name: "iSNS", Value: "On"}},
		DiscoveryIncoming: &Account{User: "duser", Password: "dsecret"},
		Files:             []string{"f"},
		Targets: []*Target{
			{
				Name: "iqn.x:one", TID: 21, Addresses: []Value{{Text: "10.0.0.0/8"}, {Text: "ALL"}},
				Stores: []*Store{
					{Path: "/dev/vg/lv", LUN: 2, Given: true, Bstype: "aio", Bsoflags: "direct", BlockSize: "4096", Params: []Param{
						{Name: "mode_page", Value: "8:0"}, {Name: "mode_page", Value: "0x0a:0"}, {Name: "scsi_sn", Value: "SN5"}, {Value: "thin_provisioning=1"}}},
					{Path: "NONE:cd", NoMedium: true, LUN: 1, DeviceType: "cd", WriteCache: true},
				},
			},
			{
				Name: "iqn.x:two", Names: []Value{{Text: "iqn.i:1"}},
				Incoming: []Account{{User: "u1", Password: "p1"}, {User: "u2", Password: "p2"}}, Outgoing: &Account{User: "o1", Password: "po1"},
				Params: []Param{{Name: "HeaderDigest", Value: "CRC32C"}, {Name: "MaxBurstLength", Value: "65536"}, {Name: "state", Value: "offline"}},
				Stores: []*Store{
					{Path: "/a", LUN: 1, Params: []Param{{Name: "vendor_id", Value: "ACME"}, {Name: "lbppbe", Value: "3"}}},
					{Path: "/b", LUN: 2, Params: []Param{{Name: "vendor_id", Value: "ACME"}, {Name: "lbppbe", Value: "3"}}},
					{Path: "/c", LUN: 3, Direct: true, Params: []Param{{Name: "vendor_id", Value: "ACME"}, {Name: "lbppbe", Value: "3"}}},
				},
			},
		},
	}
	if d := cmp.Diff(want, c, ignore); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if !c.Target("iqn.x:two").OpenToAll() || c.Target("iqn.x:one").OpenToAll() || c.Target("none") != nil {
		t.Error("who may log in is told wrongly")
	}
	if at := c.Target("iqn.x:two").Pos.String(); at != "f:8" {
		t.Errorf("the target is said to be at %s", at)
	}
}

// The file that Cinder's TgtAdm driver writes, with and without CHAP and flags.
func TestCinderStanza(t *testing.T) {
	c := load(t, "\n<target iqn.2010-10.org.openstack:volume-1>\n    backing-store /dev/cinder-volumes/volume-1\n    driver iscsi\n"+
		"    \n    \n    write-cache on\n    params thin_provisioning=1\n</target>\n")
	tg := c.Targets[0]
	if tg.Err != nil || len(c.Warnings) > 0 || len(tg.Stores) != 1 || tg.Stores[0].LUN != 1 || !tg.Stores[0].WriteCache ||
		tg.Stores[0].Params[0].Value != "thin_provisioning=1" {
		t.Errorf("%+v, warnings %v", tg, c.Warnings)
	}
}

func TestWhatIsWrongStaysWithItsTarget(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"incominguser u", "f:2: incominguser wants a user and a password"},
		{"backing-store", "f:2: backing-store has no value"},
		{"vendor_id a\nvendor_id b", "f:3: vendor_id is there twice, first at f:2"},
		{"controller_tid x", "f:2: controller_tid \"x\" is not a number from 1"},
		{"<backing-store /a>\nlun 1\nlun 2\n</backing-store>", "f:4: lun is there twice, first at f:3"},
		{"lun 4\nbacking-store /a\nbacking-store /b", "f:4: LUN 4 is that of /a already, at f:3"},
		{"<backing-store /a>\nlun x\n</backing-store>", "f:3: lun \"x\" is not a number"},
		{"<backing-store>\n</backing-store>", "f:2: backing-store has no path"},
	} {
		got := load(t, "<target bad>\n"+c.in+"\n</target>\n<target good>\nbacking-store /x\n</target>\n")
		errs := got.Errors()
		if len(errs) != 1 || errs[0].Error() != c.want || len(got.Target("good").Stores) != 1 {
			t.Errorf("%q: %v, want %s", c.in, errs, c.want)
		}
	}
	for _, in := range []string{"default-driver a\ndefault-driver b", "control-port x", "incomingdiscoveryuser u", "iSNS"} {
		if _, err := Parse(nil, "f", []byte(in)); err == nil {
			t.Errorf("%q is taken", in)
		}
	}
}

func TestWarnings(t *testing.T) {
	c := load(t, "bogus 1\n<Target x>\n</Target>\n<target a>\nnope 1\n<who x>\n</who>\n<backing-store /a>\ninitiator-address x\nwrite-cache maybe\n</backing-store>\n"+
		"MaxBurstLength 1\nMaxBurstLength 2\nincominguser a b c\noutgoinguser a b\noutgoinguser c d\n</target>\n")
	var lines []string
	for _, w := range c.Warnings {
		lines = append(lines, w.Pos.String())
	}
	if got, want := strings.Join(lines, " "), "f:1 f:2 f:5 f:6 f:13 f:14 f:16 f:9 f:10"; got != want {
		t.Errorf("warnings at %s, want %s: %v", got, want, c.Warnings)
	}
	if tg := c.Targets[0]; tg.Err != nil || tg.Outgoing.User != "a" || tg.Params[0].Value != "1" {
		t.Errorf("%+v", tg)
	}
}

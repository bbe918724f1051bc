package outside

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// capture records the loopback traffic of a TCP port.
type capture struct {
	*process
	file string
	mark *net.UDPConn // to a port that is captured too
}

func startCapture(t *testing.T, port string) *capture {
	t.Helper()
	// A UDP socket that nobody reads: what is sent to it shows in the capture.
	sink, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sink.Close() })
	to := sink.LocalAddr().(*net.UDPAddr)
	c := &capture{file: filepath.Join(t.TempDir(), "wire.pcapng")}
	if c.mark, err = net.DialUDP("udp", nil, to); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.mark.Close() })
	c.process = spawn(t, nil, "tshark", "-q", "-i", "lo", "-s", "0", "-B", "64",
		"-f", fmt.Sprintf("tcp port %s or udp port %d", port, to.Port), "-w", c.file)
	c.sees(t, "capture-begins-here")
	return c
}

// sees sends a mark until the capture file has it: then everything sent before
// is in the file too.
func (c *capture) sees(t *testing.T, mark string) {
	t.Helper()
	eventually(t, 30*time.Second, "mark "+mark+" in the capture", func() bool {
		if !c.alive() {
			t.Fatalf("tshark ended: %s", c.err.String())
		}
		c.mark.Write([]byte(mark))
		b, _ := os.ReadFile(c.file)
		return bytes.Contains(b, []byte(mark))
	})
}

func (c *capture) stop(t *testing.T) {
	t.Helper()
	c.sees(t, "capture-ends-here")
	syscall.Kill(c.pid(), syscall.SIGINT)
	c.ended(t, 20*time.Second)
}

// Wireshark's dissector reads what the target sends.
func TestWire(t *testing.T) {
	e := serve(t, "ram:64M")
	c := startCapture(t, e.port())
	// The dissector also calls data malformed that a short allocation length
	// cut off: tests of that are left out, and QEMU, which begins so. Little data:
	// a capture with gaps says nothing.
	for _, pattern := range []string{"SCSI.Read6", "SCSI.Write10.ZeroBlocks", "SCSI.Inquiry.Standard", "SCSI.Inquiry.BlockLimits",
		"SCSI.Inquiry.SupportedVPD", "SCSI.Inquiry.MandatoryVPDSBC", "SCSI.ReadCapacity16.Simple", "SCSI.ModeSense6.Control",
		"SCSI.Unmap.VPD", "SCSI.ReportSupportedOpcodes", "SCSI.PrinReportCapabilities", "SCSI.CompareAndWrite.Miscompare",
		"iSCSI.iSCSIResiduals", "iSCSI.iSCSITMF", "iSCSI.iSCSIcmdsn", "iSCSI.iSCSIdatasn"} {
		testCU(t, suiteLimit, pattern, e.url)
	}
	ok(t, 15*time.Second, "iscsi-ls", "-s", "iscsi://"+e.addr())
	c.stop(t)
	if m := regexp.MustCompile(`(\d+) packets? dropped`).FindStringSubmatch(c.err.String()); m != nil && m[1] != "0" {
		t.Logf("the capture has gaps: %s", m[0])
	}

	dissect := func(args ...string) string {
		t.Helper()
		// Wireshark knows only port 3260 by itself.
		return ok(t, 2*time.Minute, "tshark", append([]string{"-r", c.file, "-d", "tcp.port==" + e.port() + ",iscsi"}, args...)...)
	}
	opcodes := map[string]int{}
	for f := range strings.FieldsFuncSeq(dissect("-Y", "iscsi && tcp.srcport == "+e.port(), "-T", "fields", "-E", "occurrence=a", "-e", "iscsi.opcode"),
		func(r rune) bool { return r == ',' || r == '\n' }) {
		opcodes[f]++
	}
	for op, name := range map[string]string{"0x21": "SCSI Response", "0x22": "Task Management Response", "0x23": "Login Response",
		"0x24": "Text Response", "0x25": "Data-In", "0x26": "Logout Response"} {
		if opcodes[op] == 0 {
			t.Errorf("the capture has no %s from the target: %v", name, opcodes)
		}
	}
	figure(t, "PDUs from the target seen by the dissector: %v", opcodes)
	bad := dissect("-Y", "tcp.srcport == "+e.port()+" && (_ws.malformed || (iscsi && _ws.expert.severity >= 0x800000))",
		"-T", "fields", "-e", "frame.number", "-e", "_ws.col.Info", "-e", "_ws.expert.message")
	if bad = regexp.MustCompile(`(?m)^Running as user.*\n`).ReplaceAllString(bad, ""); strings.TrimSpace(bad) != "" {
		t.Errorf("malformed PDUs from the target:\n%s", tail(bad, 20))
	}
}

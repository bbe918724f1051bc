package iscsi_test

import (
	"bytes"
	"testing"

	"blockgate/iscsi"
	"blockgate/scsi"
)

func TestTextTooLongForOnePDU(t *testing.T) {
	r := newRig(t, rigOptions{discovery: true, params: func(p *iscsi.Params) { p.MaxXmitDataSegment = 512 }})
	for range 40 {
		r.dir[1].Portals = append(r.dir[1].Portals, "192.0.2.1:3260,1")
	}
	l := r.conns[0]
	var h iscsi.BHS
	h.SetOpcode(iscsi.OpTextReq, true)
	h.SetFlags(iscsi.FlagFinal)
	h.SetITT(9)
	h.SetTTT(iscsi.ReservedTag)
	var got []byte
	l.send(h, []byte("SendTargets=All\x00"))
	for {
		p := l.next()
		got = append(got, p.data...)
		if p.Flags()&iscsi.FlagFinal != 0 {
			break
		}
		if p.Flags()&iscsi.FlagContinue == 0 || len(p.data) > 512 {
			t.Fatalf("piece of %d bytes, flags %02x", len(p.data), p.Flags())
		}
		h.SetTTT(p.TTT())
		l.send(h, nil)
	}
	if !bytes.Equal(got, iscsi.SendTargetsText([]iscsi.TargetRecord{{Name: r.dir[0].Name, Portals: r.dir[0].Portals}, r.dir[1]})) {
		t.Fatalf("got %q", got)
	}
}

func TestSendTargetsInANormalSessionNamesItsOwnTargetOnly(t *testing.T) {
	for value, want := range map[string]string{
		"All": "TargetName=" + rigTarget + "\x00TargetAddress=127.0.0.1:3260,1\x00", "": "TargetName=" + rigTarget + "\x00TargetAddress=127.0.0.1:3260,1\x00",
		rigTarget: "TargetName=" + rigTarget + "\x00TargetAddress=127.0.0.1:3260,1\x00", "iqn.2026-11.test:other": "", "Alle": "",
	} {
		l := newRig(t, rigOptions{}).conns[0]
		var h iscsi.BHS
		h.SetOpcode(iscsi.OpTextReq, true)
		h.SetFlags(iscsi.FlagFinal)
		h.SetITT(9)
		h.SetTTT(iscsi.ReservedTag)
		l.send(h, []byte("SendTargets="+value+"\x00"))
		p := l.next()
		if want == "" {
			p.wantReject(t, iscsi.RejectProtocolError)
		} else if string(p.data) != want {
			t.Errorf("SendTargets=%s gave %q", value, p.data)
		}
	}
}

// A text request of keys that nobody knows fails; one unknown key among others,
// or of an extension, is answered.
func TestTextOfUnknownKeys(t *testing.T) {
	for text, want := range map[string]string{
		"SendTargetsPlease=All\x00": "", "sENDtARGETS=aLL\x00": "",
		"X-com.example.size=7\x00":                          "X-com.example.size=NotUnderstood\x00",
		"Colour=blue\x00MaxRecvDataSegmentLength=65536\x00": "Colour=NotUnderstood\x00",
	} {
		l := newRig(t, rigOptions{}).conns[0]
		var h iscsi.BHS
		h.SetOpcode(iscsi.OpTextReq, true)
		h.SetFlags(iscsi.FlagFinal)
		h.SetITT(9)
		h.SetTTT(iscsi.ReservedTag)
		l.send(h, []byte(text))
		p := l.next()
		if want == "" {
			p.wantReject(t, iscsi.RejectProtocolError)
		} else if string(p.data) != want {
			t.Errorf("%q gave %q", text, p.data)
		}
		l.send(cmdPDU(1, 1, 0, make([]byte, 6), 0, 0x80), nil) // the session goes on
		l.next().wantStatus(t, scsi.Good)
	}
}

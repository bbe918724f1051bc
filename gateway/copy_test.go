package gateway_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"blockgate/gateway"
	"blockgate/iscsi"
	"blockgate/iscsi/initiator"
	"blockgate/scsi"
)

// copyFrom sends EXTENDED COPY to d's unit: eight blocks from the start of the
// unit with that NAA to its own.
func copyFrom(t *testing.T, s *initiator.Session, naa [16]byte) error {
	t.Helper()
	list := make([]byte, 16+32+28)
	be := binary.BigEndian
	be.PutUint16(list[2:], 32)
	be.PutUint32(list[8:], 28)
	c := list[16:]
	c[0], c[4], c[5], c[7] = 0xe4, 1, 3, 16
	copy(c[8:], naa[:])
	g := list[48:]
	g[0], g[3] = 0x02, 0x18
	be.PutUint16(g[6:], 0xffff)
	be.PutUint16(g[10:], 8)
	cmd := initiator.Command{CDB: make([]byte, 16), Out: list}
	cmd.CDB[0] = 0x83
	be.PutUint32(cmd.CDB[10:], uint32(len(list)))
	if err := s.Execute(t.Context(), &cmd); err != nil && cmd.Err != nil {
		t.Fatal(err)
	}
	return cmd.Failure()
}

// Volumes of one gateway copy to each other, also over two targets, for a host
// that sees both. Its name alone does not make it one: who was let in without a
// secret does not read what another of that name was let in to with one.
func TestCopyBetweenTargets(t *testing.T) {
	g, addr := newGateway(t, gateway.Config{})
	joe := iscsi.Account{User: "joe", Secret: "unguessable secret"}
	naa := func(b byte) (n [16]byte) { n[0], n[15] = 0x60, b; return n }
	for i, v := range []string{"here", "open", "closed"} {
		tc := gateway.TargetConfig{Name: name + v, ACL: gateway.Everyone()}
		if v == "closed" {
			tc.Auth.Incoming = []iscsi.Account{joe}
		}
		export(t, g, gateway.VolumeConfig{Name: v, URL: "ram:1M", Unit: scsi.UnitConfig{NAA: naa(byte(i))}}, tc)
	}
	see := func(v string, auth *iscsi.Account) (*initiator.Session, *initiator.Disk) {
		s, err := login(t, addr, initiator.Config{TargetName: name + v, InitiatorName: "iqn.2025-01.io.example:me", Auth: auth})
		ok(t, err)
		d, err := s.Unit(initiator.LUN(0)).OpenDisk(t.Context())
		ok(t, err)
		return s, d
	}
	s, here := see("here", nil)
	_, open := see("open", nil)
	_, closed := see("closed", &joe)
	want, got := bytes.Repeat([]byte("blockgate!123456"), 256), make([]byte, 4096)
	ok(t, open.WriteAt(t.Context(), want, 0))
	ok(t, closed.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 4096), 0))

	ok(t, copyFrom(t, s, naa(1)))
	ok(t, here.ReadAt(t.Context(), got, 0))
	if !bytes.Equal(got, want) {
		t.Error("the copy does not have the other volume's data")
	}
	var e *initiator.StatusError
	if err := copyFrom(t, s, naa(2)); !errors.As(err, &e) || e.Sense.ASC != 0x0d {
		t.Errorf("from a target that asks for a secret: %v", err)
	}
	ok(t, here.ReadAt(t.Context(), got, 0))
	if !bytes.Equal(got, want) {
		t.Error("the copy that was refused has changed the volume")
	}
}

package initiator_test

import (
	"context"
	"fmt"
	"log"

	"blockgate/iscsi/initiator"
)

// Read the first block of a disk that another machine serves.
func Example() {
	ctx := context.Background()
	u, err := initiator.ParseURL("iscsi://192.0.2.10/iqn.2025-01.example:disk/1")
	if err != nil {
		log.Fatal(err)
	}
	s, err := initiator.Dial(ctx, u.Config())
	if err != nil {
		log.Fatal(err)
	}
	defer s.Logout(ctx)
	d, err := s.Unit(u.LUN).OpenDisk(ctx)
	if err != nil {
		log.Fatal(err)
	}
	block := make([]byte, d.Capacity.BlockSize)
	if err := d.ReadAt(ctx, block, 0); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d bytes, the disk has %d\n", len(block), d.Size())
}

// Send what no well-behaved initiator would: a command out of the window.
func ExampleRaw() {
	ctx := context.Background()
	cfg := initiator.Config{Addrs: []string{"192.0.2.10"}, TargetName: "iqn.2025-01.example:disk"}
	r, err := cfg.DialRaw(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	var pdu initiator.PDU
	pdu.SetOpcode(0x01, false) // SCSI Command: TEST UNIT READY
	pdu.SetFlags(0x80)
	pdu.SetCmdSN(r.MaxCmdSN + 1)
	if err := r.Send(&pdu.BHS, nil, nil); err != nil {
		log.Fatal(err)
	}
}

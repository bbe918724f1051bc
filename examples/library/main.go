// Command library shows how a Go program serves a disk of its own.
package main

import (
	"context"
	"fmt"
	"log"

	"blockgate/gateway"
)

func main() {
	ctx, name := context.Background(), "iqn.2025-01.io.example:disk"
	g, err := gateway.New(gateway.Config{})
	check(err)
	defer g.Close()
	check(g.AddVolume(ctx, gateway.VolumeConfig{Name: "disk", URL: "ram:64M"}))
	check(g.AddTarget(gateway.TargetConfig{Name: name, ACL: gateway.Everyone()}))
	check(g.MapLUN(name, 0, "disk"))
	p, err := g.AddPortal(ctx, gateway.PortalConfig{Address: "127.0.0.1:0"})
	check(err)
	fmt.Printf("iscsi://%s/%s/0\n", p.Bound, name)
	select {} // until it is killed
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

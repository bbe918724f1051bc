package server

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"blockgate/nbd"
)

var optionOf = map[string]nbd.Option{
	"EXPORT_NAME": nbd.OptExportName, "ABORT": nbd.OptAbort, "LIST": nbd.OptList, "STARTTLS": nbd.OptStartTLS, "INFO": nbd.OptInfo,
	"GO": nbd.OptGo, "STRUCTURED_REPLY": nbd.OptStructuredReply, "LIST_META_CONTEXT": nbd.OptListMetaContext,
	"SET_META_CONTEXT": nbd.OptSetMetaContext, "EXTENDED_HEADERS": nbd.OptExtendedHeaders,
}

// TestHandshake runs the dialogues of testdata/handshake. A line is an option:
//
//	GO disk block-size name     INFO and GO, with what is asked for
//	SET_META_CONTEXT disk base: the two of metadata contexts, with their queries
//	LIST hex:00                 any option with any data
//	upgraded                    TLS runs from here on
//
// A block begins with "handshake", with tls=optional or tls=required if there is
// TLS, and ends with "----", behind which are the replies and how it goes on.
func TestHandshake(t *testing.T) {
	const file = "testdata/handshake/options"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
		asked, _, _ := strings.Cut(block+"\n", "----\n")
		out.WriteString(asked + "----\n")
		h := newDialogue(t)
		for line := range strings.Lines(asked) {
			f := strings.Fields(line)
			switch {
			case strings.HasPrefix(line, "#"):
			case f[0] == "handshake":
				h.policy = map[string]TLSPolicy{"tls=optional": TLSOptional, "tls=required": TLSRequired}[strings.Join(f[1:], " ")]
			default:
				h.line(&out, f)
			}
		}
		out.WriteString("\n")
	}
	got := strings.TrimSpace(out.String()) + "\n"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(string(text), got); d != "" {
		t.Error(d)
	}
}

var update = flag.Bool("update", false, "write what the dialogues give anew")

func newDialogue(t *testing.T) *handshake {
	return &handshake{flags: nbd.ClientFixedNewstyle | nbd.ClientNoZeroes, client: &Client{}, dir: names{
		"disk":  ForStore(openRAM(t, 1<<20), StoreOptions{Name: "disk", Description: "a disk", BlockSize: 512}),
		"other": ForStore(openRAM(t, 2<<20), StoreOptions{Name: "other", ReadOnly: true}),
	}}
}

func (h *handshake) line(b *strings.Builder, f []string) {
	if f[0] == "upgraded" {
		h.upgraded(&Identity{Method: "x509"})
		return
	}
	o, known := optionOf[f[0]]
	if !known {
		n, _ := strconv.Atoi(f[0])
		o = nbd.Option(n)
	}
	var data []byte
	args := f[1:]
	switch {
	case len(args) > 0 && strings.HasPrefix(args[0], "hex:"):
		data, _ = hex.DecodeString(args[0][4:])
	case o == nbd.OptInfo || o == nbd.OptGo:
		q := nbd.InfoRequest{Name: args[0]}
		kinds := []string{"export", "name", "description", "block-size"}
		for _, a := range args[1:] {
			q.Infos = append(q.Infos, nbd.InfoType(slices.Index(kinds, a)))
		}
		data = q.Append(nil)
	case o == nbd.OptListMetaContext || o == nbd.OptSetMetaContext:
		data = nbd.MetaContextRequest{Export: args[0], Queries: args[1:]}.Append(nil)
	case len(args) > 0:
		data = []byte(args[0])
	}
	reply, next, err := h.option(o, data)
	if err != nil {
		fmt.Fprintf(b, "closed: %v\n", err)
		return
	}
	if o == nbd.OptExportName {
		size, flags, _ := nbd.DecodeExportNameReply(reply)
		fmt.Fprintf(b, "%d bytes, flags %#x\n", size, uint16(flags))
		reply = nil
	}
	for len(reply) > 0 {
		r, err := nbd.DecodeOptionReplyHeader(reply)
		if err != nil || r.Option != o {
			fmt.Fprintf(b, "%v %+v\n", err, r)
			return
		}
		data := reply[nbd.OptionReplyHeaderLen:][:r.Length]
		reply = reply[nbd.OptionReplyHeaderLen+int(r.Length):]
		fmt.Fprintf(b, "%v", r.Type)
		switch r.Type {
		case nbd.RepServer:
			e, _ := nbd.DecodeServerEntry(data)
			fmt.Fprintf(b, " %q %q", e.Name, e.Description)
		case nbd.RepInfo:
			switch i, _ := nbd.DecodeInfo(data); i.Type {
			case nbd.InfoExport:
				fmt.Fprintf(b, ": %d bytes, flags %#x", i.Size, uint16(i.Flags))
			case nbd.InfoBlockSize:
				fmt.Fprintf(b, ": blocks of %d, %d, payload %d", i.BlockSize.Min, i.BlockSize.Preferred, i.BlockSize.MaxPayload)
			default:
				fmt.Fprintf(b, ": %q", i.Text)
			}
		case nbd.RepMetaContext:
			c, _ := nbd.DecodeMetaContext(data)
			fmt.Fprintf(b, ": %d %s", c.ID, c.Name)
		default:
			if len(data) > 0 {
				fmt.Fprintf(b, ": %s", data)
			}
		}
		b.WriteByte('\n')
	}
	switch next {
	case stepTLS:
		b.WriteString("→ TLS\n")
	case stepBye:
		b.WriteString("→ the end\n")
	case stepTransmit:
		fmt.Fprintf(b, "→ %s, mode %d, allocation %v\n", h.info.Name, h.mode, h.allocation)
	}
}

// FuzzHandshake sends options, each one byte for which, one for its length, and its
// data.
func FuzzHandshake(f *testing.F) {
	add := func(o nbd.Option, data []byte) []byte { return append([]byte{byte(o), byte(len(data))}, data...) }
	f.Add(uint8(TLSOff), append(add(nbd.OptStructuredReply, nil), add(nbd.OptGo, nbd.InfoRequest{Name: "disk"}.Append(nil))...))
	f.Add(uint8(TLSOptional), append(add(nbd.OptExtendedHeaders, nil),
		add(nbd.OptSetMetaContext, nbd.MetaContextRequest{Export: "disk", Queries: []string{"base:allocation"}}.Append(nil))...))
	f.Add(uint8(TLSRequired), add(nbd.OptList, nil))
	f.Fuzz(func(t *testing.T, policy uint8, p []byte) {
		h := newDialogue(t)
		h.policy = TLSPolicy(policy % 3)
		for len(p) >= 2 {
			o, n := nbd.Option(p[0]), min(int(p[1]), len(p)-2)
			reply, next, err := h.option(o, p[2:2+n])
			p = p[2+n:]
			if next == stepTLS {
				h.upgraded(nil)
			}
			if err != nil || next == stepBye || next == stepTransmit {
				if next == stepTransmit && h.session == nil {
					t.Error("nothing to transmit")
				}
				return
			}
			// Every option has an end.
			var last nbd.ReplyType
			for len(reply) > 0 {
				r, err := nbd.DecodeOptionReplyHeader(reply)
				if err != nil || r.Option != o {
					t.Fatalf("%+v, %v", r, err)
				}
				reply, last = reply[nbd.OptionReplyHeaderLen+int(r.Length):], r.Type
			}
			if last != nbd.RepAck && !last.IsError() {
				t.Errorf("%v ends with %v", o, last)
			}
		}
	})
}

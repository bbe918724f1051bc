package nebd

import (
	"encoding/hex"
	"testing"

	"github.com/google/go-cmp/cmp"

	"blockgate/backing/curve/internal/brpc"
)

func TestBytes(t *testing.T) {
	for want, b := range map[string][]byte{
		"0a056362643a78":     AppendOpen(nil, "cbd:x"),
		"0805":               AppendFD(nil, 5),
		"080510808001188020": AppendIO(nil, 5, 16384, 4096),
		"080510808080800a":   AppendResize(nil, 5, 2684354560),
	} {
		if got := hex.EncodeToString(b); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// What is written is read back.
func TestRoundTrip(t *testing.T) {
	for _, c := range []struct {
		method string
		b      []byte
		want   Request
	}{
		{OpenFile, AppendOpen(nil, "cbd:p//v_u_"), Request{Name: "cbd:p//v_u_"}},
		{OpenFile, brpc.AppendBytes(AppendOpen(nil, "x"), 2, "\x08\x01"), Request{Name: "x", Flags: true, Exclusive: true}},
		{Flush, AppendFD(nil, 3), Request{FD: 3}},
		{Write, AppendIO(nil, 3, 1<<40, 1<<20), Request{FD: 3, Offset: 1 << 40, Size: 1 << 20}},
		{ResizeFile, AppendResize(nil, 3, 1<<40), Request{FD: 3, Size: 1 << 40}},
	} {
		got, err := ParseRequest(c.method, c.b)
		if err != nil {
			t.Errorf("%s: %v", c.method, err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", c.method, d)
		}
		if _, err := ParseRequest(c.method, c.b[:len(c.b)-1]); err == nil {
			t.Errorf("%s: a message cut short is taken", c.method)
		}
	}
	for _, r := range []Response{{}, {Code: -1, Text: "no"}, {FD: 77}, {Info: Info{Size: 10 << 30}}, {Info: Info{Size: 1 << 40, BlockSize: 512}}} {
		got, err := ParseResponse(AppendResponse(nil, &r, 0x7fffdeadbeef))
		if err != nil {
			t.Error(err)
		}
		if d := cmp.Diff(r, got); d != "" {
			t.Error(d)
		}
	}
	files := []File{{1, "cbd:p//a_u_"}, {2, "cbd:p//b_u_"}}
	pid, version, got, err := ParseKeepAlive(AppendKeepAlive(nil, 42, "1", files))
	if d := cmp.Diff(files, got); err != nil || pid != 42 || version != "1" || d != "" {
		t.Errorf("%d, %q, %v: %s", pid, version, err, d)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(OpenFile, brpc.AppendBytes(AppendOpen(nil, "cbd:p//v_u_"), 2, "\x08\x01"))
	f.Add(Write, AppendIO(nil, 3, 1<<40, 1<<20))
	f.Add(ResizeFile, AppendResize(nil, 3, 1<<40))
	f.Add(KeepAlive, AppendKeepAlive(nil, 42, "1", []File{{1, "x"}}))
	f.Fuzz(func(t *testing.T, method string, b []byte) {
		if method == KeepAlive {
			_, _, _, _ = ParseKeepAlive(b)
			return
		}
		if r, err := ParseRequest(method, b); err != nil && r != (Request{}) {
			t.Errorf("an error with %+v", r)
		}
	})
}

func FuzzResponse(f *testing.F) {
	f.Add(AppendResponse(nil, &Response{Code: -1, Text: "no"}, 0))
	f.Add(AppendResponse(nil, &Response{FD: 7}, 0))
	f.Add(AppendResponse(nil, &Response{Info: Info{Size: 10 << 30, BlockSize: 512}}, 1<<60))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseResponse(b)
		if err != nil {
			if r != (Response{}) {
				t.Errorf("an error with %+v", r)
			}
			return
		}
		back, err := ParseResponse(AppendResponse(nil, &r, 0))
		// A descriptor and an information share their number on the wire.
		if r.FD != 0 && r.Info != (Info{}) {
			return
		}
		if err != nil || back != r {
			t.Errorf("%+v comes back as %+v, %v", r, back, err)
		}
	})
}

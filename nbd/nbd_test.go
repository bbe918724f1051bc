package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the protocol document prints, byte for byte.
func TestKnownBytes(t *testing.T) {
	for _, c := range []struct {
		what string
		got  []byte
		want string
	}{
		{"greeting", AppendGreeting(nil, FixedNewstyle|NoZeroes), "4e42444d414749434948415645 4f50540003"},
		{"option", AppendOption(nil, OptGo, []byte{1}), "49484156454f5054 00000007 00000001 01"},
		{"option reply", AppendOptionReply(nil, OptList, RepErrPolicy, []byte("no")), "0003e889045565a9 00000003 80000002 00000002 6e6f"},
		{"read", Request{Type: CmdRead, Cookie: 2, Offset: 3, Length: 4}.Append(nil, Simple),
			"25609513 0000 0000 0000000000000002 0000000000000003 00000004"},
		{"extended write", Request{Flags: FlagPayloadLen, Type: CmdWrite, Cookie: 2, Offset: 3, Length: 4}.Append(nil, Extended),
			"21e41c71 0020 0001 0000000000000002 0000000000000003 0000000000000004"},
		{"simple reply", AppendSimpleReply(nil, EIO, 7), "67446698 00000005 0000000000000007"},
		{"chunk", Chunk{ChunkDone, ChunkErrorOffset, 7, 9, 8}.Append(nil, Structured), "668e33ef 0001 8002 0000000000000007 00000008"},
		{"extended chunk", Chunk{ChunkDone, ChunkNone, 7, 9, 8}.Append(nil, Extended),
			"6e8a278c 0001 0000 0000000000000007 0000000000000009 0000000000000008"},
		{"status", AppendBlockStatus(nil, Structured, 1, []Extent{{512, 3}}), "00000001 00000200 00000003"},
		{"extended status", AppendBlockStatus(nil, Extended, 1, []Extent{{512, 3}}), "00000001 00000001 0000000000000200 0000000000000003"},
		{"block size", Info{Type: InfoBlockSize, BlockSize: DefaultBlockSize()}.Append(nil), "0003 00000001 00001000 02000000"},
	} {
		if got, want := fmt.Sprintf("%x", c.got), strings.ReplaceAll(c.want, " ", ""); got != want {
			t.Errorf("%s:\n got %s\nwant %s", c.what, got, want)
		}
	}
}

func TestGreeting(t *testing.T) {
	if f, err := DecodeGreeting(AppendGreeting(nil, NoZeroes)); err != nil || f != NoZeroes {
		t.Error(f, err)
	}
	old := be.AppendUint64(be.AppendUint64(nil, Magic), OldstyleMagic)
	for what, p := range map[string][]byte{"": nil, "oldstyle": append(old, 0, 0), "SSH": []byte("SSH-2.0-OpenSSH_9.2p1\r\n")} {
		if _, err := DecodeGreeting(p); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), what) && what != "SSH" {
			t.Errorf("%q: %v", what, err)
		}
	}
	if _, err := DecodeClientFlags([]byte{0, 0, 0, 4}); err == nil {
		t.Error("an unknown client flag is accepted")
	}
}

func TestErrnoOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Errno
	}{
		{nil, None}, {errors.New("?"), EIO}, {fmt.Errorf("w: %w", ENOTSUP), ENOTSUP}, {None, EIO},
		{&fs.PathError{Err: syscall.EDQUOT}, ENOSPC}, {syscall.EROFS, EPERM}, {syscall.EIO, EIO},
	} {
		if got := ErrnoOf(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
	if Errno(4711).Known() != EINVAL || ENOSPC.Known() != ENOSPC {
		t.Error("an undefined error value stays")
	}
}

// again decodes p with decode and encodes it once more: what a decoder accepts
// comes out as it came in.
func again[T any](t *testing.T, what string, p []byte, decode func([]byte) (T, error), encode func(T) []byte) {
	t.Helper()
	v, err := decode(p)
	if err != nil {
		if !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v is no ErrFormat", what, err)
		}
		return
	}
	q := encode(v)
	w, err := decode(q)
	if err != nil {
		t.Fatalf("%s: own encoding of %+v is not accepted: %v", what, v, err)
	}
	if d := cmp.Diff(v, w); d != "" {
		t.Errorf("%s: %s", what, d)
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add(InfoRequest{"disk", []InfoType{InfoBlockSize, InfoName}}.Append(nil))
	f.Add(MetaContextRequest{"disk", []string{"base:", AllocationContext}}.Append(nil))
	f.Add(ServerEntry{"disk", "the disk"}.Append(nil))
	f.Add(Info{Type: InfoExport, Size: 1 << 40, Flags: HasFlags | SendFlush}.Append(nil))
	f.Add(Info{Type: InfoBlockSize, BlockSize: BlockSize{512, 4096, 1 << 20}}.Append(nil))
	f.Add(MetaContext{7, AllocationContext}.Append(nil))
	f.Add(OptionHeader{OptGo, 9}.Append(nil))
	f.Add(OptionReplyHeader{OptGo, RepErrUnknown, 9}.Append(nil))
	f.Add([]byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		again(t, "info request", p, DecodeInfoRequest, func(v InfoRequest) []byte { return v.Append(nil) })
		again(t, "meta request", p, DecodeMetaContextRequest, func(v MetaContextRequest) []byte { return v.Append(nil) })
		again(t, "server", p, DecodeServerEntry, func(v ServerEntry) []byte { return v.Append(nil) })
		again(t, "info", p, DecodeInfo, func(v Info) []byte { return v.Append(nil) })
		again(t, "context", p, DecodeMetaContext, func(v MetaContext) []byte { return v.Append(nil) })
		again(t, "option", p, DecodeOptionHeader, func(v OptionHeader) []byte { return v.Append(nil) })
		again(t, "reply", p, DecodeOptionReplyHeader, func(v OptionReplyHeader) []byte { return v.Append(nil) })
		again(t, "greeting", p, DecodeGreeting, func(v HandshakeFlags) []byte { return AppendGreeting(nil, v) })
		again(t, "client flags", p, DecodeClientFlags, func(v ClientFlags) []byte { return AppendClientFlags(nil, v) })
		again(t, "export", p, func(p []byte) (Info, error) {
			n, f, err := DecodeExportNameReply(p)
			return Info{Size: n, Flags: f}, err
		}, func(v Info) []byte { return AppendExportNameReply(nil, v.Size, v.Flags, false) })
	})
}

func FuzzTransmission(f *testing.F) {
	for m := Simple; m <= Extended; m++ {
		f.Add(uint8(m), Request{FlagFUA, CmdWrite, 1, 2, 3}.Append(nil, m))
		f.Add(uint8(m), Chunk{ChunkDone, ChunkBlockStatus, 1, 2, 3}.Append(nil, m))
		f.Add(uint8(m), AppendBlockStatus(nil, m, 5, []Extent{{1, 2}, {3, 4}}))
	}
	f.Add(uint8(Structured), AppendSimpleReply(nil, EPERM, 9))
	f.Add(uint8(0), ErrorInfo{EIO, "bad sector", 512}.Append(nil, ChunkErrorOffset))
	f.Add(uint8(1), AppendOffsetHole(nil, 512, 512))
	f.Fuzz(func(t *testing.T, mode uint8, p []byte) {
		m := Mode(mode % 3)
		var r Request
		if DecodeRequest(p, m, &r) {
			if n := m.RequestHeaderLen(); !bytes.Equal(r.Append(nil, m), p[:n]) {
				t.Errorf("request %+v", r)
			}
		}
		var y Reply
		if DecodeReply(p, m, &y) {
			q := y.Chunk.Append(nil, m)
			if y.Simple {
				q = AppendSimpleReply(nil, y.Error, y.Cookie)
			}
			if len(q) != ReplyLen(p, m) || !bytes.Equal(q, p[:len(q)]) {
				t.Errorf("reply %+v", y)
			}
		}
		if id, l, err := DecodeBlockStatus(p, m, nil); err == nil && !bytes.Equal(AppendBlockStatus(nil, m, id, l), p) {
			t.Errorf("block status %d %+v", id, l)
		}
		if off, n, err := DecodeOffsetHole(p); err == nil && !bytes.Equal(AppendOffsetHole(nil, off, n), p) {
			t.Errorf("hole %d %d", off, n)
		}
		for _, typ := range []ChunkType{ChunkError, ChunkErrorOffset, 1<<15 + 99} {
			again(t, "error", p, func(p []byte) (ErrorInfo, error) { return DecodeError(p, typ) }, func(v ErrorInfo) []byte { return v.Append(nil, typ) })
		}
	})
}

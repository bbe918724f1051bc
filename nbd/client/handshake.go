package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"time"

	"blockgate/nbd"
)

// Export is what a handshake has told about an export.
type Export struct {
	Name        string // as asked for
	Description string
	Size        int64 // bytes, a multiple of BlockSize.Min
	Flags       nbd.TransmissionFlags
	BlockSize   nbd.BlockSize // the defaults if the server has told none
	Mode        nbd.Mode
	Allocation  bool // block status can be asked for
	TLS         bool

	context uint32 // number of AllocationContext
}

// Can reports whether all of these flags are set.
func (e *Export) Can(f nbd.TransmissionFlags) bool { return e.Flags&f == f }

// handshakeTime bounds a handshake, in which no medium has to be waited for.
const handshakeTime = 15 * time.Second

// maxReplies bounds how many replies an option may have.
const maxReplies = 1 << 16

// hand is a connection during its handshake. Nothing is read ahead, so that what
// comes after STARTTLS has not been read as plain text.
type hand struct {
	nc    net.Conn
	flags nbd.HandshakeFlags
	buf   []byte
}

// guard bounds what is done with nc by ctx and the time of a handshake. stop ends
// that and reports why it was interrupted, if it was.
func guard(ctx context.Context, nc net.Conn) (stop func() error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	unhook := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	return func() error {
		ended := !unhook()
		err := context.Cause(ctx)
		cancel()
		if ended {
			return err
		}
		return nil
	}
}

// shake begins a handshake: greeting, and TLS if cfg has it. The connection to go
// on with is h.nc.
func shake(ctx context.Context, nc net.Conn, cfg *Config) (*hand, error) {
	h := &hand{nc: nc}
	b, err := h.read(nbd.GreetingLen)
	if err != nil {
		return nil, fmt.Errorf("no greeting: %w", err)
	}
	if h.flags, err = nbd.DecodeGreeting(b); err != nil {
		return nil, err
	}
	if h.flags&nbd.FixedNewstyle == 0 {
		return nil, errors.New("the server does not speak fixed newstyle negotiation")
	}
	answer := nbd.ClientFixedNewstyle
	if h.flags&nbd.NoZeroes != 0 {
		answer |= nbd.ClientNoZeroes
	}
	if _, err := nc.Write(nbd.AppendClientFlags(nil, answer)); err != nil {
		return nil, err
	}
	if cfg.Secure == nil {
		return h, nil
	}
	if err := h.simple(nbd.OptStartTLS, nil); err != nil {
		return nil, err
	}
	h.nc, err = cfg.Secure(ctx, nc)
	if err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return h, nil
}

// choose enters the transmission phase.
func (h *hand) choose(cfg *Config) (*Export, error) {
	exp, err := h.offers(cfg)
	if err != nil {
		return nil, err
	}
	err = h.info(nbd.OptGo, exp)
	if optionRefused(err, nbd.RepErrUnsupported) {
		err = h.exportName(exp)
	}
	if err != nil {
		return nil, err
	}
	return exp, exp.check()
}

// offers negotiates what comes before GO.
func (h *hand) offers(cfg *Config) (*Export, error) {
	exp := &Export{Name: cfg.Export, BlockSize: nbd.DefaultBlockSize(), TLS: cfg.Secure != nil}
	for _, o := range []struct {
		opt  nbd.Option
		mode nbd.Mode
	}{{nbd.OptExtendedHeaders, nbd.Extended}, {nbd.OptStructuredReply, nbd.Structured}} {
		if err := h.simple(o.opt, nil); err == nil {
			exp.Mode = o.mode
			break
		} else if !optionRefused(err, 0) {
			return nil, err
		}
	}
	if exp.Mode == nbd.Simple {
		return exp, nil
	}
	err := h.option(nbd.OptSetMetaContext,
		nbd.MetaContextRequest{Export: cfg.Export, Queries: []string{nbd.AllocationContext}}.Append(nil),
		func(t nbd.ReplyType, data []byte) error {
			if t != nbd.RepMetaContext {
				return broken("%v in the answer to SET_META_CONTEXT", t)
			}
			c, err := nbd.DecodeMetaContext(data)
			if err != nil {
				return err
			}
			if c.Name == nbd.AllocationContext {
				exp.Allocation, exp.context = true, c.ID
			}
			return nil
		})
	if err != nil && !optionRefused(err, 0) || errors.Is(err, ErrUnknownExport) {
		return nil, err
	}
	return exp, nil
}

// info is GO or INFO.
func (h *hand) info(o nbd.Option, exp *Export) error {
	told := false
	req := nbd.InfoRequest{Name: exp.Name, Infos: []nbd.InfoType{nbd.InfoBlockSize, nbd.InfoDescription}}
	err := h.option(o, req.Append(nil), func(t nbd.ReplyType, data []byte) error {
		if t != nbd.RepInfo {
			return broken("%v in the answer to %v", t, o)
		}
		i, err := nbd.DecodeInfo(data)
		if err != nil {
			return err
		}
		switch i.Type {
		case nbd.InfoExport:
			told = true
			return exp.set(i.Size, i.Flags)
		case nbd.InfoBlockSize:
			exp.BlockSize = i.BlockSize
		case nbd.InfoDescription:
			exp.Description = i.Text
		}
		return nil
	})
	if err == nil && !told {
		return broken("the answer to %v does not tell the size", o)
	}
	return err
}

// exportName is what servers know that do not know GO.
func (h *hand) exportName(exp *Export) error {
	if _, err := h.nc.Write(nbd.AppendOption(nil, nbd.OptExportName, []byte(exp.Name))); err != nil {
		return err
	}
	n := nbd.ExportNameReplyLen
	if h.flags&nbd.NoZeroes == 0 {
		n += nbd.ExportNameZeroes
	}
	b, err := h.read(n)
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w, or it refuses it", ErrUnknownExport)
	}
	if err != nil {
		return err
	}
	size, flags, err := nbd.DecodeExportNameReply(b)
	if err != nil {
		return err
	}
	return exp.set(size, flags)
}

func (e *Export) set(size uint64, f nbd.TransmissionFlags) error {
	if size > math.MaxInt64 {
		return broken("an export of %d bytes", size)
	}
	if f&nbd.HasFlags == 0 {
		f = 0
	}
	e.Size, e.Flags = int64(size), f
	return nil
}

// check completes what was told.
func (e *Export) check() error {
	e.Size -= e.Size % int64(e.BlockSize.Min) // the rest cannot be reached
	e.BlockSize.MaxPayload = min(e.BlockSize.MaxPayload, nbd.DefaultMaxPayload)
	e.BlockSize.MaxPayload -= e.BlockSize.MaxPayload % e.BlockSize.Min
	return nil
}

// optionError is an option that was refused.
type optionError struct {
	Option  nbd.Option
	Reply   nbd.ReplyType
	Message string
}

func (e *optionError) Error() string {
	s := fmt.Sprintf("%v: %v", e.Option, e.Reply)
	if e.Message != "" {
		s += fmt.Sprintf(" (%q)", e.Message)
	}
	return s
}

// Unwrap gives the refusals that callers look for.
func (e *optionError) Unwrap() error {
	switch e.Reply {
	case nbd.RepErrTLSRequired:
		return ErrTLSRequired
	case nbd.RepErrUnknown:
		return ErrUnknownExport
	}
	return nil
}

// optionRefused reports whether the server has refused an option, with this reply
// or, if 0, with one after which the others are worth trying.
func optionRefused(err error, t nbd.ReplyType) bool {
	var e *optionError
	if !errors.As(err, &e) {
		return false
	}
	if t != 0 {
		return e.Reply == t
	}
	return e.Reply != nbd.RepErrTLSRequired && e.Reply != nbd.RepErrShutdown && e.Reply != nbd.RepErrPolicy
}

// simple sends an option that is only acknowledged.
func (h *hand) simple(o nbd.Option, data []byte) error {
	return h.option(o, data, func(t nbd.ReplyType, _ []byte) error { return broken("%v in the answer to %v", t, o) })
}

// option sends an option and takes the replies until the last one; each gets what
// comes before it. A refusal is an *optionError.
func (h *hand) option(o nbd.Option, data []byte, each func(nbd.ReplyType, []byte) error) error {
	if _, err := h.nc.Write(nbd.AppendOption(nil, o, data)); err != nil {
		return err
	}
	for range maxReplies {
		b, err := h.read(nbd.OptionReplyHeaderLen)
		if err != nil {
			return fmt.Errorf("%v: %w", o, err)
		}
		r, err := nbd.DecodeOptionReplyHeader(b)
		if err != nil {
			return fmt.Errorf("%v: %w", o, err)
		}
		if r.Option != o {
			return broken("reply to %v, which is not what was asked (%v)", r.Option, o)
		}
		if r.Length > nbd.MaxOptionData {
			return broken("reply of %d bytes to %v", r.Length, o)
		}
		if b, err = h.read(int(r.Length)); err != nil {
			return fmt.Errorf("%v: %w", o, err)
		}
		switch {
		case r.Type.IsError():
			m := string(b[:min(len(b), nbd.MaxString)])
			if !nbd.ValidName(m) {
				m = ""
			}
			return &optionError{o, r.Type, m}
		case r.Type == nbd.RepAck:
			return nil
		}
		if err := each(r.Type, b); err != nil {
			return err
		}
	}
	return broken("more than %d replies to %v", maxReplies, o)
}

// read reads n bytes; they are good until the next call.
func (h *hand) read(n int) ([]byte, error) {
	h.buf = slices.Grow(h.buf[:0], n)[:n]
	_, err := io.ReadFull(h.nc, h.buf)
	return h.buf, err
}

// abort leaves a handshake that is not carried on.
func (h *hand) abort() {
	h.nc.SetDeadline(time.Now().Add(disconnectTime))
	_, _ = h.nc.Write(nbd.AppendOption(nil, nbd.OptAbort, nil))
}

package server

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"blockgate/nbd"
)

// TLSPolicy says what a listener makes of TLS.
type TLSPolicy uint8

// Policies.
const (
	TLSOff      TLSPolicy = iota // STARTTLS is refused
	TLSOptional                  // clients choose
	TLSRequired                  // without it nothing is shown
)

// step is what follows an option.
type step uint8

const (
	stepNext     step = iota // another option
	stepTLS                  // the reply, then TLS, then another option
	stepTransmit             // the reply, then the transmission phase
	stepBye                  // the reply, then the end
)

const (
	// maxOptions bounds the options of one handshake.
	maxOptions = 4096
	// maxReason bounds why one is refused, in bytes: it may quote a name as long as
	// a string of the protocol may be.
	maxReason = nbd.MaxString / 2
)

// handshake is the server's part of the negotiation behind the greeting, without
// a socket: options go in, replies come out. One connection, one goroutine.
type handshake struct {
	dir    Directory
	policy TLSPolicy
	noTLS  bool // there is no Upgrade, whatever the policy is
	client *Client
	flags  nbd.ClientFlags

	secure  bool // TLS runs
	options int

	mode nbd.Mode
	// The metadata contexts chosen last, and for which export.
	allocation  bool
	contextName string

	// What was agreed on, after stepTransmit.
	info    Info
	session Session
	entered string // the name that the client asked for

	out []byte // the reply that is being made
	// refusal is why the last option was refused; empty if it was not.
	refusal string
}

// contextID is the number of AllocationContext.
const contextID = 1

// upgraded starts again behind STARTTLS: nothing from before counts.
func (h *handshake) upgraded(id *Identity) {
	h.secure, h.client.Identity = true, id
	h.mode, h.allocation, h.contextName = nbd.Simple, false, ""
}

// option takes an option with its data, of at most nbd.MaxOptionData bytes, and
// returns the replies to it, which are valid until the next call. An error ends
// the connection without a reply.
func (h *handshake) option(o nbd.Option, data []byte) (reply []byte, next step, err error) {
	h.out, h.refusal = h.out[:0], ""
	if h.options++; h.options > maxOptions {
		return nil, stepBye, errors.New("too many options")
	}
	if !h.secure && h.policy == TLSRequired && o != nbd.OptStartTLS && o != nbd.OptAbort {
		if o == nbd.OptExportName {
			return nil, stepBye, errors.New("TLS is required")
		}
		h.fail(o, nbd.RepErrTLSRequired, "start TLS first")
		return h.out, stepNext, nil
	}
	switch o {
	case nbd.OptExportName:
		next, err = h.exportName(data)
	case nbd.OptAbort:
		h.ack(o)
		next = stepBye
	case nbd.OptList:
		h.list(data)
	case nbd.OptStartTLS:
		next = h.startTLS(data)
	case nbd.OptInfo, nbd.OptGo:
		next = h.infoOrGo(o, data)
	case nbd.OptStructuredReply:
		switch {
		case len(data) > 0:
			h.fail(o, nbd.RepErrInvalid, "data with an option that has none")
		case h.mode == nbd.Extended:
			h.fail(o, nbd.RepErrExtHeadersRequired, "extended headers are in use")
		default:
			h.mode = nbd.Structured
			h.ack(o)
		}
	case nbd.OptExtendedHeaders:
		if len(data) > 0 {
			h.fail(o, nbd.RepErrInvalid, "data with an option that has none")
			break
		}
		h.mode = nbd.Extended
		h.ack(o)
	case nbd.OptListMetaContext, nbd.OptSetMetaContext:
		h.metaContext(o, data)
	default:
		h.fail(o, nbd.RepErrUnsupported, "")
	}
	if err != nil {
		return nil, stepBye, err
	}
	return h.out, next, nil
}

// tooBig answers an option whose data was skipped.
func (h *handshake) tooBig(o nbd.Option) (reply []byte, err error) {
	h.out = h.out[:0]
	if h.options++; o == nbd.OptExportName || h.options > maxOptions {
		return nil, fmt.Errorf("option %v is too long", o)
	}
	h.fail(o, nbd.RepErrTooBig, "the option is too long")
	return h.out, nil
}

func (h *handshake) ack(o nbd.Option) { h.out = nbd.AppendOptionReply(h.out, o, nbd.RepAck, nil) }

func (h *handshake) fail(o nbd.Option, t nbd.ReplyType, why string) {
	why = strings.ToValidUTF8(why[:min(len(why), maxReason)], "")
	h.out, h.refusal = nbd.AppendOptionReply(h.out, o, t, []byte(why)), fmt.Sprintf("%v: %v: %s", o, t, why)
}

func (h *handshake) startTLS(data []byte) step {
	const o = nbd.OptStartTLS
	switch {
	case len(data) > 0:
		h.fail(o, nbd.RepErrInvalid, "data with an option that has none")
	case h.secure:
		h.fail(o, nbd.RepErrInvalid, "TLS runs already")
	case h.policy == TLSOff || h.noTLS:
		h.fail(o, nbd.RepErrPolicy, "TLS is not configured here")
	default:
		h.ack(o)
		return stepTLS
	}
	return stepNext
}

func (h *handshake) list(data []byte) {
	if len(data) > 0 {
		h.fail(nbd.OptList, nbd.RepErrInvalid, "data with an option that has none")
		return
	}
	var b []byte
	for _, e := range h.dir.Exports(h.client) {
		b = e.Append(b[:0])
		h.out = nbd.AppendOptionReply(h.out, nbd.OptList, nbd.RepServer, b)
	}
	h.ack(nbd.OptList)
}

// find looks an export up and describes it.
func (h *handshake) find(name string) (Export, Info, error) {
	e, err := h.dir.Export(name, h.client)
	if err != nil {
		return nil, Info{}, err
	}
	i := e.Info()
	if err := i.check(); err != nil {
		return nil, Info{}, err
	}
	i.Flags |= nbd.HasFlags
	if h.mode != nbd.Simple {
		i.Flags |= nbd.SendDF
	}
	return e, i, nil
}

// refuse answers with the reason why an export was not found.
func (h *handshake) refuse(o nbd.Option, err error) {
	var r *Refusal
	if errors.As(err, &r) && r.Type.IsError() {
		h.fail(o, r.Type, r.Reason)
		return
	}
	h.fail(o, nbd.RepErrUnknown, err.Error())
}

// enter opens the export for the transmission phase.
func (h *handshake) enter(e Export, i Info, name string) error {
	s, err := e.Open(h.client)
	if err != nil {
		return err
	}
	h.info, h.session, h.entered = i, s, name
	if h.contextName != name {
		h.allocation = false
	}
	return nil
}

// confirm asks again for the export that was entered: between find and the moment
// from which CloseConns finds the connection it may have been taken away, or from
// this client, or have become read-only.
func (h *handshake) confirm() error {
	_, i, err := h.find(h.entered)
	if err == nil && (i.Name != h.info.Name || (i.Flags^h.info.Flags)&nbd.ReadOnly != 0) {
		err = errors.New("the export was changed")
	}
	return err
}

// exportName is EXPORT_NAME, which cannot be refused but by hanging up.
func (h *handshake) exportName(data []byte) (step, error) {
	name := string(data)
	if !nbd.ValidName(name) || h.mode == nbd.Extended {
		return stepBye, errors.New("EXPORT_NAME is invalid here")
	}
	e, i, err := h.find(name)
	if err == nil {
		err = h.enter(e, i, name)
	}
	if err != nil {
		return stepBye, err
	}
	h.out = nbd.AppendExportNameReply(h.out, i.Size, i.Flags, h.flags&nbd.ClientNoZeroes == 0)
	return stepTransmit, nil
}

func (h *handshake) infoOrGo(o nbd.Option, data []byte) step {
	q, err := nbd.DecodeInfoRequest(data)
	if err != nil {
		h.fail(o, nbd.RepErrInvalid, err.Error())
		return stepNext
	}
	e, i, err := h.find(q.Name)
	if err == nil && o == nbd.OptGo {
		err = h.enter(e, i, q.Name)
	}
	if err != nil {
		h.refuse(o, err)
		return stepNext
	}
	info := func(x nbd.Info) { h.out = nbd.AppendOptionReply(h.out, o, nbd.RepInfo, x.Append(nil)) }
	info(nbd.Info{Type: nbd.InfoExport, Size: i.Size, Flags: i.Flags})
	if slices.Contains(q.Infos, nbd.InfoBlockSize) {
		info(nbd.Info{Type: nbd.InfoBlockSize, BlockSize: i.BlockSize})
	}
	if slices.Contains(q.Infos, nbd.InfoName) && i.Name != "" {
		info(nbd.Info{Type: nbd.InfoName, Text: i.Name})
	}
	if slices.Contains(q.Infos, nbd.InfoDescription) && i.Description != "" {
		info(nbd.Info{Type: nbd.InfoDescription, Text: i.Description})
	}
	h.ack(o)
	if o == nbd.OptGo {
		return stepTransmit
	}
	return stepNext
}

// metaContext is LIST_META_CONTEXT and SET_META_CONTEXT.
func (h *handshake) metaContext(o nbd.Option, data []byte) {
	set := o == nbd.OptSetMetaContext
	if set {
		h.allocation, h.contextName = false, ""
	}
	if h.mode == nbd.Simple {
		h.fail(o, nbd.RepErrInvalid, "ask for structured replies first")
		return
	}
	q, err := nbd.DecodeMetaContextRequest(data)
	if err != nil {
		h.fail(o, nbd.RepErrInvalid, err.Error())
		return
	}
	for _, s := range q.Queries {
		if !strings.Contains(s, ":") {
			h.fail(o, nbd.RepErrInvalid, "a query begins with a namespace and a colon")
			return
		}
	}
	_, i, err := h.find(q.Export)
	if err != nil {
		h.refuse(o, err)
		return
	}
	match := func(s string) bool { return s == nbd.AllocationContext || !set && s == "base:" }
	chosen := slices.ContainsFunc(q.Queries, match) || !set && len(q.Queries) == 0
	if chosen && i.Allocation {
		c := nbd.MetaContext{Name: nbd.AllocationContext}
		if set {
			c.ID = contextID
			h.allocation, h.contextName = true, q.Export
		}
		h.out = nbd.AppendOptionReply(h.out, o, nbd.RepMetaContext, c.Append(nil))
	}
	h.ack(o)
}

// Package nbd holds the messages of the Network Block Device protocol: its
// constants and their codecs, for both ends, without any I/O. The client is
// package nbd/client, the server nbd/server.
//
// Sources are the protocol document of the NBD project (doc/proto.md) for fixed
// newstyle negotiation, structured replies and metadata contexts, and its branch
// extension-ext-header for extended headers. All integers are big endian. What
// decodes a message that carries a length takes the bytes that this length
// announced; nothing here reads more than it is given, and what it returns holds
// no reference to the input unless it says so.
//
// Everything here is safe for concurrent use as far as its arguments are.
package nbd

import (
	"errors"
	"fmt"
)

// DefaultPort is the TCP port that IANA has assigned to NBD.
const DefaultPort = 10809

// Magic numbers.
const (
	Magic                uint64 = 0x4e42444d41474943 // "NBDMAGIC", begins the greeting
	OptionMagic          uint64 = 0x49484156454f5054 // "IHAVEOPT", of a newstyle greeting and of each option
	OldstyleMagic        uint64 = 0x00420281861253   // instead of OptionMagic: oldstyle negotiation
	OptionReplyMagic     uint64 = 0x0003e889045565a9
	RequestMagic         uint32 = 0x25609513
	ExtendedRequestMagic uint32 = 0x21e41c71
	SimpleReplyMagic     uint32 = 0x67446698
	ChunkMagic           uint32 = 0x668e33ef // structured reply chunk
	ExtendedChunkMagic   uint32 = 0x6e8a278c // extended reply chunk
)

// Bounds and defaults, in bytes.
const (
	// MaxString bounds names, queries and messages.
	MaxString = 4096
	// MaxOptionData is more data than any option or option reply of this package
	// needs. Longer ones may be skipped.
	MaxOptionData = 64 << 10
	// MaxOptionSkip is where skipping ends: longer data is an attack.
	MaxOptionSkip = 32 << 20
	// DefaultMinBlock, DefaultPreferredBlock and DefaultMaxPayload are in force
	// where no size constraints are advertised. No payload up to
	// DefaultMaxPayload may be taken for an attack.
	DefaultMinBlock       = 1
	DefaultPreferredBlock = 4096
	DefaultMaxPayload     = 32 << 20
	// MaxMinBlock is the largest minimum block size that may be advertised.
	MaxMinBlock = 64 << 10
)

// HandshakeFlags are the server's, in its greeting.
type HandshakeFlags uint16

// Handshake flags.
const (
	FixedNewstyle HandshakeFlags = 1 << iota
	NoZeroes
)

// ClientFlags answer the greeting.
type ClientFlags uint32

// Client flags.
const (
	ClientFixedNewstyle ClientFlags = 1 << iota
	ClientNoZeroes
)

// TransmissionFlags say what an export can do.
type TransmissionFlags uint16

// Transmission flags.
const (
	HasFlags TransmissionFlags = 1 << iota // always set
	ReadOnly
	SendFlush
	SendFUA
	Rotational
	SendTrim
	SendWriteZeroes
	SendDF
	CanMultiConn
	SendResize
	SendCache
	SendFastZero
	BlockStatusPayload
)

// Option is what a client asks during the handshake.
type Option uint32

// Options.
const (
	OptExportName      Option = 1
	OptAbort           Option = 2
	OptList            Option = 3
	OptStartTLS        Option = 5
	OptInfo            Option = 6
	OptGo              Option = 7
	OptStructuredReply Option = 8
	OptListMetaContext Option = 9
	OptSetMetaContext  Option = 10
	OptExtendedHeaders Option = 11
)

var optionNames = map[Option]string{
	OptExportName: "EXPORT_NAME", OptAbort: "ABORT", OptList: "LIST", OptStartTLS: "STARTTLS", OptInfo: "INFO", OptGo: "GO",
	OptStructuredReply: "STRUCTURED_REPLY", OptListMetaContext: "LIST_META_CONTEXT", OptSetMetaContext: "SET_META_CONTEXT",
	OptExtendedHeaders: "EXTENDED_HEADERS",
}

// String is the protocol's name without its prefix.
func (o Option) String() string {
	if s, ok := optionNames[o]; ok {
		return s
	}
	return fmt.Sprintf("option %d", uint32(o))
}

// ReplyType is what a server answers to an option.
type ReplyType uint32

// Option replies; those with bit 31 end the option with an error, and their data
// is a message for a human.
const (
	RepAck         ReplyType = 1
	RepServer      ReplyType = 2
	RepInfo        ReplyType = 3
	RepMetaContext ReplyType = 4

	RepErrUnsupported        ReplyType = 1<<31 + 1
	RepErrPolicy             ReplyType = 1<<31 + 2
	RepErrInvalid            ReplyType = 1<<31 + 3
	RepErrPlatform           ReplyType = 1<<31 + 4
	RepErrTLSRequired        ReplyType = 1<<31 + 5
	RepErrUnknown            ReplyType = 1<<31 + 6
	RepErrShutdown           ReplyType = 1<<31 + 7
	RepErrBlockSizeRequired  ReplyType = 1<<31 + 8
	RepErrTooBig             ReplyType = 1<<31 + 9
	RepErrExtHeadersRequired ReplyType = 1<<31 + 10
)

// IsError reports whether the reply ends its option with an error.
func (t ReplyType) IsError() bool { return t&(1<<31) != 0 }

var replyNames = map[ReplyType]string{
	RepAck: "acknowledged", RepServer: "export", RepInfo: "information", RepMetaContext: "metadata context",
	RepErrUnsupported: "option is not supported", RepErrPolicy: "refused by policy", RepErrInvalid: "option is invalid",
	RepErrPlatform: "not supported on the server's platform", RepErrTLSRequired: "TLS is required",
	RepErrUnknown: "export is unknown", RepErrShutdown: "server is shutting down",
	RepErrBlockSizeRequired: "size constraints have to be asked for", RepErrTooBig: "request or reply is too big",
	RepErrExtHeadersRequired: "extended headers are required",
}

// String is what the reply says, in words.
func (t ReplyType) String() string {
	if s, ok := replyNames[t]; ok {
		return s
	}
	return fmt.Sprintf("reply %#x", uint32(t))
}

// InfoType is a kind of information about an export.
type InfoType uint16

// Kinds of information.
const (
	InfoExport      InfoType = 0
	InfoName        InfoType = 1
	InfoDescription InfoType = 2
	InfoBlockSize   InfoType = 3
)

// Command is a request of the transmission phase.
type Command uint16

// Commands.
const (
	CmdRead        Command = 0
	CmdWrite       Command = 1
	CmdDisconnect  Command = 2
	CmdFlush       Command = 3
	CmdTrim        Command = 4
	CmdCache       Command = 5
	CmdWriteZeroes Command = 6
	CmdBlockStatus Command = 7
	CmdResize      Command = 8
)

var commandNames = [...]string{"READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS", "RESIZE"}

// String is the protocol's name without its prefix.
func (c Command) String() string {
	if int(c) < len(commandNames) {
		return commandNames[c]
	}
	return fmt.Sprintf("command %d", uint16(c))
}

// CommandFlags modify a request.
type CommandFlags uint16

// Command flags.
const (
	FlagFUA        CommandFlags = 1 << iota // durable before the reply
	FlagNoHole                              // WRITE_ZEROES: stay allocated
	FlagDF                                  // READ: one content chunk
	FlagReqOne                              // BLOCK_STATUS: one extent
	FlagFastZero                            // WRITE_ZEROES: only if faster than a write
	FlagPayloadLen                          // extended headers: Length is that of a payload
)

// ChunkFlags are those of a reply chunk.
type ChunkFlags uint16

// ChunkDone marks the last chunk of a reply.
const ChunkDone ChunkFlags = 1

// ChunkType is what a reply chunk holds.
type ChunkType uint16

// Chunk types; those with bit 15 are errors.
const (
	ChunkNone           ChunkType = 0
	ChunkOffsetData     ChunkType = 1
	ChunkOffsetHole     ChunkType = 2
	ChunkBlockStatus    ChunkType = 5
	ChunkBlockStatusExt ChunkType = 6
	ChunkError          ChunkType = 1<<15 + 1
	ChunkErrorOffset    ChunkType = 1<<15 + 2
)

// IsError reports whether the chunk tells of an error.
func (t ChunkType) IsError() bool { return t&(1<<15) != 0 }

// Mode is what a handshake has made of the transmission phase's headers.
type Mode uint8

// Modes of headers.
const (
	Simple     Mode = iota // compact requests, simple replies
	Structured             // compact requests; structured replies to READ and BLOCK_STATUS at least
	Extended               // extended requests and reply chunks only
)

// AllocationContext is the one metadata context that the protocol defines.
const AllocationContext = "base:allocation"

// Status flags of AllocationContext.
const (
	StateHole = 1 << 0 // not allocated
	StateZero = 1 << 1 // reads as zeroes
)

// ErrFormat: bytes that are no message, or not the one that was expected here.
// After it the position in the stream is unknown.
var ErrFormat = errors.New("nbd: malformed message")

func malformed(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, a...))
}

// Package nebd is the messages of Curve's nebd-server, of the protocol buffers
// package nebd.client.
package nebd

import "blockgate/backing/curve/internal/brpc"

// Service is the service of volumes, Heartbeat the one that keeps them open.
const (
	Service   = "nebd.client.NebdFileService"
	Heartbeat = "nebd.client.NebdHeartbeatService"
)

// The methods of Service, and KeepAlive of Heartbeat.
const (
	OpenFile        = "OpenFile"
	CloseFile       = "CloseFile"
	Read            = "Read"
	Write           = "Write"
	Discard         = "Discard"
	ResizeFile      = "ResizeFile"
	Flush           = "Flush"
	GetInfo         = "GetInfo"
	InvalidateCache = "InvalidateCache"
	KeepAlive       = "KeepAlive"
)

// The codes an answer has.
const (
	OK    = 0
	NotOK = -1
)

// DefaultBlockSize is what a volume has whose server does not tell.
const DefaultBlockSize = 4096

// Request is what a request of Service says; which fields count depends on the
// method.
type Request struct {
	Name   string // OpenFile
	FD     int32
	Offset uint64
	Size   uint64 // of ResizeFile: the new size
	// Flags: OpenFile had flags, which libnebd leaves out; two opens of a volume
	// must not differ in that.
	Flags, Exclusive bool
}

// AppendOpen appends a request to open. It has no flags, as those of libnebd.
func AppendOpen(b []byte, name string) []byte { return brpc.AppendBytes(b, 1, name) }

// AppendFD appends a request that has a file descriptor and nothing else.
func AppendFD(b []byte, fd int32) []byte { return brpc.AppendInt(b, 1, int64(fd)) }

// AppendIO appends a Read, Write or Discard.
func AppendIO(b []byte, fd int32, off, size uint64) []byte {
	b = brpc.AppendInt(b, 1, int64(fd))
	b = brpc.AppendUint(b, 2, off)
	return brpc.AppendUint(b, 3, size)
}

// AppendResize appends a ResizeFile.
func AppendResize(b []byte, fd int32, size uint64) []byte {
	b = brpc.AppendInt(b, 1, int64(fd))
	return brpc.AppendUint(b, 2, size)
}

// ParseRequest reads a request of a method of Service. It is an error if a field
// lacks that the method requires.
func ParseRequest(method string, b []byte) (r Request, err error) {
	var has [4]bool
	for len(b) > 0 {
		var f brpc.Field
		if f, b, err = brpc.Next(b); err != nil {
			return Request{}, err
		}
		if f.Num > 3 {
			continue
		}
		has[f.Num] = true
		switch {
		case method == OpenFile && f.Num == 1 && f.Type == brpc.Bytes:
			r.Name = string(f.Bytes)
		case method == OpenFile && f.Num == 2 && f.Type == brpc.Bytes:
			r.Flags = true
			for g := f.Bytes; len(g) > 0; {
				var x brpc.Field
				if x, g, err = brpc.Next(g); err != nil {
					return Request{}, err
				}
				if x.Num == 1 && x.Type == brpc.Varint {
					r.Exclusive = x.Uint != 0
				}
			}
		case method != OpenFile && f.Type == brpc.Varint:
			switch {
			case f.Num == 1:
				r.FD = f.Int32()
			case f.Num == 2 && method == ResizeFile:
				r.Size = f.Uint
			case f.Num == 2:
				r.Offset = f.Uint
			default:
				r.Size = f.Uint
			}
		default:
			return Request{}, brpc.ErrProto
		}
	}
	need := 1
	switch method {
	case Read, Write, Discard:
		need = 3
	case ResizeFile:
		need = 2
	}
	for i := 1; i <= need; i++ {
		if !has[i] {
			return Request{}, brpc.ErrProto
		}
	}
	return r, nil
}

// Info is what a volume is. The other fields of the message have garbage in them.
type Info struct {
	Size      uint64 // bytes
	BlockSize uint32 // bytes; 0: it was not told
}

// Response is what the answers of all methods say.
type Response struct {
	Code int32
	Text string
	FD   int32 // OpenFile
	Info Info  // GetInfo
}

// ParseResponse reads an answer. It allocates only if there is a text.
func ParseResponse(b []byte) (r Response, err error) {
	has := false
	for len(b) > 0 {
		var f brpc.Field
		if f, b, err = brpc.Next(b); err != nil {
			return Response{}, err
		}
		switch {
		case f.Num == 1 && f.Type == brpc.Varint:
			r.Code, has = f.Int32(), true
		case f.Num == 2 && f.Type == brpc.Bytes:
			r.Text = string(f.Bytes)
		case f.Num == 3 && f.Type == brpc.Varint:
			r.FD = f.Int32()
		case f.Num == 3 && f.Type == brpc.Bytes:
			for g := f.Bytes; len(g) > 0; {
				var x brpc.Field
				if x, g, err = brpc.Next(g); err != nil {
					return Response{}, err
				}
				switch {
				case x.Num == 1 && x.Type == brpc.Varint:
					r.Info.Size = x.Uint
				case x.Num == 4 && x.Type == brpc.Varint:
					r.Info.BlockSize = uint32(x.Uint)
				}
			}
		}
	}
	if !has {
		return Response{}, brpc.ErrProto
	}
	return r, nil
}

// AppendResponse appends an answer. fd and info are left out if they are zero.
func AppendResponse(b []byte, r *Response, objSize uint64) []byte {
	b = brpc.AppendInt(b, 1, int64(r.Code))
	if r.Text != "" {
		b = brpc.AppendBytes(b, 2, r.Text)
	}
	if r.FD != 0 {
		b = brpc.AppendInt(b, 3, int64(r.FD))
	}
	if r.Info != (Info{}) {
		var sub [48]byte
		s := brpc.AppendUint(sub[:0], 1, r.Info.Size)
		s = brpc.AppendUint(s, 2, objSize)
		s = brpc.AppendUint(s, 3, objSize^0x5555)
		if r.Info.BlockSize != 0 {
			s = brpc.AppendUint(s, 4, uint64(r.Info.BlockSize))
		}
		b = brpc.AppendBytes(b, 3, s)
	}
	return b
}

// File is a volume in a heartbeat.
type File struct {
	FD   int32
	Name string
}

// AppendKeepAlive appends a heartbeat.
func AppendKeepAlive(b []byte, pid int, version string, files []File) []byte {
	b = brpc.AppendInt(b, 1, int64(pid))
	b = brpc.AppendBytes(b, 2, version)
	for _, f := range files {
		s := brpc.AppendInt(nil, 1, int64(f.FD))
		s = brpc.AppendBytes(s, 2, f.Name)
		b = brpc.AppendBytes(b, 3, s)
	}
	return b
}

// ParseKeepAlive reads a heartbeat.
func ParseKeepAlive(b []byte) (pid int, version string, files []File, err error) {
	for len(b) > 0 {
		var f brpc.Field
		if f, b, err = brpc.Next(b); err != nil {
			return 0, "", nil, err
		}
		switch {
		case f.Num == 1 && f.Type == brpc.Varint:
			pid = int(f.Int32())
		case f.Num == 2 && f.Type == brpc.Bytes:
			version = string(f.Bytes)
		case f.Num == 3 && f.Type == brpc.Bytes:
			var file File
			for g := f.Bytes; len(g) > 0; {
				var x brpc.Field
				if x, g, err = brpc.Next(g); err != nil {
					return 0, "", nil, err
				}
				switch {
				case x.Num == 1 && x.Type == brpc.Varint:
					file.FD = x.Int32()
				case x.Num == 2 && x.Type == brpc.Bytes:
					file.Name = string(x.Bytes)
				}
			}
			files = append(files, file)
		}
	}
	return pid, version, files, nil
}

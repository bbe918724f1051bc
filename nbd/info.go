package nbd

import "slices"

// InfoRequest is the data of INFO and GO.
type InfoRequest struct {
	Name  string // of the export, empty for the default one
	Infos []InfoType
}

// Append appends the data.
func (r InfoRequest) Append(b []byte) []byte {
	b = be.AppendUint32(b, uint32(len(r.Name)))
	b = append(b, r.Name...)
	b = be.AppendUint16(b, uint16(len(r.Infos)))
	for _, t := range r.Infos {
		b = be.AppendUint16(b, uint16(t))
	}
	return b
}

// DecodeInfoRequest reads the data of INFO and GO. Kinds of information that are
// not defined here are left out.
func DecodeInfoRequest(p []byte) (InfoRequest, error) {
	var r InfoRequest
	var err error
	if r.Name, p, err = takeString(p); err != nil {
		return r, err
	}
	if len(p) < 2 || len(p) != 2+2*int(be.Uint16(p)) {
		return r, malformed("information requests do not fill the option")
	}
	for p = p[2:]; len(p) > 0; p = p[2:] {
		if t := InfoType(be.Uint16(p)); t <= InfoBlockSize && !slices.Contains(r.Infos, t) {
			r.Infos = append(r.Infos, t)
		}
	}
	return r, nil
}

// BlockSize are an export's size constraints, in bytes.
type BlockSize struct {
	Min        uint32 // lengths and offsets are multiples of it; a power of two, at most MaxMinBlock
	Preferred  uint32 // aligned requests are efficient; a power of two, at least 512 and Min
	MaxPayload uint32 // of a request or reply, at least Preferred
}

// Valid reports whether the constraints are such as may be advertised.
func (s BlockSize) Valid() bool {
	return s.Min&(s.Min-1) == 0 && s.Min != 0 && s.Min <= MaxMinBlock &&
		s.Preferred&(s.Preferred-1) == 0 && s.Preferred >= max(s.Min, 512) && s.MaxPayload >= s.Preferred
}

// DefaultBlockSize is in force where none is advertised.
func DefaultBlockSize() BlockSize {
	return BlockSize{DefaultMinBlock, DefaultPreferredBlock, DefaultMaxPayload}
}

// Info is one piece of information about an export. Which of the fields besides
// Type has a meaning depends on it.
type Info struct {
	Type      InfoType
	Size      uint64            // InfoExport, bytes
	Flags     TransmissionFlags // InfoExport
	BlockSize BlockSize         // InfoBlockSize
	Text      string            // InfoName, InfoDescription
}

// Append appends the data of a RepInfo. i.Type is one of the constants.
func (i Info) Append(b []byte) []byte {
	b = be.AppendUint16(b, uint16(i.Type))
	switch i.Type {
	case InfoExport:
		b = be.AppendUint64(b, i.Size)
		return be.AppendUint16(b, uint16(i.Flags))
	case InfoBlockSize:
		b = be.AppendUint32(b, i.BlockSize.Min)
		b = be.AppendUint32(b, i.BlockSize.Preferred)
		return be.AppendUint32(b, i.BlockSize.MaxPayload)
	}
	return append(b, i.Text...)
}

// DecodeInfo reads the data of a RepInfo. Of a type that is not defined here
// only Type is set; a client ignores it.
func DecodeInfo(p []byte) (Info, error) {
	if len(p) < 2 {
		return Info{}, malformed("information without a type")
	}
	i := Info{Type: InfoType(be.Uint16(p))}
	p = p[2:]
	switch i.Type {
	case InfoExport:
		if len(p) != 10 {
			return i, malformed("export information of %d bytes", len(p))
		}
		i.Size, i.Flags = be.Uint64(p), TransmissionFlags(be.Uint16(p[8:]))
	case InfoBlockSize:
		if len(p) != 12 {
			return i, malformed("size constraints of %d bytes", len(p))
		}
		i.BlockSize = BlockSize{be.Uint32(p), be.Uint32(p[4:]), be.Uint32(p[8:])}
		if !i.BlockSize.Valid() {
			return i, malformed("size constraints %+v", i.BlockSize)
		}
	case InfoName, InfoDescription:
		i.Text = string(p)
		if !ValidName(i.Text) {
			return i, malformed("a name of %d bytes", len(p))
		}
	}
	return i, nil
}

// MetaContextRequest is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
type MetaContextRequest struct {
	Export  string
	Queries []string
}

// Append appends the data.
func (r MetaContextRequest) Append(b []byte) []byte {
	b = be.AppendUint32(b, uint32(len(r.Export)))
	b = append(b, r.Export...)
	b = be.AppendUint32(b, uint32(len(r.Queries)))
	for _, q := range r.Queries {
		b = be.AppendUint32(b, uint32(len(q)))
		b = append(b, q...)
	}
	return b
}

// DecodeMetaContextRequest reads the data of the two options. There are at most
// as many queries as p has room for.
func DecodeMetaContextRequest(p []byte) (MetaContextRequest, error) {
	var r MetaContextRequest
	var err error
	if r.Export, p, err = takeString(p); err != nil {
		return r, err
	}
	if len(p) < 4 {
		return r, malformed("no number of queries")
	}
	n := be.Uint32(p)
	p = p[4:]
	for range n {
		var q string
		if q, p, err = takeString(p); err != nil {
			return r, err
		}
		r.Queries = append(r.Queries, q)
	}
	if len(p) > 0 {
		return r, malformed("%d bytes behind the last query", len(p))
	}
	return r, nil
}

// MetaContext is a metadata context with the number that stands for it in the
// transmission phase.
type MetaContext struct {
	ID   uint32
	Name string
}

// Append appends the data of a RepMetaContext.
func (c MetaContext) Append(b []byte) []byte {
	b = be.AppendUint32(b, c.ID)
	return append(b, c.Name...)
}

// DecodeMetaContext reads the data of a RepMetaContext.
func DecodeMetaContext(p []byte) (MetaContext, error) {
	if len(p) < 4 {
		return MetaContext{}, malformed("metadata context of %d bytes", len(p))
	}
	c := MetaContext{be.Uint32(p), string(p[4:])}
	if !ValidName(c.Name) {
		return c, malformed("metadata context with a name of %d bytes", len(c.Name))
	}
	return c, nil
}

package tlspsk

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
)

// hashLen is the length of the one hash there is, SHA-256, in bytes.
const hashLen = sha256.Size

// Key and IV lengths of TLS_AES_128_GCM_SHA256.
const (
	keyLen = 16
	ivLen  = 12
	tagLen = 16
)

// expandLabel is HKDF-Expand-Label (RFC 8446 section 7.1).
func expandLabel(secret []byte, label string, context []byte, n int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(len("tls13 ")+len(label)))
	info = append(info, "tls13 "+label...)
	info = append(info, byte(len(context)))
	info = append(info, context...)
	out, err := hkdf.Expand(sha256.New, secret, string(info), n)
	if err != nil {
		panic(err) // n is a constant that is not too long
	}
	return out
}

// deriveSecret is Derive-Secret, with the hash of the messages.
func deriveSecret(secret []byte, label string, transcript []byte) []byte {
	return expandLabel(secret, label, transcript, hashLen)
}

func extract(salt, ikm []byte) []byte {
	out, err := hkdf.Extract(sha256.New, ikm, salt)
	if err != nil {
		panic(err) // only an unknown hash does that
	}
	return out
}

// next is the salt of the next secret of the schedule.
func next(secret []byte) []byte {
	empty := sha256.Sum256(nil)
	return deriveSecret(secret, "derived", empty[:])
}

// earlySecret is the first secret of the schedule.
func earlySecret(psk []byte) []byte { return extract(make([]byte, hashLen), psk) }

// finished is the verify_data of a Finished and, with the binder key, of a binder.
func finished(secret, transcript []byte) []byte {
	m := hmac.New(sha256.New, expandLabel(secret, "finished", nil, hashLen))
	m.Write(transcript)
	return m.Sum(nil)
}

// binder is the proof that a ClientHello comes from who has the key; transcript is
// the hash of the hello without its binders.
func binder(early, transcript []byte) []byte {
	empty := sha256.Sum256(nil)
	return finished(deriveSecret(early, "ext binder", empty[:]), transcript)
}

// half is one direction's protection.
type half struct {
	secret []byte
	aead   cipher.AEAD // nil: none yet
	iv     [ivLen]byte
	seq    uint64
}

// set begins with a traffic secret.
func (h *half) set(secret []byte) {
	block, err := aes.NewCipher(expandLabel(secret, "key", nil, keyLen))
	if err != nil {
		panic(err) // the key has the right length
	}
	if h.aead, err = cipher.NewGCM(block); err != nil {
		panic(err)
	}
	h.secret, h.seq = secret, 0
	copy(h.iv[:], expandLabel(secret, "iv", nil, ivLen))
}

// update is what a KeyUpdate does (RFC 8446 section 7.2).
func (h *half) update() { h.set(expandLabel(h.secret, "traffic upd", nil, hashLen)) }

// nonce is that of the next record.
func (h *half) nonce(buf *[ivLen]byte) []byte {
	*buf = h.iv
	for i := range 8 {
		buf[ivLen-1-i] ^= byte(h.seq >> (8 * i))
	}
	h.seq++
	return buf[:]
}

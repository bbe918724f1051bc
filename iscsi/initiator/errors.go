package initiator

import (
	"errors"
	"fmt"

	"blockgate/iscsi"
	"blockgate/scsi"
	"blockgate/scsi/sense"
)

// Errors of a session, wrapped with what happened.
var (
	// ErrClosed: the session was closed or logged out on this side.
	ErrClosed = errors.New("session is closed")
	// ErrConnectionLost: a connection broke, and with it the session.
	ErrConnectionLost = errors.New("connection lost")
	// ErrProtocol: the target sent something RFC 7143 forbids.
	ErrProtocol = errors.New("protocol error by the target")
	// ErrDigest: a CRC32C digest did not match.
	ErrDigest = errors.New("digest mismatch")
	// ErrAborted: the command was ended by a task management function.
	ErrAborted = errors.New("command aborted")
	// ErrDropped: the target announced that it drops the session (asynchronous
	// event 1, 2 or 3).
	ErrDropped = errors.New("target ended the session")
	// ErrCommand: the command as given cannot be sent.
	ErrCommand = errors.New("invalid command")
)

func protocolErrorf(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, a...))
}

// StatusError is a command that ended with a status other than GOOD or
// CONDITION MET, or with a response other than "command completed at target".
type StatusError struct {
	Op       byte // operation code
	Response byte // iSCSI response code (RFC 7143 §11.4.3), 0: completed
	Status   scsi.Status
	// Sense is decoded from the sense data; HasSense is false if there was none.
	Sense    sense.Sense
	HasSense bool
}

func (e *StatusError) Error() string {
	switch {
	case e.Response != 0:
		return fmt.Sprintf("command %02xh: iSCSI response %02xh", e.Op, e.Response)
	case e.HasSense:
		return fmt.Sprintf("command %02xh: %s, %v", e.Op, statusName(e.Status), e.Sense)
	}
	return fmt.Sprintf("command %02xh: %s", e.Op, statusName(e.Status))
}

func statusName(s scsi.Status) string {
	switch s {
	case scsi.Good:
		return "GOOD"
	case scsi.CheckCondition:
		return "CHECK CONDITION"
	case scsi.ConditionMet:
		return "CONDITION MET"
	case scsi.Busy:
		return "BUSY"
	case scsi.ReservationConflict:
		return "RESERVATION CONFLICT"
	case scsi.TaskSetFull:
		return "TASK SET FULL"
	case scsi.ACAActive:
		return "ACA ACTIVE"
	case scsi.TaskAborted:
		return "TASK ABORTED"
	}
	return fmt.Sprintf("status %02xh", uint8(s))
}

// RejectError is a PDU of ours that the target rejected (RFC 7143 §11.17).
type RejectError struct {
	Reason byte
	Header iscsi.BHS // of the rejected PDU; zero if the target did not return it
}

func (e *RejectError) Error() string {
	return fmt.Sprintf("target rejected PDU with opcode %02xh: %s", uint8(e.Header.Opcode()), rejectReason(e.Reason))
}

func rejectReason(r byte) string {
	switch r {
	case 0x02:
		return "data digest error"
	case 0x03:
		return "SNACK rejected"
	case 0x04:
		return "protocol error"
	case 0x05:
		return "command not supported"
	case 0x06:
		return "too many immediate commands"
	case 0x07:
		return "task in progress"
	case 0x08:
		return "invalid data acknowledgment"
	case 0x09:
		return "invalid PDU field"
	case 0x0a:
		return "out of resources"
	case 0x0b:
		return "negotiation reset"
	case 0x0c:
		return "waiting for logout"
	}
	return fmt.Sprintf("reason %02xh", r)
}

package sense

// ILLEGAL REQUEST.

// InvalidOpcode: the command or service action does not exist here.
func InvalidOpcode() Sense { return New(IllegalRequest, 0x20, 0x00).withField(true, 0, -1) }

// InvalidFieldInCDB points at the byte of the CDB, and at its bit when bit is 0
// to 7 (for a field of several bits, the leftmost); -1 means the whole byte.
func InvalidFieldInCDB(byteN, bit int) Sense {
	return New(IllegalRequest, 0x24, 0x00).withField(true, byteN, bit)
}

// InvalidFieldInParameterList points into the data-out.
func InvalidFieldInParameterList(byteN, bit int) Sense {
	return New(IllegalRequest, 0x26, 0x00).withField(false, byteN, bit)
}

// ParameterListLength: PARAMETER LIST LENGTH ERROR.
func ParameterListLength() Sense { return New(IllegalRequest, 0x1a, 0x00) }

// LBAOutOfRange: LOGICAL BLOCK ADDRESS OUT OF RANGE, INFORMATION is the first
// LBA that does not exist.
func LBAOutOfRange(lba uint64) Sense { return New(IllegalRequest, 0x21, 0x00).WithInfo(lba) }

// LUNotSupported: nothing is at that LUN.
func LUNotSupported() Sense { return New(IllegalRequest, 0x25, 0x00) }

// SavingNotSupported: SAVING PARAMETERS NOT SUPPORTED.
func SavingNotSupported() Sense { return New(IllegalRequest, 0x39, 0x00) }

// InvalidReleaseOfPR: INVALID RELEASE OF PERSISTENT RESERVATION.
func InvalidReleaseOfPR() Sense { return New(IllegalRequest, 0x26, 0x04) }

// InsufficientRegistrationResources: no room for another registration.
func InsufficientRegistrationResources() Sense { return New(IllegalRequest, 0x55, 0x04) }

// InsufficientResources: a limit of ours, not of the standard.
func InsufficientResources() Sense { return New(IllegalRequest, 0x55, 0x03) }

// InvalidMessage: the task was sent with something its transport cannot carry.
func InvalidMessage() Sense { return New(AbortedCommand, 0x49, 0x00) }

// InvalidInformationUnit: INVALID FIELD IN COMMAND INFORMATION UNIT. The transport
// announces a length that cannot be that of the command's data.
func InvalidInformationUnit() Sense { return New(IllegalRequest, 0x0e, 0x03) }

// MediumRemovalPrevented: eject refused.
func MediumRemovalPrevented() Sense { return New(IllegalRequest, 0x53, 0x02) }

// NOT READY.

// NotReadyStopped: LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED.
func NotReadyStopped() Sense { return New(NotReady, 0x04, 0x02) }

// NotReadyNoCause: LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE.
func NotReadyNoCause() Sense { return New(NotReady, 0x04, 0x00) }

// NotReadyBecoming: LOGICAL UNIT IS IN PROCESS OF BECOMING READY.
func NotReadyBecoming() Sense { return New(NotReady, 0x04, 0x01) }

// SanitizeInProgress and FormatInProgress come with the progress in 65536ths.
func SanitizeInProgress(progress uint16) Sense {
	return New(NotReady, 0x04, 0x1b).WithProgress(progress)
}
func FormatInProgress(progress uint16) Sense {
	return New(NotReady, 0x04, 0x04).WithProgress(progress)
}

// MediumNotPresent: nothing is loaded.
func MediumNotPresent() Sense { return New(NotReady, 0x3a, 0x00) }

// ALUA states.
func NotReadyTransition() Sense  { return New(NotReady, 0x04, 0x0a) }
func NotReadyStandby() Sense     { return New(NotReady, 0x04, 0x0b) }
func NotReadyUnavailable() Sense { return New(NotReady, 0x04, 0x0c) }
func NotReadyOffline() Sense     { return New(NotReady, 0x04, 0x12) }

// SetTargetPortGroupsFailed: SET TARGET PORT GROUPS COMMAND FAILED.
func SetTargetPortGroupsFailed() Sense { return New(HardwareError, 0x67, 0x0a) }

// UNIT ATTENTION.

// PowerOn is POWER ON, RESET, OR BUS DEVICE RESET OCCURRED: initiators in the
// field retry on 29/00 and give up on the more exact 29/01.
func PowerOn() Sense               { return New(UnitAttention, 0x29, 0x00) }
func BusReset() Sense              { return New(UnitAttention, 0x29, 0x02) }
func DeviceReset() Sense           { return New(UnitAttention, 0x29, 0x03) }
func NexusLoss() Sense             { return New(UnitAttention, 0x29, 0x07) }
func MediumChanged() Sense         { return New(UnitAttention, 0x28, 0x00) }
func ModeParametersChanged() Sense { return New(UnitAttention, 0x2a, 0x01) }
func ReservationsPreempted() Sense { return New(UnitAttention, 0x2a, 0x03) }
func ReservationsReleased() Sense  { return New(UnitAttention, 0x2a, 0x04) }
func RegistrationsPreempted() Sense {
	return New(UnitAttention, 0x2a, 0x05)
}
func ALUAStateChanged() Sense    { return New(UnitAttention, 0x2a, 0x06) }
func CapacityChanged() Sense     { return New(UnitAttention, 0x2a, 0x09) }
func CommandsCleared() Sense     { return New(UnitAttention, 0x2f, 0x00) }
func InquiryDataChanged() Sense  { return New(UnitAttention, 0x3f, 0x03) }
func ReportedLUNsChanged() Sense { return New(UnitAttention, 0x3f, 0x0e) }
func ThinThresholdReached(descriptor int) Sense {
	return New(UnitAttention, 0x38, 0x07).WithInfo(uint64(descriptor))
}

// DATA PROTECT.

// WriteProtected: the unit or the store is read-only.
func WriteProtected() Sense { return New(DataProtect, 0x27, 0x00) }

// SoftwareWriteProtected: SWP of the control mode page is set.
func SoftwareWriteProtected() Sense { return New(DataProtect, 0x27, 0x02) }

// SpaceAllocationFailed: SPACE ALLOCATION FAILED WRITE PROTECT; the store is full.
func SpaceAllocationFailed() Sense { return New(DataProtect, 0x27, 0x07) }

// MEDIUM, HARDWARE ERROR and others.

// UnrecoveredRead: the store could not read the block at lba.
func UnrecoveredRead(lba uint64) Sense { return New(MediumError, 0x11, 0x00).WithInfo(lba) }

// WriteFault: the store could not write the block at lba.
func WriteFault(lba uint64) Sense { return New(MediumError, 0x0c, 0x00).WithInfo(lba) }

// SyncFailed: what had been written could not be made durable.
func SyncFailed() Sense { return New(MediumError, 0x0c, 0x02) }

// SanitizeFailed: SANITIZE COMMAND FAILED; the medium cannot be accessed.
func SanitizeFailed() Sense { return New(MediumError, 0x31, 0x03) }

// FormatFailed: FORMAT COMMAND FAILED.
func FormatFailed() Sense { return New(MediumError, 0x31, 0x01) }

// CommandAborted: the command ended for no fault of its own and may be sent again.
func CommandAborted() Sense { return New(AbortedCommand, 0x00, 0x00) }

// CommunicationTimeout: what is behind the unit has not answered in time
// (LOGICAL UNIT COMMUNICATION TIME-OUT).
func CommunicationTimeout() Sense { return New(AbortedCommand, 0x08, 0x01) }

// Nothing: there is no sense data to report.
func Nothing() Sense { return New(NoSense, 0x00, 0x00) }

// InternalFailure: INTERNAL TARGET FAILURE.
func InternalFailure() Sense { return New(HardwareError, 0x44, 0x00) }

// MiscompareAt: MISCOMPARE DURING VERIFY OPERATION, INFORMATION is the byte
// offset of the first difference in the data-out.
func MiscompareAt(offset uint64) Sense { return New(Miscompare, 0x1d, 0x00).WithInfo(offset) }

// NotEnoughUnsolicitedData: data the initiator promised unasked did not come
// (RFC 7143 §11.4.7.2).
func NotEnoughUnsolicitedData() Sense { return New(AbortedCommand, 0x0c, 0x0d) }

// UnexpectedUnsolicitedData (RFC 7143 §11.4.7.2).
func UnexpectedUnsolicitedData() Sense { return New(AbortedCommand, 0x0c, 0x0c) }

// ProtocolServiceCRC (RFC 7143 §11.4.7.2).
func ProtocolServiceCRC() Sense { return New(AbortedCommand, 0x47, 0x05) }

// DataPhaseError: the data-out sequence was broken (wrong DataSN or offset).
func DataPhaseError() Sense { return New(AbortedCommand, 0x4b, 0x00) }

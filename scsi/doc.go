// Package scsi is the device server: logical units, the command table, sense
// data, mode and VPD pages, unit attentions, task sets and task management
// (SAM-5, SPC-4, SBC-3). It knows neither sockets nor files: commands arrive as
// Tasks from a fabric, bytes go to a backing.Store.
//
// One table is the truth. Every command is a row (see Command) with its
// opcode, CDB usage bitmap, data direction, access to the medium, and its
// behaviour under reservations, ALUA states and unit attentions. CDB checks,
// conflicts, write protection and REPORT SUPPORTED OPERATION CODES are read from
// that table.
//
// A fabric makes a Device for each target and attaches a Nexus to it for each
// session. For each command it fills a Task and calls, in the order in which the
// initiator numbered them, Nexus.Admit; when the data-out is there, Task.Run; and
// it sends the response at TaskDone:
//
//	Admit ── checks, task set ──▶ Run ── inline, or a worker of the unit ──▶ TaskDone
//	  └── refused: TaskDone         └── Abandon: the data will not come ──▶ TaskDone
//
// Where things are, with the sections they implement:
//
//	admit.go, table.go, command.go   checks and dispatch           SPC-4 §4.3
//	taskset.go, run.go               task attributes, workers      SAM-5 §8
//	tmf.go, abort.go                 task management, resets       SAM-5 §7, §6.3
//	attention.go                     unit attention conditions     SAM-5 §5.14
//	device.go, nexus.go, lun.go      LUNs and I_T nexuses          SAM-5 §4.6, §4.7
//	reserve.go, package pr           reservations                  SPC-4 §5.13
//	inquiry.go, vpd.go               identity                      SPC-4 §6.6, §7.8
//	modepages.go, mode*.go           mode parameters               SPC-4 §7.5, SBC-3 §6.4
//	spc.go, rsoc.go, logsense.go     other primary commands        SPC-4 §6
//	alua*.go                         target port groups            SPC-4 §5.15
//	copy*.go                         third-party copy, ROD tokens  SPC-4 §5.17, SBC-4 §5.12, §5.59
//	sbc*.go                          block commands                SBC-3 §5, SBC-4 §5.44
//	sanitize.go, format.go           SANITIZE, FORMAT UNIT         SBC-3 §4.11, §5.3
//	mmc*.go                          CD and DVD drives             MMC-6
package scsi

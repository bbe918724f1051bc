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
package scsi

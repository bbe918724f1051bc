package tgt

import (
	"fmt"
	"io"
	"math"
	"os"
)

const tgtimgHelp = `Usage: tgtimg [OPTION]
Makes images of media for tgtd, as of tgt ` + compatVersion + `.

  --op new --device-type disk --type disk --size=[size] --file=[path] [--thin-provisioning]
                        a disk of [size] megabytes (1048576 bytes)
  --op new --device-type cd --type dvd+r --file=[path]
                        an empty DVD+R
  --help                display this help and exit

[path] must not exist. Tapes and their images are not served.
`

// RunTgtimg carries out one tgtimg command line (without the program's name) and
// returns the exit status: 0, 1 for an unknown operation, 22 for what is refused.
// Unlike tgt's, it never overwrites a file.
func RunTgtimg(args []string, stdout, stderr io.Writer) int {
	g := &getopt{args: args, options: []option{
		{short: 'o', long: "op", arg: needArg}, {short: 'Y', long: "device-type", arg: needArg}, {short: 'b', long: "barcode", arg: needArg},
		{short: 's', long: "size", arg: needArg}, {short: 't', long: "type", arg: needArg}, {short: 'f', long: "file", arg: needArg},
		{short: 'T', long: "thin-provisioning"}, {short: 'd', long: "debug"}, {short: 'h', long: "help"},
	}}
	usage := func(format string, a ...any) int {
		fmt.Fprintf(stderr, "tgtimg: "+format+"\nTry `tgtimg --help' for more information.\n", a...)
		return exitInvalid
	}
	var op, device, media, size, file string
	thin := false
	for {
		p, ok, err := g.read()
		if err != nil {
			return usage("%v", err)
		}
		if !ok {
			break
		}
		switch p.opt.short {
		case 'o':
			op = p.value
		case 'Y':
			device = p.value
		case 's':
			size = p.value
		case 't':
			media = p.value
		case 'f':
			file = p.value
		case 'T':
			thin = true
		case 'h':
			io.WriteString(stdout, tgtimgHelp)
			return exitOK
		}
	}
	kind, known := parseDeviceType(device)
	switch {
	case len(g.words) > 0:
		return usage("unrecognized option '%s'", g.words[0])
	case op == "":
		return usage("specify the operation type")
	case op != "new" && op != "show":
		fmt.Fprintf(stderr, "tgtimg: unknown operation: %s\n", op)
		return exitUnknown
	case device != "" && !known:
		fmt.Fprintf(stderr, "tgtimg: unknown target type: %s\n", device)
		return exitInvalid
	case file == "":
		return usage("specify a newly created file")
	case kind == "tape":
		fmt.Fprintln(stderr, "tgtimg: tapes are not served; there is nothing that could use the image")
		return exitInvalid
	case kind != "disk" && kind != "cd" || op == "show":
		return usage("unknown the operation type")
	case kind == "disk" && media != "disk":
		return usage("Missing media type: DISK")
	case kind == "cd" && media != "dvd+r":
		return usage("Missing media type: DVD+R")
	}
	label, bytes := "DVD+R", int64(0)
	if kind == "disk" {
		n, fault := parseNumber(size, math.MaxInt64>>20)
		if fault != numberOK || n == 0 {
			return usage("the size '%s' is no number of megabytes", size)
		}
		label, bytes = "DISK", int64(n)<<20
	}
	if err := makeImage(file, bytes, thin); err != nil {
		fmt.Fprintf(stderr, "tgtimg: %v\n", err)
		return exitInvalid
	}
	fmt.Fprintf(stdout, "Created blank %s image file : %s\n", label, file)
	return exitOK
}

// makeImage makes a file of zeroes; thin leaves its blocks to be found when they
// are written.
func makeImage(file string, size int64, thin bool) (err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			os.Remove(file)
		}
	}()
	if size == 0 {
		return nil
	}
	if !thin {
		return allocate(f, size)
	}
	return f.Truncate(size)
}

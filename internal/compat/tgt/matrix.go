package tgt

import (
	"bytes"
	"fmt"
	"strings"
)

// check applies the rules that hold before the daemon is asked: which operation
// a mode has, which options it takes and which it needs. It returns the message
// without the program's name, or "".
func (r *request) check() string {
	switch r.mode {
	case modeSystem:
		return r.checkSystem()
	case modeTarget:
		return r.checkTarget()
	case modeUnit:
		return r.checkUnit()
	case modePortal:
		return r.checkPortal()
	case modeAccount:
		return r.checkAccount()
	case modeDriver:
		switch r.op {
		case opShow, opStart, opStop:
			return r.allowed("LmoC")
		}
		return fmt.Sprintf("option %d not supported in lld mode", r.op)
	}
	return "" // session and connection: the daemon's business, as in tgt
}

// stray finds the first option that is not among those allowed; -d always is.
func (r *request) stray(allowed string) (byte, bool) {
	i := bytes.IndexFunc(r.given, func(c rune) bool { return c != 'd' && !strings.ContainsRune(allowed, c) })
	if i < 0 {
		return 0, false
	}
	return r.given[i], true
}

func (r *request) allowed(options string) string {
	if c, bad := r.stray(options); bad {
		return fmt.Sprintf("%s mode: option '-%c' is not allowed/supported", r.mode, c)
	}
	return ""
}

// allowedOnly is allowed in the other wording that tgt has for two operations.
func (r *request) allowedOnly(options string) string {
	if c, bad := r.stray(options); bad {
		return fmt.Sprintf("option '-%c' not supported in %s mode", c, r.mode)
	}
	return ""
}

func (r *request) unsupported() string {
	return fmt.Sprintf("operation %s not supported in %s mode", r.op, r.mode)
}

func (r *request) needPair() string {
	if !r.hasPair.name || !r.hasPair.value {
		return "update operation requires 'name' and 'value' options"
	}
	return ""
}

func first(messages ...string) string {
	for _, m := range messages {
		if m != "" {
			return m
		}
	}
	return ""
}

func (r *request) checkSystem() string {
	switch r.op {
	case opUpdate:
		return first(r.allowed("LmonvC"), r.needPair())
	case opShow, opDelete, opStat:
		return ""
	}
	return r.unsupported()
}

func (r *request) checkTarget() string {
	if r.op != opShow && r.tid <= 0 {
		if r.tid == 0 {
			return "'tid' cannot be 0"
		}
		return "'tid' option is necessary"
	}
	switch r.op {
	case opNew:
		if m := r.allowed("LmotTC"); m != "" {
			return m
		}
		if r.targetName == "" {
			return "creating new target requires a name, use --targetname"
		}
		return ""
	case opDelete:
		return r.allowed("LmotCF")
	case opShow, opStat:
		return r.allowed("LmotC")
	case opBind, opUnbind:
		if m := r.allowed("LmotIQBHC"); m != "" {
			return m
		}
		if !r.hasAddress && !r.hasInitiator && !r.host {
			return fmt.Sprintf("%s operation requires initiator-address, initiator-nameor bus", r.op)
		}
		return ""
	case opUpdate:
		return first(r.allowed("LmotnvC"), r.needPair())
	}
	return r.unsupported()
}

func (r *request) checkUnit() string {
	switch {
	case r.tid == 0:
		return "'tid' must not be 0"
	case r.tid < 0:
		return "'tid' option is necessary"
	case r.lun == noID:
		return "'lun' option is necessary"
	}
	switch r.op {
	case opNew:
		if m := r.allowed("LmofytlbEYCS"); m != "" {
			return m
		}
		if r.path == "" && r.deviceType != "disk" && r.deviceType != "cd" && r.deviceType != "tape" {
			return "'backing-store' option is necessary"
		}
		return ""
	case opDelete, opStat:
		return r.allowed("LmotlC")
	case opUpdate:
		return r.allowedOnly("LmofytlPC")
	}
	return r.unsupported()
}

func (r *request) checkPortal() string {
	switch r.op {
	case opNew, opDelete:
		if m := r.allowed("LmoCP"); m != "" {
			return m
		}
		if !r.hasParams {
			return "you must specify --param portal=<portal>"
		}
		return ""
	case opShow:
		return r.allowedOnly("LmoC")
	}
	return r.unsupported()
}

func (r *request) checkAccount() string {
	switch r.op {
	case opNew:
		if m := r.allowed("LmoupfC"); m != "" {
			return m
		}
		if !r.hasUser || !r.hasPassword {
			return "'user' and 'password' options are required"
		}
		return ""
	case opShow:
		return r.allowed("LmoC")
	case opDelete:
		// tgt does not ask for the user here, and its daemon dies of it.
		return first(r.allowed("LmouC"), r.needUser())
	case opBind, opUnbind:
		return first(r.allowed("LmotuOC"), r.needUser())
	}
	return r.unsupported()
}

func (r *request) needUser() string {
	if !r.hasUser {
		return "'user' option is necessary"
	}
	return ""
}

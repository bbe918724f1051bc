package rbd

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"blockgate/cmd/blockgate-rbd/internal/ceph"
)

// secretsDir is where libvirt keeps secrets.
const secretsDir = "/etc/libvirt/secrets"

// opTimeAfterStall is how much longer than the stall limit the library tries. The
// gateway has given the call up by then, so that its end is never mistaken for an
// answer in time.
const opTimeAfterStall = 5 * time.Second

// connectTime bounds the first contact with the cluster.
const connectTime = 30 * time.Second

// connect makes a client of the cluster and opens the pool.
func connect(lib *ceph.Lib, l *Location, stall time.Duration) (cluster, io uintptr, err error) {
	id, name := l.ID, l.Cluster
	if id == "" {
		id = "admin"
	}
	if name == "" {
		name = "ceph"
	}
	fail := func(what string, err error) (uintptr, uintptr, error) {
		if io != 0 {
			lib.RadosIoctxDestroy(io)
		}
		if cluster != 0 {
			lib.RadosShutdown(cluster)
		}
		return 0, 0, fmt.Errorf("rbd: %s: %w", what, err)
	}
	if err := ceph.Errno(lib.RadosCreate2(&cluster, name, "client."+id, 0)); err != nil {
		cluster = 0
		return fail("a client of the cluster "+name, err)
	}
	if err := ceph.Errno(lib.RadosConfReadFile(cluster, ceph.CString(l.Conf))); err != nil {
		where := l.Conf
		if where == "" {
			where = "/etc/ceph/" + name + ".conf and where else Ceph looks"
		}
		return fail("the configuration in "+where+" (name another with ?conf=FILE)", err)
	}
	lib.RadosConfParseEnv(cluster, nil)
	set, err := settings(l, stall)
	if err != nil {
		return fail("the secret "+l.Secret, err)
	}
	for _, kv := range set {
		if err := ceph.Errno(lib.RadosConfSet(cluster, kv[0], kv[1])); err != nil {
			return fail("setting "+kv[0], err)
		}
	}
	if err := ceph.Errno(lib.RadosConnect(cluster)); err != nil {
		switch err {
		case syscall.ETIMEDOUT:
			return fail("no monitor of the cluster "+name+" answers", err)
		case syscall.EACCES, syscall.EPERM, syscall.EINVAL:
			return fail("the cluster "+name+" does not let client."+id+" in (is its key in the keyring?)", err)
		}
		return fail("connecting to the cluster "+name+" as client."+id, err)
	}
	if err := ceph.Errno(lib.RadosIoctxCreate(cluster, l.Pool, &io)); err != nil {
		io = 0
		return fail("pool "+strconv.Quote(l.Pool), poolError(err))
	}
	if l.Namespace != "" {
		lib.RadosIoctxSetNamespace(io, l.Namespace)
	}
	return cluster, io, nil
}

// poolError is of a pool that cannot be opened. One that is not there is no image
// that could be made.
func poolError(err error) error {
	if err == syscall.ENOENT {
		return errors.New("the cluster has no such pool")
	}
	return asError(err)
}

func asError(err error) error {
	if no, ok := err.(syscall.Errno); ok {
		return translate(no)
	}
	return err
}

// settings are the options of the cluster client that a store depends on.
func settings(l *Location, stall time.Duration) ([][2]string, error) {
	seconds := func(d time.Duration) string { return strconv.Itoa(int((d + time.Second - 1) / time.Second)) }
	set := [][2]string{
		{"rbd_cache", strconv.FormatBool(l.Cache)},
		// What cannot be freed is to be zeroed.
		{"rbd_skip_partial_discard", "false"},
		// The former owner of a lock that is broken is kept from writing.
		{"rbd_blocklist_on_break_lock", "true"},
		{"client_mount_timeout", seconds(connectTime)},
		// A client is not told that an OSD has come back: it asks for a new map when
		// its tick finds an operation that has nowhere to go, or none of it
		// answered for the timeout. With Ceph's 5 s and 10 s a process that starts
		// while an OSD does waits up to 15 s for one that is there.
		{"objecter_tick_interval", "2"},
		{"objecter_timeout", "2"},
	}
	if stall >= 0 {
		set = append(set, [2]string{"rados_osd_op_timeout", seconds(stall + opTimeAfterStall)},
			[2]string{"rados_mon_op_timeout", seconds(max(stall, connectTime))})
	}
	if l.Secret != "" {
		b, err := os.ReadFile(filepath.Join(secretsDir, l.Secret+".base64"))
		if err != nil {
			return nil, err
		}
		key := strings.TrimSpace(string(b))
		if _, err := base64.StdEncoding.DecodeString(key); err != nil {
			return nil, fmt.Errorf("%s/%s.base64 holds no key", secretsDir, l.Secret)
		}
		set = append(set, [2]string{"key", key})
	}
	return set, nil
}

# What the guest's scripts share. Sourced, not run.
[ -f /job/env ] && . /job/env
HOST=10.0.2.2            # the host's loopback, as QEMU's user network shows it
PASSED=0 FAILED=0

now() { read -r up _ </proc/uptime; echo "$up"; }
ok() { PASSED=$((PASSED + 1)); echo "ok $* [$(now) s]"; }
bad() { FAILED=$((FAILED + 1)); echo "FAIL $* [$(now) s]"; }
check() {                # NAME COMMAND…: ok if it succeeds
    local name=$1 o
    shift
    if o=$("$@" 2>&1); then ok "$name"; else bad "$name: exit $?: $(echo "$o" | tail -n 3 | tr '\n' ' ')"; return 1; fi
}
refuse() {               # NAME COMMAND…: ok if it fails
    local name=$1 o
    shift
    if o=$("$@" 2>&1); then bad "$name: succeeded: $(echo "$o" | tail -n 2 | tr '\n' ' ')"; return 1; else ok "$name"; fi
}
done_() { [ $FAILED = 0 ] && [ $PASSED -gt 0 ]; exit; }

until_true() {           # SECONDS COMMAND…: polls until it succeeds
    local n=$(($1 * 10))
    shift
    until "$@" >/dev/null 2>&1; do
        n=$((n - 1))
        [ $n -gt 0 ] || return 1
        usleep 100000
    done
}

start_iscsid() {
    pidof iscsid >/dev/null && return 0
    modprobe -a iscsi_tcp || return 1
    # The defaults wait minutes for a lost target; a test must end.
    sed -i 's/^node.session.timeo.replacement_timeout.*/node.session.timeo.replacement_timeout = 20/
            s/^node.session.initial_login_retry_max.*/node.session.initial_login_retry_max = 1/
            s/^node.conn\[0\].timeo.login_timeout.*/node.conn[0].timeo.login_timeout = 10/' /etc/iscsi/iscsid.conf
    iscsid
    until_true 10 pidof iscsid
}

# A target behind loopback names 127.0.0.1 as its portal, which is the guest itself from
# in here: the record is made by hand for the address that leads to the host.
record() {               # PORT IQN
    iscsiadm -m node -T "$2" -p "$HOST:$1" -o delete >/dev/null 2>&1
    iscsiadm -m node -T "$2" -p "$HOST:$1" -o new >/dev/null
}
set_() {                 # PORT IQN NAME VALUE
    iscsiadm -m node -T "$2" -p "$HOST:$1" -o update -n "$3" -v "$4"
}
login() { iscsiadm -m node -T "$2" -p "$HOST:$1" --login; }
logout() { iscsiadm -m node -T "$2" -p "$HOST:$1" --logout; }

find_disk() {            # IQN LUN: sets DISK
    local s d
    DISK=
    for s in /sys/class/iscsi_session/session*; do
        [ "$(cat "$s/targetname" 2>/dev/null)" = "$1" ] || continue
        for d in "$s"/device/target*/*:*:*:"$2"/block/sd*; do
            [ -b "/dev/${d##*/}" ] && DISK=/dev/${d##*/} && return 0
        done
    done
    return 1
}
disk() {                 # IQN LUN: sets DISK, waiting for the scan
    until_true 20 find_disk "$@"
    find_disk "$@" || { echo "no disk for $1 LUN $2"; return 1; }
}

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
exits() {                # STATUS NAME COMMAND…: ok if it ends so; sg3_utils' statuses say which sense
    local want=$1 name=$2 o rc
    shift 2
    o=$("$@" 2>&1)
    rc=$?
    if [ $rc = "$want" ]; then ok "$name"; else bad "$name: exit $rc, not $want: $(echo "$o" | tail -n 3 | tr '\n' ' ')"; return 1; fi
}
says() {                 # PATTERN NAME COMMAND…: ok if it succeeds and prints a match
    local want=$1 name=$2 o
    shift 2
    o=$("$@" 2>&1) || { bad "$name: exit $?: $(echo "$o" | tail -n 3 | tr '\n' ' ')"; return 1; }
    if echo "$o" | grep -qE "$want"; then ok "$name"; else bad "$name: no $want in: $(echo "$o" | tail -n 6 | tr '\n' ' ')"; return 1; fi
}
same() { if [ "$2" = "$3" ]; then ok "$1"; else bad "$1: '$2', not '$3'"; return 1; fi; }   # NAME GOT WANT
# host VERB ARGUMENT…: has the test on the host do something, and prints its answer.
# (busybox, linked statically, cannot look up a service, so it is not wget.)
host() {
    local answer
    answer=$(echo "$*" | nc -w 60 "$HOST" "$CONTROL")
    echo "${answer#* }"
    [ "${answer%% *}" = ok ]
}
done_() { [ $FAILED = 0 ] && [ $PASSED -gt 0 ]; exit; }

until_true() {           # SECONDS COMMAND…: polls until it succeeds
    local end
    end=$(($(cut -d. -f1 /proc/uptime) + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(cut -d. -f1 /proc/uptime)" -lt $end ] || return 1
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
# in here: the record is made by hand for the address that leads to the host. IFACE is the
# initiator port to use, see iface.
node() {                 # PORT IQN IFACE OPTION…
    local port=$1 iqn=$2 i=$3
    shift 3
    iscsiadm -m node -T "$iqn" -p "$HOST:$port" ${i:+-I "$i"} "$@"
}
record() {               # PORT IQN [IFACE]
    node "$1" "$2" "${3:-}" -o delete >/dev/null 2>&1
    node "$1" "$2" "${3:-}" -o new >/dev/null
}
set_() {                 # PORT IQN NAME VALUE
    node "$1" "$2" "" -o update -n "$3" -v "$4"
}
login() { node "$1" "$2" "${3:-}" --login; }
logout() { node "$1" "$2" "${3:-}" --logout; }
iface() {                # IFACE INITIATORNAME: another initiator on this host
    iscsiadm -m iface -I "$1" -o new && iscsiadm -m iface -I "$1" -o update -n iface.initiatorname -v "$2"
}

find_disk() {            # IQN LUN [PORT [IFACE]]: sets DISK, the disk or drive of that session
    local s d
    DISK=
    for s in /sys/class/iscsi_session/session*; do
        [ "$(cat "$s/targetname" 2>/dev/null)" = "$1" ] || continue
        [ -z "${3:-}" ] || [ "$(cat "/sys/class/iscsi_connection/connection${s##*session}:0/persistent_port")" = "$3" ] || continue
        [ -z "${4:-}" ] || [ "$(cat "$s/ifacename")" = "$4" ] || continue
        for d in "$s"/device/target*/*:*:*:"$2"/block/s[dr]*; do
            [ -b "/dev/${d##*/}" ] && DISK=/dev/${d##*/} && return 0
        done
    done
    return 1
}
disk() {                 # IQN LUN [PORT [IFACE]]: sets DISK, waiting for the scan
    until_true 20 find_disk "$@"
    find_disk "$@" || { echo "no disk for $1 LUN $2"; return 1; }
}
# Blocks of 512 bytes, past the page cache: wr FILE LBA COUNT, rd LBA COUNT (into /tmp/back).
wr() { dd if="$1" of="$DISK" bs=512 seek="$2" count="$3" oflag=direct 2>/dev/null; }
rd() { dd if="$DISK" of=/tmp/back bs=512 skip="$1" count="$2" iflag=direct 2>/dev/null; }
reads() {                # NAME FILE LBA COUNT: ok if the disk holds the file's start there
    if rd "$3" "$4" && cmp -s -n $(($4 * 512)) /tmp/back "$2"; then ok "$1"; else bad "$1"; return 1; fi
}

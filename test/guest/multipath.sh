# dm-multipath over two portal groups while paths go away and come back, under fio that
# verifies: PORT (group 1), PORT2 (group 2), IQN, LUN (0), CONTROL. Needs run.sh -x.
. /usr/lib/guest.sh
LUN=${LUN:-0}
check "iscsid runs" start_iscsid
check "modules" modprobe -a dm_multipath dm_service_time dm_round_robin scsi_dh_alua nf_tables
mkdir -p /run/udev
check "udevd starts" /usr/lib/systemd/systemd-udevd --daemon
cat >/etc/multipath.conf <<CONF
defaults {
    user_friendly_names no
    find_multipaths no
    polling_interval 1
    max_polling_interval 2
    path_checker tur
    checker_timeout 4
    path_grouping_policy group_by_prio
    prio alua
    failback immediate
    no_path_retry queue
    reservation_key 0xabc:aptpl
}
CONF
check "group 2 is not the better way" host group 2 active/non-optimized
for p in $PORT $PORT2; do
    check "node record by port $p" record "$p" "$IQN"
    # a path that is silent is noticed in seconds
    set_ "$p" "$IQN" node.session.timeo.replacement_timeout 3
    set_ "$p" "$IQN" 'node.conn[0].timeo.noop_out_interval' 1
    set_ "$p" "$IQN" 'node.conn[0].timeo.noop_out_timeout' 3
    set_ "$p" "$IQN" node.session.initial_login_retry_max 8
    check "login by port $p" login "$p" "$IQN" || done_
    check "disk by port $p" disk "$IQN" "$LUN" "$p" || done_
done
find_disk "$IQN" "$LUN" "$PORT"
P1=${DISK#/dev/}
find_disk "$IQN" "$LUN" "$PORT2"
P2=${DISK#/dev/}
udevadm trigger --action=add --subsystem-match=block
udevadm settle -t 30
check "multipathd starts" multipathd
mapped() { M=$(ls /dev/mapper/3* 2>/dev/null | head -n 1) && [ -n "$M" ] && multipathd show paths raw format '%d %t' | grep -c active | grep -qx 2; }
check "one map of both paths" until_true 40 mapped || { multipath -ll; multipathd show paths; done_; }
M=$(ls /dev/mapper/3* | head -n 1)
prio() { multipathd show paths raw format '%d %p' | sed -n "s/^$1 *//p" | tr -d ' '; }
better() { [ "$(prio "$1")" -gt "$(prio "$2")" ]; }
check "the priorities are ALUA's" until_true 20 better "$P1" "$P2"

# mpathpersist registers by every path and reserves by one; the load runs under that.
pr_out() { mpathpersist --out "$@" "$M"; }
pr_in() { mpathpersist --in "$1" "$M"; }
keys() { sg_persist -n --in -k "/dev/$P1" | grep -c 0xabc; }
check "mpathpersist registers" pr_out --register --param-aptpl --param-sark=0xabc
says '0xabc' "mpathpersist reads the key" pr_in -k
same "by both paths" "$(keys)" 2
check "mpathpersist reserves" pr_out --reserve --param-rk=0xabc --prout-type=5
says 'registrants only' "mpathpersist reads the reservation" pr_in -r
says '0xabc' "mpathpersist reads the full status" pr_in -s

# Every round writes all of 16 MiB at random and verifies it.
load() {
    local n=0
    while [ ! -e /tmp/stop ]; do
        n=$((n + 1))
        fio --name=load --filename="$M" --thread --ioengine=libaio --direct=1 --iodepth=8 --rw=randwrite --bsrange=4k-64k \
            --size=16m --randseed=$n --verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=64 >/tmp/fio.out 2>&1 ||
            { tail -n 5 /tmp/fio.out >/tmp/fio.failed; return; }
        echo $n >/tmp/rounds
    done
    : >/tmp/fio.good
}
load &
ios() { awk '{ print $1 + $5 }' "/sys/block/$1/stat"; }
# busy DISK: it answers commands now; multipathd's own checks are not among them.
busy() {
    local a b
    a=$(ios "$1")
    sleep 1
    b=$(ios "$1")
    [ $((b - a)) -gt 4 ]
}
only() { busy "$1" && ! busy "$2"; }
flows() { check "$1" until_true "${4:-60}" only "$2" "$3" || { multipath -ll; cat /tmp/fio.failed 2>/dev/null; }; }
cut_() {                 # PORT: nothing goes through any more, and nothing says so
    nft add table ip cut 2>/dev/null
    nft 'add chain ip cut out { type filter hook output priority 0; }' 2>/dev/null
    nft 'add chain ip cut in { type filter hook input priority 0; }' 2>/dev/null
    nft add rule ip cut out ip daddr "$HOST" tcp dport "$1" drop && nft add rule ip cut in ip saddr "$HOST" tcp sport "$1" drop
}
mend() { nft delete table ip cut; }
state() { multipathd show paths raw format '%d %t' | sed -n "s/^$1 *//p" | tr -d ' '; }
is() { [ "$(state "$1")" = "$2" ]; }

# The kernel makes the group that it fails over to optimized, by SET TARGET PORT GROUPS, and
# nobody turns it back: then both groups are equal, and I/O takes both paths.
prefer1() { host group 1 active/optimized && host group 2 active/non-optimized; }
flows "I/O takes the optimized path" "$P1" "$P2"
check "path 1 falls silent" cut_ "$PORT"
flows "I/O goes on by path 2" "$P2" "$P1" 90
check "path 1 is failed" until_true 30 is "$P1" failed
optimized() { [ "$(prio "$P2")" = 50 ]; }
check "the kernel has made group 2 optimized" until_true 20 optimized
check "path 1 is mended" mend
check "path 1 is active again" until_true 60 is "$P1" active
check "the administrator prefers path 1" prefer1
flows "I/O comes back to path 1" "$P1" "$P2" 90

check "the host closes session 1" host close "$PORT"
back() { is "$P1" active && [ "$(grep -l LOGGED_IN /sys/class/iscsi_session/session*/state | wc -l)" = 2 ]; }
check "path 1 is active after that" until_true 60 back
check "the administrator prefers path 1" prefer1
flows "I/O is by path 1" "$P1" "$P2" 90
close_both() { host close "$PORT2" && host close "$PORT"; }
for n in 1 2 3; do
    check "the host closes session 2, then 1 ($n)" close_both
    both() { is "$P1" active && is "$P2" active && [ "$(grep -l LOGGED_IN /sys/class/iscsi_session/session*/state | wc -l)" = 2 ]; }
    check "both are back ($n)" until_true 60 both
done
check "the administrator prefers path 1" prefer1
flows "I/O is by path 1 after that" "$P1" "$P2" 90

check "the administrator turns the groups" host group 2 active/optimized
check "the administrator turns the groups" host group 1 active/non-optimized
flows "I/O takes path 2" "$P2" "$P1" 90
check "group 1 goes standby" host group 1 standby
flows "I/O stays on path 2" "$P2" "$P1" 90
check "the administrator prefers path 1" prefer1
flows "I/O fails back to path 1" "$P1" "$P2" 90

cut_both() { cut_ "$PORT" && cut_ "$PORT2"; }
check "both paths fall silent" cut_both
none() { is "$P1" failed && is "$P2" failed; }
check "both are failed" until_true 60 none
same "the load waits and has no error" "$(cat /tmp/fio.failed 2>/dev/null)" ""
check "both are mended" mend
check "both are active again" until_true 60 both
check "the administrator prefers path 1" prefer1
flows "I/O is by path 1 again" "$P1" "$P2" 90

check "the daemon is killed and starts again" host crash
check "both paths are back after that" until_true 60 both
check "the administrator prefers path 1" prefer1
flows "I/O is by path 1 after the crash" "$P1" "$P2" 90
says 'registrants only' "the reservation is as it was" pr_in -r
same "and so are the keys" "$(keys)" 2

n=$(cat /tmp/rounds)
more() { [ "$(cat /tmp/rounds)" -gt $((n + 1)) ]; }
check "the load finishes more rounds" until_true 120 more
: >/tmp/stop
ended() { [ -e /tmp/fio.good ] || [ -e /tmp/fio.failed ]; }
check "the load ends" until_true 120 ended
same "every block was verified in all $(cat /tmp/rounds) rounds" "$(cat /tmp/fio.failed 2>/dev/null)" ""
same "the map saw no error" "$(dmesg | grep -cE 'I/O error, dev dm-|Buffer I/O error')" 0
check "mpathpersist releases" pr_out --release --param-rk=0xabc --prout-type=5
says 'NO reservation' "nothing is reserved" pr_in -r
check "mpathpersist clears" pr_out --clear --param-rk=0xabc
same "no keys are left" "$(keys)" 0
check "flush of the map" multipath -f "${M##*/}"
for p in $PORT $PORT2; do check "logout by port $p" logout "$p" "$IQN"; done
multipathd shutdown >/dev/null 2>&1
done_

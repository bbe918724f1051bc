# A gateway that comes back without the disk's store, which comes later: PORT, IQN, LUN (0),
# VOLUME, CONTROL. Hosts wait for it.
. /usr/lib/guest.sh
LUN=${LUN:-0}
check "iscsid runs" start_iscsid
check "node record" record "$PORT" "$IQN"
check "login" login "$PORT" "$IQN" || done_
check "disk" disk "$IQN" "$LUN" || done_
find_disk "$IQN" "$LUN"
check "mkfs.ext4" mkfs.ext4 -q -F "$DISK" || done_
check "mount" mount -t ext4 "$DISK" /mnt || done_
head -c 4194304 /dev/urandom >/tmp/f
load() {                 # until there is /tmp/stop; says what failed
    n=0
    while [ ! -e /tmp/stop ]; do
        n=$((n + 1))
        { cp /tmp/f /mnt/f$((n % 8)) && sync -f /mnt/f$((n % 8)); } || { echo "copy $n failed"; return 1; }
        echo $n >/tmp/count
    done
}
(load >/tmp/load.out 2>&1; echo $? >/tmp/load.rc) &
copied() { [ "$(cat /tmp/count 2>/dev/null || echo 0)" -gt "$1" ]; }
check "load" until_true 20 copied 2
check "the gateway is killed and comes back without the store" host away "$VOLUME"
turs() { sg_turs -v "$DISK" 2>&1 | grep -qi 'becoming ready'; }
check "the disk is becoming ready" until_true 20 turs
before=$(cat /tmp/count)
sleep 12
same "the load waits" "$(cat /tmp/count)" "$before"
refuse "it has not ended" test -e /tmp/load.rc
check "the store comes back" host back "$VOLUME"
check "the load goes on" until_true 90 copied $((before + 2))
touch /tmp/stop
check "the load ends" until_true 60 test -e /tmp/load.rc
same "nothing failed" "$(cat /tmp/load.rc /tmp/load.out)" 0
io_errors() { dmesg | grep -iE 'I/O error|aborting journal|remounting'; }
refuse "the kernel saw no I/O error" io_errors
echo 3 >/proc/sys/vm/drop_caches
check "a file is as written" cmp /tmp/f /mnt/f$((before % 8))
check "umount" umount /mnt
check "fsck" e2fsck -fn "$DISK"
check "logout" logout "$PORT" "$IQN"
done_

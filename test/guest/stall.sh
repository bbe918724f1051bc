# Disks whose store keeps what touches 64 KiB from 32 MiB on: PORT, IQN. LUN 0 holds, LUN 1 fails
# after 5 s and keeps all but its ends, LUN 2 is busy after 10 s, LUN 3 is sound. What the kernel makes of it, and when.
. /usr/lib/guest.sh
check "iscsid runs" start_iscsid
check "node record" record "$PORT" "$IQN"
check "login" login "$PORT" "$IQN" || done_
for lun in 0 1 2 3; do
    check "disk $lun" disk "$IQN" $lun || done_
    find_disk "$IQN" $lun
    eval "D$lun=$DISK"
done
BAD=65536 GOOD=2048      # LBAs
seconds() { cut -d. -f1 /proc/uptime; }
timed() {                # DISK LBA: reads there and sets TOOK and READ
    local from
    DISK=$1 from=$(seconds)
    if rd "$2" 8; then READ=done; else READ=failed; fi
    TOOK=$(($(seconds) - from))
}
between() { [ "$2" -ge "$1" ] && [ "$2" -le "$3" ] || { echo "$2 s are not $1 to $3"; return 1; }; }
sound() { DISK=$D3 && wr /bin/busybox $GOOD 64 && rd $GOOD 64 && cmp -s -n 32768 /tmp/back /bin/busybox; }
waits() {                # LUN SECONDS: what the kernel waits for a command
    eval "echo $2 >/sys/block/\${D$1##*/}/device/timeout"
}

timed $D1 $BAD
same "LUN 1 fails a read" $READ failed
check "LUN 1: after 5 s and not much more, in $TOOK s" between 5 $TOOK 15
timed $D1 $GOOD
same "LUN 1 fails at once while its store hangs" $READ failed
check "LUN 1: at once, in $TOOK s" between 0 $TOOK 3
check "the sound disk beside" sound

# So that nothing is flushed to them in the end.
for c in /sys/class/scsi_disk/*/cache_type; do echo "temporary write through" >$c; done
# The kernel asks whether the connection is there before it takes a command for lost: each of
# six attempts takes twice its time, and what an abort or a reset takes.
waits 0 4
timed $D0 $BAD
same "LUN 0 fails a read when the kernel gives up" $READ failed
echo "figure hold, 4 s for a command: error after $TOOK s"
check "LUN 0: after six attempts, in $TOOK s" between 40 $TOOK 100
DISK=$D0
check "LUN 0 is there elsewhere" rd $GOOD 8
check "the sound disk beside" sound

# What is refused is tried again when one of the kernel's own commands has come back, or has been
# aborted, after twice 30 s. The store is known to hang at most 13 s after the first command; at
least 22 s after it, 10 s after it asked there, the volume asks elsewhere and is answered.
dd if=$D2 of=/dev/null bs=512 skip=$BAD count=8 iflag=direct 2>/dev/null &
sleep 17
timed $D2 $GOOD
same "LUN 2 is read once the store answers" $READ done
check "LUN 2: was busy until then, $TOOK s" between 2 $TOOK 90
check "the sound disk beside" sound
dmesg | tail -n 25
done_

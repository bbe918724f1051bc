# A disk that grows: PORT, IQN, LUN (0), SIZE in bytes, VOLUME, CONTROL.
. /usr/lib/guest.sh
LUN=${LUN:-0}
check "iscsid runs" start_iscsid
check "node record" record "$PORT" "$IQN"
check "login" login "$PORT" "$IQN" || done_
check "disk" disk "$IQN" "$LUN" || done_
find_disk "$IQN" "$LUN"
sg_turs "$DISK" >/dev/null 2>&1
size() { blockdev --getsize64 "$DISK"; }
same "size" "$(size)" "$SIZE"
check "mkfs.ext4" mkfs.ext4 -q -F "$DISK"
check "mount" mount -t ext4 "$DISK" /mnt
head -c 8388608 /dev/urandom >/mnt/f
sum=$(sha256sum </mnt/f)
sync
check "the host makes it larger" host resize "$VOLUME" $((SIZE * 2))
# told TIMES: the unit attention may come to any command, the file system's too; the kernel
# logs each.
told() { sg_turs -v "$DISK"; [ "$(dmesg | grep -ci 'capacity data has changed')" -ge "$1" ]; }
check "a unit attention says so" told 1
same "nothing has changed here yet" "$(size)" "$SIZE"
check "rescan" iscsiadm -m session --rescan
same "the new size" "$(size)" $((SIZE * 2))
check "resize2fs while mounted" resize2fs "$DISK"
room() { [ "$(df -k /mnt | awk 'END { print $2 }')" -gt $((SIZE * 3 / 2 / 1024)) ]; }
check "the file system has room" room
check "the host makes it larger again" host resize "$VOLUME" $((SIZE * 3))
echo 3 >/proc/sys/vm/drop_caches
same "the file is as written" "$(sha256sum </mnt/f)" "$sum"
check "a unit attention says so again" told 2
check "rescan again" iscsiadm -m node -T "$IQN" -p "$HOST:$PORT" --rescan
same "the size after that" "$(size)" $((SIZE * 3))
check "umount" umount /mnt
check "fsck" e2fsck -fn "$DISK"
check "logout" logout "$PORT" "$IQN"
done_

# A file system over open-iscsi: PORT, IQN, LUN (0), SIZE in bytes.
. /usr/lib/guest.sh
LUN=${LUN:-0}
check "iscsid starts" start_iscsid
found() { iscsiadm -m discovery -t st -p "$HOST:$PORT" | grep -qF " $IQN"; }
check "discovery names the target" found
check "node record" record "$PORT" "$IQN"
check "login" login "$PORT" "$IQN" || done_
check "disk appears" disk "$IQN" "$LUN" || done_
find_disk "$IQN" "$LUN"
check "size is what the host exports" test "$(blockdev --getsize64 "$DISK")" = "$SIZE"
check "mkfs.ext4" mkfs.ext4 -q -F "$DISK"
check "mount" mount -t ext4 "$DISK" /mnt
mkdir -p /mnt/d
i=1
while [ $i -le 24 ]; do
    head -c $((i * 40961)) /dev/urandom >/mnt/d/f$i || bad "write file $i"
    i=$((i + 1))
done
(cd /mnt && find d -type f -exec sha256sum {} +) >/tmp/sums
check "24 files have sums" test "$(wc -l </tmp/sums)" = 24
rm /mnt/d/f3
sed -i '\|d/f3$|d' /tmp/sums
verify() { (cd /mnt && sha256sum -c -s /tmp/sums); }
trim() { fstrim /mnt; }
check "umount" umount /mnt
check "fsck" e2fsck -fn "$DISK"
check "logout" logout "$PORT" "$IQN"
gone() { ! find_disk "$IQN" "$LUN"; }
check "disk is gone" until_true 10 gone
check "login again" login "$PORT" "$IQN" || done_
check "disk comes back" disk "$IQN" "$LUN" || done_
find_disk "$IQN" "$LUN"
check "mount again" mount -t ext4 "$DISK" /mnt
check "every file is as written" verify
if [ "$(cat "/sys/block/${DISK##*/}/queue/discard_max_bytes")" -gt 0 ]; then
    check "fstrim" trim
    echo 3 >/proc/sys/vm/drop_caches
    check "every file is as written after the trim" verify
fi
check "umount again" umount /mnt
check "fsck again" e2fsck -fn "$DISK"
check "logout again" logout "$PORT" "$IQN"
done_

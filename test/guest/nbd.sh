# The kernel's NBD client: PORT, SIZE in bytes; the exports disk, and golden, which is
# read-only.
. /usr/lib/guest.sh
check "module" modprobe nbd nbds_max=4 max_part=0
attach() { nbd-client "$HOST" "$PORT" "$@"; }
says disk "the exports are listed" nbd-client -l "$HOST" "$PORT"
refuse "an export that is not there" attach /dev/nbd3 -N none
check "attach" attach /dev/nbd0 -N disk || done_
check "size is what the host exports" test "$(blockdev --getsize64 /dev/nbd0)" = "$SIZE"
same "it is writable" "$(blockdev --getro /dev/nbd0)" 0
check "it discards" test "$(cat /sys/block/nbd0/queue/discard_max_bytes)" -gt 0
says 'write back' "it has a write cache" cat /sys/block/nbd0/queue/write_cache
check "mkfs.ext4" mkfs.ext4 -q -F /dev/nbd0
check "mount" mount -t ext4 /dev/nbd0 /mnt
mkdir -p /mnt/d
i=1
while [ $i -le 24 ]; do
    head -c $((i * 40961)) /dev/urandom >/mnt/d/f$i || bad "write file $i"
    i=$((i + 1))
done
(cd /mnt && find d -type f -exec sha256sum {} +) >/tmp/sums
check "24 files have sums" test "$(wc -l </tmp/sums)" = 24
verify() { (cd /mnt && sha256sum -c -s /tmp/sums); }
rm /mnt/d/f3
sed -i '\|d/f3$|d' /tmp/sums
check "fstrim" fstrim /mnt
check "umount" umount /mnt
check "fsck" e2fsck -fn /dev/nbd0
check "detach" nbd-client -d /dev/nbd0
check "attach by four connections" attach /dev/nbd1 -N disk -C 4 || done_
check "mount again" mount -t ext4 /dev/nbd1 /mnt
check "every file is as written" verify
head -c 8000000 /dev/urandom >/mnt/big
cp /mnt/big /tmp/big
check "sync" sync
echo 3 >/proc/sys/vm/drop_caches
check "what four connections wrote" cmp /mnt/big /tmp/big
check "umount again" umount /mnt
check "fsck again" e2fsck -fn /dev/nbd1
check "read-only export" attach /dev/nbd2 -N golden -R
refuse "write to it" dd if=/dev/zero of=/dev/nbd2 bs=4096 count=1 oflag=direct
check "read it" dd if=/dev/nbd2 of=/dev/null bs=4096 count=4
check "detach again" nbd-client -d /dev/nbd1
check "detach the other" nbd-client -d /dev/nbd2
done_

# Space comes back: files are deleted from ext4 and xfs, and the host's file shrinks.
# PORT, IQN, LUN (0), VOLUME, CONTROL. Needs run.sh -x.
. /usr/lib/guest.sh
LUN=${LUN:-0}
check "iscsid runs" start_iscsid
check "node record" record "$PORT" "$IQN"
check "login" login "$PORT" "$IQN" || done_
check "disk" disk "$IQN" "$LUN" || done_
find_disk "$IQN" "$LUN"
check "blkdiscard of all" blkdiscard "$DISK"
less() { echo "$1 bytes, wanted at most $2"; [ "$1" -le "$2" ]; }
check "nothing is in use" less "$(host du "$VOLUME")" 65536
for fs in ext4 xfs; do
    case $fs in ext4) quiet="-q -F" ;; xfs) quiet="-q -f" ;; esac
    check "mkfs.$fs" mkfs.$fs $quiet "$DISK"
    check "mount $fs" mount -t $fs "$DISK" /mnt
    sync
    empty=$(host du "$VOLUME")
    head -c 41943040 /dev/urandom >/mnt/gone
    head -c 4194304 /dev/urandom >/mnt/stays
    sum=$(sha256sum </mnt/stays)
    sync
    full=$(host du "$VOLUME")
    same "$fs: the host's file has grown by the data" "$([ $((full - empty)) -ge 46000000 ] && echo yes)" yes
    rm /mnt/gone
    sync
    # xfs frees what was deleted in the background, and trims only what is free.
    back() { fstrim /mnt && sync && less "$(host du "$VOLUME")" $((full - 40000000)); }
    check "$fs: fstrim gives the space back" until_true 20 back
    echo "$fs: the host's file had $empty bytes, $full with the data, $(host du "$VOLUME") after"
    echo 3 >/proc/sys/vm/drop_caches
    same "$fs: what stays is as written" "$(sha256sum </mnt/stays)" "$sum"
    check "umount $fs" umount /mnt
    case $fs in
    ext4) check "fsck" e2fsck -fn "$DISK" ;;
    xfs) check "xfs_repair finds nothing" xfs_repair -n "$DISK" ;;
    esac
    check "blkdiscard of all, after $fs" blkdiscard "$DISK"
    check "nothing is in use, after $fs" less "$(host du "$VOLUME")" 65536
done
check "logout" logout "$PORT" "$IQN"
done_

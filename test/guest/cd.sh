# A CD drive: PORT, IQN, CD_LUN, CD_SUM (the SHA-256 of its file DATA.BIN), CD_SIZE of the disc.
. /usr/lib/guest.sh
check "iscsid runs" start_iscsid
check "modules" modprobe -a sr_mod isofs
check "node record" record "$PORT" "$IQN"
check "login" login "$PORT" "$IQN" || done_
check "drive appears" disk "$IQN" "$CD_LUN" || done_
find_disk "$IQN" "$CD_LUN"
same "as a drive" "${DISK%[0-9]}" /dev/sr
says 'PDT=5 ' "INQUIRY" sg_inq "$DISK"
for p in $(sg_vpd "$DISK" | grep -o '\[[a-z0-9]*\]' | tr -d '[]'); do
    check "VPD page $p" sg_vpd -p "$p" "$DISK"
done
says '[Pp]rofile' "GET CONFIGURATION" sg_get_config "$DISK"
same "size of the disc" "$(blockdev --getsize64 "$DISK")" "$CD_SIZE"
check "mount" mount -t iso9660 -o ro "$DISK" /mnt || done_
same "its file" "$(sha256sum </mnt/data.bin | cut -d' ' -f1)" "$CD_SUM"
exits 5 "no eject while mounted" sg_start --eject "$DISK"
same "its file, still" "$(sha256sum </mnt/data.bin | cut -d' ' -f1)" "$CD_SUM"
check "umount" umount /mnt
refuse "it cannot be written" dd if=/dev/zero of="$DISK" bs=2048 count=1
check "eject" sg_start --eject "$DISK"
exits 2 "no disc in it" sg_turs "$DISK"
check "tray in" sg_start --load "$DISK"
again() { mount -t iso9660 -o ro "$DISK" /mnt; }
check "mount again" until_true 10 again
same "its file, again" "$(sha256sum </mnt/data.bin | cut -d' ' -f1)" "$CD_SUM"
check "umount again" umount /mnt
check "logout" logout "$PORT" "$IQN"
done_

# Logical volumes as Cinder's LVM driver exports them: the gateway runs in the guest, next
# to the volume group, and so does the initiator. Needs run.sh -x, and -f for the gateway's
# binary, whose name is blockgate.
. /usr/lib/guest.sh
HOST=127.0.0.1 PORT=3260
VOL=volume-8f2a1c1e-0c7d-4a52-9f43-1f6f5f0f6b11
BASE=iqn.2010-10.org.openstack
IQN=$BASE:$VOL
export BLOCKGATE_STATE=/run/gateway TGT_IPC_SOCKET=/run/tgtd
for name in tgtd tgtadm tgt-admin blockgate; do ln -sf /job/blockgate /usr/bin/$name; done

# No udev here: lvm makes the device nodes itself. What the initiator sees of a volume is
# the volume again, so only the loop device is looked at for physical volumes.
mkdir -p /etc/lvm /etc/tgt /var/lib/cinder/volumes /run/other
cat >/etc/lvm/lvm.conf <<'END'
devices { filter = [ "a|^/dev/loop0$|", "r|.*|" ] use_devicesfile = 0
    obtain_device_list_from_udev = 0 external_device_info_source = "none" issue_discards = 0 }
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 thin_pool_autoextend_threshold = 100 }
global { thin_check_executable = "" }
backup { backup = 0 archive = 0 }
END
lv() { lvm "$@" </dev/null; }
field() { lvm lvs --noheadings --nosuffix --units b -o "$2" "vg/$1" 2>/dev/null | tr -d ' '; }
adm() { tgtadm --lld iscsi --op "$@"; }

check "modules" modprobe -a loop dm_snapshot dm_thin_pool
truncate -s 400M /tmp/pv
check "a disk" losetup /dev/loop0 /tmp/pv || done_
check "vgcreate" lv vgcreate -q vg /dev/loop0 || done_
check "lvcreate" lv lvcreate -q -y -Wn -Zn -L 48M -n $VOL vg || done_
SIZE=50331648
DEV=/dev/vg/$VOL
check "the volume's device" test -b $DEV
check "tgtd" tgtd || done_
check "iscsid runs" start_iscsid

# Cinder: the stanza in a file of its own, tgt-admin --update, then it looks for the target
# in what tgt-admin --show prints.
echo 'include /var/lib/cinder/volumes/*' >/etc/tgt/targets.conf
cat >/var/lib/cinder/volumes/$VOL <<END

<target $IQN>
    backing-store $DEV
    driver iscsi
    incominguser cinderuser0000000000 cinderpassword00

    write-cache on
    params thin_provisioning=1
</target>
END
check "tgt-admin --update" tgt-admin --update $IQN
shown() { tgt-admin --show | grep -A 40 "^Target [0-9]*: $IQN\$" | grep -x "        LUN: 1"; }
check "tgt-admin --show has the LUN" shown
TID=$(tgt-admin --show | sed -n "s/^Target \([0-9]*\): $IQN\$/\1/p")
refuse "a volume that is exported cannot be removed" lv lvremove -q -f vg/$VOL
refuse "nor overwritten by another program" mkfs.ext4 -q $DEV

# The other way round: what is mounted here is not exported.
check "another volume" lv lvcreate -q -y -Wn -L 8M -n mounted vg
check "mkfs.ext4 here" mkfs.ext4 -q /dev/vg/mounted
check "mount here" mount -t ext4 /dev/vg/mounted /run/other
check "a target for it" adm new --mode target --tid 19 -T $BASE:mounted
says_busy() { adm new --mode logicalunit --tid 19 --lun 1 -b /dev/vg/mounted 2>&1 | grep -i "in use\|busy"; }
check "a mounted volume is busy" says_busy
check "umount here" umount /run/other
check "it is exported then" adm new --mode logicalunit --tid 19 --lun 1 -b /dev/vg/mounted
check "the target goes with it" adm delete --force --mode target --tid 19
check "lvremove at once" lv lvremove -q -f vg/mounted

check "node record" record $PORT $IQN
set_ $PORT $IQN node.session.auth.authmethod CHAP
set_ $PORT $IQN node.session.auth.username cinderuser0000000000
set_ $PORT $IQN node.session.auth.password cinderpassword00
check "login" login $PORT $IQN || done_
check "disk" disk $IQN 1 || done_
find_disk $IQN 1
ORIGIN=$DISK
size() { blockdev --getsize64 "$ORIGIN"; }
same "size" "$(size)" $SIZE
sg_turs "$ORIGIN" >/dev/null 2>&1
check "mkfs.ext4" mkfs.ext4 -q -F "$ORIGIN"
check "mount" mount -t ext4 "$ORIGIN" /mnt
head -c 16777216 /dev/urandom >/mnt/f
SUM=$(sha256sum </mnt/f)
sync

check "lvextend while in use" lv lvextend -q -L 64M vg/$VOL
check "tgtadm reads the size anew" adm update --mode logicalunit --tid "$TID" --lun 1 --params disksize=auto
told() { sg_turs -v "$ORIGIN"; dmesg | grep -qi 'capacity data has changed'; }
check "a unit attention says so" told
same "nothing has changed here yet" "$(size)" $SIZE
check "rescan" iscsiadm -m session --rescan
SIZE=67108864
same "the new size" "$(size)" $SIZE
check "resize2fs while mounted" resize2fs "$ORIGIN"
# Cinder's own way: for a volume that is attached it forces an update.
check "lvextend again" lv lvextend -q -L 72M vg/$VOL
check "tgt-admin --update -f" tgt-admin --update $IQN -f
SIZE=75497472
grown() { iscsiadm -m session --rescan && find_disk $IQN 1 && ORIGIN=$DISK && [ "$(size)" = $SIZE ]; }
check "the size after that" until_true 40 grown
grown
check "resize2fs again" resize2fs "$ORIGIN"
echo 3 >/proc/sys/vm/drop_caches
same "the file is as written" "$(sha256sum </mnt/f)" "$SUM"
check "umount" umount /mnt
check "fsck" e2fsck -fn "$ORIGIN"

# A snapshot stays as the volume was, while that changes.
before=$(sha256sum <"$ORIGIN")
check "lvcreate -s" lv lvcreate -q -y -s -L 80M -n snap vg/$VOL
check "mount the volume" mount -t ext4 "$ORIGIN" /mnt
head -c 8388608 /dev/urandom | dd of=/mnt/f conv=notrunc bs=1M 2>/dev/null
sync
check "the snapshot's target" adm new --mode target --tid 20 -T $BASE:snap
check "the snapshot's unit" adm new --mode logicalunit --tid 20 --lun 1 -b /dev/vg/snap
check "read-only" adm update --mode logicalunit --tid 20 --lun 1 --params readonly=1
check "for all" adm bind --mode target --tid 20 -I ALL
check "the snapshot's record" record $PORT $BASE:snap
check "login to the snapshot" login $PORT $BASE:snap
check "the snapshot's disk" disk $BASE:snap 1
find_disk $BASE:snap 1
same "it is read-only" "$(blockdev --getro "$DISK")" 1
same "its size" "$(blockdev --getsize64 "$DISK")" $SIZE
same "it is as the volume was" "$(sha256sum <"$DISK")" "$before"
check "mount the snapshot" mount -t ext4 -o ro,noload "$DISK" /run/other
same "the file in it" "$(sha256sum </run/other/f)" "$SUM"
same "the volume has changed" "$([ "$(sha256sum </mnt/f)" = "$SUM" ] && echo no)" ""
check "umount the snapshot" umount /run/other
# The kernel discards nothing of a volume with such a snapshot: zeroes are written instead,
# and the snapshot keeps what was there.
check "fstrim under a snapshot" fstrim /mnt
same "the snapshot is still as the volume was" "$(echo 3 >/proc/sys/vm/drop_caches; sha256sum <"$DISK")" "$before"
refuse "the volume cannot be removed, nor its snapshot" lv lvremove -q -f vg/snap

# A volume that the kernel does not let anybody write.
check "a read-only volume" lv lvcreate -q -y -pr -kn -s -L 8M -n readonly vg/$VOL
adm new --mode target --tid 22 -T $BASE:readonly
check "is exported" adm new --mode logicalunit --tid 22 --lun 1 -b /dev/vg/readonly
check "its target goes" adm delete --mode target --tid 22
check "the read-only volume goes" lv lvremove -q -f vg/readonly

# Thin: what is deleted comes back to the pool.
check "a thin pool" lv lvcreate -q -y -L 120M -c 64k -T vg/pool
check "a thin volume" lv lvcreate -q -y -Wn -V 160M -T vg/pool -n thin
check "the thin volume's target" adm new --mode target --tid 21 -T $BASE:thin
check "the thin volume's unit" adm new --mode logicalunit --tid 21 --lun 1 -b /dev/vg/thin
check "thin provisioning" adm update --mode logicalunit --tid 21 --lun 1 --params thin_provisioning=1
check "for everybody" adm bind --mode target --tid 21 -I ALL
check "the thin volume's record" record $PORT $BASE:thin
check "login to the thin volume" login $PORT $BASE:thin
check "the thin volume's disk" disk $BASE:thin 1
find_disk $BASE:thin 1
THIN=$DISK
queue=/sys/block/${THIN##*/}/queue
echo "thin volume: $(cat /sys/block/dm-*/dm/name | tr '\n' ' ') discard_max $(cat $queue/discard_max_bytes) granularity $(cat $queue/discard_granularity)"
same "the initiator may discard" "$([ "$(cat $queue/discard_max_bytes)" -gt 0 ] && echo yes)" yes
same "in chunks of the pool" "$(cat $queue/discard_granularity)" 65536
check "mkfs.ext4 on it" mkfs.ext4 -q -F "$THIN"
check "mount it" mount -t ext4 "$THIN" /run/other
percent() { field pool data_percent | cut -d. -f1; }
head -c 4194304 /dev/urandom >/run/other/stays
stays=$(sha256sum </run/other/stays)
sync
empty=$(percent)
head -c 25165824 /dev/urandom >/run/other/gone
sync
full=$(percent)
rm /run/other/gone
sync
fstrim /run/other || bad "fstrim"
sync
after=$(percent)
echo "the pool: $empty % at first, $full % with the data, $after % after fstrim"
same "the pool has filled" "$([ "$full" -ge $((empty + 15)) ] && echo yes)" yes
same "fstrim gives the space back to the pool" "$([ "$after" -le $((empty + 3)) ] && echo yes)" yes
echo 3 >/proc/sys/vm/drop_caches
same "what stays is as written" "$(sha256sum </run/other/stays)" "$stays"
check "umount the thin volume" umount /run/other
check "a thin snapshot" lv lvcreate -q -y -kn -s -n early vg/thin
check "lvextend of the thin volume" lv lvextend -q -L 176M vg/thin
check "blockgate volume resize" blockgate --socket /run/tgtd.0 volume resize tgt-21-1
iscsiadm -m session --rescan >/dev/null
same "the thin volume's new size" "$(blockdev --getsize64 "$THIN")" 184549376
check "fsck of the thin volume" e2fsck -fn "$THIN"
check "blkdiscard of all of it" blkdiscard "$THIN"
check "mount the thin snapshot" mount -t ext4 -o ro /dev/vg/early /run/other
same "what its origin has discarded is still there" "$(sha256sum </run/other/stays)" "$stays"
check "umount the thin snapshot" umount /run/other
check "lvremove of the thin snapshot" lv lvremove -q -f vg/early
same "nothing is left in the pool" "$(percent)" 0
zero() { cmp -n 8388608 "$THIN" /dev/zero; }
check "and it reads as zeroes" zero

# Removal: in the wrong order it is refused, in the right one it goes.
refuse "a target with a session is not deleted" adm delete --mode target --tid 21
check "logout from the thin volume" logout $PORT $BASE:thin
check "its target is deleted" adm delete --mode target --tid 21
check "lvremove of the thin volume" lv lvremove -q -f vg/thin
check "logout from the snapshot" logout $PORT $BASE:snap
check "its target is deleted too" tgt-admin --delete $BASE:snap
check "lvremove of the snapshot" lv lvremove -q -f vg/snap
sum=$(sha256sum </mnt/f)
check "umount the volume" umount /mnt
check "mount it again" mount -t ext4 "$ORIGIN" /mnt   # ext4 remembers what it has trimmed
used() { du -k /tmp/pv | cut -f1; }
full=$(used)
check "fstrim without the snapshot" fstrim /mnt
sync
less=$(used)
echo "the disk: $full KiB, $less KiB after fstrim"
same "discards reach the disk again" "$([ "$less" -le $((full - 20480)) ] && echo yes)" yes
echo 3 >/proc/sys/vm/drop_caches
same "and leave the file as it is" "$(sha256sum </mnt/f)" "$sum"
check "umount the volume again" umount /mnt
check "logout" logout $PORT $IQN
check "tgt-admin --delete -f" tgt-admin --delete $IQN -f
rm /var/lib/cinder/volumes/$VOL
same "no target is left" "$(tgt-admin --show)" ""
check "lvremove" lv lvremove -q -f vg/$VOL
check "the pool too" lv lvremove -q -f vg/pool
check "vgremove" lv vgremove -q vg
check "tgtd ends" adm delete --mode system
check "and leaves the disk alone" losetup -d /dev/loop0
done_

# sg3_utils against two disks of one target, command by command, each with its effect
# checked: PORT, IQN, LUN (0), LUN2 (1), SIZE in bytes of both; blocks of 512 bytes.
. /usr/lib/guest.sh
LUN=${LUN:-0} LUN2=${LUN2:-1}
check "iscsid runs" start_iscsid
check "node record" record "$PORT" "$IQN"
check "login" login "$PORT" "$IQN" || done_
for l in $LUN2 $LUN; do
    check "disk $l" disk "$IQN" "$l" || done_
    OTHER=${D:-}
    find_disk "$IQN" "$l"
    D=$DISK
    # sg_xcopy looks for disks where udev would have put them
    mkdir -p /dev/block
    ln -sf "$D" "/dev/block/$(cat "/sys/block/${D##*/}/dev")"
done
head -c 131072 /dev/urandom >/tmp/r1
head -c 131072 /dev/urandom >/tmp/r2
head -c 512 /tmp/r2 >/tmp/one
i=0
while [ $i -lt 100 ]; do cat /tmp/one; i=$((i + 1)); done >/tmp/hundred
head -c 131072 /dev/zero >/tmp/zero

check "TEST UNIT READY" sg_turs "$D"
says 'PDT=0 ' "INQUIRY" sg_inq "$D"
says 'SPC-4' "INQUIRY version descriptors" sg_inq -d "$D"
pages=$(sg_vpd "$D" | sed -n 's/^ *\(0x[0-9a-f][0-9a-f]\)[ \t].*/\1/p')
[ -n "$pages" ] || pages=$(sg_vpd "$D" | grep -o '\[[a-z0-9]*\]' | tr -d '[]')
same "VPD pages are listed" "$([ "$(echo "$pages" | wc -l)" -ge 8 ] && echo yes)" yes
clean() { ! grep -qiE 'short|truncat|malformed|bad |unexpected|invalid' && return 0; echo "$1: see its words"; return 1; }
for p in $pages; do
    decodes() { sg_vpd -p "$p" "$D" >/tmp/page && clean "$p" </tmp/page && sg_inq -p "$p" "$D"; }
    check "VPD page $p" decodes
done
names() { sg_vpd -p di "$1" | sed -n 's/^ *0x\([0-9a-f]\{32\}\)$/\1/p'; }
same "each disk has an NAA name" "$(names "$D" | wc -l) $(names "$OTHER" | wc -l)" "1 1"
differ() { [ "$(names "$D")" != "$(names "$OTHER")" ]; }
check "and not the same" differ
says 'Target port group: 0x1' "the port's group is named" sg_vpd -p di "$D"
says 'compare and write length: [1-9]' "VPD limits name COMPARE AND WRITE" sg_vpd -p bl "$D"
says 'Read\(16\)' "REPORT SUPPORTED OPERATION CODES" sg_opcodes "$D"
check "with timeouts" sg_opcodes -T "$D"
says 'is supported' "one operation code" sg_opcodes -o 0x9e -s 0x10 "$D"
says 'Logical unit reset' "task management functions" sg_opcodes -t "$D"
same "REPORT LUNS" "$(sg_luns -d "$D" 2>/dev/null | grep -c 'Peripheral device addressing')" "${LUNS:-2}"
check "well known units" sg_luns -s 1 "$D"
says "Last LBA=$((SIZE / 512 - 1)) " "READ CAPACITY(10)" sg_readcap "$D"
says "Last LBA=$((SIZE / 512 - 1)) " "READ CAPACITY(16)" sg_readcap -l "$D"
says 'WCE +1' "MODE SENSE caching page" sh -c "sg_modes -p 8 $D && echo WCE 1"
check "MODE SENSE(6) and (10) of all pages" sh -c "sg_modes -6 -a $D && sg_modes -a $D && sg_modes -a -c 1 $D"
check "LOG SENSE of all pages" sg_logs -a "$D"
check "REQUEST SENSE" sg_requests "$D"
says 'asymmetric access state : 0x00' "REPORT TARGET PORT GROUPS" sg_rtpg "$D"
says 'active/optimized' "in words" sg_rtpg -d "$D"

wr /tmp/r1 4096 256
says 'blocks: +[0-9]+ +mapped' "GET LBA STATUS of data" sg_get_lba_status -l 4096 "$D"
check "UNMAP" sg_unmap --force -l 4096 -n 128 "$D"
reads "unmapped blocks are zeroes" /tmp/zero 4096 128
tail -c 65536 /tmp/r1 >/tmp/r1.tail
reads "their neighbours stay" /tmp/r1.tail 4224 128
says 'blocks: +128 +deallocated' "GET LBA STATUS of the hole" sg_get_lba_status -l 4096 "$D"
check "UNMAP of nothing" sg_unmap --force -l 0 -n 0 "$D"
exits 22 "UNMAP past the end" sg_unmap --force -l $((SIZE / 512)) -n 8 "$D"
for n in 10 16; do
    check "WRITE SAME($n)" sg_write_same --$n -l 1000 -n 100 -x 512 -i /tmp/one "$D"
    reads "writes the block each time" /tmp/hundred 1000 100
    wr /tmp/r1 1000 128
done
check "WRITE SAME(16) without data" sg_write_same --16 --ndob -l 1000 -n 100 "$D"
reads "zeroes" /tmp/zero 1000 100
wr /tmp/r1 8192 256
check "WRITE SAME(16) that unmaps" sg_write_same --16 --unmap -l 8192 -n 128 "$D"
reads "leaves zeroes" /tmp/zero 8192 128
says 'blocks: +128 +deallocated' "and a hole" sg_get_lba_status -l 8192 "$D"
wr /tmp/r1 12288 8
head -c 512 /tmp/r1 >/tmp/caw
cat /tmp/one >>/tmp/caw
check "COMPARE AND WRITE" sg_compare_and_write -l 12288 -n 1 -x 1024 -i /tmp/caw "$D"
reads "wrote" /tmp/r2 12288 1
exits 14 "COMPARE AND WRITE of other data" sg_compare_and_write -l 12288 -n 1 -x 1024 -i /tmp/caw "$D"
reads "did not write" /tmp/r2 12288 1
head -c 32768 /tmp/r1 >/tmp/verify
wr /tmp/r1 0 64
check "VERIFY(10) of the data" sg_verify -l 0 -c 64 -n 32768 -i /tmp/verify "$D"
exits 14 "VERIFY(10) of other data" sg_verify -l 64 -c 64 -n 32768 -i /tmp/verify "$D"

wr /tmp/r1 16384 256
check "EXTENDED COPY on one disk" sg_xcopy if="$D" of="$D" skip=16384 seek=20480 count=256 bs=512
reads "copied" /tmp/r1 20480 256
check "EXTENDED COPY to the other disk" sg_xcopy if="$D" of="$OTHER" skip=16384 seek=2048 count=256 bs=512
DISK=$OTHER
reads "copied there" /tmp/r1 2048 256
wr /tmp/r2 4096 256
check "EXTENDED COPY back" sg_xcopy if="$OTHER" of="$D" skip=4096 seek=24576 count=256 bs=512
DISK=$D
reads "copied back" /tmp/r2 24576 256
says 'Maximum segment length: [1-9]' "RECEIVE COPY RESULTS" sg_copy_results -p "$D"

exits 9 "an operation code that no one has" sg_raw "$D" ff 00 00 00 00 00
exits 22 "READ(10) past the end" sg_raw -r 512 "$D" 28 00 7f ff ff f0 00 00 01 00
exits 22 "READ(16) past the end" sg_raw -r 512 "$D" 88 00 00 00 00 ff ff ff ff f0 00 00 00 01 00 00
check "logical unit reset" sg_reset -d "$D"
check "target reset" sg_reset -t "$D"
sg_turs "$D" >/dev/null 2>&1 # takes the unit attention
reads "all is there after them" /tmp/r2 24576 256
check "logout" logout "$PORT" "$IQN"
done_

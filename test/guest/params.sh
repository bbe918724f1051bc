# The negotiated parameters, in combinations, each proven by data written and read back
# through a fresh session: PORT, IQN, LUN (0).
. /usr/lib/guest.sh
LUN=${LUN:-0}
check "iscsid runs" start_iscsid
check "node record" record "$PORT" "$IQN"
k() { set_ "$PORT" "$IQN" "$1" "$2"; }
head -c 3145728 /dev/urandom >/tmp/data
round() {
    login "$PORT" "$IQN" && disk "$IQN" "$LUN" && find_disk "$IQN" "$LUN" || return 1
    # a shift by a few blocks leaves no part of the last round's data in place
    at=$((at + 7))
    dd if=/tmp/data of="$DISK" bs=512 seek=$((at * 8)) conv=fsync && echo 3 >/proc/sys/vm/drop_caches &&
        dd if="$DISK" bs=512 skip=$((at * 8)) count=6144 iflag=direct | cmp - /tmp/data
    rc=$?
    logout "$PORT" "$IQN" && [ $rc = 0 ]
}
at=0
for digest in "None None" "CRC32C None" "None CRC32C" "CRC32C CRC32C"; do
    k 'node.conn[0].iscsi.HeaderDigest' "${digest% *}"
    k 'node.conn[0].iscsi.DataDigest' "${digest#* }"
    for r2t in "Yes Yes" "Yes No" "No Yes" "No No"; do
        k node.session.iscsi.InitialR2T "${r2t% *}"
        k node.session.iscsi.ImmediateData "${r2t#* }"
        check "digests $digest, InitialR2T ${r2t% *}, ImmediateData ${r2t#* }" round
    done
done
k 'node.conn[0].iscsi.HeaderDigest' None
k 'node.conn[0].iscsi.DataDigest' None
for burst in "512 512 512" "4096 4096 4096" "4096 65536 262144" "65536 262144 16776192"; do
    set -- $burst
    k 'node.conn[0].iscsi.MaxRecvDataSegmentLength' "$1"
    k node.session.iscsi.FirstBurstLength "$2"
    k node.session.iscsi.MaxBurstLength "$3"
    for r2t in "Yes No" "No Yes"; do
        k node.session.iscsi.InitialR2T "${r2t% *}"
        k node.session.iscsi.ImmediateData "${r2t#* }"
        check "segment $1, first burst $2, burst $3, InitialR2T ${r2t% *}, ImmediateData ${r2t#* }" round
    done
done
done_

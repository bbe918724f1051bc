# Persistent reservations between two initiators of one host: PORT, IQN, LUN (0).
. /usr/lib/guest.sh
LUN=${LUN:-0} N=iqn.2026-01.io.blockgate.test
check "iscsid runs" start_iscsid
check "initiator ports" iface a $N:a && check "initiator ports" iface b $N:b || done_
for i in a b; do
    check "node record of $i" record "$PORT" "$IQN" $i
    check "login of $i" login "$PORT" "$IQN" $i || done_
    check "disk of $i" disk "$IQN" "$LUN" "$PORT" $i || done_
done
find_disk "$IQN" "$LUN" "$PORT" a
A=$DISK
find_disk "$IQN" "$LUN" "$PORT" b
B=$DISK
[ "$A" != "$B" ] || bad "two disks: $A $B"
sg_turs "$A" >/dev/null 2>&1
sg_turs "$B" >/dev/null 2>&1
out() { d=$1; shift; sg_persist -n --out "$@" "$d"; }
in_() { sg_persist -n --in "$1" "$2"; }
write() { sg_write_same --16 --ndob -l 0 -n 8 "$1"; }
read_() { sg_raw -r 4096 "$1" 28 00 00 00 00 00 00 00 08 00; }
attention() {            # WORDS NAME DISK: the next command meets this unit attention
    o=$(sg_requests "$3" 2>&1; sg_turs -v "$3" 2>&1)
    if echo "$o" | grep -qi "$1"; then ok "$2"; else bad "$2: no $1 in: $(echo "$o" | tr '\n' ' ')"; fi
}
CONFLICT=24

says 'there are NO registered' "no keys" in_ -k "$A"
says '\(PTPL_C\): 1' "REPORT CAPABILITIES" in_ -c "$A"
check "a registers" out "$A" --register --param-sark=0xa1
says '0xa1' "b sees the key" in_ -k "$B"
check "b writes: nothing is reserved" write "$B"
exits $CONFLICT "b cannot reserve unregistered" out "$B" --reserve --param-rk=0xb1 --prout-type=5
check "a reserves: write exclusive, registrants only" out "$A" --reserve --param-rk=0xa1 --prout-type=5
says 'Write Exclusive, registrants only' "b sees the reservation" in_ -r "$B"
exits $CONFLICT "b cannot write" write "$B"
check "b can read" read_ "$B"
check "a writes" write "$A"
check "b registers" out "$B" --register --param-sark=0xb1
check "b writes as a registrant" write "$B"
says "$N:a" "READ FULL STATUS names a" in_ -s "$A"
says "$N:b" "READ FULL STATUS names b" in_ -s "$A"
check "b preempts a" out "$B" --preempt --param-rk=0xb1 --param-sark=0xa1 --prout-type=5
attention 'registrations preempted' "a is told" "$A"
exits $CONFLICT "a cannot write" write "$A"
says 'Key=0xb1' "b holds it" in_ -r "$A"
check "a registers again, whatever was" out "$A" --register-ignore --param-sark=0xa2
check "a writes again" write "$A"
check "b releases" out "$B" --release --param-rk=0xb1 --prout-type=5
attention 'reservations released' "a is told of the release" "$A"
says 'there is NO reservation' "nothing is reserved" in_ -r "$A"

check "b reserves: exclusive access" out "$B" --reserve --param-rk=0xb1 --prout-type=3
exits $CONFLICT "a cannot read" read_ "$A"
exits $CONFLICT "a cannot write" write "$A"
check "b reads" read_ "$B"
check "a may ask for the keys" in_ -k "$A"
check "a preempts b and aborts" out "$A" --preempt-abort --param-rk=0xa2 --param-sark=0xb1 --prout-type=1
attention 'registrations preempted' "b is told" "$B"
says 'Write Exclusive$' "a holds write exclusive" in_ -r "$B"
check "b reads" read_ "$B"
exits $CONFLICT "b cannot write" write "$B"

check "b registers with SPEC_I_PT for itself" out "$B" --register --param-sark=0xb2
check "a moves registration and reservation to b" out "$A" --register-move --param-rk=0xa2 --param-sark=0xb3 \
    --relative-target-port=1 --transport-id="$(in_ -s "$A" | grep -o "$N:b,i,0x[0-9a-f]*" | head -n 1)"
says 'Key=0xb3' "b holds it" in_ -r "$A"
check "b writes" write "$B"
exits $CONFLICT "a cannot write" write "$A"

# An initiator that comes back as the same port is the holder still. (A logout and login
# would be another port: open-iscsi counts its ISIDs.)
check "the host cuts both sessions" host close "$PORT"
back() { [ "$(grep -l LOGGED_IN /sys/class/iscsi_session/session*/state | wc -l)" = 2 ] && sg_inq "$A" && sg_inq "$B"; }
check "both come back" until_true 20 back
for d in "$A" "$B"; do sg_turs "$d"; sg_turs "$d"; done >/dev/null 2>&1
says 'Key=0xb3' "the reservation is as it was" in_ -r "$A"
exits $CONFLICT "a cannot write" write "$A"
check "b is the holder again" write "$B"
check "b clears" out "$B" --clear --param-rk=0xb3
attention 'reservations preempted' "a is told" "$A"
says 'there are NO registered' "no keys are left" in_ -k "$A"
check "a writes" write "$A"
check "RESERVE(6)" sg_raw "$A" 16 00 00 00 00 00
exits $CONFLICT "b cannot write" write "$B"
check "RELEASE(6)" sg_raw "$A" 17 00 00 00 00 00
check "b writes" write "$B"
for i in a b; do check "logout of $i" logout "$PORT" "$IQN" $i; done
done_

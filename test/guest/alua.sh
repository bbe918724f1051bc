# Two paths through two portal groups, and their states: PORT (group 1), PORT2 (group 2),
# IQN, LUN (0), CONTROL.
. /usr/lib/guest.sh
LUN=${LUN:-0}
check "iscsid runs" start_iscsid
for p in $PORT $PORT2; do
    check "node record by port $p" record "$p" "$IQN"
    check "login by port $p" login "$p" "$IQN" || done_
    check "disk by port $p" disk "$IQN" "$LUN" "$p" || done_
done
find_disk "$IQN" "$LUN" "$PORT"
P1=$DISK
find_disk "$IQN" "$LUN" "$PORT2"
P2=$DISK
naa() { sg_vpd -p di "$1" | sed -n 's/^ *0x\([0-9a-f]\{32\}\)$/\1/p'; }
same "both paths lead to one unit" "$(naa "$P2")" "$(naa "$P1")"
says 'Target port group: 0x1' "path 1 is in group 1" sg_vpd -p di "$P1"
says 'Target port group: 0x2' "path 2 is in group 2" sg_vpd -p di "$P2"
says 'TPGS=3' "INQUIRY: implicit and explicit" sg_inq "$P1"
states() { sg_rtpg "$1" | sed -n 's/.*access state : 0x\([0-9a-f]*\).*/\1/p' | tr '\n' ' '; }
attention() {            # NAME DISK: its next command meets 2A/06
    o=$(sg_requests "$2" 2>&1; sg_turs -v "$2" 2>&1)
    if echo "$o" | grep -qi 'asymmetric access state changed'; then ok "$1"; else bad "$1: $(echo "$o" | tr '\n' ' ')"; fi
}
rd1() { sg_dd if="$1" of=/dev/null bs=512 count=8 blk_sgio=1; }
calm() { sg_turs "$P1" >/dev/null 2>&1; sg_turs "$P2" >/dev/null 2>&1; } # takes what unit attentions are left
expect() {               # STATE-1 STATE-2: what both paths report
    calm
    same "path 1 reports $1 $2" "$(states "$P1")" "$1 $2 "
    same "path 2 reports $1 $2" "$(states "$P2")" "$1 $2 "
}
expect 00 00
check "SET TARGET PORT GROUPS: group 2 non-optimized" sg_stpg --tp 2 --state an "$P1"
attention "path 2 is told" "$P2"
expect 00 01
check "path 2 still reads" rd1 "$P2"
check "SET TARGET PORT GROUPS by the other path: both at once" sg_stpg --tp 1,2 --state an,ao "$P2"
expect 01 00

check "the administrator: group 2 standby" host group 2 standby
attention "path 2 is told of it" "$P2"
attention "path 1 is told of it" "$P1"
expect 01 02
exits 2 "a standby path does not read" rd1 "$P2"
says 'standby' "and says why" sh -c "sg_turs -v $P2 2>&1; true"
check "but answers INQUIRY" sg_inq "$P2"
check "the other path reads" rd1 "$P1"
check "the administrator: group 2 unavailable" host group 2 unavailable
calm
exits 2 "an unavailable path does not read" rd1 "$P2"
says 'unavailable' "and says why" sh -c "sg_turs -v $P2 2>&1; true"
check "the other path still reads" rd1 "$P1"
check "a path that is not accessible can be set by itself" sg_stpg --tp 2 --state ao "$P2"
calm
check "and reads then" rd1 "$P2"
check "the administrator: group 1 optimized" host group 1 active/optimized
check "and preferred" host prefer 1
calm
says 'Pref=1' "the preferred bit" sg_rtpg "$P2"
expect 00 00
for p in $PORT $PORT2; do check "logout by port $p" logout "$p" "$IQN"; done
done_

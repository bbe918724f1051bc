# CHAP one way and both ways: CHAP_PORT, CHAP_IQN, CHAP_LUN (1), CHAP_USER, CHAP_PASS, and the
# target's own CHAP_OUT_USER, CHAP_OUT_PASS.
. /usr/lib/guest.sh
P=$CHAP_PORT T=$CHAP_IQN L=${CHAP_LUN:-1}
check "iscsid runs" start_iscsid
k() { set_ "$P" "$T" "node.session.auth.$1" "$2"; }
session() {
    login "$P" "$T" && disk "$T" "$L" && find_disk "$T" "$L" &&
        dd if="$DISK" of=/dev/null bs=64k count=16 iflag=direct && logout "$P" "$T"
}
refused() {
    refuse "$1" login "$P" "$T" || logout "$P" "$T" >/dev/null 2>&1
}
check "node record" record "$P" "$T"
refused "no credentials are refused"
k authmethod CHAP; k username "$CHAP_USER"; k password "$CHAP_PASS"
check "right credentials" session
k password not-the-password-1
refused "a wrong password is refused"
k password "$CHAP_PASS"; k username nobody
refused "a wrong user is refused"
k username "$CHAP_USER"; k username_in "$CHAP_OUT_USER"; k password_in "$CHAP_OUT_PASS"
check "mutual CHAP" session
k password_in not-the-password-2
refused "the initiator refuses a target with another secret"
k password_in "$CHAP_OUT_PASS"
check "mutual CHAP again" session
done_

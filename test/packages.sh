#!/bin/bash
# The Debian packages that the tests and judges use, in one list.
#   packages.sh [GROUP...]          installs what is missing (as root), then checks the commands
#   packages.sh --check [GROUP...]  only checks; exit status 1 and a list when something is missing
# Groups: test (make test), judge (make judge), bench (make bench). Default: test.
set -u
declare -A PKGS=(
    [test]="libiscsi-bin qemu-utils qemu-block-extra tshark qemu-system-x86 busybox-static kmod cpio e2fsprogs python3"
    [judge]="open-iscsi sg3-utils"
    [bench]="tgt istgt gcc libc6-dev python3 strace"
)
# What must be callable afterwards.
declare -A CMDS=(
    [test]="iscsi-ls iscsi-inq iscsi-readcapacity16 iscsi-test-cu qemu-img qemu-io tshark qemu-system-x86_64 busybox depmod cpio mke2fs python3"
    [judge]="sg_inq"
    [bench]="tgtd istgt gcc python3 strace"
)
check=0
[ "${1:-}" = --check ] && { check=1; shift; }
[ $# -gt 0 ] || set -- test
missing() {
    local g c
    for g in "$@"; do for c in ${CMDS[$g]}; do PATH=$PATH:/usr/sbin:/sbin command -v "$c" >/dev/null || echo "$c"; done; done
}
for g in "$@"; do
    [ -n "${PKGS[$g]:-}" ] || { echo "packages.sh: no group '$g' (test, judge, bench)" >&2; exit 2; }
done
lack=$(missing "$@")
if [ -n "$lack" ] && [ $check = 0 ]; then
    [ "$(id -u)" = 0 ] || { echo "packages.sh: not there: $(tr '\n' ' ' <<<"$lack")" >&2; echo "run as root: $0 $*" >&2; exit 1; }
    export DEBIAN_FRONTEND=noninteractive
    all=; for g in "$@"; do all+=" ${PKGS[$g]}"; done
    echo "packages.sh: installing for: $*"
    apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends $all >/tmp/blockgate-packages.log 2>&1 || {
        tail -n 15 /tmp/blockgate-packages.log >&2; echo "packages.sh: apt-get failed; the whole log: /tmp/blockgate-packages.log" >&2; exit 1; }
    lack=$(missing "$@")
fi
[ -z "$lack" ] || { echo "packages.sh: not there: $(tr '\n' ' ' <<<"$lack")" >&2; exit 1; }

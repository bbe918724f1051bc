#!/bin/bash
# The Debian packages that the tests and judges use, in one list.
#   packages.sh [GROUP...]          installs what is missing (as root), then checks the commands
#   packages.sh --check [GROUP...]  only checks; exit status 1 and a list when something is missing
# Groups: test (make test, make judge, make soak), bench (make bench), judge (make
# judge, besides test). Default: test.
set -u
declare -A PKGS=(
    # gcc and libc6-dev: the race detector; kmod, cpio, xz-utils: to build the guest; genisoimage: its CD
    [test]="tgt libiscsi-bin qemu-utils qemu-block-extra tshark qemu-system-x86 kmod cpio xz-utils genisoimage nbdkit libnbd-bin gcc libc6-dev"
    [bench]="tgt istgt iproute2 strace"
    [judge]="libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients ceph-mon ceph-osd ceph-common librbd1 glusterfs-server glusterfs-client libgfapi0"
)
# What must be callable, or there, afterwards.
declare -A CMDS=(
    [test]="tgtadm tgt-admin iscsi-ls iscsi-inq iscsi-readcapacity16 iscsi-test-cu qemu-img qemu-io tshark qemu-system-x86_64 depmod cpio xz genisoimage nbdkit nbdinfo nbdcopy qemu-nbd gcc /usr/include/stdlib.h /usr/lib/*/qemu/block-iscsi.so"
    [bench]="tgtd tgtadm istgt ip ss strace"
    [judge]="libvirtd virsh setpriv ceph-mon ceph-osd ceph rbd monmaptool ceph-authtool /usr/lib/*/librbd.so.1 glusterd gluster mount.glusterfs /usr/lib/*/libgfapi.so.0"
)
check=0
[ "${1:-}" = --check ] && { check=1; shift; }
[ $# -gt 0 ] || set -- test
missing() {
    local g c
    # a pattern that matches no file stays as it is, and is not there either
    for g in "$@"; do for c in ${CMDS[$g]}; do PATH=$PATH:/usr/sbin:/sbin command -v "$c" >/dev/null || [ -f "$c" ] || echo "$c"; done; done
}
for g in "$@"; do
    [ -n "${PKGS[$g]:-}" ] || { echo "packages.sh: no group '$g' (test, bench, judge)" >&2; exit 2; }
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

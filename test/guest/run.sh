#!/bin/bash
# Runs scripts inside the guest, one after the other in one boot, and prints what they print.
#   run.sh [-x] [-t SECONDS] [-k LOGDIR] [-f FILE]... [-v KEY=VALUE]... SCRIPT...
#     -x  with what build.sh -x adds to the guest
#     -f  the guest gets the file, in /job
# The scripts find the values of -v in their environment (through lib.sh) and the host's
# loopback at 10.0.2.2. Exit status: 0 if every script succeeded, 1 if one did not, 124 at
# the time limit (300 s), 125 if the guest died; then the console's end is shown.
set -u
here=$(dirname "$(readlink -f "$0")")
dir=${BLOCKGATE_GUEST_DIR:-$HOME/.cache/blockgate-guest}
limit=300 keep='' vars=() files=() extra=() mem=512
while getopts xt:k:f:v: o; do
    case $o in
    x) extra=(-x) mem=1024 ;;
    t) limit=$OPTARG ;; k) keep=$OPTARG ;; v) vars+=("$OPTARG") ;;
    f) files+=("$OPTARG") ;;
    *) sed -n 2,9p "$0" >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 1 ] || { sed -n 2,9p "$0" >&2; exit 2; }
"$here/build.sh" ${extra[@]+"${extra[@]}"} >&2 || exit 2
tmp=$(mktemp -d)
qemu=
trap '[ -n "$qemu" ] && kill -KILL $qemu 2>/dev/null; rm -rf "$tmp"' EXIT
trap 'exit 143' TERM INT

# The job is one more archive behind the initrd; the kernel unpacks them all.
mkdir -p "$tmp/add/job"
n=10
for s in "$@"; do cp "$s" "$tmp/add/job/$n-$(basename "$s")"; n=$((n + 1)); done
for f in ${files[@]+"${files[@]}"}; do cp -L "$f" "$tmp/add/job/"; done
for v in ${vars[@]+"${vars[@]}"}; do printf "%s='%s'\n" "${v%%=*}" "${v#*=}"; done >"$tmp/add/job/env"
{ cat "$dir/initrd" ${extra:+"$dir/initrd-extra"} && (cd "$tmp/add" && find . | cpio -o -H newc -R 0:0 --quiet); } >"$tmp/initrd"

logs=${keep:-$tmp}
mkdir -p "$logs"
: >"$logs/guest.out"
# Emulation only (-accel tcg): it must run where there is no KVM. A simple processor is the
# quickest to emulate. It dies with this script.
nice setpriv --pdeathsig KILL qemu-system-x86_64 -M q35,usb=off,smm=off -accel tcg -cpu Nehalem -smp 1 -m $mem \
    -nodefaults -no-user-config -no-reboot -display none -vga none \
    -serial "file:$logs/guest.console" -serial "file:$logs/guest.out" \
    -kernel "$dir/vmlinux" -initrd "$tmp/initrd" \
    -append "console=ttyS0 loglevel=5 panic=-1 mitigations=off nokaslr random.trust_cpu=on tsc=reliable audit=0 rdinit=/init" \
    -netdev user,id=n0 -device virtio-net-pci,netdev=n0,romfile= >"$logs/guest.qemu" 2>&1 </dev/null &
qemu=$!
timeout -k 2 "$limit" tail -f --pid=$qemu /dev/null
ended=$?
if [ $ended != 0 ]; then
    kill -KILL $qemu 2>/dev/null
fi
wait $qemu 2>/dev/null
qemu=
tr -d '\r' <"$logs/guest.out"
status=$(tr -d '\r' <"$logs/guest.out" | sed -n 's/^exit \([0-9]*\)$/\1/p' | tail -n 1)
if [ -n "$status" ]; then
    if grep -aE 'BUG:|Oops|Kernel panic|blocked for more than' "$logs/guest.console" >&2; then status=1; fi
    exit "$status"
fi
tail -n 25 "$logs/guest.console" >&2
cat "$logs/guest.qemu" >&2
[ $ended = 0 ] || { echo "run.sh: no end within $limit s" >&2; exit 124; }
echo "run.sh: the guest ended without a result" >&2
exit 125

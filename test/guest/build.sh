#!/bin/bash
# Builds the Linux guest of the tests from Debian packages: a kernel and one initrd that
# holds all of the system (busybox, open-iscsi, e2fsprogs), nothing else to mount.
#   build.sh [DIR]     default: $BLOCKGATE_GUEST_DIR, else ~/.cache/blockgate-guest
# Does nothing when DIR already has what this version of the script builds. Needs apt,
# dpkg-deb, kmod, cpio and xz, not root; about 75 MB of downloads, kept in DIR/debs.
set -eu
here=$(dirname "$(readlink -f "$0")")
out=${1:-${BLOCKGATE_GUEST_DIR:-$HOME/.cache/blockgate-guest}}
export PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$out/debs/partial"
out=$(readlink -f "$out")
exec 9>"$out/lock"
flock 9                                # two builds at once would mix their trees

stamp=$(cat "$here/build.sh" "$here/init" "$here/lib.sh" | sha256sum | cut -d' ' -f1)
[ "$(cat "$out/stamp" 2>/dev/null || true)" = "$stamp" ] && exit 0
rm -f "$out/stamp"
work=$out/work
rm -rf "$work"
mkdir -p "$work/root" "$work/kernel"

# The whole closure, as for an empty system; only what runs in the guest is unpacked.
fetch() {
    local kernel
    kernel=$(apt-cache depends linux-image-amd64 | awk '/ Depends: linux-image/ { print $2; exit }')
    [ -n "$kernel" ] || return 1
    apt-get -y -q --download-only --no-install-recommends -o Dir::State::status=/dev/null \
        -o Dir::Cache::archives="$out/debs" -o Debug::NoLocking=1 \
        install busybox-static kmod open-iscsi e2fsprogs >"$out/apt.log" 2>&1 || return 1
    ls "$out/debs/$kernel"_*.deb >/dev/null 2>&1 || (cd "$out/debs" && apt-get -q download "$kernel" >>"$out/apt.log" 2>&1) || return 1
    echo "$kernel" >"$work/kernel-package"
}
fetch || { apt-get update -q >/dev/null && fetch; } || { tail -n 5 "$out/apt.log" >&2; echo "build.sh: cannot download the packages" >&2; exit 1; }

cd "$work/root"
mkdir -p usr/bin usr/sbin usr/lib usr/lib64 proc sys dev run tmp mnt root etc/iscsi var/lib
for d in bin sbin lib lib64; do ln -s "usr/$d" "$d"; done
ln -s ../run var/run
for deb in "$out"/debs/*.deb; do
    case ${deb##*/} in
    libc6_* | lib* | zlib1g_* | busybox-static_* | kmod_* | open-iscsi_* | e2fsprogs_*) ;;
    *) continue ;;
    esac
    dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink --exclude='./usr/share/*' --exclude='./lib/systemd/*' \
        --exclude='./usr/lib/systemd/*' --exclude='*/gconv/*' --exclude='*/perl*/*' --exclude='./var/lib/*'
done
for c in $("$work/root/usr/bin/busybox" --list); do
    [ -e "usr/bin/$c" ] || [ -e "usr/sbin/$c" ] || ln -s busybox "usr/bin/$c"
done
echo 'root:x:0:0:root:/root:/bin/sh' >etc/passwd
echo 'root:x:0:' >etc/group
echo '127.0.0.1 localhost' >etc/hosts
echo 'InitiatorName=iqn.2026-01.io.blockgate.test:guest' >etc/iscsi/initiatorname.iscsi
ln -s /proc/mounts etc/mtab
install -m 755 "$here/init" init
install -m 644 "$here/lib.sh" usr/lib/guest.sh

dpkg-deb -x "$out/debs/$(cat "$work/kernel-package")"_*.deb "$work/kernel"
ver=$(ls "$work/kernel/lib/modules")
# Debian's kernel carries an xz-compressed ELF image, which QEMU can boot directly (PVH);
# decompressing it at every boot would cost seconds of emulation.
bz=$work/kernel/boot/vmlinuz-$ver
off=$(LC_ALL=C grep -abom1 -F "$(printf '\xfd7zXZ')" "$bz" | head -n 1 | cut -d: -f1)
tail -c +$((off + 1)) "$bz" | xz -dc --single-stream >"$work/vmlinux"
[ "$(head -c 4 "$work/vmlinux" | tail -c 3)" = ELF ] || { echo "build.sh: no kernel image in $bz" >&2; exit 1; }
depmod -b "$work/kernel" "$ver"
for m in virtio_pci virtio_net sd_mod iscsi_tcp ext4 crc32c_generic crc32c_intel; do
    modprobe -d "$work/kernel" -S "$ver" --show-depends "$m" | awk '$1 == "insmod" { print $2 }'
done | sort -u | while read -r f; do
    install -D -m 644 "$f" "usr/lib/${f#"$work/kernel/lib/"}"
done
cp "$work/kernel/lib/modules/$ver"/modules.{builtin,builtin.modinfo,order} "usr/lib/modules/$ver/"
depmod -b "$work/root/usr" "$ver" 2>/dev/null || depmod -b "$work/root" "$ver"

# Not compressed: it is read once from the host's page cache.
find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet >"$work/initrd"
mv "$work/vmlinux" "$work/initrd" "$out/"
rm -rf "$work"
echo "$stamp" >"$out/stamp"
echo "guest: kernel $ver, initrd $(du -m "$out/initrd" | cut -f1) MB, in $out"

#!/bin/bash
# Builds the Linux guest of the tests from Debian packages: a kernel and one initrd that
# holds all of the system (busybox, open-iscsi, sg3_utils, e2fsprogs), nothing else to mount.
#   build.sh [-x] [DIR]     default: $BLOCKGATE_GUEST_DIR, else ~/.cache/blockgate-guest
#     -x  also a second initrd to unpack over the first: udev, multipath, LVM, fio, xfs, nftables, nbd-client
# Does nothing when DIR already has what this version of the scripts builds. Needs apt,
# dpkg-deb, kmod, cpio and xz, not root; about 75 MB of downloads, 60 more with -x, kept in
# DIR/debs.
set -eu
here=$(dirname "$(readlink -f "$0")")
extra=0
[ "${1:-}" = -x ] && { extra=1; shift; }
out=${1:-${BLOCKGATE_GUEST_DIR:-$HOME/.cache/blockgate-guest}}
export PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$out/debs/partial"
out=$(readlink -f "$out")
exec 9>"$out/lock"
flock 9                                # two builds at once would mix their trees
work=$out/work

# fetch PACKAGE...: downloads the whole closure, as for an empty system; only what runs in
# the guest is unpacked. The package of the kernel is in $kernel then.
fetch() {
    try_fetch "$@" || { apt-get update -q >/dev/null && try_fetch "$@"; } ||
        { tail -n 5 "$out/apt.log" >&2; echo "build.sh: cannot download the packages" >&2; exit 1; }
}
try_fetch() {
    kernel=$(apt-cache depends linux-image-amd64 | awk '/ Depends: linux-image/ { print $2; exit }')
    [ -n "$kernel" ] || return 1
    apt-get -y -q --download-only --no-install-recommends -o Dir::State::status=/dev/null \
        -o Dir::Cache::archives="$out/debs" -o Debug::NoLocking=1 install "$@" >"$out/apt.log" 2>&1 || return 1
    ls "$out/debs/$kernel"_*.deb >/dev/null 2>&1 || (cd "$out/debs" && apt-get -q download "$kernel" >>"$out/apt.log" 2>&1)
}
tree() {                 # DIR: an empty system with a merged /usr
    rm -rf "$1"
    mkdir -p "$1"/usr/{bin,sbin,lib,lib64}
    for d in bin sbin lib lib64; do ln -s "usr/$d" "$1/$d"; done
}
unpack() {               # DEB DIR [TAR OPTION...]
    local deb=$1 dir=$2
    shift 2
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$dir" --keep-directory-symlink --exclude='./usr/share/*' \
        --exclude='*/gconv/*' --exclude='*/perl*/*' --exclude='./var/lib/*' "$@"
}
open_kernel() {          # unpacks the kernel; sets ver
    rm -rf "$work/kernel"
    mkdir -p "$work/kernel"
    dpkg-deb -x "$out/debs/$kernel"_*.deb "$work/kernel"
    ver=$(ls "$work/kernel/lib/modules")
    depmod -b "$work/kernel" "$ver"
}
base_modules="virtio_pci virtio_net sd_mod sr_mod sg isofs iscsi_tcp ext4 crc32c_generic crc32c_intel"
extra_modules="loop dm_snapshot dm_thin_pool xfs dm_multipath dm_service_time dm_queue_length dm_round_robin scsi_dh_alua nf_tables nbd"
modules() {              # DIR MODULE...: installs them with what they need
    local dir=$1 m f
    shift
    for m in "$@"; do
        modprobe -d "$work/kernel" -S "$ver" --show-depends "$m" | awk '$1 == "insmod" { print $2 }'
    done | sort -u | while read -r f; do
        install -D -m 644 "$f" "$dir/usr/lib/${f#"$work/kernel/lib/"}"
    done
    cp "$work/kernel/lib/modules/$ver"/modules.{builtin,builtin.modinfo,order} "$dir/usr/lib/modules/$ver/"
    depmod -b "$dir/usr" "$ver" 2>/dev/null || depmod -b "$dir" "$ver"
}
pack() {                 # DIR FILE; not compressed: it is read once from the host's page cache
    (cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$2"
}

build_base() {
    local deb c bz off root=$work/root
    fetch busybox-static kmod open-iscsi e2fsprogs sg3-utils
    tree "$root"
    cd "$root"
    mkdir -p proc sys dev run tmp mnt root etc/iscsi var/lib
    ln -s ../run var/run
    for deb in "$out"/debs/*.deb; do
        case ${deb##*/} in
        libc6_* | zlib1g_* | busybox-static_* | kmod_* | open-iscsi_* | e2fsprogs_* | sg3-utils_*) ;;
        # what these need; a folder that -x has filled holds more
        libacl1_* | libblkid1_* | libcap2_* | libcom-err2_* | libcrypt1_* | libext2fs2_* | libgcc-s1_* | libisns0_* | \
            libkmod2_* | liblz4-1_* | liblzma5_* | libmount1_* | libopeniscsiusr_* | libpcre2-8-0_* | libselinux1_* | \
            libsgutils2-* | libss2_* | libssl3_* | libsystemd0_* | libgcrypt20_* | libgpg-error0_* | libudev1_* | \
            libuuid1_* | libzstd1_*) ;;
        *) continue ;;
        esac
        unpack "$deb" . --exclude='./lib/systemd/*' --exclude='./usr/lib/systemd/*'
    done
    for c in $("$root/usr/bin/busybox" --list); do
        [ -e "usr/bin/$c" ] || [ -e "usr/sbin/$c" ] || ln -s busybox "usr/bin/$c"
    done
    echo 'root:x:0:0:root:/root:/bin/sh' >etc/passwd
    echo 'root:x:0:' >etc/group
    echo '127.0.0.1 localhost' >etc/hosts
    echo 'InitiatorName=iqn.2026-01.io.blockgate.test:guest' >etc/iscsi/initiatorname.iscsi
    ln -s /proc/mounts etc/mtab
    install -m 755 "$here/init" init
    install -m 644 "$here/lib.sh" usr/lib/guest.sh

    open_kernel
    # Debian's kernel carries an xz-compressed ELF image, which QEMU can boot directly (PVH);
    # decompressing it at every boot would cost seconds of emulation.
    bz=$work/kernel/boot/vmlinuz-$ver
    off=$(LC_ALL=C grep -abom1 -F "$(printf '\xfd7zXZ')" "$bz" | head -n 1 | cut -d: -f1)
    tail -c +$((off + 1)) "$bz" | xz -dc --single-stream >"$work/vmlinux"
    [ "$(head -c 4 "$work/vmlinux" | tail -c 3)" = ELF ] || { echo "build.sh: no kernel image in $bz" >&2; exit 1; }
    # shellcheck disable=SC2086
    modules "$root" $base_modules
    pack "$root" "$work/initrd"
    mv "$work/vmlinux" "$work/initrd" "$out/"
}

# Programs with the libraries that they ask for, out of packages that hold much more: fio
# alone is linked to every kind of distributed storage.
build_extra() {
    local deb f all=$work/all root=$work/extra
    fetch busybox-static kmod open-iscsi e2fsprogs sg3-utils udev multipath-tools dmsetup lvm2 fio xfsprogs nftables nbd-client
    tree "$all"
    for deb in "$out"/debs/*.deb; do
        case ${deb##*/} in linux-image-* | perl* | libperl*) continue ;; esac
        unpack "$deb" "$all"
    done
    tree "$root"
    cd "$all"
    local programs="usr/sbin/multipath usr/sbin/multipathd usr/sbin/mpathpersist usr/sbin/dmsetup usr/sbin/lvm usr/bin/fio
        usr/sbin/mkfs.xfs usr/sbin/xfs_repair usr/sbin/nft usr/sbin/nbd-client usr/bin/udevadm usr/lib/udev/scsi_id usr/lib/udev/cdrom_id"
    local rules="50-udev-default 55-dm 56-dm-mpath 60-block 60-cdrom_id 60-multipath 60-persistent-storage 60-persistent-storage-dm 95-dm-notify"
    # shellcheck disable=SC2086
    cp --parents -a $programs usr/lib/multipath "$root/"
    for f in $rules; do cp --parents "usr/lib/udev/rules.d/$f.rules" "$root/"; done
    mkdir -p "$root/usr/lib/systemd"
    ln -s ../../bin/udevadm "$root/usr/lib/systemd/systemd-udevd"
    # The guest's own loader knows what they need; a path of ours would be the host's library.
    for f in $programs usr/lib/multipath/*.so; do
        usr/lib64/ld-linux-x86-64.so.2 --library-path "usr/lib/x86_64-linux-gnu:usr/lib/x86_64-linux-gnu/ceph:usr/lib" --list "./$f"
    done | awk '$2 == "=>" { print $3 }' | sort -u >"$work/libraries"
    f=$(grep -v '^usr/' "$work/libraries" | grep -v '/ld-linux') && { echo "build.sh: not in the packages: $f" >&2; exit 1; }
    grep '^usr/' "$work/libraries" | while read -r f; do
        install -D -m 755 "$f" "$root/$f"  # install follows the links
    done
    open_kernel
    # shellcheck disable=SC2086
    modules "$root" $base_modules $extra_modules
    pack "$root" "$work/initrd-extra"
    mv "$work/initrd-extra" "$out/"
}

made() {                 # NAME FUNCTION: unless what is there is of this version
    local stamp
    stamp=$(cat "$here/build.sh" "$here/init" "$here/lib.sh" | sha256sum | cut -d' ' -f1)
    [ "$(cat "$out/$1.stamp" 2>/dev/null || true)" = "$stamp" ] && return
    rm -f "$out/$1.stamp"
    rm -rf "$work"
    mkdir -p "$work"
    "$2"
    cd "$out"
    rm -rf "$work"
    echo "$stamp" >"$out/$1.stamp"
    echo "guest: kernel $ver, $1 $(du -m "$out/$1" | cut -f1) MB, in $out"
}
made initrd build_base
[ $extra = 0 ] || made initrd-extra build_extra

#!/bin/bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Builds the Linux guest of the lab into .cache/guest: base.qcow2, vmlinuz, initrd.img and the ssh key id_ed25519.
# Does nothing and prints nothing if the same recipe was already built.
#
# A Debian of the same release as this machine, with Python, sshd and the guest agent, and with busybox's init: systemd would take
# five times as long to boot under TCG. No boot loader (QEMU loads the kernel), no loop mount, no libguestfs. The build creates files
# that belong to root: it needs root or sudo, the use does not.
set -euo pipefail
umask 022

SELF=$(readlink -f "$0")
CACHE=$(dirname "$SELF")/../../.cache
mkdir -p "$CACHE"
CACHE=$(readlink -f "$CACHE")
RECIPE=$(sha256sum "$SELF" | cut -d ' ' -f 1)
DONE=$CACHE/guest
NEW=$CACHE/guest.building   # moved into place at the end: guest/ always has a complete image
ROOTFS=$NEW/rootfs

DISK_SIZE=512M
PACKAGES=python3,openssh-server,qemu-guest-agent,iproute2,procps,kmod,busybox-static

is_built() { [ "$(cat "$DONE/recipe" 2>/dev/null)" = "$RECIPE" ]; }

main() {
    is_built && return
    if [ "$(id -u)" != 0 ]; then
        command -v sudo > /dev/null || { echo "The guest image needs root or sudo once, to be built: $SELF" >&2; return 1; }
        sudo bash "$SELF"   # as root it changes the owner of the result to the user who called sudo
        return
    fi
    exec 9> "$CACHE/guest.lock"
    flock 9   # a second build waits here and finds the work done
    is_built && return
    echo "Building the guest image in ${DONE} (about a minute)" >&2
    trap clean_up EXIT
    clean_up
    mkdir "$NEW"
    set +e   # not `if (build)`: bash ignores -e inside a condition
    (set -ex; build) > "$DONE.log" 2>&1
    local status=$?
    set -e
    if [ $status != 0 ]; then
        tail -n 30 "$DONE.log" >&2
        echo "The guest image could not be built; see the log $DONE.log" >&2
        return 1
    fi
    rm -rf "$DONE"
    mv "$NEW" "$DONE"
    echo "Built the guest image in $SECONDS s" >&2
}

clean_up() {
    rm -rf --one-file-system "$NEW"
    [ -z "${SUDO_UID:-}" ] || chown -R --no-dereference "$SUDO_UID:${SUDO_GID:?}" "$DONE"*
}

build() {
    unpack_kernel
    build_rootfs
    build_initrd
    set_up_rootfs
    mke2fs -q -t ext4 -J size=4 -m 0 -L root -d "$ROOTFS" "$NEW/disk.raw" "$DISK_SIZE"
    qemu-img convert -f raw -O qcow2 "$NEW/disk.raw" "$NEW/base.qcow2"
    rm -rf --one-file-system "$ROOTFS" "$NEW/kernel" "$NEW/initrd" "$NEW/disk.raw"
    echo "$RECIPE" > "$NEW/recipe"
}

build_rootfs() {
    local suite mirror
    suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(SITE)' "Codename: $suite" | sed -n 1p)   # the one that apt already uses
    mmdebstrap --mode=root --variant=apt --include="$PACKAGES" \
        --aptopt='APT::Install-Recommends "0"' --dpkgopt=force-unsafe-io \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$suite" "$ROOTFS" "deb $mirror $suite main"
}

# The kernel package is only unpacked: its installation in the guest would add an initramfs generator and 90 MB of modules.
unpack_kernel() {
    mkdir "$NEW/kernel"
    cd "$NEW/kernel"
    if ! download_kernel; then   # no package lists, or old ones with a kernel that the mirror no longer has
        apt-get update -q
        download_kernel
    fi
    dpkg-deb -x ./*.deb .
    cp boot/vmlinuz-* "$NEW/vmlinuz"
    cd "$NEW"
}

download_kernel() {
    local package
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ && !seen++ {print $2}')
    [ -n "$package" ] && apt-get download -q "$package"
}

# Copies kernel modules under numbered names, in the given order: the guest loads them in that order, without depmod.
copy_modules() {
    local to=$1 number=10 module file
    shift
    mkdir -p "$to"
    for module; do
        # Not all releases build all of them as modules. xz: some releases compress them.
        file=$(find "$NEW/kernel/lib/modules" -name "$module.ko" -o -name "$module.ko.xz")
        [ -n "$file" ] || continue
        case $file in
            *.xz) xz -dc "$file" > "$to/$number-$module.ko" ;;
            *) cp "$file" "$to/$number-$module.ko" ;;
        esac
        number=$((number + 1))
    done
}

# The minimum to mount the disk: busybox and the virtio block driver (ext4 is built into the cloud kernel).
build_initrd() {
    local initrd=$NEW/initrd
    mkdir -p "$initrd"/{bin,dev,proc,sys,root}
    cp /bin/busybox "$initrd/bin/busybox"
    copy_modules "$initrd/modules" virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk
    cat > "$initrd/init" <<'END'
#!/bin/busybox sh
busybox() { /bin/busybox "$@"; }
busybox mount -t devtmpfs devtmpfs /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
for module in /modules/*.ko; do busybox insmod "$module"; done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 200 ]; do busybox sleep 0.05; tries=$((tries + 1)); done
busybox mount -t ext4 -o rw,noatime /dev/vda /root || exec /bin/busybox sh
busybox mount --move /dev /root/dev
busybox umount /proc /sys
exec /bin/busybox switch_root /root /sbin/init
END
    chmod +x "$initrd/init"
    (cd "$initrd" && find . | busybox cpio -o -H newc | gzip -1 > "$NEW/initrd.img")
}

# Remove every file before writing it: an absolute symlink in the rootfs would point to a file of this machine.
put() {
    local mode=$1 path=$ROOTFS$2
    mkdir -p "$(dirname "$path")"
    rm -f "$path"
    cat > "$path"
    chmod "$mode" "$path"
}

set_up_rootfs() {
    local name
    copy_modules "$ROOTFS/lib/modules/lab" failover net_failover virtio_net virtio_console rng-core virtio-rng
    for name in init poweroff halt reboot; do ln -sf /bin/busybox "$ROOTFS/sbin/$name"; done
    put 755 /sbin/shutdown <<'END'
#!/bin/sh
# What callers of the real one need: [-r|-h|-P|-H|-c] [now|+MINUTES|MINUTES] [MESSAGE]. It returns at once, the rest comes after.
action=poweroff minutes=0
for word; do
    case $word in
        -r | --reboot) action=reboot ;;
        -h | -P | -H | --poweroff | --halt) action=poweroff ;;
        -c) exit 0 ;;
        -*) ;;
        *) case $word in now) ;; *) minutes=$((${word#+})) ;; esac; break ;;
    esac
done
trap '' HUP   # Ansible calls it on a terminal that is closed when this returns
setsid --fork sh -c "sleep $((minutes * 60 + 1)); exec /sbin/$action" < /dev/null > /dev/null 2>&1
END
    put 755 /etc/rc.boot <<'END'
#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mkdir -p /dev/pts /dev/shm
busybox mount -t devpts devpts /dev/pts
busybox mount -t tmpfs tmpfs /dev/shm
busybox mount -t tmpfs tmpfs /run
busybox mkdir -p /run/sshd /run/lock
for module in /lib/modules/lab/*.ko; do busybox insmod "$module"; done
busybox hostname "${guest_name:-guest}"   # from the kernel's command line
busybox ifconfig lo 127.0.0.1 up
busybox ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up   # QEMU's user network has the same addresses in every guest
busybox route add default gw 10.0.2.2
for port in /sys/class/virtio-ports/*; do
    [ "$(busybox cat "$port/name")" = org.qemu.guest_agent.0 ] && busybox ln -sf "/dev/${port##*/}" /run/guest-agent
done
echo "$(busybox hostname) is up after $(busybox cut -d ' ' -f 1 /proc/uptime) s"
END
    put 644 /etc/inittab <<'END'
::sysinit:/etc/rc.boot
::respawn:/usr/sbin/sshd -D
::respawn:/usr/sbin/qemu-ga -m virtio-serial -p /run/guest-agent
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/busybox sync
::shutdown:/bin/busybox umount -a -r
END
    put 644 /etc/ssh/sshd_config <<'END'
PermitRootLogin prohibit-password
UseDNS no
UsePAM no
PrintMotd no
PrintLastLog no
HostKey /etc/ssh/ssh_host_ed25519_key
Subsystem sftp internal-sftp
END
    rm -f "$ROOTFS"/etc/ssh/ssh_host_{rsa,ecdsa}_key*
    ssh-keygen -q -t ed25519 -N '' -C safepoint-lab -f "$NEW/id_ed25519"
    mkdir -p "$ROOTFS/root/.ssh"
    chmod 700 "$ROOTFS/root/.ssh"
    put 600 /root/.ssh/authorized_keys < "$NEW/id_ed25519.pub"
    put 644 /etc/hostname <<< guest
    put 644 /etc/hosts <<< '127.0.0.1 localhost guest'
    put 644 /etc/resolv.conf <<< 'nameserver 10.0.2.3'
    rm -rf "$ROOTFS"/var/cache/apt/* "$ROOTFS"/var/lib/apt/lists/*
}

main "$@"

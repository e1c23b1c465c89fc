#!/bin/bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Builds .cache/trixie: the root folder of a Debian with a newer libvirt and QEMU than this machine, for `Lab(root=...)`.
# Does nothing and prints nothing if the same recipe was already built.
#
# It is never booted: the lab runs its libvirtd with chroot. The build needs root, or sudo once.
set -euo pipefail
umask 022

SELF=$(readlink -f "$0")
CACHE=$(dirname "$SELF")/../../.cache
mkdir -p "$CACHE"
CACHE=$(readlink -f "$CACHE")
RECIPE=$(sha256sum "$SELF" | cut -d ' ' -f 1)
DONE=$CACHE/trixie
NEW=$CACHE/trixie.building   # moved into place at the end: trixie/ is always complete

SUITE=trixie
PACKAGES=libvirt-daemon,libvirt-daemon-driver-qemu,qemu-system-x86,qemu-utils,seabios

is_built() { [ "$(cat "$DONE/recipe" 2> /dev/null)" = "$RECIPE" ]; }

main() {
    is_built && return
    if [ "$(id -u)" != 0 ]; then
        command -v sudo > /dev/null || { echo "The Debian $SUITE folder needs root or sudo once, to be built: $SELF" >&2; return 1; }
        sudo bash "$SELF"   # as root it changes the owner of the result to the user who called sudo
        return
    fi
    exec 9> "$CACHE/trixie.lock"
    flock 9   # a second build waits here and finds the work done
    is_built && return
    echo "Building a Debian $SUITE with libvirt and QEMU in ${DONE} (about two minutes)" >&2
    trap clean_up EXIT
    clean_up
    set +e   # not `if (build)`: bash ignores -e inside a condition
    (set -ex; build) > "$DONE.log" 2>&1
    local status=$?
    set -e
    if [ $status != 0 ]; then
        tail -n 30 "$DONE.log" >&2
        echo "The Debian $SUITE folder could not be built; see the log $DONE.log" >&2
        return 1
    fi
    rm -rf --one-file-system "$DONE"
    mv "$NEW" "$DONE"
}

clean_up() {
    rm -rf --one-file-system "$NEW"
    # So that `make clean` can remove it. The owner of the files does not matter: libvirtd runs there as a normal user.
    [ -z "${SUDO_UID:-}" ] || chown -R --no-dereference "$SUDO_UID:${SUDO_GID:?}" "$DONE"*
}

build() {
    local codename mirror
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(SITE)' "Codename: $codename" | sed -n 1p)   # the one that apt already uses
    mmdebstrap --mode=root --variant=apt --include="$PACKAGES" \
        --aptopt='APT::Install-Recommends "0"' --dpkgopt=force-unsafe-io \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$SUITE" "$NEW" "deb $mirror $SUITE main"
    rm -rf "$NEW"/var/cache/apt/* "$NEW"/var/lib/apt/lists/*
    chroot "$NEW" /usr/sbin/libvirtd --version
    chroot "$NEW" qemu-system-x86_64 --version
    echo "$RECIPE" > "$NEW/recipe"
}

main "$@"

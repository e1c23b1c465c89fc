#!/bin/bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Installs the missing Debian packages of a set. None of them starts a service.
#   packages.sh setup   for `make setup`: to create virtual environments and to compile libvirt-python
#   packages.sh lab     the same, and for tests and demo: libvirtd, QEMU, and the tools that build the guest image
#   packages.sh tests   the same, and for `make test` only: a browser
set -euo pipefail

setup=(
    gcc
    git
    libvirt-dev        # PyPI has no wheel of libvirt-python
    make
    pkg-config
    python3-dev
    python3-venv
    tzdata             # retention uses time zones
)
lab=(
    "${setup[@]}"
    busybox-static     # for the guest's initrd
    e2fsprogs
    golang-go          # compiles the simulated vCenter, with the next package
    golang-github-vmware-govmomi-dev
    libvirt-clients    # virsh, for manual use
    libvirt-daemon     # libvirtd without libvirt-daemon-system, which would start a system-wide daemon
    libvirt-daemon-driver-qemu
    mmdebstrap
    openssh-client
    procps             # ps and pgrep
    qemu-system-x86
    qemu-utils
    seabios
    util-linux         # setpriv
    xz-utils
)
tests=(
    "${lab[@]}"
    chromium           # shows the page of the role snapshot_report, with
    fonts-dejavu-core
)

case ${1:-} in
    setup) wanted=("${setup[@]}") ;;
    lab) wanted=("${lab[@]}") ;;
    tests) wanted=("${tests[@]}") ;;
    *) echo "usage: $0 setup|lab|tests" >&2; exit 2 ;;
esac

missing=()
for package in "${wanted[@]}"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null) || state=unknown
    [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} != 0 ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=()
elif command -v sudo > /dev/null; then
    as_root=(sudo)
else
    echo "Debian packages are missing, and installing them needs root or sudo: ${missing[*]}" >&2
    exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" < /dev/null >> "$log" 2>&1; }

# A third-party repository that does not answer makes the update fail. That may not matter: only the installation must succeed.
apt update || true
if ! apt install --yes --no-install-recommends "${missing[@]}"; then
    cat "$log" >&2
    exit 1
fi
echo "Installed ${missing[*]}"

#!/bin/bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Builds the simulated vCenter into .cache/vcsim/vcsim, from the Go files in this folder and Debian's govmomi.
# Installs nothing. Does nothing and prints nothing if the same sources were already built with the same packages.
set -euo pipefail
umask 022

HERE=$(dirname "$(readlink -f "$0")")
CACHE=$HERE/../../../.cache/vcsim
mkdir -p "$CACHE"
CACHE=$(readlink -f "$CACHE")
PACKAGES=(golang-go golang-github-vmware-govmomi-dev)

main() {
    local versions recipe
    versions=$(package_versions)
    recipe=$({ echo "$versions"; cat "$HERE"/*.go "$HERE/build.sh"; } | sha256sum | cut -c 1-16)
    is_built "$recipe" && return
    exec 9> "$CACHE/lock"
    flock 9   # a second build waits here and finds the work done
    is_built "$recipe" && return
    echo "Building the vCenter simulator (a minute or two the first time)" >&2
    build "$CACHE/$recipe"
    ln -sfn "$recipe/vcsim" "$CACHE/vcsim"
    find "$CACHE" -mindepth 1 -maxdepth 1 -type d ! -name "$recipe" ! -name go -exec rm -rf {} +
    echo "Built the vCenter simulator in $SECONDS s" >&2
}

is_built() { [ "$(readlink "$CACHE/vcsim")" = "$1/vcsim" ] && [ -x "$CACHE/vcsim" ]; }

package_versions() {
    local package state missing=()
    for package in "${PACKAGES[@]}"; do
        # shellcheck disable=SC2016
        state=$(dpkg-query -W -f '${db:Status-Status} ${Package} ${Version}\n' "$package" 2> /dev/null) || state=
        case $state in
            installed\ *) echo "$state" ;;
            *) missing+=("$package") ;;
        esac
    done
    if [ ${#missing[@]} != 0 ]; then
        echo "The vCenter simulator cannot be built: the Debian package ${missing[*]} is missing" >&2
        return 1
    fi
}

build() {
    rm -rf "$1"
    mkdir "$1"
    cd "$HERE"
    # Ignore GOFLAGS and similar settings of the user. No network is needed: all sources are in the packages.
    env -i PATH="$PATH" HOME="$CACHE" GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE="$CACHE/go" \
        nice go build -trimpath -ldflags='-s -w' -o "$1/vcsim" .
}

main

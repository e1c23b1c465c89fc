#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Sets up the requirements of the tests: missing system packages, the three virtual environments, and the symlink through
# which ansible finds the collection. Repeated runs are fast; a run after an interrupted one repairs it.
#   setup.sh        for linters and tests that need no hypervisor
#   setup.sh lab    also the packages of libvirtd, QEMU and the guest
#   setup.sh tests  also the browser of the tests

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

# With two parallel `make`, the second waits for the first and then finds everything done.
exec 9>.cache/setup.lock
flock 9

# Prints the first interpreter of the given versions that can create a virtual environment and compile libvirt-python.
find_python() {
    local version dir python folders
    mapfile -t folders < <(tr : '\n' <<<"$PYTHON_BINS" | sort -rV; printf '/usr/local/bin\n/usr/bin\n')
    for version in "$@"; do
        for dir in "${folders[@]}"; do
            python=$dir/python$version
            if [ -x "$python" ] && "$python" - 2>/dev/null <<'PY'; then
import ensurepip, os, sysconfig, venv
assert os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h"))
PY
                echo "$python"
                return
            fi
        done
    done
    return 1
}

quietly() {
    local log=.cache/setup.log
    if ! "$@" >"$log" 2>&1; then
        cat "$log" >&2
        echo "setup: failed: $*" >&2
        exit 1
    fi
}

# make_venv VENV REQUIREMENTS PYTHON
make_venv() {
    local venv=$1 requirements=requirements/$2 python=$3 wanted
    wanted="$python $("$python" -V) $(cat requirements/*.txt | sha256sum)"
    if [ "$(cat "$venv/.made-from" 2>/dev/null)" = "$wanted" ] && "$venv/bin/python" -c "import libvirt" 2>/dev/null; then
        return
    fi
    echo "setup: $venv with $("$python" -V) and $requirements"
    rm -f "$venv/.made-from"
    # .making is left by an interrupted run: pip treats a half-written package as installed, so start from scratch.
    # The same for another interpreter, which `python -m venv` alone would not change.
    if [ -e "$venv/.making" ] || ! [ "$venv/bin/python" -ef "$python" ]; then
        rm -rf "$venv"
    fi
    mkdir -p "$venv"
    touch "$venv/.making"
    quietly "$python" -m venv "$venv"
    quietly timeout 15m "$venv/bin/python" -m pip install --quiet --requirement "$requirements"
    quietly "$venv/bin/python" -m pip check
    rm "$venv/.making"
    echo "$wanted" >"$venv/.made-from"
}

# Without it the other tests are still useful, but a CI run without it would look complete.
missing() {
    echo "setup: $1" >&2
    if [ "${CI:-}" = true ]; then exit 1; fi
}

if [ "${#ROOT}" -gt 50 ]; then
    echo "setup: the path of this folder has ${#ROOT} characters; ssh's control sockets in it may exceed the limit of 107 bytes" >&2
fi

tests/lab/packages.sh "${1:-setup}"

mkdir -p .ansible/collections/ansible_collections/safepoint
ln -sfn ../../../.. .ansible/collections/ansible_collections/safepoint/vm

if main_python=$(find_python 3.11 3.12 3.13); then
    make_venv "$MAIN_VENV" main.txt "$main_python"
else
    echo "setup: no Python 3.11, 3.12 or 3.13 with venv and its headers was found (Debian: python3-venv python3-dev)" >&2
    exit 1
fi

if floor_python=$(find_python 3.11 3.12 3.10); then
    make_venv "$FLOOR_VENV" floor.txt "$floor_python"
else
    missing "ansible-core 2.16 needs Python 3.10, 3.11 or 3.12, and none was found: its tests are left out"
fi

if newest_python=$(find_python 3.13 3.12 3.14); then
    make_venv "$NEWEST_VENV" newest.txt "$newest_python"
else
    missing "ansible-core 2.21 needs Python 3.12 or later, and none was found: its tests are left out"
fi

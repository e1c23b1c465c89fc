# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=bash
#
# Sourced by every script here: goes to the root of the checkout and makes an environment that the user's own settings cannot
# bend, and that writes to nothing outside the checkout.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd "$ROOT"

# The environments: the ansible-core that people develop with and all tools, the oldest supported, the newest.
export MAIN_VENV=.venv
export FLOOR_VENV=.venv-2.16
export NEWEST_VENV=.venv-2.21

# Folders of pyenv's real interpreters. Its shims are of no use: they exist for every version that is installed and exit 127 for
# all that are not "global", which ansible-test takes for a broken Python.
pyenv_bins() {
    local passwd_home shims root
    passwd_home=$(getent passwd "$(id -u)" | cut -d: -f6)
    shims=$(tr : '\n' <<<"$PATH" | grep '/shims$' | sed 's,/shims$,,' || true)
    for root in ${PYENV_ROOT:-} "${HOME:-/nonexistent}/.pyenv" "$passwd_home/.pyenv" $shims; do
        compgen -G "$root/versions/*/bin" && return
    done
    return 0
}

if [ "${SAFEPOINT_ENV:-}" != "$ROOT" ]; then
    PYTHON_BINS=$(pyenv_bins | sort -V | paste -sd:)
    PATH=$(tr : '\n' <<<"$PATH" | grep -v '/shims$' | grep -v '^$' | paste -sd:)
    for dir in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin; do
        case ":$PATH:" in *":$dir:"*) ;; *) PATH=$PATH:$dir ;; esac
    done
    PATH=$ROOT/$MAIN_VENV/bin:$PATH

    # The user's ANSIBLE_*, PYTHON* and PYTEST_ADDOPTS would change what is tested.
    for name in $(compgen -e | grep -E '^(ANSIBLE_|PYTHON|PYTEST_|VIRTUAL_ENV|LIBVIRT_DEFAULT_URI|SAFEPOINT_)' | grep -v '^PYTHON_BINS$'); do
        unset "$name"
    done

    export SAFEPOINT_ENV=$ROOT PYTHON_BINS PATH
    export HOME=$ROOT/.cache/home
    export ANSIBLE_CONFIG=$ROOT/ansible.cfg
    export HYPOTHESIS_STORAGE_DIRECTORY=$ROOT/.cache/hypothesis
    export PIP_CACHE_DIR=$ROOT/.cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
    # ansible-core refuses to start where the encoding is not UTF-8, which is so in a bare container or under cron.
    export LC_ALL=C.UTF-8
    umask 022
fi
mkdir -p "$HOME"

# The files that belong to the project, tracked or about to be, one a line; `.` or patterns say which. HOME is not the user's here, so git does not see the
# user's own safe.directory, and would refuse a checkout that belongs to someone else.
project_files() {
    git -c safe.directory="$ROOT" ls-files --cached --others --exclude-standard "$@" | while IFS= read -r file; do
        if [ -e "$file" ]; then printf '%s\n' "$file"; fi
    done
}

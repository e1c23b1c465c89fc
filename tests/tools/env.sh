# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=bash
#
# Sourced by every script here: changes to the root of the checkout and sets an environment that is independent of the user's
# settings and writes nothing outside the checkout.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd "$ROOT"

# The virtual environments: for development, with all tools; with the oldest supported ansible-core; with the newest.
export MAIN_VENV=.venv
export FLOOR_VENV=.venv-2.16
export NEWEST_VENV=.venv-2.21

# Folders of pyenv's real interpreters. Its shims cannot be used: they exist for every installed version but exit with 127 for
# all that are not "global", which ansible-test treats as a broken Python.
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

    # The user's ANSIBLE_*, PYTHON* and PYTEST_ADDOPTS would influence the tests.
    for name in $(compgen -e | grep -E '^(ANSIBLE_|PYTHON|PYTEST_|VIRTUAL_ENV|LIBVIRT_DEFAULT_URI|SAFEPOINT_)' | grep -v '^PYTHON_BINS$'); do
        unset "$name"
    done

    export SAFEPOINT_ENV=$ROOT PYTHON_BINS PATH
    export HOME=$ROOT/.cache/home
    export ANSIBLE_CONFIG=$ROOT/ansible.cfg
    export HYPOTHESIS_STORAGE_DIRECTORY=$ROOT/.cache/hypothesis
    export PIP_CACHE_DIR=$ROOT/.cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
    # ansible-core does not start if the encoding is not UTF-8, for example in a minimal container or under cron.
    export LC_ALL=C.UTF-8
    umask 022
fi
mkdir -p "$HOME"

# Lists the files of the project, tracked or not ignored, one per line; the arguments are `.` or patterns. HOME is not the user's here, so git does not see
# the user's safe.directory, and would refuse a checkout that belongs to another user.
project_files() {
    git -c safe.directory="$ROOT" ls-files --cached --others --exclude-standard "$@" | while IFS= read -r file; do
        if [ -e "$file" ]; then printf '%s\n' "$file"; fi
    done
}

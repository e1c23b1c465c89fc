#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# ansible-test sanity without containers: tests/tools/sanity.sh VENV
# Needs PyPI for the first run, and keeps the environments that ansible-test builds in .cache/home/.ansible/test.

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

venv=$ROOT/$1
tree=.cache/sanity/core${1#.venv}/ansible_collections/safepoint/vm

# ansible-test requires a folder ansible_collections/NAMESPACE/NAME, and resolves symlinks. It gets the files that are released;
# for the rest of tests/ there are the linters of test.sh.
rm -rf "$tree"
mkdir -p "$tree"
ansible-galaxy collection build --force --output-path "$tree/.." >/dev/null
tar -xzf "$tree"/../safepoint-vm-*.tar.gz -C "$tree"
cp galaxy.yml "$tree"
# It lists files with git, and the checkout's git ignores all of .cache.
git init --quiet "$tree"

# It downloads get-pip.py from its own server unless its cache has one. The pip that comes with Python is sufficient.
# One name for each that ansible-core 2.16 to 2.21 looks for (ansible_test/_internal/python_requirements.py).
cache=$HOME/.ansible/test/cache
mkdir -p "$cache"
for version in 23_1_2 24_2 25_2; do
    printf 'import ensurepip\n\nensurepip.bootstrap(default_pip=True)\n' >"$cache/get_pip_$version.py"
done

# Modules are compiled and imported with every Python on PATH, so only here pyenv's interpreters are added.
export PATH=$venv/bin:$ROOT/$MAIN_VENV/bin:$PATH${PYTHON_BINS:+:$PYTHON_BINS}
unset ANSIBLE_CONFIG
log=$ROOT/.cache/sanity/core${1#.venv}.log
cd "$tree" || exit

# Most of its output is from pip.
if "$venv/bin/ansible-test" sanity --local --color no </dev/null 2>&1 |
    tee "$log" | grep --line-buffered -E '^(Running sanity test|WARNING|ERROR|FATAL)'; then
    exit
fi
echo "Full output: $log"
# The normal last line of a run with findings; without it, ansible-test itself failed.
if ! grep -qE '^FATAL: The [0-9]+ sanity test' "$log"; then
    tail -n 30 "$log"
fi
exit 1

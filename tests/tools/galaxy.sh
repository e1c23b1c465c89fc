#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Builds the collection, checks it with Galaxy's importer, installs it in a temporary place and reads the documentation of the installed one.

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

out=.cache/dist
rm -rf "$out"
mkdir -p "$out"

ansible-galaxy collection build --output-path "$out"
tarball=$(echo "$out"/safepoint-vm-*.tar.gz)

# The archive must only have files of the project: build_ignore in galaxy.yml is only a list of exclusions.
strays=$(tar -tzf "$tarball" | grep -v '/$' | grep -vxE 'MANIFEST.json|FILES.json' | sort | comm -23 - <(project_files . | sort))
if [ -n "$strays" ]; then
    printf 'Files in the collection that are not in git:\n%s\n' "$strays" >&2
    exit 1
fi

# It logs its steps as INFO, and exits with 0 unless a problem is fatal.
if ! (cd "$out" && ANSIBLE_CONFIG='' python -m galaxy_importer.main "${tarball##*/}") >"$out/importer.log" 2>&1 ||
    grep -E '^(WARNING|ERROR|CRITICAL)' "$out/importer.log"; then
    cat "$out/importer.log"
    exit 1
fi

export ANSIBLE_COLLECTIONS_PATH=$ROOT/$out/installed
ansible-galaxy collection install --offline --collections-path "$ANSIBLE_COLLECTIONS_PATH" "$tarball"
for module in plugins/modules/*.py; do
    name=safepoint.vm.$(basename "$module" .py)
    # For a missing module ansible-doc only prints a warning.
    ansible-doc --type module --json "$name" >"$out/$name.json"
    grep -q '"doc"' "$out/$name.json"
    echo "the installed collection documents $name"
done
# A page needs its templates, which are no Python files.
page="{{ [] | safepoint.vm.snapshot_report(now='2026-11-25T12:00:00Z') | safepoint.vm.snapshot_report_html }}"
ansible localhost --inventory localhost, --module-name ansible.builtin.debug --args "msg=$page" | grep 'Content-Security-Policy' >/dev/null
echo "the installed collection makes a page"

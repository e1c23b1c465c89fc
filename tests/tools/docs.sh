#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Builds the documentation site in .cache/docs/site/build/html.

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

site=$ROOT/.cache/docs/site
rm -rf "$site"
mkdir -p "$site"
chmod 755 "$site"

# --lenient: references to docs.python.org and docs.ansible.com cannot be checked without a network.
antsibull-docs sphinx-init --use-current --lenient --fail-on-error --dest-dir "$site" safepoint.vm
cd "$site" || exit
./build.sh
test -s build/html/collections/safepoint/vm/index.html
echo "docs: $site/build/html/index.html"

#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Lists the Go files that are not formatted. Linting alone does not install Go.

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

if ! command -v gofmt >/dev/null; then
    echo "gofmt is not installed: the Go files were not checked" >&2
    if [ "${CI:-}" = true ]; then exit 1; fi
    exit 0
fi
unformatted=$(gofmt -l tests/simulators)
if [ -n "$unformatted" ]; then
    echo "not formatted (fix with gofmt -w): $unformatted" >&2
    exit 1
fi

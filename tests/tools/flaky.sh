#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs tests repeatedly under additional load on all cores, and prints how often each test failed:
#
#     tests/tools/flaky.sh 20 daemon                   # all tests with this word in their names
#     tests/tools/flaky.sh 20 'killed and not newer'   # an expression for pytest -k
#     tests/tools/flaky.sh 5 quiesce -m 'not slow'     # further arguments are passed to pytest
#
# The output of failed runs is kept in .cache/flaky. Exits with 1 if a run failed.

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 RUNS [EXPRESSION [PYTEST-ARGUMENTS...]]" >&2
    exit 2
fi
runs=$1 expression=${2:-}
shift $(($# > 1 ? 2 : 1))

logs=$ROOT/.cache/flaky
rm -rf "$logs"
mkdir -p "$logs"

# One busy process for each core; it ends with this script, also if the script is killed.
for _core in $(seq "$(nproc)"); do
    while kill -0 "$$" 2>/dev/null; do
        for _turn in {1..20000}; do :; done
    done &
done
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

failed=0
for run in $(seq "$runs"); do
    began=$SECONDS code=0
    "$MAIN_VENV/bin/python" -m pytest -q -k "$expression" "$@" tests >"$logs/$run.log" 2>&1 </dev/null || code=$?
    printf 'run %d of %d: exit code %d, %d s, %s\n' "$run" "$runs" "$code" $((SECONDS - began)) "$(tail -n 1 "$logs/$run.log")"
    if [ "$code" = 0 ]; then
        rm "$logs/$run.log"
        continue
    fi
    failed=$((failed + 1))
    grep -hE '^(FAILED|ERROR) ' "$logs/$run.log" | tee -a "$logs/failures" || true
done

printf '\n%d of %d runs failed\n' "$failed" "$runs"
if [ -e "$logs/failures" ]; then
    sed -E 's/^[A-Z]+ ([^ ]+).*/\1/' "$logs/failures" | sort | uniq -c | sort -rn
fi
[ "$failed" = 0 ]

#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs the checks and tests: tests/tools/test.sh lint | fast | test | all
# All steps run, even after a failed one; the summary lists them with their seconds.

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

REPORTS=$ROOT/.cache/reports

# step LIMIT NAME COMMAND...: LIMIT is the argument of `timeout`: a command that hangs must not block the later steps.
# After SIGINT, as from Ctrl-C, pytest stops the daemons and guests of its fixtures.
step() {
    local limit=$1 name=$2 began=$SECONDS status=ok code=0
    shift 2
    printf '\n=== %s\n' "$name"
    timeout --signal=INT --kill-after=60 "$limit" "$@" </dev/null || code=$?
    if [ "$code" = 124 ] || [ "$code" = 137 ]; then
        status="failed: took longer than $limit"
    elif [ "$code" != 0 ]; then
        status=failed
    fi
    printf -- '--- %s: %s, %d s\n' "$name" "$status" $((SECONDS - began))
    printf '%s\t%s\t%d\n' "$name" "$status" $((SECONDS - began)) >>"$REPORTS/steps.tsv"
}

# tests VENV NAME WORKERS PYTEST-ARGUMENTS...
tests() {
    local venv=$1 name=$2 workers=$3
    shift 3
    # Each group of tests with its guest in one process: most of the time of a test is the start of ansible-playbook.
    # The environment's own ansible-playbook comes first in PATH, and the results are written for the summary.
    step 45m "$name" env PATH="$ROOT/$venv/bin:$PATH" "$ROOT/$venv/bin/python" -m pytest -q -n "$workers" --dist loadgroup --junitxml="$REPORTS/$name.xml" "$@"
}

lint() {
    local files scripts
    mapfile -t files < <(project_files .)
    mapfile -t scripts < <(project_files '*.sh' .ci/run)
    step 5m ruff ruff check .
    step 5m ruff-format ruff format --check .
    step 5m yamllint yamllint --strict .
    step 5m gofmt tests/tools/check_gofmt.sh
    step 5m shellcheck shellcheck --external-sources --source-path=SCRIPTDIR "${scripts[@]}"
    step 5m mypy mypy -p ansible_collections.safepoint.vm.plugins
    step 5m mypy-lab env MYPYPATH=tests/lab mypy tests/lab
    step 5m import-linter env PYTHONPATH=.ansible/collections lint-imports --cache-dir .cache/import-linter
    step 5m licence python tests/tools/check_licence.py "${files[@]}"
    step 5m action-group python tests/tools/check_action_group.py
    step 5m changelog antsibull-changelog lint
    step 5m docs-lint antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs self .
    step 10m ansible-lint ansible-lint --offline --profile production
}

# Tests with the other ansible-core versions: the roles, except those with a guest, which are the same for all; and tests marked core_versions.
# core_versions VENV FURTHER-EXPRESSION
core_versions() {
    local venv=$1 but=$2 version=${1#.venv-} marked
    if ! [ -e "$venv/.made-from" ]; then
        printf '\n=== %s does not exist on this machine (see the output of setup): its tests are skipped\n' "$venv"
        return
    fi
    # By name: other test files import packages that only the main environment has.
    mapfile -t marked < <(grep -rl --include='test_*.py' --exclude-dir=roles 'mark\.core_versions' tests)
    tests "$venv" "pytest-$version" 2 -m "((role and not guest) or core_versions)$but" tests/roles "${marked[@]}"
}

if [ -e .cache/reports ]; then rm -r .cache/reports; fi
mkdir -p "$REPORTS"

case $1 in
lint)
    lint
    ;;
fast)
    lint
    tests "$MAIN_VENV" pytest 2 -m "not qemu and not guest and not vcenter and not browser and not slow" tests/unit tests/conformance tests/report
    ;;
test | all)
    not_slow=" and not slow" not_newest=" and not newest" not_oldest=" and not oldest"
    if [ "$1" = all ]; then not_slow="" not_newest="" not_oldest=""; fi
    # Runs in parallel with the steps that use one core only; its output is shown at the end.
    step 20m sanity tests/tools/sanity.sh "$MAIN_VENV" >"$REPORTS/sanity.log" 2>&1 &
    sanity=$!
    trap 'pkill -P "$sanity" || true' EXIT  # not the shell, which would leave `timeout` and its command running
    lint
    step 20m galaxy tests/tools/galaxy.sh
    step 20m guest tests/lab/build_guest.sh
    step 20m vcenter tests/simulators/vcsim/build.sh
    if [ "$1" = all ]; then step 20m trixie tests/lab/build_trixie.sh; fi
    wait "$sanity"
    cat "$REPORTS/sanity.log"
    # The tests of the roles run with the oldest and the newest ansible-core below, and in make test-all with this one too.
    # One worker more than cores: for a third of the time these tests wait for hypervisors and timeouts.
    tests "$MAIN_VENV" pytest 3 ${not_slow:+-m "(not role or guest) and not slow"} tests
    core_versions "$FLOOR_VENV" "$not_slow$not_newest"
    core_versions "$NEWEST_VENV" "$not_slow$not_oldest"
    if [ "$1" = all ]; then
        step 20m sanity-2.21 tests/tools/sanity.sh "$NEWEST_VENV"
        step 20m docs tests/tools/docs.sh
    fi
    ;;
*)
    echo "usage: $0 lint | fast | test | all" >&2
    exit 2
    ;;
esac

exec python tests/tools/summary.py "$REPORTS"

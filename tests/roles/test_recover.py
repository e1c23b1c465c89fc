# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role guarded_change sets right in a guest that was reverted: its clock, its facts, its sessions."""

from __future__ import annotations

import re
import time

import pytest
from change import FAIL, Change

pytestmark = [pytest.mark.core_versions, pytest.mark.newest]

# Two hours behind until it is set. What is written to `cannot` is why it cannot be.
CLOCK = """
case "$*" in
*-s*) if [ -e "$HOME/cannot" ]; then cat "$HOME/cannot" >&2; exit 1; fi; echo "$@" >"$HOME/set" ;;
*) if [ -e "$HOME/set" ]; then exec /bin/date "$@"; else echo $(($(/bin/date +%s) - 7200)); fi ;;
esac
"""


@pytest.fixture(autouse=True)
def _clock(change: Change) -> None:
    guest = change.stage.guests["web01"]
    guest.program("date", CLOCK)
    guest.program("id", "echo 0")


def test_the_clock_is_set_and_facts_are_those_of_now_before_the_checks_run(change: Change) -> None:
    guest = change.stage.guests["web01"]
    change.stage.write("change.yml", FAIL)
    change.stage.write(
        "health.yml",
        "- name: Be well\n  ansible.builtin.debug: {msg: 'AT {{ ansible_facts.date_time.epoch }} {{ ansible_facts.old | default(false) }}'}\n",
    )
    begun = time.time()
    run = change.run(
        checks="health.yml",
        head="pre_tasks: [{ansible.builtin.setup: {gather_subset: [min, date_time]}}, "
        "{ansible.builtin.set_fact: {old: true, cacheable: true}}]",
    )
    assert change.was_rolled_back(run)
    at, old = re.search(r"AT (\d+) (\w+)", run.output).groups()  # type: ignore[union-attr]
    assert int(at) > begun and old == "False"
    gathered = run.output.index("Gather the facts of now")
    assert run.output.index("Clock | Set it") < gathered < run.output.index("Be well")
    told = re.fullmatch(r"-u -s @(\d+)\n", (guest.home / "set").read_text())
    assert told and begun < int(told[1]) <= time.time()


@pytest.mark.slow
def test_a_clock_that_cannot_be_set_is_told_and_one_that_is_right_is_left_alone(change: Change) -> None:
    guest = change.stage.guests["web01"]
    (guest.home / "cannot").write_text("not permitted\n")
    change.stage.write("change.yml", FAIL)
    run = change.run()
    assert run.rc == 2
    assert re.search(
        r"BUT its clock is 72\d\d seconds behind the controller\'s and could not be set\s+\(not permitted\)", run.output
    )
    assert (
        "Gather the facts of now" in run.output
        and "ok: [web01]" not in run.output.split("Gather the facts of now")[1].split("TASK")[0]
    )
    guest.program("date", 'exec /bin/date "$@"')
    change.hypervisor.define("web02")
    run = change.run(vm="web02")
    assert run.said("skipping: [web01]") and not run.said("BUT its clock")


def test_reconcile_sets_the_clock_too(change: Change) -> None:
    guest = change.stage.guests["web01"]
    assert change.run(entry="checkpoint").rc == 0
    [label] = change.labels()
    force = {"reconcile_run": label["run"], "reconcile_force": True, "reconcile_settle": "1s"}
    assert change.run(entry="reconcile", reconcile_policy="rollback", **force).rc == 0
    assert (guest.home / "set").exists()

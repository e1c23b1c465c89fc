# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes that end where no rescue comes, and guests whose old sessions are dead. The table of pitfalls is in test_pitfalls.py."""

from __future__ import annotations

import os
import signal
import time

import pytest
from change import FAIL, GOOD
from pitfalls import Fleet, Reverted, last_message
from pve_server import PveServer
from stage import Stage

pytestmark = pytest.mark.core_versions


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 99, marks=pytest.mark.slow)], ids=["TERM", "INT"]
)
def test_a_run_that_is_told_to_end_says_guarding_and_another_ends_it(
    stage: Stage, pve: PveServer, number: signal.Signals, code: int
) -> None:
    fleet = Fleet(stage, pve, "web01")
    begun = stage.guests["web01"].home / "begun"
    fleet.changes(web01="- name: Take long\n  ansible.builtin.shell: touch begun; sleep 60\n")

    def end(pid: int) -> None:
        while not begun.exists():
            time.sleep(0.1)
        os.killpg(pid, number)

    run = fleet.run(id="CHG0042", meanwhile=end)
    assert run.rc in (code, -number)
    assert "was rolled back" not in run.output
    assert fleet.states() == {"web01": "guarding"}

    run = fleet.run(entry="rollback", id="CHG0042")
    assert run.rc == 0
    assert run.said("web01 was rolled back to sp-CHG0042-")
    assert fleet.states() == {"web01": "rolled_back"}


def test_a_host_that_a_change_ends_where_nobody_saw_it_says_guarding(stage: Stage, pve: PveServer) -> None:
    """Preflight does not follow an include whose name has a variable in it."""
    fleet = Fleet(stage, pve, "ended", "fine")
    stage.write("hidden.yml", "- ansible.builtin.meta: end_host\n")
    fleet.changes(ended="- ansible.builtin.include_tasks: '{{ which }}.yml'\n  vars: {which: hidden}\n", fine=GOOD)
    run = fleet.run()
    assert run.rc == 0
    assert fleet.states() == {"ended": "guarding", "fine": "none"}
    assert run.recap("fine")["failed"] == 0


def test_the_host_that_reaches_the_hypervisor_is_lost_before_the_rollback(stage: Stage, pve: PveServer) -> None:
    fleet = Fleet(stage, pve, "web01")
    controller = stage.guest("kvm01")
    fleet.changes(
        web01="- name: Lose the other\n  ansible.builtin.shell: kill -KILL $SSHD_PID\n  delegate_to: kvm01\n  ignore_errors: true\n"
        + FAIL
    )
    run = fleet.run(hosts="web01", delegate_to="kvm01")
    [label] = fleet.labels("web01")
    told = last_message(run, "web01")
    assert run.rc == 2
    assert run.recap("web01")["unreachable"] == 0
    assert told.startswith(f"web01 ACTION REQUIRED: it was not rolled back. The revert to {label['name']} failed: ")
    assert "Failed to connect to the host via ssh" in told
    assert "The change failed in Break it: " in told and told.endswith(": it does not fit")
    assert fleet.states() == {"web01": "guarding"}

    controller.stop()
    controller.start()
    assert f"guarded_change_snapshot_id={label['name']}" in told
    run = fleet.run(hosts="web01", delegate_to="kvm01", entry="rollback", snapshot_id=label["name"])
    assert run.rc == 0
    assert fleet.states() == {"web01": "rolled_back"}


def test_sessions_from_before_the_revert_are_not_used_after_it(stage: Stage, pve: PveServer) -> None:
    fleet = Fleet(stage, pve, "web01")
    fleet.changes(
        web01="- name: Open an ordinary session too\n  ansible.builtin.raw: 'true'\n  connection: ssh\n"
        "- name: End sshd and leave its sessions\n  ansible.builtin.raw: kill -USR1 $SSHD_PID\n" + FAIL
    )
    stage.write(
        "health.yml",
        "- name: Ask\n  ansible.builtin.raw: 'true'\n- name: Ask\n  ansible.builtin.raw: 'true'\n  connection: ssh\n",
    )
    back = stage.guests["web01"].begin_anew_when(Reverted(fleet.hypervisor, "web01"))
    run = fleet.run(checks="health.yml")
    back.join(30)
    assert fleet.was_rolled_back(run)
    assert "and its checks pass. The change failed in Break it: " in last_message(run, "web01")

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a play can say that reaches the other hosts of a change. The table of pitfalls is in test_pitfalls.py."""

from __future__ import annotations

import pytest
from change import GOOD, KILL
from pitfalls import Fleet, last_message
from pve_server import PveServer
from stage import Stage

pytestmark = pytest.mark.core_versions


@pytest.mark.parametrize(
    ("keyword", "goes_on"),
    [
        ("any_errors_fatal: true\n              max_fail_percentage: 0", False),
        pytest.param("any_errors_fatal: true", False, marks=pytest.mark.slow),
        pytest.param("max_fail_percentage: 0", False, marks=pytest.mark.slow),
        pytest.param("max_fail_percentage: 50", True, marks=pytest.mark.slow),
    ],
)
def test_one_that_is_lost_stops_the_rollout_and_not_the_change_of_another(
    stage: Stage, pve: PveServer, keyword: str, goes_on: bool
) -> None:
    """A lost host counts, as it does not by itself; and the play ends between changes, not in the middle of them."""
    fleet = Fleet(stage, pve, "lost", "fine", "next")
    fleet.changes(lost=KILL, fine=GOOD, next=GOOD)
    back = fleet.came_back_by_the_revert("lost")
    # Throttle, since the call of one for all must not be split by it.
    run = fleet.run(
        head=f"serial: 2\n              throttle: 1\n              {keyword}\n"
        "              post_tasks: [{name: Go on, ansible.builtin.debug: {msg: WENT ON}}]"
    )
    back[0].join(30)

    assert run.rc == 2
    assert fleet.was_rolled_back(run, "lost")
    assert "and answers again. The change failed in Kill it: Failed to connect" in last_message(run, "lost")
    assert fleet.states() == {"lost": "rolled_back", "fine": "none", "next": "none"}
    assert last_message(run, "fine") == ""
    assert run.calls("Remove the checkpoints")[0] == "fine"
    assert run.calls("Take the checkpoints") == (["lost", "next"] if goes_on else ["lost"])
    assert ("WENT ON" in run.output) == goes_on


def test_when_all_are_lost_all_are_rolled_back_and_what_follows_does_not_begin(stage: Stage, pve: PveServer) -> None:
    fleet = Fleet(stage, pve, "one", "other", "apart")
    fleet.changes(one=KILL + GOOD, other=KILL + GOOD, apart=GOOD)
    back = fleet.came_back_by_the_revert("one", "other")
    run = fleet.run(
        "--limit", "one,other", head="ignore_unreachable: true", more="- {hosts: all, tasks: [{debug: {msg: WENT ON}}]}"
    )
    for thread in back:
        thread.join(30)

    assert run.rc == 2
    for name in ("one", "other"):
        assert fleet.was_rolled_back(run, name)
        assert "The change failed in Kill it: Failed to connect" in last_message(run, name)
    assert fleet.states() == {"one": "rolled_back", "other": "rolled_back", "apart": "none"}
    assert "Change it" not in run.output
    assert "WENT ON" not in run.output


def test_one_without_a_checkpoint_does_not_strand_the_others(stage: Stage, pve: PveServer) -> None:
    fleet = Fleet(stage, pve, "full", "fine")
    fleet.changes(full=GOOD, fine=GOOD + "- ansible.builtin.meta: flush_handlers\n")
    fleet.pve.fault_task("qmsnapshot", fleet.hypervisor.vmid("full"), exitstatus="no space left")
    run = fleet.run(head="any_errors_fatal: true\n              max_fail_percentage: 0")
    assert run.rc == 2
    assert last_message(run, "full").startswith("The change was not begun, since there is no checkpoint: ")
    assert "no space left" in last_message(run, "full")
    assert fleet.states() == {"full": "none", "fine": "none"}
    assert run.recap("fine")["failed"] == 0
    assert run.output.split(": Change it]", 1)[1].split("TASK", 1)[0].count("changed: ") == 1
    # Of a pitfall that cannot be helped it is warned.
    assert run.said("fine.yml:3: meta: flush_handlers runs handlers outside of the guard.")


def test_what_is_down_before_is_left_alone_and_names_that_are_lost_in_a_pattern_too(stage: Stage, pve: PveServer) -> None:
    fleet = Fleet(stage, pve, "down", "fine", "third", "fourth")
    fleet.changes(down=GOOD, fine=GOOD, third=GOOD, fourth=GOOD)
    stage.guests["down"].stop()
    run = fleet.run(hosts="down,fine,third:fourth", head="pre_tasks: [{ansible.builtin.setup: {gather_subset: ['!all']}}]")
    assert run.rc == 4
    assert "Failed to connect to the host via ssh" in last_message(run, "down")
    assert run.recap("fine")["failed"] == 0
    assert fleet.states() == {"down": "none", "fine": "none", "third": "none", "fourth": "none"}
    assert len(fleet.pve.task_list("qmsnapshot")) == 1
    assert run.said("Could not match supplied host pattern, ignoring: third:fourth")


def test_what_would_end_the_change_without_an_end_is_refused(stage: Stage, pve: PveServer) -> None:
    """Past rescue and commit: of the host itself, or of the others."""
    fleet = Fleet(stage, pve, "unknown", "ended", "play", "batch", "errors", "once", "fatal", "role")
    stage.write("nested.yml", "- ansible.builtin.meta: end_play\n")
    stage.write("roles/ends/tasks/main.yml", "- ansible.builtin.meta: end_host\n")
    fleet.changes(
        unknown=GOOD + "- no.such.module:\n",
        ended=GOOD + "- ansible.builtin.meta: end_host\n  when: false\n",
        play=GOOD + "- ansible.builtin.include_tasks: nested.yml\n",
        batch="- block: [{ansible.builtin.command: 'true'}]\n  always: [{ansible.builtin.meta: end_batch}]\n",
        errors="- ansible.builtin.meta: clear_host_errors\n",
        once="- name: Migrate\n  ansible.builtin.command: 'true'\n  run_once: true\n",
        fatal="- any_errors_fatal: true\n  block: [{name: In it, ansible.builtin.command: 'true'}]\n",
        role="- ansible.builtin.import_role: {name: ends}\n",
    )
    run = fleet.run()
    told = {
        "unknown": ["unknown.yml", "no.such.module"],
        "ended": ["ended.yml:3", "meta: end_host would end the change without commit", "Use `when` on a block"],
        "play": ["nested.yml:1", "meta: end_play would end the change"],
        "batch": ["batch.yml", "meta: end_batch would end the change"],
        "errors": ["errors.yml", "meta: clear_host_errors would make the run succeed"],
        "once": ["once.yml", "run_once: when it fails", "ansible_play_batch[0]"],
        "fatal": ["fatal.yml", "any_errors_fatal would end the change of the other hosts"],
        "role": ["roles/ends/tasks/main.yml", "meta: end_host would end the change"],
    }
    assert run.rc == 2
    for name, parts in told.items():
        message = last_message(run, name)
        assert all(part in message for part in parts), message
    assert set(fleet.states().values()) == {"none"}
    assert fleet.pve.task_list() == []


def test_errors_that_the_play_ignores_are_refused(stage: Stage, pve: PveServer) -> None:
    fleet = Fleet(stage, pve, "alone")
    fleet.changes(alone="- name: Migrate\n  ansible.builtin.command: 'true'\n  run_once: true\n")
    run = fleet.run(head="ignore_errors: true")
    assert run.rc == 2
    assert "ignore_errors is set on this play or on a block around the role," in last_message(run, "alone")
    assert fleet.states() == {"alone": "none"}

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's entry point main among others: several hosts, runs, plays, and a controller that is another host."""

from __future__ import annotations

import threading

import pytest
from change import FAIL, GOOD, Change
from stage import Run

pytestmark = pytest.mark.core_versions


@pytest.mark.parametrize("failing", [pytest.param("web01", marks=pytest.mark.slow), "web02"])
def test_of_two_hosts_only_the_one_that_failed_is_reverted(change: Change, failing: str) -> None:
    change.add("web02")
    change.stage.write("change.yml", GOOD + f"{FAIL}  when: inventory_hostname == '{failing}'\n")
    run = change.run()
    other = {"web01": "web02", "web02": "web01"}[failing]
    assert change.was_rolled_back(run, failing)
    assert run.recap(other)["failed"] == 0
    assert change.labels(other) == []
    assert run.calls("Take the checkpoints") == ["web01"]
    assert run.calls("Revert") == [failing]
    assert run.calls("Remove the checkpoints") == [other]


@pytest.mark.slow
def test_two_hosts_that_fail_in_different_places_are_both_rolled_back(change: Change) -> None:
    change.add("web02")
    change.add("web03")
    change.stage.write(
        "change.yml", f"{FAIL}  when: inventory_hostname == 'web02'\n{GOOD}{GOOD}- ansible.builtin.include_tasks: more.yml\n"
    )
    change.stage.write("more.yml", f"{GOOD}{FAIL}  when: inventory_hostname == 'web01'\n")
    run = change.run()
    assert change.was_rolled_back(run, "web01")
    assert change.was_rolled_back(run, "web02")
    assert run.recap("web03")["failed"] == 0
    assert change.labels("web03") == []


def test_one_vm_that_is_missing_does_not_hold_up_the_others(change: Change) -> None:
    change.stage.guest("web00")  # the first, which calls for the others
    change.stage.write("change.yml", GOOD)
    run = change.run()
    assert run.recap("web00")["failed"] == 1
    assert run.recap("web01")["failed"] == 0
    assert run.said("Nothing was changed:")
    assert change.labels() == []


@pytest.mark.parametrize(
    ("head", "arguments"), [pytest.param("serial: 1", (), marks=pytest.mark.slow), ("", ("--limit", "web02"))]
)
def test_it_works_with_serial_and_limit(change: Change, head: str, arguments: tuple[str, ...]) -> None:
    change.add("web02")
    change.stage.write("change.yml", FAIL + "  when: inventory_hostname == 'web02'\n")
    run = change.run(*arguments, head=head)
    assert change.was_rolled_back(run, "web02")
    assert change.labels("web01") == []


def test_a_second_change_at_the_same_time_is_refused(change: Change) -> None:
    change.stage.write("change.yml", GOOD)
    assert change.run(entry="checkpoint").rc == 0
    [label] = change.labels()
    run = change.run()
    assert run.rc == 2
    assert run.said(f"change_in_progress: web01 has the checkpoint {label['name']} of a change that has not ended.")
    assert run.said("end it with the entry point reconcile, rollback or commit")
    assert len(change.labels()) == 1


def test_of_two_runs_that_begin_together_one_gives_way(change: Change) -> None:
    change.stage.write("change.yml", "- ansible.builtin.command: sleep 8\n")
    runs: list[Run] = []
    threads = [threading.Thread(target=lambda: runs.append(change.run())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run.rc for run in runs) == [0, 2]
    assert any(run.said("change_in_progress") or run.said("there is no checkpoint") for run in runs)
    assert change.labels() == []


def test_the_hypervisor_may_be_reached_from_another_host(change: Change) -> None:
    change.stage.guest("kvm01")
    change.stage.write("change.yml", FAIL)
    run = change.run(hosts="web01", delegate_to="kvm01")
    assert change.was_rolled_back(run)
    assert "[web01 -> kvm01" in run.output


def test_the_host_that_reaches_the_hypervisor_is_lost(change: Change) -> None:
    change.stage.guest("kvm01").stop()
    change.stage.write("change.yml", GOOD)
    run = change.run(hosts="web01", delegate_to="kvm01")
    assert run.rc == 2
    assert run.recap("web01")["unreachable"] == 0
    assert run.said("Nothing was changed: ")
    assert run.said("Failed to connect to the host via ssh")


def test_later_plays_reach_the_host_as_before(change: Change) -> None:
    change.stage.write("change.yml", "- name: Configure\n  ansible.builtin.command: 'true'\n  notify: Restart\n")
    handlers = "handlers: [{name: Restart, ansible.builtin.command: 'true'}]"
    run = change.run(head=f"{handlers}\n              post_tasks: [{{ansible.builtin.debug: {{var: ansible_connection}}}}]")
    assert run.rc == 0
    assert '"ansible_connection": "ssh"' in run.output

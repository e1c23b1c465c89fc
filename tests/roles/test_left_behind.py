# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would leave a change without an end, end it twice, or call it well unseen, though nothing has died."""

from __future__ import annotations

import json

import pytest
from change import FAIL, GOOD, Change
from hypervisor import ProxmoxHypervisor
from pve_server import PveServer
from stage import Stage, wait_until

pytestmark = [pytest.mark.core_versions, pytest.mark.newest]


@pytest.fixture
def cluster(stage: Stage, pve: PveServer) -> Change:
    """The role on web01 of a simulated cluster."""
    return Change(stage, ProxmoxHypervisor(pve))


def test_who_ended_a_change_before_does_not_call_for_who_makes_another_one(change: Change) -> None:
    change.add("web02")
    change.stage.write("change.yml", GOOD)
    role = {"name": "safepoint.vm.guarded_change"}
    task = {
        "ansible.builtin.include_role": role,
        "vars": change.variables("main"),
        "when": "inventory_hostname == 'web02'",
    }
    run = change.run(more="- " + json.dumps({"hosts": "guests", "gather_facts": False, "tasks": [task]}))
    assert run.rc == 0
    assert run.output.count("TASK [safepoint.vm.guarded_change : Remove the checkpoints]") == 2
    assert change.labels("web01") == change.labels("web02") == []


def test_a_change_that_another_run_has_rolled_back_is_not_called_a_success(change: Change) -> None:
    flag = change.stage.folder / "flag"
    change.stage.write("change.yml", GOOD)
    change.stage.write("checks.yml", f"- ansible.builtin.shell: touch {flag}; while test -e {flag}; do sleep 0.2; done\n")
    playing = change.start(checks="checks.yml")
    wait_until(flag.exists)
    assert change.run(entry="rollback").rc == 0
    flag.unlink()
    run = playing.result()
    assert run.rc == 2
    assert run.said("Another run has ended the change of web01 meanwhile, or is about to, and may have rolled it back")
    assert [label["state"] for label in change.labels()] == ["rolled_back"]


def test_a_checkpoint_that_was_refused_is_not_looked_for(cluster: Change, pve: PveServer) -> None:
    cluster.stage.write("change.yml", GOOD)
    pve.add_user("watch@pve", "only-looks-on", {"/": {"VM.Audit", "Sys.Audit"}})
    login = {key: value for key, value in cluster.hypervisor.connection.items() if not key.startswith("token")}
    run = cluster.run(endpoint={**login, "username": "watch@pve", "password": "only-looks-on"})
    assert run.rc == 2
    assert run.said("VM.Snapshot")
    assert not run.said("remove it with the entry point commit")
    assert "Take back | Look" not in run.output
    assert cluster.labels() == []


def test_a_checkpoint_that_comes_too_late_is_told_and_the_next_run_can_end_it(cluster: Change, pve: PveServer) -> None:
    cluster.stage.write("change.yml", GOOD)
    pve.set_task_seconds(600, "qmsnapshot")
    run = cluster.run(endpoint={**cluster.hypervisor.connection, "timeout": "3s"})
    assert run.rc == 2
    assert run.said("The change was not begun, since there is no checkpoint: timeout=3 seconds was not enough to")
    assert run.said(
        "remove it with the entry point commit of safepoint.vm.guarded_change: nothing was changed that could be rolled back"
    )
    pve.finish_tasks()
    [vmid] = pve.guests
    wait_until(lambda: not pve.guest(vmid)["lock"])
    assert [label["state"] for label in cluster.labels()] == ["guarding"]
    assert cluster.run(entry="commit").rc == 0
    assert cluster.labels() == []


def test_a_checkpoint_of_which_only_the_answer_was_lost_is_found_and_the_change_is_made(cluster: Change, pve: PveServer) -> None:
    cluster.stage.write("change.yml", GOOD)
    pve.fault("POST", "*/snapshot", cut=True, after=True)
    # The list that confirms it; those before are of the preflight and of the look right before the write.
    pve.fault("GET", "*/snapshot", nth=4, count=2, cut=True)
    run = cluster.run()
    assert run.rc == 0
    assert cluster.labels() == []


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"gates": '{"services": ["nginx"]}'}, "is a text, where a dictionary or a list is needed"),
        ({"evidence_files": "/var/log/one,/var/log/two"}, "is a text, where a dictionary or a list is needed"),
        ({"keep_after_success": 0}, "guarded_change_keep_after_success is '0', which is no duration"),
        ({"keep_after_rollback": "0h"}, "guarded_change_keep_after_rollback is '0h', which is no duration"),
    ],
)
def test_what_would_be_found_out_too_late_is_refused(change: Change, variables: dict[str, object], told: str) -> None:
    change.stage.write("change.yml", GOOD)
    run = change.run(**variables)
    assert run.rc == 2
    assert run.said(told)
    assert change.labels() == []


def test_a_check_mode_for_a_part_is_refused_and_a_rollback_in_check_mode_says_what_it_would_do(change: Change) -> None:
    change.stage.write("change.yml", GOOD)
    run = change.run(head="check_mode: true")
    assert run.rc == 2
    assert run.said("check_mode is true on the play or around the role, and the run itself is not one with --check")
    run = change.run("--check", head="check_mode: false")
    assert run.rc == 2
    assert run.said("check_mode is false on the play or around the role, and the run itself is one with --check")
    assert change.labels() == []
    assert change.run(entry="checkpoint").rc == 0
    run = change.run("--check", entry="rollback")
    assert run.rc == 0
    assert run.said("web01 would be rolled back to sp-") and run.said("This is check mode: nothing was changed")
    assert [label["state"] for label in change.labels()] == ["guarding"]


def test_a_change_and_a_vm_may_be_numbers(cluster: Change, pve: PveServer) -> None:
    [vmid] = pve.guests
    assert cluster.run(entry="checkpoint", id=20431, vm=vmid).rc == 0
    assert cluster.labels()[0]["change"] == "20431"
    run = cluster.run(entry="rollback", id=20431, vm=vmid)
    assert run.rc == 0
    assert [label["state"] for label in cluster.labels()] == ["rolled_back"]


def test_a_rollback_whose_checkpoint_still_says_guarding_fails(cluster: Change, pve: PveServer) -> None:
    assert cluster.run(entry="checkpoint").rc == 0
    pve.fault("PUT", "*/config", count=None, status=500)
    run = cluster.run(entry="rollback")
    assert run.rc == 2
    assert run.said("The snapshot could not be labelled")
    assert [label["state"] for label in cluster.labels()] == ["guarding"]


def test_a_rollback_leaves_other_hosts_their_facts(change: Change) -> None:
    change.add("web02")
    change.stage.write("change.yml", FAIL + "  when: inventory_hostname == 'web01'\n")
    run = change.run(
        head="pre_tasks: [{ansible.builtin.setup: {gather_subset: [min]}}]\n"
        "              post_tasks: [{ansible.builtin.debug: {msg: 'It still runs {{ ansible_facts.system }}'}}]"
    )
    assert change.was_rolled_back(run)
    assert run.said("It still runs Linux")
    assert run.recap("web02")["failed"] == 0

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's entry points checkpoint, rollback and commit, each in a run of its own."""

from __future__ import annotations

import json

import pytest
from change import Change

pytestmark = pytest.mark.core_versions


def test_a_checkpoint_is_committed_by_another_run(change: Change) -> None:
    assert change.run(entry="checkpoint", id="CHG0042", timeout="90m").rc == 0
    [label] = change.labels()
    assert label["state"] == "guarding"
    assert label["change"] == "CHG0042"
    assert "expires" not in label
    assert change.run(entry="commit").rc == 0
    assert change.labels() == []


def test_a_commit_may_keep_the_snapshot_for_a_while(change: Change) -> None:
    change.run(entry="checkpoint")
    assert change.run(entry="commit", keep_after_success="24h").rc == 0
    [label] = change.labels()
    assert label["state"] == "committed"
    assert "expires" in label


def test_a_checkpoint_is_rolled_back_by_another_run(change: Change) -> None:
    audit = change.stage.folder / "audit.jsonl"
    head = f"environment: {{SAFEPOINT_AUDIT_FILE: {audit}}}"
    change.run(entry="checkpoint", id="CHG0042", head=head)
    change.stage.write("health.yml", "- name: Be well\n  ansible.builtin.command: 'true'\n")
    run = change.run(entry="rollback", checks="health.yml", head=head)
    [label] = change.labels()
    assert run.rc == 0
    assert run.said(f"web01 was rolled back to {label['name']}, and its checks pass")
    assert label["state"] == "rolled_back"
    assert "expires" in label
    assert "lease" not in label
    done = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(one["action"], one["vm"], one["change"]) for one in done if one["event"] == "result"] == [
        ("created", "web01", "CHG0042"),
        ("reverted", "web01", "CHG0042"),
        ("updated", "web01", "CHG0042"),
    ]


def test_a_rollback_after_which_the_guest_is_not_well_fails(change: Change) -> None:
    change.run(entry="checkpoint")
    change.stage.write("health.yml", "- name: Be well\n  ansible.builtin.fail: {msg: no luck}\n")
    run = change.run(entry="rollback", checks="health.yml")
    assert run.rc == 2
    assert run.said("BUT it is not well: Be well: no luck")
    assert change.labels()[0]["state"] == "rolled_back"


def test_the_playbook_gets_the_id_and_may_name_it(change: Change) -> None:
    run = change.run(
        entry="checkpoint", head="post_tasks: [{ansible.builtin.debug: {msg: 'ID {{ guarded_change_checkpoint_id }}'}}]"
    )
    [label] = change.labels()
    assert f"ID {label['name']}" in run.output
    change.hypervisor.take("web01", "newer", "[safepoint v=1 owner=safepoint state=guarding]")
    run = change.run(entry="commit")
    assert run.rc == 2
    assert run.said(
        "web01 has 2 checkpoints of a change that has not ended, where one was expected. Set guarded_change_snapshot_id to one of these:"
    )
    assert run.said(label["name"])
    assert run.said("newer")
    assert change.run(entry="commit", snapshot_id=label["name"]).rc == 0
    assert [one["name"] for one in change.labels()] == ["newer"]


def test_the_change_tells_two_checkpoints_apart(change: Change) -> None:
    change.run(entry="checkpoint", id="CHG0042")
    change.hypervisor.take("web01", "newer", "[safepoint v=1 owner=safepoint state=guarding change=CHG0043]")
    assert change.run(entry="commit", id="CHG0043").rc == 0
    assert [one["change"] for one in change.labels()] == ["CHG0042"]


@pytest.mark.parametrize("entry", ["rollback", "commit"])
def test_without_a_checkpoint_there_is_nothing_to_end(change: Change, entry: str) -> None:
    change.hypervisor.take("web01", "plain", "[safepoint v=1 owner=safepoint]")
    change.hypervisor.take("web01", "foreign", "[safepoint v=1 owner=somebody state=guarding]")
    run = change.run(entry=entry)
    assert run.rc == 2
    assert run.said("web01 has 0 checkpoints of a change that has not ended, where one was expected.")
    assert run.said("one of these: plain")
    run = change.run(entry=entry, snapshot_id="other")
    assert run.rc == 2
    assert run.said("web01 has 0 checkpoints with the id other")
    assert len(change.labels()) == 2


@pytest.mark.parametrize("entry", ["rollback", "commit"])
def test_check_mode_leaves_the_checkpoint_alone(change: Change, entry: str) -> None:
    change.run(entry="checkpoint")
    assert change.run("--check", entry=entry).rc == 0
    assert change.labels()[0]["state"] == "guarding"


def test_two_hosts_of_an_endpoint_are_rolled_back_by_one_call(change: Change) -> None:
    change.add("web02")
    change.run(entry="checkpoint")
    run = change.run(entry="rollback")
    assert run.rc == 0
    assert change.labels("web01")[0]["state"] == "rolled_back"
    assert change.labels("web02")[0]["state"] == "rolled_back"
    assert run.calls("Revert") == ["web01"]

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's entry point reconcile: what dead runs have left on libvirt's test driver, and what becomes of it."""

from __future__ import annotations

import pytest
from change import FAIL, GOOD, Change

pytestmark = [pytest.mark.core_versions, pytest.mark.oldest]

OVER = "lease=2026-01-01T00:00:00Z"
ALIVE = "lease=2101-01-01T00:00:00Z"
SETTLE = {"reconcile_settle": "4s"}


def leave(change: Change, name: str, more: str = OVER, *, snapshot: str = "sp-CHG1", run: str = "0123456789ab") -> None:
    """What a run that died has left on a VM."""
    change.hypervisor.take(
        name, snapshot, f"[safepoint v=1 owner=safepoint state=guarding change=CHG1 run={run} by=awx1/job/7 {more}]"
    )


def states(change: Change, *names: str) -> list[list[str]]:
    return [[label["state"] for label in change.labels(name)] for name in names]


def test_it_only_reports_unless_told_to_act(change: Change) -> None:
    change.add("web02")
    leave(change, "web01", f"{OVER} began=2026-01-01T00:00:00Z")
    run = change.run(entry="reconcile")
    assert run.rc == 0
    assert run.said(
        "web01: found the checkpoint sp-CHG1 of the change CHG1, begun at 2026-01-01T00:00:00Z by awx1/job/7, run 0123456789ab, "
        "its lease ended at 2026-01-01T00:00:00Z. Reported only: guarded_change_reconcile_policy is report"
    )
    assert run.said("Nothing: no change on web02 has been left without an end")
    assert run.recap("web01")["changed"] == 0
    assert states(change, "web01", "web02") == [["guarding"], []]
    assert change.run(entry="reconcile", reconcile_fail_on_findings=True).rc == 2


def test_it_rolls_back_once(change: Change) -> None:
    change.add("web02")
    for name in ("web01", "web02"):
        leave(change, name)
    run = change.run(entry="reconcile", reconcile_policy="rollback", **SETTLE)
    assert run.rc == 0
    assert run.said("Rolled back: web01 was rolled back to sp-CHG1, and answers again. The policy is rollback")
    assert "does not support when" not in run.output
    assert states(change, "web01", "web02") == [["rolled_back"]] * 2
    assert not {"lease", "claim"} & change.labels()[0].keys()
    for task in ("Look for changes that have not ended", "Claim the checkpoints", "Revert", "Label the checkpoints"):
        assert run.calls(task) == ["web01"], task
    again = change.run(entry="reconcile", reconcile_policy="rollback", **SETTLE)
    assert again.rc == 0
    assert again.recap("web01")["changed"] == again.recap("web02")["changed"] == 0
    assert again.said("Nothing: no change on web02 has been left without an end")


def test_it_commits_and_takes_only_what_was_asked_for(change: Change) -> None:
    """By change, by run and by age; answers of a survey are texts."""
    leave(change, "web01")
    for variables in ({"id": "CHG2"}, {"reconcile_run": "ba9876543210"}, {"reconcile_older_than": "1h"}):
        run = change.run(entry="reconcile", reconcile_policy="commit", **variables)
        assert run.rc == 0
        assert run.said("Nothing: no change on web01 has been left without an end")
    assert states(change, "web01") == [["guarding"]]
    run = change.run(
        entry="reconcile", reconcile_policy="commit", id="CHG1", reconcile_force="false", keep_after_success="24h", **SETTLE
    )
    assert run.rc == 0
    assert run.said("Committed: the policy is commit. The checkpoint is kept for 24h")
    [label] = change.labels()
    assert label["state"] == "committed"
    assert "expires" in label and not {"lease", "claim"} & label.keys()


def test_a_run_that_may_be_alive_is_left_alone_unless_it_is_named_and_forced(change: Change) -> None:
    leave(change, "web01", ALIVE)
    for variables in ({"reconcile_run": "0123456789ab"}, {"reconcile_force": True}):
        run = change.run(entry="reconcile", reconcile_policy="commit", **variables)
        assert run.rc == 0
        assert run.said("its lease runs until 2101-01-01T00:00:00Z. Left alone: its run may be alive until its lease is over.")
    assert states(change, "web01") == [["guarding"]]
    run = change.run(entry="reconcile", reconcile_policy="commit", reconcile_run="0123456789ab", reconcile_force=True, **SETTLE)
    assert run.rc == 0
    assert run.said("Committed: the policy is commit. The checkpoint was removed")
    assert change.labels() == []


def test_what_only_a_person_can_decide_is_left_to_one(change: Change) -> None:
    for name in ("web02", "web03", "web04", "web05"):
        change.add(name)
    leave(change, "web01", "lease=soon")
    leave(change, "web02", "")
    leave(change, "web03")
    leave(change, "web03", snapshot="second")
    change.hypervisor.take("web04", "theirs", f"[safepoint v=1 owner=somebody state=guarding {OVER}]")
    leave(change, "web05", f"{OVER} began=%7B%7B%207*7%20%7D%7D")
    run = change.run(entry="reconcile", reconcile_policy="rollback", **SETTLE)
    assert run.rc == 2
    assert run.said("its lease soon is no time. ACTION REQUIRED: nobody can tell whether its run is alive.")
    assert run.said("it has no lease. ACTION REQUIRED: nobody can tell")
    assert run.said("ACTION REQUIRED: it has 2 such checkpoints")
    assert run.said("Left alone: it is not ours: it belongs to owner 'somebody'")
    assert run.said("begun at {{ 7*7 }} by"), "what stands in a label is text, and no template"
    assert [run.recap(f"web0{number}")["failed"] for number in range(1, 6)] == [1, 1, 1, 0, 0]
    assert states(change, "web01", "web02", "web03", "web04", "web05") == [
        ["guarding"], ["guarding"], ["guarding", "guarding"], ["guarding"], ["rolled_back"]
    ]  # fmt: skip
    run = change.run("--limit", "web01,web02", entry="reconcile", reconcile_policy="rollback", reconcile_force="yes", **SETTLE)
    assert run.rc == 0
    assert states(change, "web01", "web02") == [["rolled_back"]] * 2


def test_a_guest_that_is_not_well_after_it_needs_a_person(change: Change) -> None:
    leave(change, "web01")
    change.stage.write("health.yml", "- name: Be well\n  ansible.builtin.fail: {msg: no luck}\n")
    run = change.run(entry="reconcile", reconcile_policy="rollback", checks="health.yml", **SETTLE)
    assert run.rc == 2
    assert run.said(
        "ACTION REQUIRED: web01 was rolled back to sp-CHG1, BUT it is not well: Be well: no luck. The policy is rollback"
    )
    assert states(change, "web01") == [["rolled_back"]]


def test_over_an_endpoint_the_guests_are_not_checked(change: Change) -> None:
    """By one host, which none of the VMs is, or by the first of those in the play."""
    for name in ("web02", "web03"):
        change.hypervisor.define(name)
        leave(change, name)
    given = {"reconcile_scope": "endpoint", "reconcile_policy": "rollback", "evidence_dir": None, **SETTLE}
    would = change.run_by_name("reconcile", "--check", **given)
    assert would.rc == 0
    assert would.said("Reported only: this is check mode; without it there would be a rollback")
    assert states(change, "web02", "web03") == [["guarding"]] * 2
    run = change.run_by_name("reconcile", **given)
    assert run.rc == 0
    assert run.said("web02: found the checkpoint sp-CHG1")
    assert run.output.count("Its guest was not checked, since only the endpoint is known here") == 2
    assert states(change, "web02", "web03") == [["rolled_back"]] * 2
    run = change.run(entry="reconcile", **given)
    assert run.rc == 0
    assert run.recap("web01")["changed"] == 0
    assert run.said("Nothing: no change on this endpoint has been left without an end")


def test_of_two_at_the_same_time_one_acts(change: Change) -> None:
    leave(change, "web01")
    plays = [
        change.start(entry="reconcile", reconcile_policy="commit", keep_after_success="24h", reconcile_settle="20s")
        for _ in range(2)
    ]
    runs = [play.result() for play in plays]
    assert [run.rc for run in runs] == [0, 0]
    acted = [run for run in runs if run.said("Committed: the policy is commit.")]
    left = [
        run for run in runs if run.said("Left alone: another run was faster.") or run.said("Left alone: its run may be alive")
    ]
    assert (len(acted), len(left)) == (1, 1)
    assert states(change, "web01") == [["committed"]]


def test_an_endpoint_that_does_not_answer_is_a_failure(change: Change) -> None:
    nowhere = {"backend": "libvirt", "uri": "test+unix:///default?socket=/nowhere"}
    for scope in ("hosts", "endpoint"):
        run = change.run(entry="reconcile", endpoint=nowhere, reconcile_scope=scope)
        assert run.rc == 2
        assert run.said("Nothing was changed: ")


def test_a_lease_is_renewed_only_where_it_would_not_last(change: Change) -> None:
    change.add("web02")
    change.stage.write("change.yml", GOOD)
    run = change.run()
    assert run.rc == 0
    assert run.calls("Renew the leases") == []
    change.stage.write("change.yml", FAIL)
    run = change.run(timeout="0s")  # it has taken longer than that
    assert change.was_rolled_back(run)
    assert run.calls("Renew the leases") == ["web01"], "one call per endpoint"

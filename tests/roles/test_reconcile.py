# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's entry point reconcile: what dead runs have left on libvirt's test driver, and what becomes of it."""

from __future__ import annotations

import pytest
from change import Change

pytestmark = pytest.mark.core_versions

OVER = "lease=2026-01-01T00:00:00Z"
ALIVE = "lease=2101-01-01T00:00:00Z"
SETTLE = {"reconcile_settle": "4s"}


def leave(change: Change, name: str, more: str = OVER, *, snapshot: str = "sp-CHG1", run: str = "0123456789ab") -> None:
    """What a run that died has left on a VM."""
    change.hypervisor.take(name, snapshot, f"[safepoint v=1 owner=safepoint state=guarding change=CHG1 run={run} by=awx1/job/7 {more}]")


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
    assert states(change, "web01", "web02") == [["rolled_back"]] * 2
    assert not {"lease", "claim"} & change.labels()[0].keys()
    for task in ("Look for changes that have not ended", "Claim the checkpoints", "Revert", "Label the checkpoints"):
        assert run.calls(task) == ["web01"], task
    again = change.run(entry="reconcile", reconcile_policy="rollback", **SETTLE)
    assert again.rc == 0
    assert again.recap("web01")["changed"] == again.recap("web02")["changed"] == 0
    assert again.said("Nothing: no change on web02 has been left without an end")

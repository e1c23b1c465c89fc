# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection's own playbooks, run by their full names as job templates are. The one for reconcile is in test_reconcile.py too."""

from __future__ import annotations

from pathlib import Path

import pytest
from change import FAIL, GOOD, Change

pytestmark = [pytest.mark.core_versions, pytest.mark.newest]

# What a survey gives is text.
SURVEY = {"hosts": "web01", "memory": "false", "timeout": "3600", "id": "CHG7"}


@pytest.mark.slow
def test_a_change_in_one_job(change: Change) -> None:
    """Files are looked for, and evidence is kept, in the working directory: nobody has any beside an installed playbook."""
    change.add("web02")
    (change.stage.folder / "change.yml").write_text(FAIL)
    (change.stage.folder / "health.yml").write_text(GOOD)
    env = {"PWD": str(change.stage.folder)}
    run = change.run_by_name("main", checks="health.yml", evidence_dir=None, env=env, **SURVEY)
    assert change.was_rolled_back(run)
    assert change.labels("web02") == []
    [evidence] = (change.stage.folder / "guarded_change_evidence").glob("*.json")
    assert evidence.name.startswith("sp-CHG7-")


def test_a_change_in_several_jobs(change: Change) -> None:
    run = change.run_by_name("checkpoint", "-e", "awx_job_id=42", **SURVEY)
    assert run.rc == 0
    [label] = change.labels()
    assert label["state"] == "guarding" and label["by"].endswith("/job/42") and label["began"] > "2026"
    assert change.run_by_name("reconcile", hosts="web01").said("Reported only: guarded_change_reconcile_policy is report")
    assert change.run_by_name("rollback", hosts="web01", id="CHG7").rc == 0
    assert change.labels()[0]["state"] == "rolled_back"
    assert change.run_by_name("checkpoint", **SURVEY).rc == 0
    assert change.run_by_name("commit", hosts="web01", id="CHG7").rc == 0
    assert [label["state"] for label in change.labels()] == ["rolled_back"]


def test_each_entry_point_has_a_playbook() -> None:
    role = Path(__file__).resolve().parents[2] / "roles/guarded_change/tasks"
    entries = {path.stem for path in role.glob("[!_]*.yml")}
    playbooks = {path.stem for path in (role.parents[2] / "playbooks").glob("*.yml")}
    assert {"main" if name == "guarded_change" else name for name in playbooks} >= entries - {"preflight"}

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same role on vSphere and on Proxmox VE: nothing but the connection is another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from change import FAIL, GOOD, KILL, Change
from hypervisor import ElsewhereEndpoint, ProxmoxHypervisor, VsphereHypervisor
from pve_server import PveServer
from server import VCenter
from stage import Stage

pytestmark = pytest.mark.core_versions


@pytest.fixture(params=[pytest.param("vsphere", marks=pytest.mark.vcenter), "proxmox"])
def endpoint(request: pytest.FixtureRequest) -> Iterator[ElsewhereEndpoint]:
    if request.param == "vsphere":
        with VCenter(vms=0) as vcenter:
            yield VsphereHypervisor(vcenter)
    else:
        with PveServer() as pve:
            yield ProxmoxHypervisor(pve)


@pytest.fixture
def change(stage: Stage, endpoint: ElsewhereEndpoint) -> Change:
    return Change(stage, endpoint)


def test_a_change_that_goes_well_leaves_no_snapshot(change: Change) -> None:
    change.stage.write("change.yml", GOOD)
    run = change.run()
    assert run.rc == 0
    assert run.said("Take the checkpoints") and run.said("Remove the checkpoints")
    assert change.labels() == []


@pytest.mark.parametrize("broken", [pytest.param(FAIL, marks=pytest.mark.slow), KILL])
def test_what_fails_or_is_lost_is_rolled_back_and_runs_again(change: Change, endpoint: ElsewhereEndpoint, broken: str) -> None:
    change.stage.write("change.yml", GOOD + broken)
    back = change.stage.guests["web01"].come_back_when(change.stage.write("flag", "")) if broken == KILL else None
    run = change.run(id="CHG0042")
    if back:
        back.join(30)
    assert change.was_rolled_back(run)
    assert endpoint.runs("web01")
    assert endpoint.secret not in run.output


def test_what_a_run_has_left_is_ended_by_reconcile(change: Change, endpoint: ElsewhereEndpoint) -> None:
    assert change.run(entry="checkpoint", id="CHG0042").rc == 0
    [label] = change.labels()
    assert {"change", "run", "by", "began", "lease"} <= label.keys()
    named = {"reconcile_policy": "rollback", "reconcile_run": label["run"], "reconcile_settle": "5s"}
    assert change.run(entry="reconcile", **named).said("Left alone: its run may be alive")
    run = change.run_by_name("reconcile", reconcile_scope="endpoint", reconcile_force="true", **named)
    assert run.rc == 0
    assert run.said("Rolled back: the policy is rollback. Its guest was not checked")
    assert change.labels()[0]["state"] == "rolled_back"
    assert endpoint.runs("web01")
    assert endpoint.secret not in run.output

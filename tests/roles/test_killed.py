# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controllers that are killed at each step of a guarded change, on a simulated Proxmox VE, and what reconcile makes of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

import pytest
from change import FAIL, GOOD, Change
from hypervisor import ProxmoxHypervisor
from pve_server import PveServer
from stage import Stage

pytestmark = [pytest.mark.core_versions, pytest.mark.oldest]


@dataclasses.dataclass(frozen=True)
class Point:
    """A moment in the life of a change."""

    name: str
    request: tuple[str, str] | None = None
    """Method and end of the path; without it a task of the file ``name`` waits."""
    after: bool = False
    """Whether the hypervisor has done what the request asks for, and only the answer is not heard."""
    nth: int = 1
    change_fails: bool = False
    left: str | None = "guarding"
    """What the label says in the end, or None where there is no snapshot."""
    undone: bool = True
    """Whether the VM is to be as it was before the change, once reconcile has been there."""


SNAPSHOTS, ROLLBACK, CONFIG, REMOVAL = "snapshot", "snapshot/*/rollback", "snapshot/*/config", "snapshot/sp-*"
POINTS = [
    Point("preflight", ("GET", SNAPSHOTS), left=None),
    Point("asked-to-take", ("POST", SNAPSHOTS), left=None),
    Point("taken", ("POST", SNAPSHOTS), after=True),
    Point("looks-again", ("GET", SNAPSHOTS), nth=4),
    Point("change"),
    Point("checks"),
    Point("asked-to-remove", ("DELETE", REMOVAL)),
    Point("removed", ("DELETE", REMOVAL), after=True, left=None, undone=False),
    Point("asked-to-revert", ("POST", ROLLBACK), change_fails=True),
    Point("reverted", ("POST", ROLLBACK), after=True, change_fails=True),
    Point("checks-again", change_fails=True),
    Point("asked-to-label", ("PUT", CONFIG), change_fails=True),
    Point("labelled", ("PUT", CONFIG), after=True, change_fails=True, left="rolled_back"),
]


class Datacenter:
    """VMs on one simulated cluster. One SSH server stands for the guests of all."""

    def __init__(self, stage: Stage, pve: PveServer) -> None:
        self.pve = pve
        self.change = Change(stage, ProxmoxHypervisor(pve))
        self.stage = stage

    def add(self, name: str) -> None:
        self.change.hypervisor.define(name)
        self.stage.guests[name] = self.stage.guests["web01"]

    def vmid(self, name: str) -> int:
        return next(vmid for vmid, guest in self.pve.guests.items() if guest.name == name)

    def kill_at(self, point: Point, name: str) -> None:
        """Run a change on a VM, and kill the controller when it has come to ``point``."""
        vmid = self.vmid(name)
        flag = self.stage.folder / name
        # Until the test is over, whose folder goes then.
        waits = f"- name: Wait\n  ansible.builtin.shell: touch {flag}; while test -e {flag}; do sleep 0.2; done\n"
        here = {step: waits for step in ("change", "checks") if point.name == step}
        if point.name == "checks-again":
            here["checks"] = waits
        self.stage.write(f"change-{name}.yml", here.get("change", FAIL if point.change_fails else GOOD))
        self.stage.write(f"checks-{name}.yml", here.get("checks", GOOD))
        held = None
        if point.request:
            method, path = point.request
            held = self.pve.fault(method, f"*/qemu/{vmid}/{path}", nth=point.nth, after=point.after, hold=True)
        reached: Callable[[], bool] = held.reached.is_set if held else flag.exists
        playing = self.change.start("--limit", name, tasks=f"change-{name}.yml", checks=f"checks-{name}.yml", id="CHG1")
        end = time.monotonic() + 120
        while not reached() and time.monotonic() < end:
            time.sleep(0.02)
        output = playing.kill()
        assert reached(), output
        print(name, "was killed in", output.rpartition("TASK [")[2].partition("]")[0])
        if held:
            held.release()
        while self.pve.guest(vmid)["lock"]:  # the hypervisor goes on with what it was asked to do
            time.sleep(0.02)

    def state(self, name: str) -> str | None:
        """What the label of its only snapshot says."""
        labels = self.change.labels(name)
        assert len(labels) <= 1
        return labels[0]["state"] if labels else None

    def writes(self) -> list[str]:
        return [call for call in self.pve.counters() if not call.startswith("GET")]


@pytest.fixture
def datacenter(stage: Stage) -> Iterator[Datacenter]:
    with PveServer() as pve:
        yield Datacenter(stage, pve)


def test_whatever_a_killed_controller_leaves_is_rolled_back_once(datacenter: Datacenter) -> None:
    pve, change = datacenter.pve, datacenter.change
    hosts = {f"vm-{point.name}": point for point in POINTS}
    for name, point in hosts.items():
        datacenter.add(name)
        pve.set_guest(datacenter.vmid(name), data="before")
        datacenter.kill_at(point, name)
        assert datacenter.state(name) == point.left, name
        if point.left == "guarding" or not point.undone:
            pve.set_guest(datacenter.vmid(name), data="changed")
    left = [name for name, point in hosts.items() if point.left == "guarding"]
    limit = ("--limit", ",".join(hosts))
    pve.reset_counters()

    alive = change.run(*limit, entry="reconcile", reconcile_policy="rollback")
    assert alive.rc == 0
    assert alive.output.count("Left alone: its run may be alive until its lease is over") == len(left)
    assert datacenter.writes() == []

    pve.clock_ahead = 3 * 3600.0  # that clock counts, not the controller's
    # One that is killed in the middle of a revert leaves a claim, whose lease has to end too.
    vmid = datacenter.vmid("vm-change")
    held = pve.fault("POST", f"*/qemu/{vmid}/{ROLLBACK}", after=True, hold=True)
    playing = change.start("--limit", "vm-change", entry="reconcile", reconcile_policy="rollback", reconcile_settle="5s")
    assert held.reached.wait(120), playing.kill()
    playing.kill()
    held.release()
    [label] = change.labels("vm-change")
    assert label["state"] == "guarding" and label["claim"]

    pve.clock_ahead += 3 * 3600.0
    first = change.run(*limit, entry="reconcile", reconcile_policy="rollback", reconcile_settle="5s")
    assert first.rc == 0
    for name, point in hosts.items():
        guest = pve.guest(datacenter.vmid(name))
        assert datacenter.state(name) == ("rolled_back" if point.left else None), name
        assert guest["data"] == ("before" if point.undone else "changed"), name
        assert guest["status"] == "running", name
        said = f"{name} was rolled back to sp-CHG1-" if name in left else f"no change on {name} has been left without an end"
        assert first.said(said), name

    # From the rollback on, by the clock of the endpoint; the snapshots are six hours older.
    ahead = timedelta(seconds=pve.clock_ahead)
    for name in left:
        [label] = change.labels(name)
        expires = datetime.fromisoformat(label["expires"].replace("Z", "+00:00"))
        assert timedelta(hours=71) < expires - datetime.now(timezone.utc) - ahead <= timedelta(hours=72)

    pve.reset_counters()
    second = change.run(*limit, entry="reconcile", reconcile_policy="rollback")
    assert second.rc == 0
    assert all(second.recap(name)["changed"] == 0 for name in hosts)
    assert datacenter.writes() == []

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A call whose process is killed or told to stop, on a vCenter whose tasks take time."""

from __future__ import annotations

import json
import random
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import child
from server import VCenter

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline

pytestmark = pytest.mark.vcenter

VMS = [f"DC0_C0_RP0_VM{number}" for number in range(12)]


@pytest.fixture(scope="module")
def slow() -> Iterator[VCenter]:
    with VCenter(vms=len(VMS)) as vcenter:
        vcenter.set(task_time=0.3)
        yield vcenter


def options(vcenter: VCenter, path: Path, **more: t.Any) -> dict[str, t.Any]:
    reach = {"backend": "vsphere", "hostname": vcenter.hostname, "port": vcenter.port, "ca_path": vcenter.ca_path}
    login = {"username": vcenter.username, "password": vcenter.password}
    return {**reach, **login, "vms": VMS, "max_parallel": 3, "audit_file": str(path), **more}


def lines(path: Path) -> list[dict[str, t.Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def writes(vcenter: VCenter) -> int:
    """How many tasks on snapshots were begun since the counters were reset."""
    methods: dict[str, int] = vcenter.counters()["methods"]
    return methods.get("CreateSnapshotEx_Task", 0) + methods.get("RemoveSnapshot_Task", 0)


def run(vcenter: VCenter, path: Path, **more: t.Any) -> None:
    process = child("snapshot", options(vcenter, path, **more))
    answer, errors = process.communicate(timeout=120)
    assert json.loads(answer)["failure"] is None, errors


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_no_change_of_a_call_that_is_killed_at_any_moment_is_unrecorded(slow: VCenter, tmp_path: Path, kills: int) -> None:
    path, prepared = tmp_path / "audit.jsonl", tmp_path / "prepared.jsonl"
    chance = random.Random(14)
    removing = [f"{tmp_path.name}-{number}" for number in range(1, kills, 3)]
    for name in removing:
        run(slow, prepared, name=name, max_parallel=len(VMS))
    for number in range(kills):
        name = f"{tmp_path.name}-{number}"
        slow.reset_counters()
        process = child("snapshot", options(slow, path, name=name, state="absent" if name in removing else "present"))
        Deadline(60).poll("the first write", lambda: writes(slow) or None, first=0.02, longest=0.02)
        time.sleep(chance.uniform(0, 1.2))  # the moment is what is random here
        process.kill()
        process.communicate()
    run(slow, prepared, name="end")  # waits for the tasks that are under way
    intents = {(one["action"], one["vm"], one["snapshot"]) for one in lines(path) if one["event"] == "intent"}
    there = {(vm, one["name"]) for vm in VMS for one in slow.vm(vm)["snapshots"]}
    made = {("take", vm, name) for vm, name in there if name.startswith(tmp_path.name) and name not in removing}
    gone = {("remove", vm, name) for vm in VMS for name in removing if (vm, name) not in there}
    assert made | gone <= intents
    assert made  # so that it was about something
    # A killed call tells no results; an intent without an outcome is what is left of what it had begun last.
    ended = [one["id"] for one in lines(path) if one["event"] == "outcome"]
    assert len(set(ended)) == len(ended) and len(intents) > len(ended)

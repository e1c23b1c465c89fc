# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Calls whose process is killed or gets a signal, on a vCenter whose tasks take time."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from pve_server import PveServer
from running import child
from server import VCenter

from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

pytestmark = pytest.mark.vcenter

VMS = [f"DC0_C0_RP0_VM{number}" for number in range(12)]


@pytest.fixture(scope="module")
def slow() -> Iterator[VCenter]:
    with VCenter(vms=len(VMS)) as vcenter:
        vcenter.set(task_time=0.3)
        yield vcenter


Start = t.Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start calls, and end them with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(child(*arguments))


def options(vcenter: VCenter, path: Path, **more: t.Any) -> dict[str, t.Any]:
    reach = {"backend": "vsphere", "hostname": vcenter.hostname, "port": vcenter.port, "ca_path": vcenter.ca_path}
    login = {"username": vcenter.username, "password": vcenter.password}
    return {**reach, **login, "vms": VMS, "max_parallel": 3, "audit_file": str(path), **more}


def lines(path: Path) -> list[dict[str, t.Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def writes(vcenter: VCenter) -> int:
    """Return the number of snapshot tasks that were started since the counters were reset."""
    methods: dict[str, int] = vcenter.counters()["methods"]
    return methods.get("CreateSnapshotEx_Task", 0) + methods.get("RemoveSnapshot_Task", 0)


@contextlib.contextmanager
def taking(vcenter: VCenter, seconds: float) -> Iterator[None]:
    """Let tasks take this long until the end of the block."""
    vcenter.set(task_time=seconds)
    yield
    vcenter.set(task_time=0.3)


def run(vcenter: VCenter, path: Path, **more: t.Any) -> None:
    with child("snapshot", options(vcenter, path, **more)) as process:
        answer, errors = process.communicate(timeout=120)
    assert json.loads(answer)["failure"] is None, errors


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_every_change_of_a_killed_call_is_recorded(slow: VCenter, start: Start, tmp_path: Path, kills: int) -> None:
    path, prepared = tmp_path / "audit.jsonl", tmp_path / "prepared.jsonl"
    chance = random.Random(14)
    removing = [f"{tmp_path.name}-{number}" for number in range(1, kills, 3)]
    for name in removing:
        run(slow, prepared, name=name, max_parallel=len(VMS))
    for number in range(kills):
        name = f"{tmp_path.name}-{number}"
        slow.reset_counters()
        process = start("snapshot", options(slow, path, name=name, state="absent" if name in removing else "present"))
        Deadline(60).poll("the first write", lambda: writes(slow) or None, first=0.02, longest=0.02)
        time.sleep(chance.uniform(0, 1.2))  # only the moment of the kill is random
        process.kill()
        process.communicate()
    run(slow, prepared, name="end")  # wait for the running tasks
    intents = {(one["action"], one["vm"], one["snapshot"]) for one in lines(path) if one["event"] == "intent"}
    there = {(vm, one["name"]) for vm in VMS for one in slow.vm(vm)["snapshots"]}
    made = {("take", vm, name) for vm, name in there if name.startswith(tmp_path.name) and name not in removing}
    gone = {("remove", vm, name) for vm in VMS for name in removing if (vm, name) not in there}
    assert made | gone <= intents
    assert made  # the test did something
    # A killed call has no results; for its last write, the audit has an intent without an outcome.
    ended = [one["id"] for one in lines(path) if one["event"] == "outcome"]
    assert len(set(ended)) == len(ended) and len(intents) > len(ended)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_call_starts_nothing_more_after_a_signal_and_reports_running_jobs(
    slow: VCenter, start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    path, name = tmp_path / "audit.jsonl", f"{tmp_path.name}-stopped"
    slow.reset_counters()
    with taking(slow, 600):
        process = start("snapshot", options(slow, path, name=name, on_error="undo"))
        Deadline(60).poll("the first writes", lambda: writes(slow) >= 3 or None, first=0.02, longest=0.05)
        process.send_signal(number)
        told = time.monotonic()
        process.send_signal(number)  # from an impatient user
        answer, errors = process.communicate(timeout=60)
        took = time.monotonic() - told
        begun = writes(slow)
    said = json.loads(answer)
    assert took < 30 and errors == b"" and process.returncode == 0  # 5 seconds are promised; the tasks take far longer than 30
    assert begun == 3  # nothing more was started, and nothing undone
    assert said["failure"]["error"] == "interrupted" and number.name in said["failure"]["msg"]
    rows = {code: [row for row in said["result"]["vms"] if row["error"] == code] for code in ("interrupted", "not_started")}
    assert (len(rows["interrupted"]), len(rows["not_started"])) == (3, len(VMS) - 3)
    assert all("task task-" in row["msg"] and row["changed"] for row in rows["interrupted"])
    assert not any(row["changed"] for row in rows["not_started"])
    running = {row["vm"]["name"] for row in rows["interrupted"]}
    assert {one["vm"] for one in lines(path) if one["event"] == "intent"} == running
    assert {one["vm"] for one in lines(path) if one["event"] == "result"} == set(VMS)
    run(slow, tmp_path / "prepared.jsonl", name=f"{name}-after")
    assert {vm for vm in VMS for one in slow.vm(vm)["snapshots"] if one["name"] == name} == running


def test_after_a_signal_ended_jobs_are_read_and_ending_jobs_are_waited_for(slow: VCenter, start: Start, tmp_path: Path) -> None:
    path, name = tmp_path / "audit.jsonl", f"{tmp_path.name}-partly"
    slow.reset_counters()

    def taken(vms: list[str]) -> bool | None:
        return all(any(one["name"] == name for one in slow.vm(vm)["snapshots"]) for vm in vms) or None

    first, ending, running, untouched = VMS[:3], VMS[3:4], VMS[4:6], VMS[6:]
    with taking(slow, 600):  # so that no task ends by itself, even on a slow machine
        slow.set(vm_task_times=dict.fromkeys(first, 0.3))
        process = start("snapshot", options(slow, path, name=name))
        Deadline(60).poll("the second wave", lambda: writes(slow) == 6 or None)
        # The process is stopped, so it sees the end of this task only after the signal.
        process.send_signal(signal.SIGSTOP)
        slow.set(vm_task_times=dict.fromkeys(first + ending, 0.3))
        Deadline(60).poll("the end of one more", lambda: taken(ending))
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        said = json.loads(process.communicate(timeout=60)[0])
        assert writes(slow) == 6
    slow.set(vm_task_times=dict.fromkeys(VMS, 0.3))
    rows = {row["vm"]["name"]: row.get("error") for row in said["result"]["vms"]}
    assert rows == {
        **dict.fromkeys(first + ending),
        **dict.fromkeys(running, "interrupted"),
        **dict.fromkeys(untouched, "not_started"),
    }
    assert all(row["action"] == "created" and row["changed"] for row in said["result"]["vms"] if "error" not in row)
    assert said["failure"]["error"] == "interrupted" and said["result"]["changed"]
    Deadline(60).poll("the ends of the others", lambda: taken(running))
    slow.set(vm_task_times={})


@pytest.mark.parametrize("module", ["snapshot", "snapshot_info"])
def test_call_that_waits_for_a_silent_server_ends_at_once_after_a_signal(
    slow: VCenter, start: Start, tmp_path: Path, module: str
) -> None:
    asked = options(slow, tmp_path / "audit.jsonl", name="never")
    if module == "snapshot_info":
        asked = {key: value for key, value in asked.items() if key not in ("audit_file", "max_parallel", "name")}
    connections = slow.counters()["connections"]
    with slow.mute():
        process = start(module, asked)
        Deadline(60).poll("the connection", lambda: slow.counters()["connections"] > connections or None)
        process.terminate()
        told = time.monotonic()
        answer, errors = process.communicate(timeout=60)
    assert time.monotonic() - told < 20 and errors == b""
    assert json.loads(answer)["failure"]["error"] == "interrupted" and json.loads(answer)["result"] == {}


def test_running_tasks_of_proxmox_ve_are_reported_with_their_upid(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with PveServer() as cluster:
        cluster.nameless_seconds = 0.0
        guests = [cluster.make_guest(f"web{number:02d}") for number in range(4)]
        cluster.set_task_seconds(14, "qmsnapshot")
        reach = {"backend": "proxmox", "hostname": cluster.hostname, "port": cluster.port, "ca_path": cluster.ca_path}
        login = {"token_id": cluster.token_id, "token_secret": cluster.token_secret}
        vms = [str(vmid) for vmid in guests]
        asked = {**reach, **login, "vms": vms, "name": "stopped", "max_parallel": 2, "audit_file": str(path), "on_error": "undo"}
        process = start("snapshot", asked)
        Deadline(60).poll(
            "the first workers", lambda: sum(bool(cluster.guest(vmid)["snapshots"]) for vmid in guests) >= 2 or None
        )
        process.terminate()
        told = time.monotonic()
        answer, errors = process.communicate(timeout=60)
        assert time.monotonic() - told < 12 and errors == b""
        rows = json.loads(answer)["result"]["vms"]
        assert sorted(row["error"] for row in rows) == ["interrupted"] * 2 + ["not_started"] * 2
        assert all("UPID:" in row["msg"] for row in rows if row["error"] == "interrupted")
        running = {row["vm"]["id"] for row in rows if row["error"] == "interrupted"}
        assert {one["vm_id"] for one in lines(path) if one["event"] == "intent"} == running
        # They continue, and nothing was undone.
        Deadline(60).poll("the ends", lambda: not any(cluster.guest(vmid)["lock"] for vmid in guests) or None)
        assert {str(vmid) for vmid in guests if cluster.guest(vmid)["snapshots"]} == running

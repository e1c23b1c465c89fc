# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The audit file of the modules, as users see it."""

from __future__ import annotations

import getpass
import json
import multiprocessing
import os
import re
import resource
import signal
import socket
import stat
import typing as t
from datetime import timedelta
from pathlib import Path

import libvirt
import pytest
from fake import FakeDriver, Hypervisor
from running import parameters, run_module

from ansible_collections.safepoint.vm.plugins.module_utils._audit import AuditFile
from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import parse_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import BackendFailed, InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target, Vm
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Create, Finished, Job
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._run import Call, perform

SECRET = "hunter2-is-long-enough"


def lines(path: Path) -> list[dict[str, t.Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_changed_vm_has_a_line_with_user_action_reason_and_duration(
    lab: t.Any, state: libvirt.virConnect, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    options = {"backend": "libvirt", "uri": lab.test_uri, "vm": "test", "name": "a", "label_key": SECRET}
    words = {"description": "CHG0042 kernel update", "labels": {"change": "CHG0042"}}
    env = {"SAFEPOINT_AUDIT_FILE": str(path), "SUDO_USER": "alice", "JOB_ID": "7"}
    run_module("snapshot", {**options, **words}, "--check", **env)
    assert not path.exists()
    run_module("snapshot", {**options, **words}, **env)
    run_module("snapshot", {**options, **words}, **env)  # changes nothing and writes no line
    run_module("snapshot_revert", {**options, "audit_file": str(path)})
    run_module("snapshot_revert", {**options, "name": "none"}, **env)
    run_module("snapshot_info", {key: value for key, value in options.items() if key != "name"}, **env)
    run_module("snapshot", {**options, "state": "absent"}, **env)
    unreachable, _shown = run_module("snapshot", {**options, "uri": "qemu+unix:///system?socket=/nowhere"}, **env)
    seen = lines(path)
    assert [(one["event"], one["action"]) for one in seen if one["id"]] == [
        (event, action) for action in ("take", "revert", "remove") for event in ("intent", "outcome")
    ]
    made, reverted, missing, removed, lost = (one for one in seen if one["event"] == "result")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SECRET not in path.read_text()
    seconds = made.pop("seconds")
    assert 0 <= seconds < 60
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", made.pop("time"))
    assert re.fullmatch("[0-9a-f]{16}", made.pop("call"))
    assert made == expected(lab, state)
    assert (reverted["module"], reverted["action"], reverted["change"]) == ("safepoint.vm.snapshot_revert", "reverted", "CHG0042")
    assert (missing["error"], missing["changed"], missing["snapshot"]) == ("snapshot_not_found", False, "none")
    assert (removed["action"], removed["why"], removed["snapshot"]) == ("removed", "CHG0042 kernel update", "a")
    assert (lost["vm"], lost["vm_id"], lost["error"]) == ("test", None, unreachable["error"])


def expected(lab: t.Any, state: libvirt.virConnect) -> dict[str, t.Any]:
    """Return the line of the first snapshot, without the time, the duration and the id of the call."""
    return {
        "version": 1,
        "event": "result",
        "id": None,
        "host": socket.gethostname(),
        "user": getpass.getuser(),
        "sudo_user": "alice",
        "job": "7",
        "module": "safepoint.vm.snapshot",
        "vm": "test",
        "vm_id": state.lookupByName("test").UUIDString(),
        "backend": "libvirt",
        "endpoint": lab.test_uri,
        "action": "created",
        "changed": True,
        "snapshot": "a",
        "snapshot_id": "a",
        "also_removed": [],
        "change": "CHG0042",
        "why": "CHG0042 kernel update",
        "labels": {"owner": "safepoint", "change": "CHG0042"},
        "error": None,
        "msg": None,
    }


def test_each_pruned_snapshot_has_a_line_with_the_rule(lab: t.Any, state: libvirt.virConnect, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    options = {"backend": "libvirt", "uri": lab.test_uri, "vm": "test"}
    for name in "abc":
        run_module("snapshot", {**options, "name": name, "labels": {"change": "CHG0042"}})
    policy = {**options, "max_count": 1, "audit_file": str(path)}
    run_module("snapshot_prune", policy, "--check")
    assert not path.exists()
    run_module("snapshot_prune", policy)
    run_module("snapshot_prune", policy)
    removed = [one for one in lines(path) if one["event"] == "result"]
    assert [(one["action"], one["snapshot"], one["change"], one["vm"]) for one in removed] == [
        ("removed", name, "CHG0042", "test") for name in "ab"
    ]
    assert all("older than the 1 that max_count keeps" in one["why"] and one["error"] is None for one in removed)


def test_intent_and_outcome_have_the_same_id_and_describe_the_write(
    lab: t.Any, state: libvirt.virConnect, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    options = {"backend": "libvirt", "uri": lab.test_uri, "vm": "test", "name": "a", "audit_file": str(path), "label_key": SECRET}
    words = {"description": "CHG0042 kernel", "labels": {"change": "CHG0042"}}
    run_module("snapshot", {**options, **words}, JOB_ID="7")
    intent, outcome, result = lines(path)
    assert intent["call"] == outcome["call"] == result["call"]
    began, ends_by = parse_time(intent.pop("time"), option="time"), parse_time(intent.pop("ends_by"), option="ends_by")
    assert timedelta(minutes=15) <= ends_by - began <= timedelta(minutes=16)
    common = {
        key: value for key, value in outcome.items() if key not in ("time", "seconds", "event", "snapshot_id", "error", "msg")
    }
    assert {**intent, "event": "outcome"} == {**common, "event": "outcome", "snapshot_id": None}
    assert intent == {
        "version": 1,
        "event": "intent",
        "id": f"{result['call']}-1",
        "call": result["call"],
        "host": socket.gethostname(),
        "user": getpass.getuser(),
        "sudo_user": None,
        "job": "7",
        "endpoint": lab.test_uri,
        "backend": "libvirt",
        "module": "safepoint.vm.snapshot",
        "vm": "test",
        "vm_id": state.lookupByName("test").UUIDString(),
        "action": "take",
        "snapshot": "a",
        "snapshot_id": None,
        "change": "CHG0042",
        "why": "CHG0042 kernel",
        "labels": {"owner": "safepoint", "change": "CHG0042"},
    }
    assert (outcome["event"], outcome["snapshot_id"], outcome["error"]) == ("outcome", "a", None)
    # A change of the label is a write as well.
    run_module("snapshot", {**options, "labels": {"change": "CHG0043"}})
    intent, outcome, result = lines(path)[3:]
    assert (intent["action"], intent["change"], outcome["id"], result["action"]) == (
        "describe",
        "CHG0043",
        intent["id"],
        "updated",
    )


def test_undo_is_recorded(tmp_path: Path) -> None:
    hypervisor = Hypervisor()
    names = [hypervisor.add(f"vm{number}").name for number in range(2)]
    hypervisor.failures[2] = BackendFailed("no space left on device")
    path = tmp_path / "audit.jsonl"
    audit = AuditFile(str(path), module="safepoint.vm.snapshot", options={"backend": "fake"}, by={}, seconds=900, secrets=[])
    fleet = Fleet(FakeDriver(hypervisor), Bounds(on_error="undo"), observer=audit)
    fleet.apply([Target(name) for name in names], Present(Request(name="x")), dry_run=False)
    audit.finish([], None)
    intents = {one["id"]: one for one in lines(path) if one["event"] == "intent"}
    outcomes = [one for one in lines(path) if one["event"] == "outcome"]
    assert sorted((intents[one["id"]]["vm"], one["action"], one["error"]) for one in outcomes) == [
        ("vm0", "remove", None),
        ("vm0", "take", None),
        ("vm1", "take", "backend_failed"),
    ]
    assert len(intents) == 3


@pytest.mark.parametrize("kind", ["no folder", "nobody reads", "a folder", "NUL", "surrogate"])
@pytest.mark.parametrize("check", [False, True])
def test_unwritable_audit_file_is_refused_before_any_write(
    lab: t.Any, state: libvirt.virConnect, tmp_path: Path, kind: str, check: bool
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    paths = {"no folder": str(tmp_path / "none" / "audit.jsonl"), "nobody reads": str(pipe), "a folder": str(tmp_path)}
    paths |= {"NUL": str(tmp_path / "a\0b"), "surrogate": str(tmp_path / "a\ud800b")}
    path = paths[kind]
    options = {**parameters("snapshot"), "backend": "libvirt", "uri": lab.test_uri, "vm": "test", "name": "a", "audit_file": path}
    answer = perform(Call("snapshot", options, check, False, []))
    assert answer.failure and answer.failure["error"] == "invalid_option"
    assert "audit_file" in answer.failure["msg"]
    assert answer.result == {}
    assert state.lookupByName("test").snapshotNum() == 0


def test_write_without_a_recorded_intent_is_not_started(lab: t.Any, state: libvirt.virConnect) -> None:
    """Raise the error of a full disk."""
    options = {"backend": "libvirt", "uri": lab.test_uri, "vm": "test", "name": "a", "audit_file": "/dev/full"}
    made, _shown = run_module("snapshot", options)
    assert (made["error"], made["changed"], made["vms"][0]["action"]) == ("invalid_option", False, "failed")
    assert "audit_file='/dev/full'" in made["msg"]
    assert state.lookupByName("test").snapshotNum() == 0


def audit_file(path: Path | str, **options: t.Any) -> AuditFile:
    call = {"backend": "fake", **options}
    return AuditFile(str(path), module="safepoint.vm.snapshot", options=call, by={}, seconds=900, secrets=[])


def _write(path: str, mark: str) -> None:
    audit = audit_file(path)
    for number in range(200):
        action = Create(Vm(mark, mark), str(number), mark * 480, memory=False)
        audit.before(action)
        audit.after(Finished(Job(action)))


def test_lines_of_parallel_runs_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    writers = [multiprocessing.Process(target=_write, args=(str(path), mark)) for mark in "abcd"]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    seen = [(line["vm"], line["event"], line["snapshot"]) for line in lines(path)]
    wanted = [(mark, event, str(number)) for mark in "abcd" for event in ("intent", "outcome") for number in range(200)]
    assert sorted(seen) == sorted(wanted)
    by_id: dict[str, set[str]] = {}
    for line in lines(path):
        by_id.setdefault(line["id"], set()).add(line["event"])
    assert len(by_id) == 800 and set(map(frozenset, by_id.values())) == {frozenset({"intent", "outcome"})}


def test_partial_line_on_a_full_disk_does_not_break_the_next_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = audit_file(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    action = Create(Vm("a", "a"), "x", "", memory=False)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        with pytest.raises(InvalidOption, match="did not take snapshot"):
            audit.before(action)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    audit.before(action)
    audit.finish([], None)
    half, whole = path.read_text().splitlines()
    assert len(half) == 100 and json.loads(whole)["event"] == "intent"


def test_failed_close_of_the_audit_file_keeps_all_rows(tmp_path: Path) -> None:
    audit = AuditFile(
        str(tmp_path / "audit"), module="safepoint.vm.snapshot", options={"backend": "fake"}, by={}, seconds=900, secrets=[]
    )
    os.close(audit._descriptor)  # like EIO or EDQUOT, which NFS reports at close()
    audit.finish([], None)
    assert len(audit.warnings) == 1 and "audit_file=" in audit.warnings[0] and "Bad file descriptor" in audit.warnings[0]

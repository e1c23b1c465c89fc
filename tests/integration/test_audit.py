# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The audit of what the modules did, as a user meets it."""

from __future__ import annotations

import getpass
import json
import multiprocessing
import os
import re
import socket
import stat
import typing as t
from pathlib import Path

import libvirt
import pytest
from running import run_module

from ansible_collections.safepoint.vm.plugins.module_utils._audit import append

SECRET = "hunter2-is-long-enough"


def lines(path: Path) -> list[dict[str, t.Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_vm_that_was_acted_on_is_a_line_that_says_who_what_why_and_how_long(
    lab: t.Any, state: libvirt.virConnect, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    options = {"backend": "libvirt", "uri": lab.test_uri, "vm": "test", "name": "a", "label_key": SECRET}
    words = {"description": "CHG0042 kernel update", "labels": {"change": "CHG0042"}}
    env = {"SAFEPOINT_AUDIT_FILE": str(path), "SUDO_USER": "alice", "JOB_ID": "7"}
    run_module("snapshot", {**options, **words}, "--check", **env)
    assert not path.exists()
    run_module("snapshot", {**options, **words}, **env)
    run_module("snapshot", {**options, **words}, **env)  # changes nothing, and says nothing
    run_module("snapshot_revert", {**options, "audit_file": str(path)})
    run_module("snapshot_revert", {**options, "name": "none", "labels": None}, **env)
    run_module("snapshot_info", {key: value for key, value in options.items() if key != "name"}, **env)
    run_module("snapshot", {**options, "state": "absent"}, **env)
    unreachable, _shown = run_module("snapshot", {**options, "uri": "qemu+unix:///system?socket=/nowhere"}, **env)
    made, reverted, missing, removed, lost = lines(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SECRET not in path.read_text()
    seconds = made.pop("seconds")
    assert 0 <= seconds < 60
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", made.pop("time"))
    assert made == {
        "version": 1,
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
    assert (reverted["module"], reverted["action"], reverted["change"]) == ("safepoint.vm.snapshot_revert", "reverted", "CHG0042")
    assert (missing["error"], missing["changed"], missing["snapshot"]) == ("snapshot_not_found", False, "none")
    assert (removed["action"], removed["why"], removed["snapshot"]) == ("removed", "CHG0042 kernel update", "a")
    assert (lost["vm"], lost["vm_id"], lost["error"]) == ("test", None, unreachable["error"])


def test_each_snapshot_that_is_pruned_is_a_line_that_says_by_which_rule(
    lab: t.Any, state: libvirt.virConnect, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    options = {"backend": "libvirt", "uri": lab.test_uri, "vm": "test"}
    for name in "abc":
        run_module("snapshot", {**options, "name": name, "labels": {"change": "CHG0042"}})
    policy = {**options, "max_count": 1, "audit_file": str(path)}
    run_module("snapshot_prune", policy, "--check")
    assert not path.exists()
    run_module("snapshot_prune", policy)
    run_module("snapshot_prune", policy)
    removed = lines(path)
    assert [(one["action"], one["snapshot"], one["change"], one["vm"]) for one in removed] == [
        ("removed", name, "CHG0042", "test") for name in "ab"
    ]
    assert all("older than the 1 that may stay" in one["why"] and one["error"] is None for one in removed)


def test_an_audit_that_cannot_be_written_is_a_warning(lab: t.Any, state: libvirt.virConnect, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for name, path in (("a", tmp_path / "none" / "audit.jsonl"), ("b", pipe)):
        options = {"backend": "libvirt", "uri": lab.test_uri, "vm": "test", "name": name, "audit_file": str(path)}
        made, shown = run_module("snapshot", options)
        assert made["changed"] and "error" not in made
        shown = "".join(shown.split())  # the terminal breaks lines anywhere
        assert "Whatwasdoneisnotinaudit_file=" in shown and str(path) in shown
    assert state.lookupByName("test").snapshotNum() == 2


def _write(path: str, mark: str) -> None:
    for number in range(200):
        append(path, [json.dumps({"mark": mark, "number": number, "text": mark * 5000})])


def test_lines_of_runs_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    writers = [multiprocessing.Process(target=_write, args=(str(path), mark)) for mark in "abcd"]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    seen = lines(path)
    assert sorted((line["mark"], line["number"]) for line in seen) == [(mark, number) for mark in "abcd" for number in range(200)]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="space"):
        append("/dev/full", ["{}"])

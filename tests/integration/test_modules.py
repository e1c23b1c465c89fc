# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules as a user runs them: with ansible and a real libvirtd."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
import typing as t
import venv
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from running import ANSIBLE, ROOT, Module, environment, run_module


def test_check_mode_agrees_with_two_runs(module: Module) -> None:
    options = {"vm": "test", "name": "before-upgrade", "description": "kernel", "expires": "72h", "labels": {"change": "CHG0042"}}
    would = module("snapshot", "--check", "--diff", **options)
    assert module("snapshot_info", vm="test")["vms"][0]["snapshots"] == []
    does = module("snapshot", "--diff", **options)
    again = module("snapshot", "--diff", **options)
    assert would["changed"] and does["changed"] and not again["changed"]
    assert [one["vms"][0]["action"] for one in (would, does, again)] == ["created", "created", "exists"]
    assert again["vms"][0]["snapshot"] == does["vms"][0]["snapshot"]
    unknown = {"id": None, "created": None, "size_unknown": None}
    predicted, seen = would["vms"][0]["snapshot"], does["vms"][0]["snapshot"]
    for one in (predicted, seen):
        del one["label"]["expires"]
    assert predicted == {**seen, **unknown}
    assert seen["label"] == {"owner": "safepoint", "change": "CHG0042"}
    assert seen["ours"] and seen["current"] and seen["description"] == "kernel"


def test_check_mode_agrees_with_revert_and_removal(module: Module) -> None:
    module("snapshot", vm="test", name="a")
    module("snapshot", vm="test", name="b")
    for flags in (("--check",), (), ()):
        reverted = module("snapshot_revert", *flags, vm="test", name="a", discard_newer=True)
        assert (reverted["changed"], reverted["vms"][0]["action"]) == (True, "reverted")
        assert reverted["vms"][0]["snapshot"]["current"]
    for flags, changed in ((("--check",), True), ((), True), ((), False)):
        assert module("snapshot", *flags, vm="test", id="a", state="absent")["changed"] is changed
    assert module("snapshot_info", vm="test")["vms"][0]["snapshots"] == []


def test_targets_name_a_snapshot_id_for_each_vm(module: Module, state: libvirt.virConnect) -> None:
    state.createXML("<domain type='test'><name>other</name><memory>8192</memory><os><type>hvm</type></os></domain>")
    module("snapshot", vm="test", name="one")
    module("snapshot", vm="other", name="two")
    targets = [{"vm": "other", "id": "two"}, {"vm": "test", "id": "one"}]
    labelled = module("snapshot", targets=targets, labels={"state": "committed"})
    assert [row["snapshot"]["label"]["state"] for row in labelled["vms"]] == ["committed"] * 2
    reverted = module("snapshot_revert", targets=targets)
    assert [(row["ref"], row["snapshot"]["id"]) for row in reverted["vms"]] == [("other", "two"), ("test", "one")]
    removed = module("snapshot", targets=targets, state="absent")
    assert [row["action"] for row in removed["vms"]] == ["removed"] * 2


def test_revert_to_a_missing_snapshot_fails(module: Module) -> None:
    failed = module("snapshot_revert", vm="test", name="nowhere")
    assert (failed["error"], failed["changed"]) == ("snapshot_not_found", False)
    assert "nowhere" in failed["msg"]


def test_error_is_that_of_the_failed_vm_not_of_those_not_started(module: Module) -> None:
    failed = module("snapshot", vms=["test", "nowhere"], name="x")
    assert failed["error"] == "vm_not_found"
    assert failed["msg"].startswith("1 of 2 VMs failed. nowhere: ")
    assert [row["error"] for row in failed["vms"]] == ["not_started", "vm_not_found"]


def test_two_parallel_processes_take_one_snapshot(lab: t.Any, state: libvirt.virConnect) -> None:
    results: list[dict[str, t.Any]] = []
    options = {"backend": "libvirt", "uri": lab.test_uri, "vm": "test", "name": "race"}
    threads = [threading.Thread(target=lambda: results.append(run_module("snapshot", options)[0])) for _each in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result["changed"] for result in results) == [False, True]
    assert state.lookupByName("test").snapshotNum() == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vm": "test", "name": "x", "memroy": True}, ["memroy", "memory"]),
        ({"vm": "test", "name": "x", "state": "there"}, ["state", "present", "absent", "there"]),
        ({"vm": "test", "name": "a/b"}, ["name", "a/b", "letters"]),
        ({"vm": "test", "name": "x", "expires": "soon"}, ["expires", "soon", "72h"]),
        ({"vm": "test", "name": "x", "timeout": "0"}, ["timeout", "0"]),
        ({"vm": "test", "name": "x", "timeout": "5 minutes"}, ["timeout", "5 minutes", "15m"]),
        ({"vm": "test", "name": "x", "labels": {"Owner": "me"}}, ["labels", "Owner"]),
        ({"vm": "test", "name": "x", "description": "[safepoint v=1 owner=x]"}, ["description", "labels"]),
        ({"vm": "test", "name": "x", "max_parallel": 0}, ["max_parallel", "0"]),
        ({"vm": "test", "name": "x", "owner": ""}, ["owner"]),
        ({"vm": "test", "name": "x", "expires": "9999999d"}, ["expires", "9999999d", "hundred years"]),
        ({"vm": "test", "name": "x", "timeout": "99999999999"}, ["timeout", "hundred years"]),
        ({"vm": "test", "name": "", "state": "absent"}, ["name", "empty"]),
        ({"vm": "test", "id": "x", "if_exists": "fail"}, ["if_exists", "name"]),
        ({"vm": "test", "name": "x", "hold": False, "hold_reason": "because"}, ["hold_reason", "hold"]),
        ({"vm": "test"}, ["name", "id", "targets"]),
        ({"vm": "test", "name": "x", "id": "y"}, ["name", "id"]),
        ({"name": "x"}, ["vm", "vms", "targets"]),
        ({"vms": [], "name": "x"}, ["vms", "empty"]),
        ({"vms": ["test", "test"], "name": "x"}, ["test", "2 times"]),
        ({"vms": ["test", "other"], "id": "x"}, ["id", "targets"]),
        ({"vm": "test", "name": "x", "backend": "vmwre"}, ["backend", "libvirt", "vmwre"]),
    ],
)
def test_invalid_option_is_named_with_its_value_and_nothing_is_written(
    module: Module, state: libvirt.virConnect, options: dict[str, t.Any], words: list[str]
) -> None:
    failed = module("snapshot", **options)
    assert failed["changed"] is False
    for word in words:
        assert word in failed["msg"]
    assert state.lookupByName("test").snapshotNum() == 0


def test_missing_uri_error_names_the_option_and_the_variable(state: libvirt.virConnect, lab: t.Any) -> None:
    failed, _shown = run_module("snapshot_info", {"backend": "libvirt", "vm": "test"}, LIBVIRT_DEFAULT_URI="")
    assert failed["error"] == "invalid_option"
    assert "uri" in failed["msg"] and "LIBVIRT_DEFAULT_URI" in failed["msg"]
    found, _shown = run_module("snapshot_info", {"backend": "libvirt", "vm": "test"}, LIBVIRT_DEFAULT_URI=lab.test_uri)
    assert found["vms"][0]["power"] == "running"


def test_owner_can_be_set_in_the_environment(lab: t.Any, state: libvirt.virConnect) -> None:
    options = {"backend": "libvirt", "uri": lab.test_uri, "vm": "test", "name": "theirs"}
    made, _shown = run_module("snapshot", options, SAFEPOINT_OWNER="awx-prod")
    assert made["vms"][0]["snapshot"]["label"]["owner"] == "awx-prod"
    refused, _shown = run_module("snapshot", {**options, "state": "absent"})
    assert refused["error"] == "foreign" and "awx-prod" in refused["msg"]


@pytest.mark.parametrize("password", ["Tops3cret", "Top/s3cret", "Top:s3cret["])
def test_password_in_the_uri_is_refused_and_never_shown(password: str) -> None:
    options = {"backend": "libvirt", "uri": f"qemu+tcp://admin:{password}@127.0.0.1/system", "vm": "test"}
    failed, shown = run_module("snapshot_info", options, "-vvv")
    assert "password" in failed["msg"]
    assert password not in json.dumps(failed)
    assert password not in shown.split("=> {", 1)[1]


def test_missing_daemon_is_reported_at_once() -> None:
    options = {"backend": "libvirt", "uri": "qemu+unix:///system?socket=/nowhere/libvirt-sock", "vm": "test"}
    failed, _shown = run_module("snapshot_info", options)
    assert failed["error"] == "connection_failed"
    assert "/nowhere/libvirt-sock" in failed["msg"] and "virsh -c" in failed["msg"]


@pytest.fixture
def mute_port() -> Iterator[int]:
    """A server that accepts connections but never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("uri", ["qemu+ssh://root@127.0.0.1:{port}/system", "qemu+tcp://127.0.0.1:{port}/system"])
def test_silent_server_times_out_within_connect_timeout_and_leaves_no_process(mute_port: int, uri: str) -> None:
    uri = uri.format(port=mute_port)
    began = time.monotonic()
    failed, _shown = run_module("snapshot_info", {"backend": "libvirt", "uri": uri, "vm": "test", "connect_timeout": "2s"})
    assert time.monotonic() - began < 30
    assert failed["error"] == "connection_failed"
    assert "connect_timeout=2" in failed["msg"] and uri in failed["msg"]
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in processes.splitlines() if line.startswith("ssh ") and str(mute_port) in line]


def test_daemon_that_stops_answering_times_out_within_connect_timeout(lab: t.Any) -> None:
    os.kill(lab.pid, signal.SIGSTOP)
    try:
        failed, _shown = run_module(
            "snapshot_info", {"backend": "libvirt", "uri": lab.uri, "vm": "test", "connect_timeout": "2s"}
        )
    finally:
        os.kill(lab.pid, signal.SIGCONT)
    assert failed["error"] == "connection_failed" and "connect_timeout=2" in failed["msg"]


def test_missing_library_is_named_with_the_install_command(tmp_path: Path, lab: t.Any) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / "bin" / "python"
    failed, _shown = run_module(
        "snapshot_info", {"backend": "libvirt", "uri": lab.uri, "vm": "test"}, "-e", f"ansible_python_interpreter={python}"
    )
    assert failed["error"] == "library_missing"
    assert "libvirt-python" in failed["msg"] and f"{python} -m pip install" in failed["msg"]


@pytest.mark.parametrize("module_name", ["snapshot", "snapshot_info", "snapshot_revert"])
def test_ansible_doc_shows_the_module(module_name: str) -> None:
    command = [str(ANSIBLE) + "-doc", "-t", "module", f"safepoint.vm.{module_name}"]
    shown = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True).stdout
    assert "connect_timeout" in shown and "EXAMPLES" in shown

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules on a vCenter, as a user runs them: failed logins, unsupported VMs, long tasks."""

from __future__ import annotations

import itertools
import socket
import time
import typing as t
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import run_module
from server import VCenter

pytestmark = pytest.mark.vcenter

_numbers = itertools.count(1)

Run = t.Callable[..., "dict[str, t.Any]"]


@pytest.fixture
def login(vcenter: t.Any) -> Iterator[dict[str, t.Any]]:
    """Return the connection options. Settings of a test in the vCenter are reset after it."""
    before = vcenter.state()["settings"]
    yield {
        "backend": "vsphere",
        "hostname": vcenter.hostname,
        "port": vcenter.port,
        "username": vcenter.username,
        "password": vcenter.password,
        "ca_path": vcenter.ca_path,
    }
    vcenter.clear_faults()
    vcenter.set(**before)


@pytest.fixture
def module(login: dict[str, t.Any]) -> Run:
    def run(name: str, /, *flags: str, **options: t.Any) -> dict[str, t.Any]:
        return run_module(name, {**login, **options}, *flags)[0]

    return run


@pytest.fixture
def vm(vcenter: t.Any) -> str:
    name = f"web{next(_numbers):02d}"
    vcenter.make_vms({"name": name, "power": "poweredOn"})
    return name


def names(result: dict[str, t.Any]) -> list[str]:
    return [one["name"] for one in result["vms"][0]["snapshots"]]


def test_check_mode_agrees_with_two_runs_and_revert_restores_the_vm(module: Run, vcenter: t.Any, vm: str) -> None:
    vcenter.set_vm(vm, data="before")
    options = {"vm": vm, "name": "before-upgrade", "description": "kernel", "expires": "72h", "labels": {"change": "CHG0042"}}
    would = module("snapshot", "--check", **options)
    does = module("snapshot", **options)
    again = module("snapshot", **options)
    assert [one["vms"][0]["action"] for one in (would, does, again)] == ["created", "created", "exists"]
    assert again["vms"][0]["snapshot"] == does["vms"][0]["snapshot"]
    vcenter.set_vm(vm, data="after", memory_mb=4096)
    reverted = module("snapshot_revert", vm=vm, name="before-upgrade", power="on")
    assert reverted["vms"][0]["action"] == "reverted"
    seen = vcenter.vm(vm)
    assert (seen["data"], seen["memory_mb"], seen["power"]) == ("before", 32, "poweredOn")
    (shown,) = module("snapshot_info", vm=vm)["vms"][0]["snapshots"]
    assert shown["size_bytes"] > 0 and shown["size_unknown"] is None
    assert module("snapshot", vm=vm, name="before-upgrade", state="absent")["changed"]
    assert vcenter.vm(vm)["snapshots"] == []


def test_login_uses_the_variables_that_awx_sets(vcenter: t.Any, login: dict[str, t.Any], vm: str) -> None:
    variables = {
        "VMWARE_HOST": vcenter.hostname,
        "VMWARE_PORT": str(vcenter.port),
        "VMWARE_USER": vcenter.username,
        "VMWARE_PASSWORD": vcenter.password,
        "VMWARE_VALIDATE_CERTS": "true",
    }
    options = {"backend": "vsphere", "ca_path": vcenter.ca_path, "vm": vm}
    seen, shown = run_module("snapshot_info", options, "-vvv", **variables)
    assert seen["vms"][0]["power"] == "running"
    assert vcenter.password not in shown.split("=> {", 1)[1]
    refused, _shown = run_module("snapshot_info", options, **{**variables, "VMWARE_USER": ""})
    assert "username" in refused["msg"] and "VMWARE_USER" in refused["msg"]


@pytest.mark.parametrize("option", ["username", "password"])
def test_refused_login_is_reported_without_the_password(login: dict[str, t.Any], vm: str, option: str) -> None:
    failed, shown = run_module("snapshot_info", {**login, option: "wr0ng-secret", "vm": vm}, "-vvv")
    assert failed["error"] == "permission_denied" and "refused the login" in failed["msg"]
    if option == "password":
        assert "wr0ng-secret" not in shown.split("=> {", 1)[1]


def test_untrusted_certificate_is_refused_with_the_remedy(module: Run, vm: str) -> None:
    failed = module("snapshot_info", vm=vm, ca_path=None)
    assert failed["error"] == "connection_failed"
    assert "certificate" in failed["msg"] and "ca_path" in failed["msg"]
    assert module("snapshot_info", vm=vm, ca_path=None, validate_certs=False)["vms"][0]["power"] == "running"


def test_certificate_for_another_host_is_refused_with_a_clear_message(vm: str) -> None:
    with VCenter(vms=0, tls_names="vcenter.example.org") as other:
        login = {"hostname": other.hostname, "port": other.port, "username": other.username, "password": other.password}
        failed, _shown = run_module("snapshot_info", {"backend": "vsphere", **login, "ca_path": other.ca_path, "vm": vm})
    assert failed["error"] == "connection_failed" and "\n" not in failed["msg"]
    assert all(
        words in failed["msg"] for words in (f"certificate of {other.hostname}", "mismatch", "set ca_path", "hostname to a name")
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hostname": "no-such-host.invalid"}, ["no-such-host.invalid", "hostname"]),
        ({"port": 1}, ["127.0.0.1:1", "refused", "port"]),
        ({"ca_path": "/nowhere/ca.pem"}, ["ca_path", "/nowhere/ca.pem", "PEM"]),
        ({"validate_certs": False}, ["ca_path", "validate_certs=false"]),
        ({"uri": "qemu:///system"}, ["uri", "backend=libvirt", "backend=vsphere"]),
        ({"hostname": None}, ["hostname", "VMWARE_HOST"]),
        ({"hostname": "https://vc:443"}, ["hostname='https://vc:443'", "use port for the port"]),
    ],
)
def test_wrong_address_is_reported(module: Run, vm: str, options: dict[str, t.Any], words: list[str]) -> None:
    failed = module("snapshot_info", vm=vm, **options)
    assert failed["error"] in ("connection_failed", "invalid_option")
    for word in words:
        assert word in failed["msg"]


def test_server_that_is_not_a_vcenter_is_reported(module: Run, vm: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        failed = module("snapshot_info", vm=vm, port=server.getsockname()[1], connect_timeout="2s")
    assert failed["error"] == "connection_failed" and "connect_timeout=2" in failed["msg"]


def test_silent_vcenter_times_out(module: Run, vcenter: t.Any, vm: str) -> None:
    began = time.monotonic()
    with vcenter.mute():
        failed = module("snapshot_info", vm=vm, connect_timeout="2s")
    assert failed["error"] == "connection_failed" and "connect_timeout=2" in failed["msg"]
    assert time.monotonic() - began < 30


def test_missing_vm_is_reported_with_similar_names(module: Run, vm: str) -> None:
    failed = module("snapshot_info", vm=vm + "x")
    assert failed["error"] == "vm_not_found" and vm in failed["msg"]


def test_missing_privilege_is_named(module: Run, vcenter: t.Any, vm: str) -> None:
    failed = module("snapshot", vm=vm, name="x", username="readonly@vsphere.local")
    assert (failed["error"], failed["changed"]) == ("permission_denied", False)
    assert "VirtualMachine.State.CreateSnapshot" in failed["msg"]
    # all privileges that the collection needs, except those for power on and off
    for _time in range(2):
        assert "error" not in module("snapshot", vm=vm, name="x", labels={"a": "1"}, username="operator@vsphere.local")
    assert "error" not in module("snapshot_revert", vm=vm, name="x", username="operator@vsphere.local")
    assert "error" not in module("snapshot", vm=vm, name="x", state="absent", username="operator@vsphere.local")


def test_missing_library_is_named_with_the_install_command(tmp_path: Path, login: dict[str, t.Any]) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / "bin" / "python"
    failed, _shown = run_module("snapshot_info", {**login, "vm": "x"}, "-e", f"ansible_python_interpreter={python}")
    assert failed["error"] == "library_missing" and f"{python} -m pip install pyvmomi" in failed["msg"]


def test_library_that_does_not_support_this_python_counts_as_missing(tmp_path: Path, login: dict[str, t.Any]) -> None:
    (tmp_path / "pyVmomi.py").write_text("raise Exception('pyVmomi needs a newer Python')")
    failed, _shown = run_module("snapshot_info", {**login, "vm": "x"}, PYTHONPATH=str(tmp_path))
    assert failed["error"] == "library_missing" and "pip install pyvmomi" in failed["msg"]


def test_vms_with_the_same_name_are_listed_with_path_and_id(module: Run, vcenter: t.Any) -> None:
    twin = f"twin{next(_numbers)}"
    vcenter.make_vms({"name": twin, "folder": "/DC0/vm/prod"}, {"name": twin, "folder": "/DC0/vm/test"})
    failed = module("snapshot", vm=twin, name="x")
    assert failed["error"] == "vm_ambiguous"
    ids = {path: vcenter.vm(path)["moid"] for path in (f"/DC0/vm/prod/{twin}", f"/DC0/vm/test/{twin}")}
    for path, moid in ids.items():
        assert path in failed["msg"] and moid in failed["msg"]
    assert module("snapshot", vm=f"DC0/vm/prod/{twin}", name="by-path")["vms"][0]["vm"]["id"] == ids[f"/DC0/vm/prod/{twin}"]
    assert module("snapshot", vm=f"id:{ids[f'/DC0/vm/test/{twin}']}", name="by-id")["changed"]
    assert [one["name"] for one in vcenter.vm(f"/DC0/vm/prod/{twin}")["snapshots"]] == ["by-path"]


@pytest.mark.parametrize(
    ("knobs", "options", "words"),
    [
        ({"template": True, "power": "poweredOff"}, {}, ["template", "convert"]),
        ({"question": "Is it moved or copied?"}, {}, ["moved or copied", "answer it"]),
        ({"capability": {"snapshotOperationsSupported": False}}, {}, ["passthrough"]),
        ({"power": "poweredOff"}, {"memory": True}, ["off", "start it first"]),
        ({"power": "suspended"}, {"memory": True}, ["suspended", "resume it"]),
        ({"disk_mode": "independent_persistent"}, {"memory": True}, ["independent", "leave memory out"]),
        ({"tools": False}, {"quiesce": "require"}, ["VMware Tools", "quiesce=never"]),
        ({}, {"quiesce": "require", "memory": True}, ["memory", "quiesced"]),
        ({}, {"kind": "external"}, ["external", "kind"]),
        ({}, {"name": "a/b"}, ["a/b", "letters"]),
    ],
)
def test_unsupported_vm_is_refused_with_the_remedy_before_any_write(
    module: Run, vcenter: t.Any, vm: str, knobs: dict[str, t.Any], options: dict[str, t.Any], words: list[str]
) -> None:
    vcenter.set_vm(vm, **{"tools": True, **knobs})
    failed = module("snapshot", **{"vm": vm, "name": "x", **options})
    assert failed["changed"] is False
    for word in words:
        assert word in failed["msg"]
    assert vcenter.vm(vm)["snapshots"] == []


def test_disk_excluded_from_a_snapshot_is_reported(module: Run, vcenter: t.Any, vm: str) -> None:
    vcenter.set_vm(vm, disk_mode="independent_persistent")
    made = module("snapshot", vm=vm, name="x")
    assert made["changed"] and any("independent disk" in warning for warning in made["vms"][0]["warnings"])


def test_memory_larger_than_the_free_space_is_refused(module: Run, vcenter: t.Any, vm: str) -> None:
    vcenter.set_datastore(free_bytes=1024, capacity_bytes=10**12)
    try:
        failed = module("snapshot", vm=vm, name="x", memory=True)
    finally:
        vcenter.set_datastore(free_bytes=10**12, capacity_bytes=10**12)
    assert (failed["error"], failed["changed"]) == ("unsupported", False)
    assert "LocalDS_0" in failed["msg"] and "1024" in failed["msg"]


def test_problems_for_an_administrator_are_findings(module: Run, vcenter: t.Any, vm: str) -> None:
    vcenter.set_vm(vm, consolidation_needed=True, question="Retry?")
    found = module("snapshot_info", vm=vm)["vms"][0]["findings"]
    assert [one["code"] for one in found] == ["question_pending", "consolidation_needed"]
    assert "Consolidate" in found[1]["remedy"]


def test_failed_quiescing_is_an_error_or_a_warning(module: Run, vcenter: t.Any, vm: str) -> None:
    vcenter.set_vm(vm, tools=True)
    assert module("snapshot", vm=vm, name="calm", quiesce="require")["vms"][0]["snapshot"]["consistency"] == "filesystem"
    vcenter.fault("CreateSnapshot*", "FilesystemQuiesceFault", vm=vm)
    failed = module("snapshot", vm=vm, name="x", quiesce="require")
    assert (failed["error"], failed["changed"]) == ("unsupported", False)
    assert "FilesystemQuiesceFault" in failed["msg"] and "quiesce=never" in failed["msg"]
    vcenter.clear_faults()
    vcenter.fault("CreateSnapshot*", "FilesystemQuiesceFault", vm=vm, nth=1)
    made = module("snapshot", vm=vm, name="x", quiesce="prefer")["vms"][0]
    assert made["snapshot"]["consistency"] == "crash"
    assert any("not quiesced" in warning for warning in made["warnings"])


@pytest.mark.parametrize(
    ("fault", "code", "word"),
    [
        ("NoDiskSpace", "backend_failed", "free space"),
        ("RestrictedVersion", "unsupported", "licence"),
        ("TooManySnapshotLevels", "unsupported", "remove older"),
        ("GenericVmConfigFault", "backend_failed", "GenericVmConfigFault"),
    ],
)
def test_fault_is_reported_with_its_name_the_vm_and_the_remedy(
    module: Run, vcenter: t.Any, vm: str, fault: str, code: str, word: str
) -> None:
    vcenter.fault("CreateSnapshot*", fault, vm=vm)
    failed = module("snapshot", vm=vm, name="x")
    assert (failed["error"], failed["changed"]) == (code, False)
    assert word in failed["msg"] and vm in failed["msg"] and fault in failed["msg"]


def test_vm_with_a_running_task_is_waited_for(module: Run, vcenter: t.Any, vm: str) -> None:
    vcenter.set(task_time=3)
    first = module("snapshot", vm=vm, name="slow", timeout="1s", on_error="stop")
    assert first["error"] == "timed_out" and "task-" in first["msg"]
    # the next run waits for the task that is still running, and finds its snapshot
    second = module("snapshot", vm=vm, name="slow")
    assert (second["changed"], second["vms"][0]["action"]) == (False, "exists")
    assert names(module("snapshot_info", vm=vm)) == ["slow"]
    vcenter.set(task_time=15)
    third = module("snapshot", vm=vm, name="more", timeout="1s", on_error="stop")
    assert third["error"] == "timed_out"
    locked = module("snapshot", vm=vm, name="other", lock_timeout="0")
    assert locked["error"] == "locked" and "task-" in locked["msg"] and "createSnapshot" in locked["msg"]


def test_age_uses_the_clock_of_the_server(module: Run, vcenter: t.Any, vm: str) -> None:
    vcenter.set(clock_offset=7200)
    module("snapshot", vm=vm, name="x")
    (shown,) = module("snapshot_info", vm=vm)["vms"][0]["snapshots"]
    assert 0 <= shown["age_seconds"] < 60


def test_snapshots_with_the_same_name_are_an_error_and_can_be_removed_by_id(module: Run, vcenter: t.Any, vm: str) -> None:
    made = module("snapshot", vm=vm, name="twin")["vms"][0]["snapshot"]
    module("snapshot", vm=vm, name="other")
    vcenter.set(task_time=0)
    from vim_client import login as log_in

    with log_in(vcenter) as client:
        client.done(client.create(client.by_id(vcenter.vm(vm)["moid"]), "twin", description="[safepoint v=1 owner=safepoint]"))
    ids = [one["id"] for one in module("snapshot_info", vm=vm, name_pattern="twin")["vms"][0]["snapshots"]]
    for options in ({"name": "snapshot_revert"}, {"name": "snapshot", "state": "absent"}):
        name = options.pop("name")
        failed = module(name, vm=vm, **{**options, "name": "twin"})
        assert failed["error"] == "snapshot_ambiguous" and all(one in failed["msg"] for one in ids)
    assert module("snapshot", vm=vm, id=made["id"], state="absent")["changed"]
    assert names(module("snapshot_info", vm=vm)) == ["other", "twin"]

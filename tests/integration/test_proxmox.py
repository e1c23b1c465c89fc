# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules on a Proxmox VE cluster, as a user runs them."""

from __future__ import annotations

import importlib
import time
import typing as t
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from pve_server import PveServer
from running import run_module

Run = t.Callable[..., "dict[str, t.Any]"]


@pytest.fixture
def cluster() -> Iterator[PveServer]:
    with PveServer() as started:
        yield started
        assert started.errors == ""


@pytest.fixture
def login(cluster: PveServer) -> dict[str, t.Any]:
    return {
        "backend": "proxmox",
        "hostname": cluster.hostname,
        "port": cluster.port,
        "token_id": cluster.token_id,
        "token_secret": cluster.token_secret,
        "ca_path": cluster.ca_path,
    }


@pytest.fixture
def module(login: dict[str, t.Any]) -> Run:
    def run(name: str, /, *flags: str, **options: t.Any) -> dict[str, t.Any]:
        return run_module(name, {**login, **options}, *flags)[0]

    return run


@pytest.mark.parametrize(("kind", "storage"), [("qemu", "dir-qcow2"), ("lxc", "lvmthin")])
def test_check_mode_agrees_with_two_runs_and_revert_restores_the_vm(
    module: Run, cluster: PveServer, kind: str, storage: str
) -> None:
    vmid = cluster.make_guest("web01", type=kind, storage=storage)
    cluster.set_guest(vmid, data="before")
    options = {
        "vm": "web01",
        "name": "before-upgrade",
        "description": "kernel",
        "expires": "72h",
        "labels": {"change": "CHG0042"},
    }
    would = module("snapshot", "--check", **options)
    does = module("snapshot", **options)
    again = module("snapshot", **options)
    assert [one["vms"][0]["action"] for one in (would, does, again)] == ["created", "created", "exists"]
    assert [one["changed"] for one in (would, does, again)] == [True, True, False]
    assert again["vms"][0]["snapshot"] == does["vms"][0]["snapshot"]
    cluster.set_guest(vmid, data="after", memory_mb=4096, name="renamed")
    reverted = module("snapshot_revert", vm=str(vmid), name="before-upgrade", power="on")
    assert reverted["vms"][0]["action"] == "reverted"
    seen = cluster.guest(vmid)
    # The name is part of the restored configuration.
    assert (seen["data"], seen["name"], seen["status"], str(seen["config"]["memory"])) == ("before", "web01", "running", "512")
    (shown,) = module("snapshot_info", vm="web01")["vms"][0]["snapshots"]
    assert (shown["label"]["change"], shown["description"]) == ("CHG0042", "kernel")
    assert shown["size_bytes"] is None and "does not report the size" in shown["size_unknown"]
    removed = module("snapshot", vm="web01", name="before-upgrade", state="absent")
    assert (removed["changed"], cluster.guest(vmid)["snapshots"]) == (True, [])


def test_all_guests_of_the_cluster_are_listed_with_scope_endpoint(module: Run, cluster: PveServer) -> None:
    cluster.make_guest("db01", node="pve2", type="lxc", storage="lvmthin", status="stopped")
    web = cluster.make_guest("web01")
    cluster.snapshot_by_hand(web, "by-hand")
    rows = module("snapshot_info", scope="endpoint")["vms"]
    assert [(row["vm"]["name"], row["power"], [one["name"] for one in row["snapshots"]]) for row in rows] == [
        ("db01", "off", []),
        ("web01", "running", ["by-hand"]),
    ]


def test_login_uses_the_variables_that_awx_sets(cluster: PveServer) -> None:
    cluster.make_guest("web01")
    options = {"backend": "proxmox", "ca_path": cluster.ca_path, "vm": "web01"}
    address = {"PROXMOX_HOST": cluster.hostname, "PROXMOX_PORT": str(cluster.port), "PROXMOX_VALIDATE_CERTS": "true"}
    password = {**address, "PROXMOX_USER": cluster.username, "PROXMOX_PASSWORD": cluster.password}
    token = {**address, "PROXMOX_TOKEN_ID": cluster.token_id, "PROXMOX_TOKEN_SECRET": cluster.token_secret}
    for variables, secret, logins in ((password, cluster.password, 1), (token, cluster.token_secret, 0)):
        cluster.reset_counters()
        seen, shown = run_module("snapshot_info", options, "-vvv", **variables)
        assert seen["vms"][0]["power"] == "running"
        assert cluster.logins == logins
        assert secret not in shown
    unsafe = {**token, "PROXMOX_VALIDATE_CERTS": "no", "REQUESTS_CA_BUNDLE": "/nowhere/bundle.pem"}
    assert run_module("snapshot_info", {**options, "ca_path": None}, **unsafe)[0]["vms"][0]["power"] == "running"


@pytest.mark.parametrize("how", ["password", "token_secret"])
def test_refused_login_is_reported_without_secrets(cluster: PveServer, login: dict[str, t.Any], how: str) -> None:
    if how == "password":
        login = {**login, "token_id": None, "token_secret": None, "username": cluster.username}
    failed, shown = run_module("snapshot_info", {**login, how: "wr0ng-secret", "vm": "web01"}, "-vvv")
    assert failed["error"] == "permission_denied" and "refused the login" in failed["msg"] and how in failed["msg"]
    assert "wr0ng-secret" not in shown.split("=> {", 1)[1]


def test_silent_server_times_out(module: Run, cluster: PveServer) -> None:
    cluster.mute()
    began = time.monotonic()
    failed = module("snapshot_info", vm="web01", connect_timeout="1s")
    assert failed["error"] == "connection_failed" and "connect_timeout=1" in failed["msg"]
    assert time.monotonic() - began < 20


def test_missing_library_is_named_with_the_install_command(tmp_path: Path, login: dict[str, t.Any]) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / "bin" / "python"
    interpreter = ("-e", f"ansible_python_interpreter={python}")
    failed, _shown = run_module("snapshot_info", {**login, "vm": "x"}, *interpreter)
    assert failed["error"] == "library_missing" and f"{python} -m pip install requests" in failed["msg"]
    (site,) = (tmp_path / "bare" / "lib").glob("python3*/site-packages")
    for name in ("requests", "urllib3", "certifi", "idna", "charset_normalizer"):
        (site / name).symlink_to(Path(importlib.import_module(name).__path__[0]))
    failed, _shown = run_module("snapshot_info", {**login, "vm": "x"}, *interpreter)
    assert failed["error"] == "library_missing" and f"{python} -m pip install proxmoxer" in failed["msg"]


def test_task_longer_than_the_timeout_is_named_and_the_next_run_finds_its_snapshot(module: Run, cluster: PveServer) -> None:
    vmid = cluster.make_guest("web01")
    # Longer than two runs of ansible even on a slow machine; the test ends it.
    cluster.set_task_seconds(300, "qmsnapshot")
    first = module("snapshot", vm="web01", name="slow", timeout="1s", on_error="stop")
    (task,) = cluster.task_list("qmsnapshot")
    assert first["error"] == "timed_out" and task["upid"] in first["msg"]
    locked = module("snapshot", vm="web01", name="other", lock_timeout="0")
    assert locked["error"] == "locked" and "'snapshot'" in locked["msg"] and task["upid"] in locked["msg"]
    cluster.finish_tasks()
    second = module("snapshot", vm="web01", name="slow")
    assert (second["changed"], second["vms"][0]["action"]) == (False, "exists")
    assert [one["name"] for one in cluster.guest(vmid)["snapshots"]] == ["slow"]

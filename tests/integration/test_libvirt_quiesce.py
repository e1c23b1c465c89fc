# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Freeze the file systems of a guest for a snapshot, and always thaw them; with a real guest and its agent."""

from __future__ import annotations

import re
import subprocess
import threading
import time
import typing as t
from collections.abc import Iterator

import pytest
from libvirt_kit import Make, apply, domain, files, listed, power, remove, take

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt import guest_agent
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present

pytestmark = [pytest.mark.qemu, pytest.mark.slow]
guest_test = pytest.mark.guest


@pytest.fixture(scope="module")
def booted(new_lab: t.Any) -> Iterator[t.Any]:
    guest = new_lab.guest("agent")
    guest.wait_ssh()
    yield guest
    guest.remove()


@pytest.fixture
def guest(new_lab: t.Any, booted: t.Any) -> Iterator[t.Any]:
    # libvirt first syncs with the agent, and sends nothing more to an agent that does not answer; wait until this is done.
    assert frozen(booted) == "thawed"
    yield booted
    booted.ssh("pkill -CONT qemu-ga")
    domain(new_lab, booted.name).fsThaw()
    assert frozen(booted) == "thawed"
    for name in reversed(list(listed(new_lab.uri, booted.name))):
        remove(new_lab.uri, booted.name, name)


def quiesce(lab: t.Any, vm: str, name: str, how: str, **request: t.Any) -> Outcome:
    return apply(lab.uri, Present(Request(name=name, kind="external", quiesce=how, **request)), vm, lock_timeout=0)


def frozen(guest: t.Any) -> t.Any:
    return guest.agent({"execute": "guest-fsfreeze-status"})


def agent_timeout(lab: t.Any, vm: str) -> str:
    status = (lab.folder / "run" / "libvirt" / "qemu" / "run" / f"{vm}.xml").read_text()
    found = re.search(r"<agentTimeout>(-?\d+)<", status)
    return found.group(1) if found else "-2"


@guest_test
@pytest.mark.parametrize("how", ["prefer", "require"])
def test_guest_with_an_agent_is_quiesced_and_the_snapshot_records_it(new_lab: t.Any, guest: t.Any, how: str) -> None:
    done = quiesce(new_lab, guest.name, "calm", how)
    assert done.error is None and done.warnings == []
    assert done.snapshot and (done.snapshot.consistency, done.snapshot.memory) == ("filesystem", False)
    assert listed(new_lab.uri, guest.name)["calm"].consistency == "filesystem"
    assert frozen(guest) == "thawed"
    assert agent_timeout(new_lab, guest.name) == "-2"
    assert guest.ssh("touch /root/alive").returncode == 0


@guest_test
def test_guest_is_not_quiesced_without_the_option(new_lab: t.Any, guest: t.Any) -> None:
    assert take(new_lab.uri, guest.name, "crash", kind="external").consistency == "crash"


@guest_test
def test_internal_snapshot_never_contains_a_frozen_guest(new_lab: t.Any, guest: t.Any) -> None:
    done = apply(new_lab.uri, Present(Request(name="x", kind="internal", quiesce="require")), guest.name)
    assert done.error and done.error.code == "unsupported" and "the guest would be frozen" in str(done.error)
    both = quiesce(new_lab, guest.name, "x", "require", memory=True)
    assert both.error and both.error.code == "unsupported" and "memory" in str(both.error)
    assert listed(new_lab.uri, guest.name) == {}


@guest_test
def test_guest_frozen_by_a_user_stays_frozen(new_lab: t.Any, guest: t.Any) -> None:
    domain(new_lab, guest.name).fsFreeze()
    done = quiesce(new_lab, guest.name, "x", "require")
    assert done.error and (done.error.code, done.changed) == ("locked", False)
    command = f"virsh -c '{new_lab.uri}' domfsthaw {guest.name}"
    assert command in str(done.error)
    assert frozen(guest) == "frozen"
    preferred = quiesce(new_lab, guest.name, "y", "prefer")
    assert preferred.error is None and preferred.snapshot and preferred.snapshot.consistency == "crash"
    assert any("not quiesced" in warning and "already frozen" in warning for warning in preferred.warnings)
    assert frozen(guest) == "frozen"
    assert subprocess.run(["sh", "-ec", command], capture_output=True, check=False).returncode == 0
    assert frozen(guest) == "thawed"


@guest_test
def test_late_freeze_of_the_agent_is_thawed(new_lab: t.Any, guest: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_agent, "_FREEZE_SECONDS", 2)
    guest.ssh("pkill -STOP qemu-ga")

    def wake() -> None:
        time.sleep(5)
        guest.ssh("pkill -CONT qemu-ga")

    threading.Thread(target=wake).start()
    done = quiesce(new_lab, guest.name, "late", "prefer")
    assert done.error is None and done.snapshot and done.snapshot.consistency == "crash"
    assert any("not quiesced" in warning for warning in done.warnings)
    assert frozen(guest) == "thawed"
    assert done.snapshot.label and "quiesced" not in done.snapshot.label.fields


@guest_test
def test_failed_thaw_is_reported_with_a_command(new_lab: t.Any, guest: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_agent, "_FREEZE_SECONDS", 2)
    monkeypatch.setattr(guest_agent, "_AGENT_SECONDS", 1)
    monkeypatch.setattr(guest_agent, "_THAW_SECONDS", 4.0)
    guest.ssh("pkill -STOP qemu-ga")
    began = time.monotonic()
    done = quiesce(new_lab, guest.name, "x", "require")
    assert time.monotonic() - began < 60
    assert done.error and (done.error.code, done.changed) == ("unsupported", False)
    command = f"virsh -c '{new_lab.uri}' domfsthaw {guest.name}"
    assert "may be frozen" in str(done.error) and command in str(done.error)
    guest.ssh("pkill -CONT qemu-ga")
    assert frozen(guest) == "frozen"  # the message is right
    assert subprocess.run(["sh", "-ec", command], capture_output=True, check=False).returncode == 0
    assert frozen(guest) == "thawed"


@guest_test
def test_guest_is_thawed_although_the_daemon_died(new_lab: t.Any, guest: t.Any) -> None:
    guest.ssh("pkill -STOP qemu-ga")
    ends: list[Outcome] = []
    thread = threading.Thread(target=lambda: ends.append(quiesce(new_lab, guest.name, "x", "require")))
    thread.start()
    time.sleep(2)
    new_lab.kill_daemon()
    guest.ssh("pkill -CONT qemu-ga")  # the agent freezes the guest now, but no client waits for it
    time.sleep(1)
    new_lab.start_daemon()
    thread.join()
    error = ends[0].error
    assert error and error.code == "unverified"
    assert "may be frozen" not in str(error)
    assert frozen(guest) == "thawed"
    assert listed(new_lab.uri, guest.name) == {}


@guest_test
@pytest.mark.parametrize("how", ["require", "prefer"])
def test_snapshot_with_a_too_long_freeze_is_not_reported_as_quiesced(
    new_lab: t.Any, guest: t.Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(guest_agent, "_QUIESCE_SECONDS", 0.0)
    done = quiesce(new_lab, guest.name, "slow", how)
    assert frozen(guest) == "thawed"
    if how == "require":
        assert done.error and done.error.code == "timed_out" and "the snapshot was removed" in str(done.error)
        assert listed(new_lab.uri, guest.name) == {}
    else:
        assert done.error is None and any("not quiesced" in warning for warning in done.warnings)
        assert listed(new_lab.uri, guest.name)["slow"].consistency == "crash"


@guest_test
def test_disk_failure_thaws_the_guest(new_lab: t.Any, guest: t.Any) -> None:
    folder = new_lab.disk_folder(guest.name)
    folder.chmod(0o555)
    try:
        done = quiesce(new_lab, guest.name, "x", "require")
    finally:
        folder.chmod(0o755)
    assert done.error and (done.error.code, done.changed) == ("backend_failed", False)
    assert frozen(guest) == "thawed" and "may be frozen" not in str(done.error)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"running": True}, "no channel to a guest agent"),
        ({"running": True, "agent": True}, "no guest agent answers"),
        ({"paused": True, "agent": True}, "is paused"),
    ],
)
def test_guest_that_cannot_be_quiesced_is_reported_with_the_reason(
    new_lab: t.Any, newer: Make, options: dict[str, t.Any], reason: str
) -> None:
    vm = newer("mute", **options)
    done = quiesce(new_lab, vm, "x", "require")
    assert done.error and (done.error.code, done.changed) == ("unsupported", False)
    assert reason in str(done.error) and "quiesce=never" in str(done.error)
    assert files(new_lab, vm) == ["mute-0.qcow2"]
    preferred = quiesce(new_lab, vm, "x", "prefer")
    assert preferred.error is None and any(reason in warning for warning in preferred.warnings)
    assert preferred.snapshot and preferred.snapshot.consistency == "crash"


def test_quiesce_is_ignored_for_a_vm_that_is_off(new_lab: t.Any, newer: Make) -> None:
    vm = newer("cold")
    done = quiesce(new_lab, vm, "x", "require")
    assert done.error is None and done.warnings == []
    assert done.snapshot and done.snapshot.consistency == "offline"
    assert power(new_lab, vm) == "off"

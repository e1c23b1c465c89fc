# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guarded change on a real Linux guest: broken, lost, rebooted, fine. What counts is what is in the guest afterwards."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import typing as t
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import libvirt
import pytest

from ansible_collections.safepoint.vm.plugins.module_utils._label import Label, parse

pytestmark = [pytest.mark.guest, pytest.mark.xdist_group("e2e")]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclasses.dataclass(frozen=True)
class State:
    """What a user has in the guest: a file, a process, and an uptime."""

    config: str
    process: str
    """The process's id and start time in ticks since boot: another process never has both."""
    boot: str


@dataclasses.dataclass(frozen=True)
class Run:
    """How ansible-playbook ended."""

    code: int
    shown: str


class Machine:
    """The guest and the ways to change it."""

    def __init__(self, lab: t.Any, guest: t.Any, folder: Path) -> None:
        self.lab = lab
        self.guest = guest
        self.folder = folder

    def prepare(self) -> State:
        """Bring the guest to version 1 with an application that runs."""
        done = self.guest.ssh(
            "kill $(cat /run/app.pid 2>/dev/null) 2>/dev/null; echo version 1 > /etc/app.conf; sync; "
            "setsid sleep 1000000 </dev/null >/dev/null 2>&1 & echo $! > /run/app.pid"
        )
        assert done.returncode == 0, done.stderr
        return self.state()

    def state(self) -> State:
        done = self.guest.ssh(
            "cat /etc/app.conf; cut -d ' ' -f 1,22 /proc/$(cat /run/app.pid)/stat; cat /proc/sys/kernel/random/boot_id"
        )
        assert done.returncode == 0, done.stderr
        return State(*done.stdout.splitlines())

    def change(self, name: str, **extra: t.Any) -> Run:
        inventory = {"guests": {"hosts": {self.guest.name: self.guest.inventory_vars()}}}
        (self.folder / "inventory.json").write_text(json.dumps(inventory))
        variables = {
            "lab_uri": self.lab.uri,
            "change": name,
            "guarded_change_evidence_dir": str(self.folder / "evidence"),
            **extra,
        }
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(self.folder / "inventory.json")]
        done = subprocess.run(
            [*command, str(HERE / "site.yml"), "-e", json.dumps(variables)],
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "HOME": str(ROOT / ".cache" / "home"),
                # A unix socket's path has 107 bytes at most, and the checkout may be anywhere.
                "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.lab.folder / "cp"),
                "ANSIBLE_PIPELINING": "1",  # an emulated guest needs a second for each ssh command
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        print(done.stdout, done.stderr)
        return Run(done.returncode, done.stdout + done.stderr)

    def labels(self) -> list[Label]:
        """The labels of all snapshots, read without the collection's own driver."""
        connection = libvirt.open(self.lab.uri)
        try:
            from xml.etree import ElementTree

            snapshots = connection.lookupByName(self.guest.name).listAllSnapshots()
            texts = [ElementTree.fromstring(one.getXMLDesc()).findtext("description") or "" for one in snapshots]
        finally:
            connection.close()
        return [label for label in (parse(text).label for text in texts) if label]

    def remove_snapshots(self) -> None:
        connection = libvirt.open(self.lab.uri)
        for one in connection.lookupByName(self.guest.name).listAllSnapshots():
            one.delete()
        connection.close()


@pytest.fixture(scope="module")
def booted(lab: t.Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    guest = lab.guest("web01")
    guest.wait_ssh()
    yield Machine(lab, guest, tmp_path_factory.mktemp("e2e"))
    guest.remove()


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    yield booted
    booted.remove_snapshots()


def recap(shown: str) -> dict[str, int]:
    line = next(line for line in shown.splitlines() if line.startswith("web01 ") and "unreachable=" in line)
    return {key: int(value) for key, value in (word.split("=") for word in line.split() if "=" in word)}


def assert_rolled_back(machine: Machine, run: Run, before: State) -> None:
    assert run.code == 2
    assert recap(run.shown)["unreachable"] == 0
    assert "web01 was rolled back" in run.shown
    assert machine.state() == before
    (label,) = machine.labels()
    assert label.fields["state"] == "rolled_back"
    assert label.fields["change"] == "CHG0042"
    assert label.expires
    assert timedelta(hours=71) < label.expires - datetime.now(timezone.utc) <= timedelta(hours=72)


def test_a_task_that_fails_is_rolled_back_with_its_cause(machine: Machine) -> None:
    before = machine.prepare()
    run = machine.change("fails.yml")
    assert_rolled_back(machine, run, before)
    assert "does-not-exist" in run.shown


@pytest.mark.core_versions
def test_a_guest_that_is_lost_comes_back(machine: Machine) -> None:
    before = machine.prepare()
    run = machine.change("lost.yml")
    assert_rolled_back(machine, run, before)
    assert "Remove the ssh server and end all its sessions" in run.shown
    clock = machine.guest.ssh("date +%s").stdout
    assert abs(int(clock) - datetime.now(timezone.utc).timestamp()) < 30


def test_a_change_that_reboots_on_purpose_succeeds(machine: Machine) -> None:
    before = machine.prepare()
    run = machine.change("reboots.yml")
    assert run.code == 0
    after = machine.state()
    assert after.config == "version 2"
    assert after.boot != before.boot
    assert machine.labels() == []


def test_a_success_keeps_the_change_and_the_snapshot_for_as_long_as_asked(machine: Machine) -> None:
    before = machine.prepare()
    run = machine.change("succeeds.yml", guarded_change_keep_after_success="24h")
    assert run.code == 0
    assert recap(run.shown)["failed"] == 0
    assert machine.state() == dataclasses.replace(before, config="version 2")
    (label,) = machine.labels()
    assert label.fields["state"] == "committed"
    assert label.expires
    assert timedelta(hours=23) < label.expires - datetime.now(timezone.utc) <= timedelta(hours=24)

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import sys
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest

# No package: with --import-mode=importlib files find each other by folder.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from change import Change
from hypervisor import Hypervisor
from pve_server import PveServer
from stage import Guest, Stage

# What is about the steps of a role and the hypervisor, and hardly about what ansible-core makes of a lost host or a failed task, runs with one
# ansible-core in `make test`. What is about that is in the other files, which run with the oldest and the newest; in `make test-all` all do with all.
NEWEST = {
    "test_evidence.py",
    "test_gates.py",
    "test_killed.py",
    "test_killed_libvirt.py",
    "test_left_behind.py",
    "test_playbooks.py",
    "test_preflight.py",
    "test_reconcile.py",
    "test_recover.py",
    "test_snapshot_report.py",
    "test_snapshot_retention.py",
}
OLDEST = {
    "test_entry_points.py",
    "test_guarded_change.py",
    "test_guarded_change_among_others.py",
    "test_guarded_change_elsewhere.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder: `make test` runs it with the oldest and the newest ansible-core."""
    here = Path(__file__).resolve().parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("role")
            for marker, files in (("newest", NEWEST), ("oldest", OLDEST)):
                if item.path.name in files:
                    item.add_marker(marker)


@pytest.fixture
def stage() -> Iterator[Stage]:
    """An empty project; the test adds guests, files and a playbook."""
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def guest(stage: Stage) -> Guest:
    """The host web01."""
    return stage.guest("web01")


@pytest.fixture
def pve() -> Iterator[PveServer]:
    """A simulated Proxmox VE without any VM."""
    with PveServer() as started:
        yield started
        assert started.errors == ""


@pytest.fixture
def hypervisor(lab: t.Any) -> Iterator[Hypervisor]:
    """A fresh state of the test driver, shared with the modules that the play runs."""
    with lab.keep_test_state() as connection:
        yield Hypervisor(connection, lab.test_uri)


@pytest.fixture
def change(stage: Stage, hypervisor: Hypervisor) -> Change:
    """The role on the guest web01; the test adds the files, and more guests."""
    return Change(stage, hypervisor)

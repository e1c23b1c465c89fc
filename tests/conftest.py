# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all tests need: the collection importable under its full name, and one lab for a whole run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
COLLECTIONS = ROOT / ".ansible" / "collections"

_link = COLLECTIONS / "ansible_collections" / "safepoint" / "vm"
if not _link.exists():
    _link.parent.mkdir(parents=True, exist_ok=True)
    _link.symlink_to("../../../..", target_is_directory=True)
SIMULATORS = ROOT / "tests" / "simulators"
TESTS = ROOT / "tests"
for folder in (COLLECTIONS, TESTS / "lab", TESTS / "conformance", TESTS / "report", SIMULATORS / "vcsim", SIMULATORS / "pve"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

# On a loaded machine an example can take any time; the timeout of pytest is the limit.
hypothesis.settings.register_profile("loaded", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("loaded")


@pytest.fixture(scope="session")
def lab() -> Iterator[object]:
    """A private libvirtd, started when the first test asks for it."""
    from lab import Lab

    with Lab() as started:
        yield started


@pytest.fixture(scope="session")
def new_lab() -> Iterator[object]:
    """The same with a newer libvirt and QEMU, from a Debian trixie folder that the first use builds. For tests marked slow."""
    from lab import Lab

    if os.geteuid() != 0:
        pytest.skip("libvirtd in a root folder of its own needs root")
    subprocess.run([str(ROOT / "tests/lab/build_trixie.sh")], stdin=subprocess.DEVNULL, check=True)
    with Lab(ROOT / ".cache/trixie") as started:
        yield started


@pytest.fixture(scope="session")
def vcenter() -> Iterator[object]:
    """A vCenter on loopback: govmomi's simulator and what a real one does besides."""
    from server import VCenter

    with VCenter(vms=1) as started:
        yield started


@pytest.fixture(scope="session")
def pve() -> Iterator[object]:
    """A Proxmox VE cluster of two nodes on loopback, in this process."""
    from pve_server import PveServer

    with PveServer() as started:
        yield started
        assert started.errors == ""

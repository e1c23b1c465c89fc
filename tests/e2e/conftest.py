# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import sys
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest

# Not a package: with --import-mode=importlib the files import each other through sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from machine import Machine


@pytest.fixture(scope="session")
def booted(lab: t.Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    yield Machine(lab, "web01", tmp_path_factory.mktemp("e2e"))
    lab.remove("web01")


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    """The guest web01, shared by the tests. It is replaced if a failed test has left it broken."""
    if not booted.is_well():
        booted.boot()
    yield booted
    booted.remove_snapshots()


@pytest.fixture
def second(lab: t.Any, tmp_path: Path) -> Iterator[Machine]:
    """A second guest, web02."""
    yield Machine(lab, "web02", tmp_path)
    lab.remove("web02")

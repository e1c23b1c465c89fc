# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures for the tests of the modules: a state of libvirt's test driver, and a module that uses it."""

from __future__ import annotations

import sys
import typing as t
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

if str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))

from libvirt_kit import Make, tiny_vms
from running import Module, run_module


@pytest.fixture
def state(lab: t.Any) -> Iterator[libvirt.virConnect]:
    """Return a new state of libvirt's test driver, shared with the modules."""
    with lab.keep_test_state() as connection:
        yield connection


@pytest.fixture
def module(lab: t.Any, state: libvirt.virConnect) -> Module:
    def run(module_name: str, /, *flags: str, **options: t.Any) -> dict[str, t.Any]:
        return run_module(module_name, {"backend": "libvirt", "uri": lab.test_uri, **options}, *flags)[0]

    return run


@pytest.fixture
def tiny(lab: t.Any) -> Iterator[Make]:
    """Create tiny VMs, and remove them at the end."""
    with tiny_vms(lab) as make:
        yield make


@pytest.fixture
def newer(new_lab: t.Any) -> Iterator[Make]:
    """Like ``tiny``, on the newer libvirt."""
    with tiny_vms(new_lab) as make:
        yield make


@pytest.fixture(params=["lab", pytest.param("new_lab", marks=pytest.mark.slow)])
def either(request: pytest.FixtureRequest) -> t.Any:
    """The daemon of this machine (9.0), and in the slow tests also the newer one (11.3)."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def make(either: t.Any) -> Iterator[Make]:
    with tiny_vms(either) as maker:
        yield maker

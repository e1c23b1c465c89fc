# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures for the tests of the simulator: an empty vCenter for each file, and a new VM for each test."""

from __future__ import annotations

import time
import typing as t
from collections.abc import Iterator

import pytest
from server import VCenter
from vim_client import Client


@pytest.fixture(scope="module")
def vcenter() -> Iterator[VCenter]:
    with VCenter(vms=0) as started:
        yield started
        assert started.errors == ""


@pytest.fixture
def vm(vcenter: VCenter, client: Client) -> t.Any:
    (made,) = vcenter.make_vms({"name": f"vm{time.monotonic_ns()}", "power": "poweredOn"})
    return client.by_id(made["moid"])

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures for the tests of the simulator: a cluster for each test, which fails if the simulator itself had a bug."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pve_client import Client, GuestClient
from pve_server import PveServer


@pytest.fixture
def pve() -> Iterator[PveServer]:
    with PveServer() as started:
        yield started
        assert started.errors == ""


@pytest.fixture
def client(pve: PveServer) -> Client:
    return Client(pve)


@pytest.fixture
def vm(pve: PveServer) -> GuestClient:
    return GuestClient(pve, pve.make_guest("web01"))

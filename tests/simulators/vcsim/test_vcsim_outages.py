# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the simulated vCenter: lost answers, a server that is unreachable for a while, and one that stops answering."""

from __future__ import annotations

import http.client
import socket
import threading
import typing as t
from collections.abc import Iterator

import pytest
from server import VCenter
from vim_client import Client, login

from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def client(vcenter: VCenter) -> Iterator[Client]:
    with login(vcenter) as client:
        yield client
        vcenter.end_outage()


@pytest.mark.parametrize("kind", ["lost", "lost_before", "502", "502_before", "504", "504_before"])
def test_the_answer_of_one_request_is_lost(vcenter: VCenter, client: Client, vm: t.Any, kind: str) -> None:
    vcenter.outage(kind, nth=2, method="CreateSnapshot*")
    client.done(client.create(vm, "a"))
    with pytest.raises((OSError, http.client.HTTPException)):
        client.create(vm, "b")
    assert vcenter.end_outage() == 2
    names = {"a"} if kind.endswith("before") else {"a", "b"}
    Deadline(30).poll("the task", lambda: {one["name"] for one in vcenter.vm(vm._moId)["snapshots"]} == names or None)
    client.done(client.create(vm, "c"))


def test_the_server_is_gone_for_a_while(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.outage("gone", seconds=1)
    with pytest.raises(OSError):
        client.read(vm, "name")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((vcenter.hostname, vcenter.port), timeout=5)

    def back() -> bool | None:
        try:
            return bool(client.read(vm, "name"))
        except OSError:
            return None

    Deadline(30).poll("the server", back)


def test_the_server_falls_silent_from_a_request_on(vcenter: VCenter, client: Client) -> None:
    vcenter.outage("silent", method="CurrentTime")
    answered = threading.Event()

    def ask() -> None:
        client.si.CurrentTime()
        answered.set()

    thread = threading.Thread(target=ask)
    thread.start()
    assert not answered.wait(0.5)
    vcenter.end_outage()
    thread.join(30)
    assert answered.is_set()


def test_an_outage_of_no_kind_is_refused(vcenter: VCenter) -> None:
    with pytest.raises(Exception, match="no kind of outage"):
        vcenter.outage("asleep")

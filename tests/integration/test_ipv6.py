# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Endpoints with an IPv6 address: accepted with and without brackets, shown with brackets."""

from __future__ import annotations

import contextlib
import socket
import threading
import typing as t
from collections.abc import Iterator

import pytest

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import PermissionDenied
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.connect import open_driver
from ansible_collections.safepoint.vm.plugins.module_utils._options import OPTIONS

NONE: dict[str, t.Any] = dict.fromkeys(OPTIONS["snapshot_info"]["argument_spec"])


def copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def reached_by_ipv6(port: int) -> Iterator[int]:
    """Return a port of ::1 that forwards to this port of 127.0.0.1."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _peer = listener.accept()
                    server = socket.create_connection(("127.0.0.1", port))
                    for ends in ((client, server), (server, client)):
                        threading.Thread(target=copy, args=ends, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture(params=["proxmox", pytest.param("vsphere", marks=pytest.mark.vcenter)])
def login(request: pytest.FixtureRequest) -> tuple[dict[str, t.Any], str, int]:
    """Return the options of an endpoint without its address, the option with the secret, and the port on 127.0.0.1."""
    if request.param == "proxmox":
        pve = request.getfixturevalue("pve")
        return {"backend": "proxmox", "token_id": pve.token_id, "token_secret": pve.token_secret}, "token_secret", pve.port
    vcenter = request.getfixturevalue("vcenter")
    return {"backend": "vsphere", "username": vcenter.username, "password": vcenter.password}, "password", vcenter.port


def test_ipv6_address_is_accepted_with_and_without_brackets_and_shown_with_brackets(
    login: tuple[dict[str, t.Any], str, int],
) -> None:
    options, secret, port = login
    with reached_by_ipv6(port) as near:
        for hostname in ("::1", "[::1]", "0:0:0:0:0:0:0:1"):
            given = {**NONE, **options, "hostname": hostname, "port": near, "validate_certs": False}
            driver = open_driver(given, environ={}, seconds=30)
            try:
                assert isinstance(driver.vms(), list)
            finally:
                driver.close()
            with pytest.raises(PermissionDenied) as refused:
                open_driver({**given, secret: "wrong"}, environ={}, seconds=30).vms()
            assert f"[::1]:{near} refused the login" in str(refused.value)

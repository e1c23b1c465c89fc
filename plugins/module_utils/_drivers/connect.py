# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Create a driver from the connection options.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import glob
import os
import re
import signal
import typing as t
from collections.abc import Callable, Mapping

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import ConnectionFailed, InvalidOption, TimedOut
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.credentials import (
    VARIABLES,
    Options,
    public_uri,
    resolved_options,
    uri_password,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.server import read_server
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.threads import in_time

# The library of a backend is imported only if the backend is used: importing pyVmomi takes a third of a second.
if t.TYPE_CHECKING:
    from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import SnapshotDriver


Opener = Callable[[float], "SnapshotDriver"]


def open_driver(options: Options, *, environ: Mapping[str, str], seconds: float) -> SnapshotDriver:
    """Connect to the endpoint that ``options`` name, within ``seconds``.

    :raises InvalidOption: see read_connection().
    :raises LibraryMissing: the Python library of the backend is not installed.
    :raises ConnectionFailed: the connection failed or timed out.
    """
    return read_connection(options, environ)(seconds)


def read_connection(options: Options, environ: Mapping[str, str]) -> Opener:
    """Check the connection options without connecting. Return the function that connects within a number of seconds.

    :raises InvalidOption: an option that the backend requires is missing, belongs to another backend, or has an invalid value.
    """
    backend = options["backend"]
    if backend not in VARIABLES:
        raise InvalidOption(f"backend is not set; use {', '.join(VARIABLES)}")
    for other in {name for names in VARIABLES.values() for name in names} - set(VARIABLES[backend]):
        if options.get(other) is not None:
            owners = " or ".join(one for one, names in VARIABLES.items() if other in names)
            raise InvalidOption(f"{other} can only be used with backend={owners}, but backend={backend} is set; remove {other}")
    reader = {"libvirt": _read_libvirt, "proxmox": _read_proxmox, "vsphere": _read_vsphere}[backend]
    return reader(resolved_options(options, environ))


def _need(options: Options, backend: str, *names: str, example: str) -> None:
    for name in names:
        if not options[name]:
            variable = VARIABLES[backend][name]
            raise InvalidOption(f"{name} is not set; set it, for example {example}, or set the environment variable {variable}")


def _read_libvirt(options: Options) -> Opener:
    _need(options, "libvirt", "uri", example="uri: qemu+ssh://root@kvm01/system")
    uri = options["uri"]
    if uri_password(uri):
        raise InvalidOption(
            "uri contains a password, which libvirt does not use; remove it and use ssh keys or an auth.conf file"
        )
    return lambda seconds: _open_libvirt(uri, seconds)


def _open_libvirt(uri: str, seconds: float) -> SnapshotDriver:
    from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.driver import CHECK, LibvirtDriver

    try:
        return in_time("the connection", lambda: LibvirtDriver(uri), Deadline(seconds))
    except TimedOut:
        _end_ssh()
        raise ConnectionFailed(
            f"libvirt at {public_uri(uri)} did not answer within connect_timeout={seconds:g} seconds; {CHECK}"
        ) from None


def _read_vsphere(options: Options) -> Opener:
    _need(options, "vsphere", "hostname", example="hostname: vcenter.example.com")
    _need(options, "vsphere", "username", example="username: automation@vsphere.local")
    _need(options, "vsphere", "password", example="password from a vault")
    server = read_server(options, VARIABLES["vsphere"], default_port=443)

    def connect(seconds: float) -> SnapshotDriver:
        from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.driver import VsphereDriver
        from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.session import Session

        def log_in() -> SnapshotDriver:
            session = Session(
                hostname=server.hostname,
                port=server.port,
                username=options["username"],
                password=options["password"],
                validate_certs=server.validate_certs,
                ca_path=server.ca_path,
            )
            return VsphereDriver(session)

        return _log_in(log_in, server.where, seconds)

    return connect


def _read_proxmox(options: Options) -> Opener:
    _need(options, "proxmox", "hostname", example="hostname: pve1.example.com")
    user, token = _proxmox_login(options)
    server = read_server(options, VARIABLES["proxmox"], default_port=8006)

    def connect(seconds: float) -> SnapshotDriver:
        from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.driver import ProxmoxDriver
        from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.session import Session

        def log_in() -> SnapshotDriver:
            session = Session(
                hostname=server.hostname,
                port=server.port,
                user=user,
                password=None if token else options["password"],
                token=token,
                validate_certs=server.validate_certs,
                ca_path=server.ca_path,
            )
            return ProxmoxDriver(session)

        return _log_in(log_in, server.where, seconds)

    return connect


def _proxmox_login(options: Options) -> tuple[str, tuple[str, str] | None]:
    """Return the user with its realm, and the name and secret of the API token if one is set.

    :raises InvalidOption: an option is missing, or two options contradict each other.
    """
    token_id, user = options["token_id"], options["username"]
    if not token_id:
        if options["token_secret"]:
            raise InvalidOption(
                "token_secret is set, but token_id is not; set it, for example token_id: automation@pve!safepoint"
            )
        _need(options, "proxmox", "username", example="username: automation@pve, or token_id: automation@pve!safepoint")
        _need(options, "proxmox", "password", example="password from a vault, or token_id and token_secret")
    else:
        _need(options, "proxmox", "token_secret", example="token_secret from a vault")
        owner, mark, name = token_id.rpartition("!")
        if mark and user and user != owner:
            raise InvalidOption(
                f"token_id={token_id!r} belongs to the user {owner!r}, but username={user!r} is another user; remove username"
            )
        token_id, user = name, owner or user
    if "@" not in (user or ""):
        given = f"username={user!r}" if user else f"token_id={token_id!r}"
        raise InvalidOption(
            f"{given} has no realm; write the user with its realm, for example username: root@pam, or token_id: automation@pve!safepoint"
        )
    return user, (token_id, options["token_secret"]) if token_id else None


def _log_in(log_in: Callable[[], SnapshotDriver], where: str, seconds: float) -> SnapshotDriver:
    try:
        return in_time("the login", log_in, Deadline(seconds))
    except TimedOut:
        raise ConnectionFailed(
            f"{where} did not answer within connect_timeout={seconds:g} seconds; check hostname and port, and that the server is running"
        ) from None


def _end_ssh() -> None:
    """End the ssh process of a connection that was never established: libvirt does not end it, and it outlives this process (libvirt 9.0)."""
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                process = re.match(r"(\d+) \(ssh\) \S (\d+) ", file.read())
            if process and int(process.group(2)) == os.getpid():
                os.kill(int(process.group(1)), signal.SIGTERM)
        except OSError:
            continue  # the process has ended, or belongs to another user

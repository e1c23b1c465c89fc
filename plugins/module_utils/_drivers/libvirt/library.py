# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only import of libvirt-python: connections, and translation of its errors.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import traceback
import typing as t
from collections.abc import Iterator

from ansible_collections.safepoint.vm.plugins.module_utils._core import errors
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.credentials import public_uri
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.limits import virsh
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.stop import Stop

try:
    import libvirt
    import libvirt_qemu

    LIBVIRT_IMPORT_ERROR = None
except ImportError:
    libvirt = libvirt_qemu = None
    LIBVIRT_IMPORT_ERROR = traceback.format_exc()

__all__ = [
    "CHECK",
    "HOLDER",
    "LIBVIRT_IMPORT_ERROR",
    "Connections",
    "broken_off",
    "clean",
    "connect",
    "is_alive",
    "is_broken",
    "is_held",
    "is_local",
    "libvirt",
    "libvirt_qemu",
    "typed",
]

# The operation that is_held() has found; libvirt does not report which one.
HOLDER = "another libvirt operation (snapshot, backup, migration or similar)"

CHECK = "check that the host is up, that libvirtd runs there, and that virsh -c URI list works with this URI"

# The connection is broken after this many unanswered keepalive messages, sent at this interval.
_KEEPALIVE_SECONDS = 5
_KEEPALIVE_COUNT = 3

# A daemon serves max_client_requests (5 by default) calls of one connection at a time. At that number it stops reading the connection, misses our
# answers to its keepalive messages, and closes the connection after 30 seconds (9.0, 11.3). One call is reserved for reads by the caller, on the
# first connection, and one so that the daemon keeps reading.
_CALLS_PER_CONNECTION = 3
# How often a call that waits for a connection checks its deadline, and the pause after a refused connection before the next attempt.
_WAIT_SECONDS = 0.25
_REFUSED_SECONDS = 5.0

# virErrorNumber in libvirt's virterror.h, by number because the library may be missing.
_KINDS = {
    3: "Unsupported",  # NO_SUPPORT
    29: "PermissionDenied",  # OPERATION_DENIED
    42: "VmNotFound",  # NO_DOMAIN
    45: "PermissionDenied",  # AUTH_FAILED
    67: "Unsupported",  # CONFIG_UNSUPPORTED
    68: "Locked",  # OPERATION_TIMEOUT
    72: "SnapshotNotFound",  # NO_DOMAIN_SNAPSHOT
    74: "Unsupported",  # ARGUMENT_UNSUPPORTED
    83: "Locked",  # BLOCK_COPY_ACTIVE
    84: "Unsupported",  # OPERATION_UNSUPPORTED
    88: "PermissionDenied",  # ACCESS_DENIED
}
_BLOCK_COPY_ACTIVE = 83
_ADVICE = {
    29: "; connect as a user with write access, for example qemu+ssh://root@HOST/system",
    68: "; another operation holds the VM: try again when it has ended",
}

_loop_started = threading.Lock()


@dataclasses.dataclass(eq=False)
class _Shared:
    """A connection, and the number of calls that run on it."""

    connection: t.Any
    calls: int = 0


class Connections:
    """A pool of connections for long calls, with few enough calls on each that the daemon keeps reading it.

    The first one is the caller's connection. If no more can be opened, calls wait for a free one. If the caller's connection breaks, no call is
    started any more: all reads use that connection, so the result of the call could not be read.
    """

    def __init__(self, uri: str, first: t.Any) -> None:
        self._uri = uri
        self._all = [_Shared(first)]
        self._changed = threading.Condition()
        self._opening = False
        self._pause = Deadline(0)
        self._closed = False

    @contextlib.contextmanager
    def lease(self, action: str, deadline: Deadline | None, stop: Stop | None) -> Iterator[t.Any]:
        """Lend a connection for one call. Blocks until one is free. ``action`` is for the error messages.

        :raises NotReached: the caller's connection is broken or closed, or the deadline has passed.
        :raises NotStarted: the module was stopped by a signal.
        """
        with self._changed:
            while True:
                if stop is not None and stop.by is not None:
                    raise errors.NotStarted(f"The module was stopped by {stop.by} before libvirt was asked to {action}")
                if deadline is not None and deadline.left() <= 0:
                    raise errors.NotReached(f"The timeout was reached before libvirt was asked to {action}; nothing was sent")
                shared = self._free()
                if shared is not None:
                    break
                self._changed.wait(_WAIT_SECONDS)
            shared.calls += 1
        try:
            yield shared.connection
        finally:
            with self._changed:
                shared.calls -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Close all connections, the caller's included."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            for shared in self._all:
                shared.connection.close()
            self._changed.notify_all()

    def _free(self) -> _Shared | None:
        if not is_alive(self._all[0].connection):
            raise errors.NotReached(
                f"The connection to libvirt at {public_uri(self._uri)} broke before anything was sent; {CHECK}, and try again"
            )
        for shared in self._all:
            if shared.calls < _CALLS_PER_CONNECTION and is_alive(shared.connection):
                return shared
        if not self._opening and self._pause.left() <= 0:
            # One at a time, since sshd refuses many logins at once (MaxStartups). In a thread, since a daemon with max_clients connections
            # only answers after a client has disconnected.
            self._opening = True
            threading.Thread(target=self._open, daemon=True).start()
        return None

    def _open(self) -> None:
        connection = None
        try:
            connection = connect(self._uri)
        except libvirt.libvirtError:
            self._pause = Deadline(_REFUSED_SECONDS)  # the refusal may be temporary
        with self._changed:
            self._opening = False
            if connection is not None and self._closed:
                connection.close()
            elif connection is not None:
                self._all.append(_Shared(connection))
            self._changed.notify_all()


def connect(uri: str) -> t.Any:
    """Open a connection with keepalive. Blocks while the peer does not answer, and raises libvirtError."""
    # Without a handler the library prints every error to stderr, which Ansible treats as output of the module.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    _run_event_loop()
    connection = libvirt.open(_without_prompts(uri))
    try:
        connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
    except libvirt.libvirtError:
        pass  # libvirt's test driver has no keepalive
    return connection


def typed(error: t.Any, what: str, *, where: str, broken: bool) -> errors.SafepointError:
    """Translate a libvirtError, with libvirt's own text; ``broken`` is true if the connection is broken."""
    code = error.get_error_code()
    if broken or error.get_error_domain() == libvirt.VIR_FROM_RPC:
        return errors.ConnectionFailed(
            f"The connection to libvirt at {where} broke during the request to {what}: {clean(error)}; {CHECK}"
        )
    made: type[errors.SafepointError] = getattr(errors, _KINDS.get(code, "BackendFailed"))
    return made(f"libvirt failed to {what}: {clean(error)}{_advice(code, where)}")


def _advice(code: int, where: str) -> str:
    if code == _BLOCK_COPY_ACTIVE:
        command = virsh(where, "blockjob", "VM", "DISK", "--info")
        return f"; a block job works on a disk of the VM: {command} shows it; try again when it has ended"
    return _ADVICE.get(code, "")


def is_held(domain: t.Any) -> bool:
    """Return True if a libvirt operation holds a VM that is up. Does not detect a backup; jobInfo does."""
    try:
        control = domain.controlInfo()[0]
    except libvirt.libvirtError:
        return False  # not supported by libvirt's test driver or for a VM that is off
    return control in (libvirt.VIR_DOMAIN_CONTROL_JOB, libvirt.VIR_DOMAIN_CONTROL_OCCUPIED)


def is_alive(connection: t.Any) -> bool:
    """Return True if the connection still works. libvirt's own isAlive() raises an error for a closed connection."""
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def is_broken(error: t.Any, connection: t.Any) -> bool:
    """Return True if the error is about the connection, not about the request."""
    return bool(error.get_error_domain() == libvirt.VIR_FROM_RPC or not is_alive(connection))


def broken_off(error: t.Any, action: str, sent: str | None, *, where: str) -> errors.SafepointError:
    """Return the error of a write whose connection broke; ``sent`` is the start of a sentence about its progress, or None if nothing was sent."""
    if sent is None:
        return errors.NotReached(
            f"The connection to libvirt at {where} broke before libvirt was asked to {action}: {clean(error)}; nothing was sent; {CHECK}, and try again"
        )
    # A daemon that dies during a snapshot leaves the VM paused, or the restarted daemon kills the VM because of its state (9.0, 11.3).
    return errors.Unverified(
        f"{sent}, and then the connection to libvirt at {where} broke: {clean(error)}; check the VM with snapshot_info before you retry: if libvirtd "
        f"died, the VM may be paused ({virsh(where, 'resume', 'VM')}) or off ({virsh(where, 'start', 'VM')})"
    )


def block_job_runs(error: t.Any, what: str, *, where: str) -> errors.Locked:
    """Return the error for a refusal because of a block job, where libvirt's error code does not say so."""
    return errors.Locked(f"libvirt failed to {what}: {clean(error)}{_advice(_BLOCK_COPY_ACTIVE, where)}")


def clean(error: t.Any) -> str:
    """Return libvirt's error text in one line."""
    return " ".join(str(error).split())


def is_local(uri: str) -> bool:
    """Return True if the daemon runs on this host, so its images are local files."""
    return re.match(r"\w+(\+unix)?:///", uri) is not None


def _without_prompts(uri: str) -> str:
    """Return the URI with no_tty=1 for ssh: a module has no terminal, and a prompt would block for ever."""
    if not re.match(r"[^:]*\+ssh://", uri) or "no_tty=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}no_tty=1"


def _run_event_loop() -> None:
    """Start the event loop that sends and answers keepalive messages, in a daemon thread, once per process."""
    if not _loop_started.acquire(blocking=False):
        return
    libvirt.virEventRegisterDefaultImpl()

    def loop() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=loop, name="libvirt events", daemon=True).start()

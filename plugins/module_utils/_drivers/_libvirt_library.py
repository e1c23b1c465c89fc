# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's Python library: the only import of it, what it needs before it can be used, and its errors.

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

from ansible_collections.safepoint.vm.plugins.module_utils import _errors
from ansible_collections.safepoint.vm.plugins.module_utils._credentials import public_uri
from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._stop import Stop

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

# As is_held() sees it; libvirt does not tell which it is.
HOLDER = "another operation of libvirt (a snapshot, a backup, a migration or the like)"

CHECK = "check that the host is up, that libvirtd runs there, and that this URI opens with virsh -c"

# A peer that says nothing to this many questions, so many seconds apart, is gone.
_KEEPALIVE_SECONDS = 5
_KEEPALIVE_COUNT = 3

# A daemon serves max_client_requests (5 by default) calls of one connection at a time. At that number it stops reading the connection, so that
# it misses our answers to its keepalive messages, and closes the connection after 30 seconds (9.0, 11.3). One call is left for the looks of
# the caller, who has the first connection, and one so that the daemon goes on reading.
_CALLS_PER_CONNECTION = 3
# How often a call that waits for a connection checks its deadline, and how long no further one is opened after one was refused.
_WAIT_SECONDS = 0.25
_REFUSED_SECONDS = 5.0

# By number, since the library may be missing: virErrorNumber in libvirt's virterror.h.
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
_ADVICE = {
    29: "; connect with a user that may write, for example qemu+ssh://root@HOST/system",
    68: "; another operation holds the VM: try again when it has ended",
    83: "; a block job works on a disk of the VM: virsh blockjob shows it, try again when it has ended",
}

_loop_started = threading.Lock()


@dataclasses.dataclass(eq=False)
class _Shared:
    """A connection, and the number of calls that are under way on it."""

    connection: t.Any
    calls: int = 0


class Connections:
    """Connections for calls that may take long: as many as are needed for the daemon to go on reading each of them.

    They begin with the caller's own. Where no further one can be opened, calls wait for their turn on those that there are. When the caller's own has
    broken, no call begins any more: its effect could not be read, since all reads go over that one.
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
        """A connection for one call at a time, which is about an ``action``. Blocks until there is one.

        :raises NotReached: the caller's own connection broke or was closed, or the time is up.
        :raises NotStarted: the module was told to stop.
        """
        with self._changed:
            while True:
                if stop is not None and stop.by is not None:
                    raise _errors.NotStarted(f"The module was stopped by {stop.by} before libvirt was asked to {action}")
                if deadline is not None and deadline.left() <= 0:
                    raise _errors.NotReached(f"The time was up before libvirt was asked to {action}; nothing was sent")
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
        """Close all of them, the caller's own included."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            for shared in self._all:
                shared.connection.close()
            self._changed.notify_all()

    def _free(self) -> _Shared | None:
        if not is_alive(self._all[0].connection):
            raise _errors.NotReached(
                f"The connection to libvirt at {public_uri(self._uri)} broke before anything was sent; {CHECK}, and try again"
            )
        for shared in self._all:
            if shared.calls < _CALLS_PER_CONNECTION and is_alive(shared.connection):
                return shared
        if not self._opening and self._pause.left() <= 0:
            # One at a time, since sshd refuses many logins at once (MaxStartups). In a thread: a daemon that has max_clients answers only
            # when another client has left.
            self._opening = True
            threading.Thread(target=self._open, daemon=True).start()
        return None

    def _open(self) -> None:
        connection = None
        try:
            connection = connect(self._uri)
        except libvirt.libvirtError:
            self._pause = Deadline(_REFUSED_SECONDS)  # it may have been for a moment only
        with self._changed:
            self._opening = False
            if connection is not None and self._closed:
                connection.close()
            elif connection is not None:
                self._all.append(_Shared(connection))
            self._changed.notify_all()


def connect(uri: str) -> t.Any:
    """A new connection that notices when its peer is gone. Blocks for as long as the peer is mute, and raises the library's own error."""
    # Without a handler the library prints every error to stderr, where Ansible takes it for a module's output.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    _run_event_loop()
    connection = libvirt.open(_without_prompts(uri))
    try:
        connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
    except libvirt.libvirtError:
        pass  # libvirt's test driver has no peer to keep alive
    return connection


def typed(error: t.Any, what: str, *, where: str, broken: bool) -> _errors.SafepointError:
    """The library's error as one of ours, with libvirt's own words; ``broken`` says that the connection is gone."""
    code = error.get_error_code()
    if broken or error.get_error_domain() == libvirt.VIR_FROM_RPC:
        return _errors.ConnectionFailed(
            f"The connection to libvirt at {where} broke on the way to {what}: {clean(error)}; {CHECK}"
        )
    made: type[_errors.SafepointError] = getattr(_errors, _KINDS.get(code, "BackendFailed"))
    return made(f"libvirt failed to {what}: {clean(error)}{_ADVICE.get(code, '')}")


def is_held(domain: t.Any) -> bool:
    """Whether an operation of libvirt holds a VM that is up. Of a backup libvirt tells it elsewhere (jobInfo)."""
    try:
        control = domain.controlInfo()[0]
    except libvirt.libvirtError:
        return False  # libvirt's test driver has no such thing, and a VM that is off tells none
    return control in (libvirt.VIR_DOMAIN_CONTROL_JOB, libvirt.VIR_DOMAIN_CONTROL_OCCUPIED)


def is_alive(connection: t.Any) -> bool:
    """Whether the connection still works. The library raises an error about one that was closed."""
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def is_broken(error: t.Any, connection: t.Any) -> bool:
    """Whether the library's error is about the connection, and not about what was asked for."""
    return bool(error.get_error_domain() == libvirt.VIR_FROM_RPC or not is_alive(connection))


def broken_off(error: t.Any, action: str, sent: str | None, *, where: str) -> _errors.SafepointError:
    """The error of a write whose connection broke; ``sent`` says what libvirt was asked for until then, or has done, if anything."""
    if sent is None:
        return _errors.NotReached(
            f"The connection to libvirt at {where} broke before libvirt was asked to {action}: {clean(error)}; nothing was sent; {CHECK}, and try again"
        )
    # A daemon that dies while it takes a snapshot leaves the VM paused for good, or the next one finds it in a state that it ends (9.0, 11.3).
    return _errors.Unverified(
        f"{sent}, and then the connection to libvirt at {where} broke: {clean(error)}; look at the VM before the next try (snapshot_info): if libvirtd "
        "died, the VM may be left paused (virsh resume) or off (virsh start)"
    )


def block_job_runs(error: t.Any, what: str) -> _errors.Locked:
    """What libvirt refused with a code that does not tell, because of a block job."""
    return _errors.Locked(f"libvirt failed to {what}: {clean(error)}{_ADVICE[83]}")


def clean(error: t.Any) -> str:
    """libvirt's own text, in one line."""
    return " ".join(str(error).split())


def is_local(uri: str) -> bool:
    """Whether the daemon runs on this machine, so that its images are files here."""
    return re.match(r"\w+(\+unix)?:///", uri) is not None


def _without_prompts(uri: str) -> str:
    """The ``uri`` with which ssh asks nothing: a module has no terminal, and a prompt would wait for ever."""
    if not re.match(r"[^:]*\+ssh://", uri) or "no_tty=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}no_tty=1"


def _run_event_loop() -> None:
    """Once a process: the loop that answers and sends keepalives, in a daemon thread."""
    if not _loop_started.acquire(blocking=False):
        return
    libvirt.virEventRegisterDefaultImpl()

    def loop() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=loop, name="libvirt events", daemon=True).start()

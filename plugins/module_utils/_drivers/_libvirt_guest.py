# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guest inside a VM, through its agent: its clock, and its file systems held still while a snapshot is taken.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
import typing as t
from collections.abc import Callable, Iterator

from ansible_collections.safepoint.vm.plugins.module_utils import _errors
from ansible_collections.safepoint.vm.plugins.module_utils._credentials import public_uri
from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_library import (
    broken_off,
    clean,
    connect,
    is_broken,
    libvirt,
    typed,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_xml import agent_channel
from ansible_collections.safepoint.vm.plugins.module_utils._model import Vm
from ansible_collections.safepoint.vm.plugins.module_utils._threads import in_time

# The agent of a guest that hangs never answers; setting the clock and thawing are worth no longer wait than this.
_AGENT_SECONDS = 5
# A freeze writes out all that the guest holds in its caches first.
_FREEZE_SECONDS = 30
# No guest is held still for longer than this, whatever keeps the snapshot from being finished.
_QUIESCE_SECONDS = 60.0
# What may be spent on thawing a guest, a daemon that is started again included.
_THAW_SECONDS = 20.0

# virErrorNumber in libvirt's virterror.h, by number because older libraries lack the names.
_NOT_CONNECTED = (74, 86, 97)  # no channel, nobody there, no answer to the greeting: the guest was not asked to freeze
_INTERNAL, _AGENT_TIMEOUT, _AGENT_FAILED = 1, 112, 113  # 9.0 answers 1 where 11.3 has 113


class NotQuiesced(Exception):
    """The guest's file systems could not be held still, and there is no snapshot; ``error`` is what to tell the user."""

    def __init__(self, error: _errors.SafepointError) -> None:
        super().__init__(str(error))
        self.error = error


def quiesced(vm: Vm, domain: t.Any, uri: str, take: Callable[[], t.Any]) -> t.Any:
    """The snapshot that ``take`` makes with the flag QUIESCE. Afterwards the guest is thawed, or the error says that it may not be.

    libvirt thaws by itself, unless it dies, or the agent obeys only after libvirt has given it up (seen with 11.3). Hence a second
    connection: the first may be broken.

    :raises NotQuiesced: it is the guest that could not do it, or did it for too long.
    :raises SafepointError: the snapshot failed, and the guest may be frozen.
    """
    thaw = _Thaw(vm, uri)
    late: list[str | None] = []
    timer = threading.Timer(_QUIESCE_SECONDS, lambda: late.append(thaw(at_once=True)))
    timer.daemon = True
    failed = None
    made: t.Any = None
    try:
        with _bounded_agent(domain, _FREEZE_SECONDS):
            timer.start()
            made = take()
    except libvirt.libvirtError as exc:
        failed = exc
    finally:
        timer.cancel()
    if timer.is_alive():
        timer.join()
    if failed is not None:
        raise _why(vm, domain, failed, thaw) from failed
    if late:
        rest = "the snapshot removed again"
        try:
            made.delete()
        except libvirt.libvirtError as exc:
            rest = f"the snapshot {made.getName()}, which says that it is quiesced, could not be removed again ({clean(exc)}): remove it"
        hint = f"; {late[0]}" if late[0] else ""
        raise NotQuiesced(
            _errors.TimedOut(
                f"The snapshot of {vm} was not finished within {_QUIESCE_SECONDS:g} seconds, for which its guest was frozen; the guest was "
                f"thawed and {rest}{hint}; look at the load of the storage, or set quiesce=never"
            )
        )
    return made


def set_clock(domain: t.Any) -> str | None:
    """Give the guest the time of today through its agent, or say why that did not work."""
    try:
        if agent_channel(domain.XMLDesc()) is None:
            return "it has no guest agent channel"
        with _bounded_agent(domain, _AGENT_SECONDS):
            return _try_clock(domain, Deadline(_AGENT_SECONDS))
    except libvirt.libvirtError as exc:
        return clean(exc)


def _try_clock(domain: t.Any, deadline: Deadline) -> str | None:
    while True:
        try:
            domain.setTime({"seconds": int(time.time()), "nseconds": 0})
            return None
        except libvirt.libvirtError as exc:
            # The agent of a guest that was just started again needs a moment to connect.
            if exc.get_error_code() != libvirt.VIR_ERR_AGENT_UNRESPONSIVE or deadline.left() <= 0:
                return clean(exc)
        time.sleep(0.2)


@contextlib.contextmanager
def _bounded_agent(domain: t.Any, seconds: int) -> Iterator[None]:
    """Let no call of the agent take longer; without this one waits for ever (11.3)."""
    domain.agentSetResponseTimeout(seconds)
    try:
        yield
    finally:
        # This is a setting of the VM that outlives our connection, hence the way back to libvirt's own.
        with contextlib.suppress(libvirt.libvirtError):
            domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)


def _why(vm: Vm, domain: t.Any, failed: t.Any, thaw: _Thaw) -> Exception:
    """What a snapshot with QUIESCE failed of, after the guest was thawed where it may need that."""
    code = failed.get_error_code()
    if code in _NOT_CONNECTED:
        return NotQuiesced(
            _errors.Unsupported(
                f"{vm} cannot be quiesced: {clean(failed)}; install and start qemu-guest-agent in the guest, or set quiesce=never"
            )
        )
    # The agent's own words, which are in no other language.
    if code in (_INTERNAL, _AGENT_FAILED) and "frozen state" in str(failed):
        return NotQuiesced(
            _errors.Locked(
                f"{vm} cannot be quiesced: its guest is frozen already, by somebody else ({clean(failed)}); if nobody needs that any more, thaw "
                f"it: {thaw.command}"
            )
        )
    broken = is_broken(failed, domain.connect())
    problem = thaw(at_once=not broken)
    hint = f"; {problem}" if problem else ""
    if code in (_INTERNAL, _AGENT_TIMEOUT, _AGENT_FAILED) and not broken:
        return NotQuiesced(
            _errors.Unsupported(
                f"{vm} cannot be quiesced: {clean(failed)}{hint}; look at qemu-guest-agent in the guest, or set quiesce=never"
            )
        )
    asked = f"take a quiesced snapshot of {vm}"
    if broken:
        error = broken_off(failed, asked, f"libvirt was asked to {asked}", where=thaw.where)
    else:
        error = typed(failed, asked, where=thaw.where, broken=False)
    return type(error)(f"{error}{hint}")


class _Thaw:
    """Thaws one guest, from a connection and in a thread of its own."""

    def __init__(self, vm: Vm, uri: str) -> None:
        self._vm = vm
        self._uri = uri
        self.where = public_uri(uri)
        self.command = f"virsh -c {shlex.quote(self.where)} domfsthaw {shlex.quote(vm.name)}"

    def __call__(self, *, at_once: bool) -> str | None:
        """Thaw, or say that the guest may be frozen, and what to do. Unless ``at_once``, libvirt is left the time to do it itself."""
        deadline = Deadline(_THAW_SECONDS)
        problem = "libvirt did not answer in time"

        def attempt() -> bool | None:
            nonlocal problem
            try:
                connection = connect(self._uri)
                try:
                    return self._thaw(connection, patient=not at_once and deadline.left() > _THAW_SECONDS / 2)
                finally:
                    connection.close()
            except libvirt.libvirtError as exc:
                problem = clean(exc)
                return None

        try:
            in_time("the guest to be thawed", lambda: deadline.poll("the guest to be thawed", attempt, first=0.5), deadline)
        except _errors.TimedOut:
            return f"the guest of {self._vm} may be frozen, since it could not be thawed ({problem}): {self.command}"
        return None

    def _thaw(self, connection: t.Any, *, patient: bool) -> bool | None:
        domain = connection.lookupByUUIDString(self._vm.id)
        if patient and domain.controlInfo()[0] != libvirt.VIR_DOMAIN_CONTROL_OK:
            return None  # the snapshot is still being taken, only our first connection broke
        with _bounded_agent(domain, _AGENT_SECONDS):
            domain.fsThaw()
        return True

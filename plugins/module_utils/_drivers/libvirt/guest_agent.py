# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guest agent: setting the guest's clock, and freezing its file systems while a snapshot is taken.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import contextlib
import threading
import time
import typing as t
from collections.abc import Callable, Iterator

from ansible_collections.safepoint.vm.plugins.module_utils._core import errors
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Vm
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.credentials import public_uri
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.library import (
    broken_off,
    clean,
    connect,
    is_broken,
    libvirt,
    typed,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.limits import virsh
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.xml import agent_channel
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.threads import in_time

# The agent of a hung guest never answers. The limit for setting the clock and for thawing.
_AGENT_SECONDS = 5
# A freeze first flushes all caches of the guest.
_FREEZE_SECONDS = 30
# The longest time that a guest stays frozen, whatever delays the snapshot.
_QUIESCE_SECONDS = 60.0
# The limit for thawing a guest; long enough for a restart of the daemon.
_THAW_SECONDS = 20.0

# virErrorNumber in libvirt's virterror.h, by number because older libraries lack the names.
_NOT_CONNECTED = (74, 86, 97)  # no channel, agent not connected, no answer to guest-sync: no freeze was sent
_INTERNAL, _AGENT_TIMEOUT, _AGENT_FAILED = 1, 112, 113  # 9.0 reports 1 where 11.3 reports 113


class NotQuiesced(Exception):
    """The guest's file systems could not be frozen, and no snapshot exists; ``error`` is the error for the user."""

    def __init__(self, error: errors.SafepointError) -> None:
        super().__init__(str(error))
        self.error = error


def quiesced(vm: Vm, domain: t.Any, uri: str, take: Callable[[], t.Any]) -> t.Any:
    """Return the snapshot that ``take`` creates with the flag QUIESCE. Afterwards the guest is thawed, or the error says that it may be frozen.

    libvirt thaws the guest itself, unless libvirtd dies or the agent freezes only after libvirt's timeout (seen with 11.3). The thaw uses a second
    connection, since the first may be broken.

    :raises NotQuiesced: the guest could not be frozen, or was frozen for too long.
    :raises SafepointError: the snapshot failed for another reason.
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
        rest = "the snapshot was removed"
        try:
            made.delete()
        except libvirt.libvirtError as exc:
            rest = f"the snapshot {made.getName()}, which is marked as quiesced, could not be removed ({clean(exc)}): remove it"
        hint = f"; {late[0]}" if late[0] else ""
        raise NotQuiesced(
            errors.TimedOut(
                f"The snapshot of {vm} did not finish within {_QUIESCE_SECONDS:g} seconds, while its guest was frozen; the guest was "
                f"thawed and {rest}{hint}; check the load of the storage, or set quiesce=never"
            )
        )
    return made


def set_clock(domain: t.Any) -> str | None:
    """Set the guest's clock to the current time through its agent; return why it failed, or None."""
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
            # The agent of a guest that was just restarted needs a moment to connect.
            if exc.get_error_code() != libvirt.VIR_ERR_AGENT_UNRESPONSIVE or deadline.left() <= 0:
                return clean(exc)
        time.sleep(0.2)


@contextlib.contextmanager
def _bounded_agent(domain: t.Any, seconds: int) -> Iterator[None]:
    """Limit the time of agent calls; without it a call can wait for ever (11.3)."""
    domain.agentSetResponseTimeout(seconds)
    try:
        yield
    finally:
        # A setting of the VM that outlives our connection: restore libvirt's default.
        with contextlib.suppress(libvirt.libvirtError):
            domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)


def _why(vm: Vm, domain: t.Any, failed: t.Any, thaw: _Thaw) -> Exception:
    """Return the error of a failed snapshot with QUIESCE; thaw the guest first if it may be frozen."""
    code = failed.get_error_code()
    if code in _NOT_CONNECTED:
        return NotQuiesced(
            errors.Unsupported(
                f"{vm} cannot be quiesced: {clean(failed)}; install and start qemu-guest-agent in the guest, or set quiesce=never"
            )
        )
    # The agent's own text; it has no translations.
    if code in (_INTERNAL, _AGENT_FAILED) and "frozen state" in str(failed):
        return NotQuiesced(
            errors.Locked(
                f"{vm} cannot be quiesced: another program has already frozen its guest ({clean(failed)}); if it need not stay frozen, thaw "
                f"it: {thaw.command}"
            )
        )
    broken = is_broken(failed, domain.connect())
    problem = thaw(at_once=not broken)
    hint = f"; {problem}" if problem else ""
    if code in (_INTERNAL, _AGENT_TIMEOUT, _AGENT_FAILED) and not broken:
        return NotQuiesced(
            errors.Unsupported(
                f"{vm} cannot be quiesced: {clean(failed)}{hint}; check qemu-guest-agent in the guest, or set quiesce=never"
            )
        )
    asked = f"take a quiesced snapshot of {vm}"
    if broken:
        error = broken_off(failed, asked, f"libvirt was asked to {asked}", where=thaw.where)
    else:
        error = typed(failed, asked, where=thaw.where, broken=False)
    return type(error)(f"{error}{hint}")


class _Thaw:
    """Thaws one guest, over a separate connection and in a separate thread."""

    def __init__(self, vm: Vm, uri: str) -> None:
        self._vm = vm
        self._uri = uri
        self.where = public_uri(uri)
        self.command = virsh(self.where, "domfsthaw", vm.name)

    def __call__(self, *, at_once: bool) -> str | None:
        """Thaw the guest; return None, or that it may be frozen and the remedy. Unless ``at_once``, libvirt first gets time to thaw it itself."""
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
        except errors.TimedOut:
            return f"the guest of {self._vm} may be frozen, because it could not be thawed ({problem}): {self.command}"
        return None

    def _thaw(self, connection: t.Any, *, patient: bool) -> bool | None:
        domain = connection.lookupByUUIDString(self._vm.id)
        if patient and domain.controlInfo()[0] != libvirt.VIR_DOMAIN_CONTROL_OK:
            return None  # the snapshot is still being taken; only our first connection broke
        with _bounded_agent(domain, _AGENT_SECONDS):
            domain.fsThaw()
        return True

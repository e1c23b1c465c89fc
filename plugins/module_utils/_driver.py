# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every backend promises. ``tests/conformance`` is the definition of this interface.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import abc
import dataclasses
import typing as t
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

if t.TYPE_CHECKING:
    from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
    from ansible_collections.safepoint.vm.plugins.module_utils._errors import SafepointError
    from ansible_collections.safepoint.vm.plugins.module_utils._model import Configuration, Finding, Snapshot, Vm, VmState
    from ansible_collections.safepoint.vm.plugins.module_utils._naming import NameRule
    from ansible_collections.safepoint.vm.plugins.module_utils._stop import Stop


@dataclasses.dataclass(frozen=True)
class Create:
    """Take a snapshot of ``vm`` in the state it is in."""

    vm: Vm
    name: str
    description: str
    memory: bool
    kind: str | None = None
    """The kind of the Way that was chosen."""
    quiesce: str = "never"
    """``never``, ``prefer`` or ``require``."""
    unquiesced_description: str | None = None
    """Unless ``never``: the description of a snapshot that is not quiesced after all, or not yet known to be."""

    def __str__(self) -> str:
        return f"take snapshot {self.name} of {self.vm}"


@dataclasses.dataclass(frozen=True)
class Revert:
    """Return ``vm`` to ``snapshot``. What happened since is lost; ``power`` is as_snapshot, on or off."""

    vm: Vm
    snapshot: Snapshot
    power: str

    def __str__(self) -> str:
        return f"revert {self.vm} to snapshot {self.snapshot}"


@dataclasses.dataclass(frozen=True)
class Delete:
    """Delete ``snapshot`` alone; its children move up to its parent."""

    vm: Vm
    snapshot: Snapshot

    def __str__(self) -> str:
        return f"remove snapshot {self.snapshot} of {self.vm}"


@dataclasses.dataclass(frozen=True)
class Describe:
    """Give ``snapshot`` the whole of ``description``."""

    vm: Vm
    snapshot: Snapshot
    description: str

    def __str__(self) -> str:
        return f"describe snapshot {self.snapshot} of {self.vm}"


Action = t.Union[Create, Revert, Delete, Describe]


@dataclasses.dataclass(eq=False)
class Job:
    """An action that is under way. Only the driver that started it looks inside ``handle``."""

    action: Action
    handle: t.Any = None
    """As text it names the work to people who look for it at the hypervisor; None where it has no name there."""
    percent: int | None = None
    """How far the vendor says it is. Set by the driver, in whatever thread, while the job runs."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """How a job ended.

    A Revert that the hypervisor had accepted before something else failed (its snapshot is gone now, or the VM does not start) is either a success or an
    error that says so, never SnapshotNotFound or Locked: with these the engine decides again, as if nothing had been done.
    """

    job: Job
    error: SafepointError | None = None
    snapshot_id: str | None = None
    """The id of the snapshot that a Create made."""
    warnings: tuple[str, ...] = ()


class SnapshotDriver(abc.ABC):
    """One vendor's API. Raises SafepointError only; never sees Ansible.

    All methods but ``start`` block; the caller runs them in daemon threads under a deadline of its own.
    """

    name: t.ClassVar[str]
    name_rule: t.ClassVar[NameRule]
    revert_needs_newest: t.ClassVar[bool] = False
    """Whether a revert is possible only to the newest snapshot, so that later ones have to go first."""
    most_parallel: t.ClassVar[int | None] = None
    """The number of jobs that the endpoint can take at the same time, whatever max_parallel allows; None where it limits them itself."""
    lock_timeout: float = 60.0
    """Seconds for which a job that has changed its VM already waits for another operation on it; set by the engine."""
    stop: Stop | None = None
    """Told by signals, set by the engine. A job that sent nothing until then sends nothing any more, and ends with NotStarted."""

    def set_deadline(self, deadline: Deadline) -> None:
        """Until when a read that gets no answer is repeated, and a write whose answer was lost is looked up.

        The engine sets it for each phase of a call (the work, the undo, the last look). A driver whose connection ends with its endpoint ignores it.
        """

    def now(self) -> datetime:
        """What time it is for the snapshots: by the endpoint's clock where that is known, and else by ours. Aware and UTC."""
        return datetime.now(timezone.utc)

    def imagine(self, vm: Vm, snapshots: Sequence[Snapshot]) -> Sequence[Snapshot]:
        """The snapshots with what could not be done with each if these were all that ``vm`` has. Asks nobody."""
        return snapshots

    @abc.abstractmethod
    def find(self, refs: Sequence[str]) -> Mapping[str, Vm | SafepointError]:
        """Resolve names, UUIDs and ids in one look-up for all.

        A prefix ``name:``, ``uuid:`` or ``id:`` decides what a ref is. What matches no VM is VmNotFound, several is VmAmbiguous.
        """

    @abc.abstractmethod
    def vms(self) -> Sequence[Vm]:
        """All VMs of the endpoint, in the order of their names."""

    @abc.abstractmethod
    def inspect(
        self, vms: Sequence[Vm], *, ways: bool, memory: bool = False, quiesce: bool = False
    ) -> Mapping[str, VmState | SafepointError]:
        """What preflight needs to know, by the id of the VM, and with ``ways`` how snapshots can be taken. Writes nothing.

        With ``memory`` and ``quiesce`` also whether with memory and quiesced; without them a backend need not know, where asking costs something.
        """

    @abc.abstractmethod
    def snapshots(self, vms: Sequence[Vm], *, sizes: bool = False) -> Mapping[str, tuple[Snapshot, ...] | SafepointError]:
        """All snapshots by the id of the VM, parents before their children. Unfinished ones may be among them.

        With ``sizes`` also how large they are, where the backend tells it at some cost.
        """

    @abc.abstractmethod
    def configurations(
        self, wanted: Sequence[tuple[Vm, Snapshot | None]]
    ) -> Mapping[tuple[str, str | None], Configuration | SafepointError]:
        """What VMs were made of when a snapshot was taken, or with None are made of today; by the ids of the VM and the snapshot."""

    def look_into_images(self, vms: Sequence[Vm]) -> Mapping[str, tuple[Finding, ...] | SafepointError]:
        """What is wrong inside the VMs' disk images, by the id of the VM, where the backend lets one look. May be slow."""
        return {vm.id: () for vm in vms}

    def foresee(self, actions: Sequence[Action]) -> Mapping[str, SafepointError]:
        """By the id of the VM, which of the actions would be refused, where the backend has to be asked for each of them.

        Asked in a dry run only. A real one is refused by the backend itself, before anything is written, and is spared these requests.
        """
        return {}

    @abc.abstractmethod
    def start(self, action: Action) -> Job:
        """Begin an action and return at once. One VM has at most one job of ours at a time.

        A write whose answer was lost is looked up until it is known; a job whose write cannot be known by the deadline ends with Unverified,
        which says what was sent. NotReached means that nothing was sent.
        """

    @abc.abstractmethod
    def wait(self, jobs: Sequence[Job], deadline: Deadline) -> list[Finished]:
        """Block until at least one of ``jobs`` has ended; return all that have, or none when the time is up."""

    @abc.abstractmethod
    def close(self) -> None:
        """Log out. Jobs that are under way go on at the hypervisor."""

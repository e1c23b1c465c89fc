# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The interface of every backend. It is defined by ``tests/conformance``.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import abc
import dataclasses
import typing as t
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

if t.TYPE_CHECKING:
    from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
    from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Configuration, Finding, Snapshot, Vm, VmState
    from ansible_collections.safepoint.vm.plugins.module_utils._core.names import NameRule
    from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
    from ansible_collections.safepoint.vm.plugins.module_utils._waiting.stop import Stop


@dataclasses.dataclass(frozen=True)
class Create:
    """Take a snapshot of the present state of ``vm``."""

    vm: Vm
    name: str
    description: str
    memory: bool
    kind: str | None = None
    """The kind of the chosen Way."""
    quiesce: str = "never"
    """``never``, ``prefer`` or ``require``."""
    unquiesced_description: str | None = None
    """Set unless quiesce is ``never``: the description of a snapshot that is not quiesced, or not yet known to be."""

    def __str__(self) -> str:
        return f"take snapshot {self.name} of {self.vm}"


@dataclasses.dataclass(frozen=True)
class Revert:
    """Revert ``vm`` to ``snapshot``. All later changes are lost. ``power`` is as_snapshot, on or off."""

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
    """Replace the description of ``snapshot``."""

    vm: Vm
    snapshot: Snapshot
    description: str

    def __str__(self) -> str:
        return f"describe snapshot {self.snapshot} of {self.vm}"


Action = t.Union[Create, Revert, Delete, Describe]


@dataclasses.dataclass(eq=False)
class Job:
    """A running action. Only the driver that started it uses ``handle``."""

    action: Action
    handle: t.Any = None
    """As text: the name of the task at the hypervisor, for messages; None if it has none."""
    percent: int | None = None
    """Progress as the vendor reports it. The driver sets it from any thread while the job runs."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """The result of a job.

    If a Revert was accepted by the hypervisor and something failed later (its snapshot is gone now, or the VM does not start), the result is a success or an
    error that says so. It is never SnapshotNotFound or Locked: on these, the engine decides again, as if nothing had been done.
    """

    job: Job
    error: SafepointError | None = None
    snapshot_id: str | None = None
    """The id of the snapshot that a Create took."""
    warnings: tuple[str, ...] = ()


class SnapshotDriver(abc.ABC):
    """The API of one vendor. Raises only SafepointError; does not import Ansible.

    All methods except ``start`` block; the caller runs them in daemon threads with a deadline.
    """

    name: t.ClassVar[str]
    name_rule: t.ClassVar[NameRule]
    revert_needs_newest: t.ClassVar[bool] = False
    """True if a VM can be reverted to its newest snapshot only, so that newer snapshots must be removed first."""
    most_parallel: t.ClassVar[int | None] = None
    """Maximum number of parallel jobs at the endpoint, regardless of max_parallel; None if the endpoint itself limits them."""
    lock_timeout: float = 60.0
    """Seconds that a job which has already changed its VM waits for another operation on the VM; set by the engine."""
    stop: Stop | None = None
    """Set by the engine; records SIGINT and SIGTERM. After a signal, a job that has not sent a request sends none, and ends with NotStarted."""

    def set_deadline(self, deadline: Deadline) -> None:
        """Set the time until which the driver repeats reads that get no answer and looks up writes whose answer was lost.

        The engine sets it for each phase of a call (the work, the undo, the last look). A driver whose connection ends with its endpoint ignores it.
        """

    def now(self) -> datetime:
        """Return the time of the endpoint's clock if it is known, otherwise of the local clock. Aware and UTC."""
        return datetime.now(timezone.utc)

    def imagine(self, vm: Vm, snapshots: Sequence[Snapshot]) -> Sequence[Snapshot]:
        """Return ``snapshots`` with the obstacles that they would have if they were all snapshots of ``vm``. Sends no request."""
        return snapshots

    @abc.abstractmethod
    def find(self, refs: Sequence[str]) -> Mapping[str, Vm | SafepointError]:
        """Resolve names, UUIDs and ids, all in one request.

        A prefix ``name:``, ``uuid:`` or ``id:`` sets the type of a ref. A ref without a match gives VmNotFound, one with several gives VmAmbiguous.
        """

    @abc.abstractmethod
    def vms(self) -> Sequence[Vm]:
        """Return all VMs of the endpoint, sorted by name."""

    @abc.abstractmethod
    def inspect(
        self, vms: Sequence[Vm], *, ways: bool, memory: bool = False, quiesce: bool = False
    ) -> Mapping[str, VmState | SafepointError]:
        """Return the state of each VM by its id, with ``ways`` also the ways to take a snapshot. Writes nothing.

        With ``memory`` and ``quiesce``, the ways also tell if a snapshot with memory or a quiesced one is possible. Without them, a backend may skip these
        checks if they cost a request.
        """

    @abc.abstractmethod
    def snapshots(self, vms: Sequence[Vm], *, sizes: bool = False) -> Mapping[str, tuple[Snapshot, ...] | SafepointError]:
        """Return all snapshots by the id of the VM, parents before their children. Unfinished snapshots may be included.

        With ``sizes``, also their sizes if these cost the backend extra requests.
        """

    @abc.abstractmethod
    def configurations(
        self, wanted: Sequence[tuple[Vm, Snapshot | None]]
    ) -> Mapping[tuple[str, str | None], Configuration | SafepointError]:
        """Return the configuration of each VM in a snapshot, or its present one for None; by the ids of the VM and the snapshot."""

    def look_into_images(self, vms: Sequence[Vm]) -> Mapping[str, tuple[Finding, ...] | SafepointError]:
        """Return the problems in the VMs' disk images by the id of the VM, if the backend can read the images. May be slow."""
        return {vm.id: () for vm in vms}

    def foresee(self, actions: Sequence[Action]) -> Mapping[str, SafepointError]:
        """Return by the id of the VM the actions that the backend would refuse, if it needs a request for each of them.

        Called in a dry run only. In a real run, the backend itself refuses the action before it writes anything, so these requests are not needed.
        """
        return {}

    @abc.abstractmethod
    def start(self, action: Action) -> Job:
        """Start an action and return immediately. The caller runs at most one job per VM at a time.

        If the answer to a write was lost, the driver looks up its result. If the result is not known by the deadline, the job ends with Unverified,
        which names the request that was sent. NotReached means that nothing was sent.
        """

    @abc.abstractmethod
    def wait(self, jobs: Sequence[Job], deadline: Deadline) -> list[Finished]:
        """Wait until at least one of ``jobs`` has ended; return all that have ended, or an empty list when the time is up."""

    @abc.abstractmethod
    def close(self) -> None:
        """Log out. Running jobs continue at the hypervisor."""

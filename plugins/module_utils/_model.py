# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The values that go up and down between the layers.

Times are aware and UTC, sizes are bytes. Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Iterable, Mapping
from datetime import datetime

from ansible_collections.safepoint.vm.plugins.module_utils import _label


@dataclasses.dataclass(frozen=True)
class Vm:
    """A VM as the backend knows it. ``id`` is what the backend itself tells VMs apart by."""

    name: str
    id: str
    uuid: str | None = None

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """One snapshot of one VM, as read from the backend."""

    id: str
    name: str
    created: datetime | None
    parent: str | None
    """The id of the snapshot it was taken on, or None for a root."""
    description: str
    """As stored, the label line included."""
    memory: bool
    consistency: str
    """``memory``, ``filesystem``, ``crash`` or ``offline``."""
    current: bool
    """Whether the VM's present state descends from this snapshot directly."""
    kind: str | None = None
    """How the backend keeps it, where that makes a difference (libvirt: ``internal`` or ``external``); kinds are never mixed in one VM."""
    size_bytes: int | None = None
    size_unknown: str | None = None
    """Why the backend does not tell the size, where it does not."""
    obstacles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What cannot be done with it, each with the reason and the remedy, as the end of a sentence that begins with its name:
    ``revert``, ``remove``, ``remove_alone`` (while its children, or others on the same parent, stay)."""
    not_included: tuple[str, ...] = ()
    """Parts of the VM that are not in it, and that a revert leaves as they are."""
    lost: Finding | None = None
    """Set where its data are gone although the backend lists it; nothing but its record can be removed."""

    @property
    def label(self) -> _label.Label | None:
        """The collection's own record, or None where there is no valid one."""
        return _label.parse(self.description).label

    @property
    def text(self) -> str:
        """The description without the label line."""
        return _label.parse(self.description).text

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Way:
    """One of the ways in which a snapshot of a VM can be taken."""

    kind: str | None = None
    """The kind of snapshot that comes of it; None where the backend has one only."""
    refusals: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What it cannot do now (``create``, ``memory``, ``quiesce``, ``memory_and_quiesce``), each with the reason and the remedy."""
    taken: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Names that cannot be used although no snapshot is listed under them, each with the reason and the remedy."""
    memory_implied: bool = False
    """A snapshot of the VM while it is up holds its memory whether asked to or not."""
    unrecorded: tuple[str, ...] = ()
    """Which kinds of consistency the backend keeps no record of, so that the label has to (``filesystem``, ``offline``)."""
    deepest: int | None = None
    """How many snapshots deep a chain can be, where that is limited."""
    warnings: tuple[str, ...] = ()
    """What a snapshot taken in this way would miss."""
    warnings_without_memory: tuple[str, ...] = ()
    """What it would miss besides if it does not hold the memory."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something about a VM that a person should know."""

    code: str
    message: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What a VM is made of, as far as a revert brings it back. Holds no secrets."""

    cpus: int | None
    memory_bytes: int | None
    disks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """By the name of the disk in the VM: where its data are, in the backend's words."""
    networks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """By the name or address of the interface: what it is connected to."""

    next_start: Mapping[str, int | str | None] = dataclasses.field(default_factory=dict)
    """What will be another one when the VM is started the next time: ``cpus``, ``memory_bytes``, ``disk NAME``, ``network NAME``; None is gone."""

    def drift(self, now: Configuration) -> list[tuple[str, str | int | None, str | int | None]]:
        """What a revert from ``now`` to here would change: what it is, how it was then, how it is now. None is: not there."""
        rows: list[tuple[str, str | int | None, str | int | None]] = []
        for what, was, today in (("cpus", self.cpus, now.cpus), ("memory_bytes", self.memory_bytes, now.memory_bytes)):
            rows.append((what, was, today))
            later = self.next_start.get(what, was), now.next_start.get(what, today)
            if later != (was, today):
                rows.append((f"{what} from the next start on", *later))
        for word, then, at_present in (("disk", self.disks, now.disks), ("network", self.networks, now.networks)):
            for name in sorted({*then, *at_present, *_named(self.next_start, word), *_named(now.next_start, word)}):
                what = f"{word} {name}"
                rows.append((what, then.get(name), at_present.get(name)))
                if what in self.next_start or what in now.next_start:
                    after = self.next_start.get(what, then.get(name)), now.next_start.get(what, at_present.get(name))
                    rows.append((f"{what} from the next start on", *after))
        return [row for row in rows if row[1] != row[2]]


@dataclasses.dataclass(frozen=True)
class VmState:
    """What has to be known of a VM before anything is written to it."""

    power: str
    """One of ``running``, ``paused``, ``off``."""
    ways: tuple[Way, ...] = ()
    """The ways to take a snapshot, the preferred one first; read only when asked for."""
    refusals: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What else this VM cannot do now (``power_off``: a revert that ends off; ``write``: anything), each with the reason and the remedy."""
    busy: str | None = None
    """What holds the VM at the moment, or None."""
    settled: bool = False
    """What holds it does nothing to its snapshots, so that it is waited for only where something is to be written."""
    started_by: str | None = None
    """Who starts the VM again by itself when it is off, or None."""
    findings: tuple[Finding, ...] = ()


@dataclasses.dataclass(frozen=True)
class View:
    """All that one look saw of one VM."""

    vm: Vm
    state: VmState
    snapshots: tuple[Snapshot, ...]
    """Parents before their children."""

    def by_id(self, snapshot_id: str) -> Snapshot | None:
        """The snapshot with that id, if it is there."""
        return next((snapshot for snapshot in self.snapshots if snapshot.id == snapshot_id), None)

    def named(self, name: str) -> list[Snapshot]:
        """All snapshots of that name."""
        return [snapshot for snapshot in self.snapshots if snapshot.name == name]

    def current(self) -> Snapshot | None:
        """The snapshot that the VM's present state descends from."""
        return next((snapshot for snapshot in self.snapshots if snapshot.current), None)

    def chain(self) -> set[str]:
        """The ids of the snapshots that the VM's present state descends from."""
        return chain_of(self.snapshots)

    def descendants(self, snapshot: Snapshot) -> list[Snapshot]:
        """The snapshots taken on top of ``snapshot``, parents before their children."""
        below = {snapshot.id}
        found = []
        for candidate in self.snapshots:
            if candidate.parent in below:
                below.add(candidate.id)
                found.append(candidate)
        return found


@dataclasses.dataclass(frozen=True)
class Target:
    """One VM as the user named it, with the id of its snapshot where that was given."""

    ref: str
    snapshot_id: str | None = None
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What the snapshot's label must say for anything to be done; an empty value is a field that it must not have."""


def _named(next_start: Mapping[str, object], word: str) -> set[str]:
    """The names of the disks or networks that will be other ones."""
    return {what[len(word) + 1 :] for what in next_start if what.startswith(f"{word} ")}


class Linked(t.Protocol):
    """A snapshot with its place in the tree of snapshots of its VM."""

    @property
    def id(self) -> str: ...
    @property
    def parent(self) -> str | None: ...
    @property
    def current(self) -> bool: ...


def chain_of(snapshots: Iterable[Linked]) -> set[str]:
    """The ids of the current one of a VM's snapshots and of all above it."""
    parents = {}
    above = None
    for one in snapshots:
        parents[one.id] = one.parent
        above = one.id if one.current else above
    found: set[str] = set()
    while above is not None and above not in found:
        found.add(above)
        above = parents.get(above)
    return found


def parents_first(snapshots: Iterable[Snapshot]) -> tuple[Snapshot, ...]:
    """The snapshots in an order in which each stands after its parent.

    Among equals the older and then the smaller name first, and one that is yet to be made last.

    A snapshot whose parent is not among them counts as a root.
    """
    everything = sorted(snapshots, key=lambda one: (one.created is None, one.created or 0, one.name))
    known = {one.id for one in everything}
    children: dict[str | None, list[Snapshot]] = {}
    for one in everything:
        children.setdefault(one.parent if one.parent in known else None, []).append(one)
    ordered: list[Snapshot] = []
    waiting = list(reversed(children.get(None, [])))
    while waiting:
        one = waiting.pop()
        ordered.append(one)
        waiting.extend(reversed(children.get(one.id, [])))
    return tuple(ordered)

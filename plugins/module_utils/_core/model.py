# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Data classes shared by all layers.

Times are aware and UTC, sizes are bytes. Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Iterable, Mapping
from datetime import datetime

from ansible_collections.safepoint.vm.plugins.module_utils._core import label as _label


@dataclasses.dataclass(frozen=True)
class Vm:
    """A VM. ``id`` is the id that the backend itself uses."""

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
    """The id of the parent snapshot, or None for a root."""
    description: str
    """As stored, including the label line."""
    memory: bool
    consistency: str
    """``memory``, ``filesystem``, ``crash`` or ``offline``."""
    current: bool
    """True if this snapshot is the parent of the VM's present state."""
    kind: str | None = None
    """How the backend stores it, if it has several kinds (libvirt: ``internal`` or ``external``). A VM never has snapshots of both kinds."""
    size_bytes: int | None = None
    size_unknown: str | None = None
    """The reason if the backend does not report the size."""
    obstacles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Operations that are not possible, with reason and remedy as the end of a sentence that begins with the snapshot's name:
    ``revert``, ``remove``, ``remove_alone`` (without its children and the others with the same parent)."""
    not_included: tuple[str, ...] = ()
    """Parts of the VM that are not in the snapshot and that a revert does not change."""
    lost: Finding | None = None
    """Set if its data are gone although the backend lists it; only its record can be removed."""

    @property
    def label(self) -> _label.Label | None:
        """The label of the collection, or None if there is no valid one."""
        return _label.parse(self.description).label

    @property
    def text(self) -> str:
        """The description without the label line."""
        return _label.parse(self.description).text

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Way:
    """A method to take a snapshot of a VM."""

    kind: str | None = None
    """The kind of snapshot that it creates; None if the backend has only one kind."""
    refusals: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Operations that are not possible now (``create``, ``memory``, ``quiesce``, ``memory_and_quiesce``), with reason and remedy."""
    taken: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Names that cannot be used although no listed snapshot has them, with reason and remedy."""
    memory_implied: bool = False
    """True if a snapshot of a running VM always includes its memory."""
    unrecorded: tuple[str, ...] = ()
    """The kinds of consistency (``filesystem``, ``offline``) that the label must record, because the backend does not."""
    deepest: int | None = None
    """Maximum length of a chain of snapshots, if it is limited."""
    warnings: tuple[str, ...] = ()
    """Warnings about parts of the VM that are not in the snapshot."""
    warnings_without_memory: tuple[str, ...] = ()
    """Further warnings if the snapshot does not include the memory."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A problem of a VM for an administrator to fix."""

    code: str
    message: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The hardware of a VM that a revert restores. Contains no secrets."""

    cpus: int | None
    memory_bytes: int | None
    disks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name of the disk in the VM -> location of its data, as the backend names it."""
    networks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name or address of the interface -> the network it is connected to."""

    next_start: Mapping[str, int | str | None] = dataclasses.field(default_factory=dict)
    """Values that change with the next start of the VM: ``cpus``, ``memory_bytes``, ``disk NAME``, ``network NAME``; None if removed."""

    def drift(self, now: Configuration) -> list[tuple[str, str | int | None, str | int | None]]:
        """Return the changes of a revert from ``now`` to this configuration: name, value then, value now. None means missing."""
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
    """The state of a VM that is checked before anything is written to it."""

    power: str
    """One of ``running``, ``paused``, ``off``."""
    ways: tuple[Way, ...] = ()
    """The ways to take a snapshot, the preferred one first; read only on request."""
    refusals: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Further operations that are not possible now (``power_off``: a revert that ends off; ``write``: any write), with reason and remedy."""
    busy: str | None = None
    """The operation that has locked the VM, or None."""
    settled: bool = False
    """True if that operation does not touch the snapshots, so that only writes must wait for it."""
    started_by: str | None = None
    """The service that automatically starts the VM when it is off, or None."""
    findings: tuple[Finding, ...] = ()


@dataclasses.dataclass(frozen=True)
class View:
    """The state and the snapshots of one VM, read at one time."""

    vm: Vm
    state: VmState
    snapshots: tuple[Snapshot, ...]
    """Parents before their children."""

    def by_id(self, snapshot_id: str) -> Snapshot | None:
        """Return the snapshot with this id, or None."""
        return next((snapshot for snapshot in self.snapshots if snapshot.id == snapshot_id), None)

    def named(self, name: str) -> list[Snapshot]:
        """Return all snapshots with this name."""
        return [snapshot for snapshot in self.snapshots if snapshot.name == name]

    def current(self) -> Snapshot | None:
        """Return the parent snapshot of the VM's present state, or None."""
        return next((snapshot for snapshot in self.snapshots if snapshot.current), None)

    def chain(self) -> set[str]:
        """Return the ids of all snapshots that the VM's present state descends from."""
        return chain_of(self.snapshots)

    def descendants(self, snapshot: Snapshot) -> list[Snapshot]:
        """Return all descendants of ``snapshot``, parents before their children."""
        below = {snapshot.id}
        found = []
        for candidate in self.snapshots:
            if candidate.parent in below:
                below.add(candidate.id)
                found.append(candidate)
        return found


@dataclasses.dataclass(frozen=True)
class Target:
    """A VM as the user named it, with the id of a snapshot if it was given."""

    ref: str
    snapshot_id: str | None = None
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Required values of the snapshot's label; a field with an empty value must be missing. If they differ, nothing is done."""


def _named(next_start: Mapping[str, object], word: str) -> set[str]:
    """Return the names of the disks or networks that change with the next start."""
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
    """Return the ids of the current snapshot of a VM and of all its ancestors."""
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
    """Sort the snapshots so that each comes after its parent.

    Siblings are sorted by creation time, then by name; a snapshot that is not taken yet is last.

    A snapshot whose parent is not in the list counts as a root.
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

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The values that go up and down between the layers.

Times are aware and UTC, sizes are bytes. Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Mapping
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
    size_bytes: int | None = None
    obstacle: str | None = None
    """Why it can be neither gone back to nor removed, and no other be taken beside it, with the remedy; or None."""

    @property
    def label(self) -> _label.Label | None:
        """The collection's own record, or None where there is no valid one."""
        return _label.parse(self.description).label

    @property
    def text(self) -> str:
        """The description without the label line."""
        return _label.parse(self.description).text

    def belongs_to(self, owner: str) -> bool:
        """Whether ``owner`` made it: the label is valid and names it."""
        return self.label is not None and self.label.owner == owner

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class VmState:
    """What has to be known of a VM before anything is written to it."""

    power: str
    """One of ``running``, ``paused``, ``off``."""
    refusals: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What this VM cannot do now (``create``, ``memory``, ``quiesce``, ``power_off``: a revert that ends off), each with the reason and the remedy."""
    memory_implied: bool = False
    """A snapshot of the VM while it is up holds its memory whether asked to or not."""
    busy: str | None = None
    """What holds the VM at the moment, or None."""


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


def parents_first(snapshots: t.Iterable[Snapshot]) -> tuple[Snapshot, ...]:
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

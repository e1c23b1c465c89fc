# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A model of one VM with its snapshots: its present state, and the operations that must be refused. Pure: no libvirt, no collection."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Taken:
    """One snapshot: the state that a revert must restore, and its place in the tree."""

    data: dict[str, int]
    """Name of the disk in the VM -> the first byte of its data."""
    power: str
    memory: bool
    parent: str | None


@dataclasses.dataclass
class Model:
    """The expected state of a VM whose snapshots are all of one ``kind``."""

    kind: str
    by_jobs: bool
    """True if the daemon takes and removes internal snapshots with QEMU jobs (libvirt 10.9 and later)."""
    power: str = "off"
    data: dict[str, int] = dataclasses.field(default_factory=lambda: {"vda": 0})
    unplugged: dict[str, int] = dataclasses.field(default_factory=dict)
    """The data of the disks that are detached now."""
    taken: dict[str, Taken] = dataclasses.field(default_factory=dict)
    current: str | None = None
    saved: bool = False
    """True if its memory is saved to disk (managed save)."""
    restored: bool = False
    """True if it is paused and has not run since its memory was restored from there."""
    inside: dict[str, set[str]] = dataclasses.field(default_factory=lambda: {"vda": set(), "vdb": set()})
    """Name of the disk -> the internal snapshots in its image, including those that libvirt does not know."""

    # the tree

    def below(self, name: str) -> list[str]:
        """Return all descendants of this snapshot."""
        children = [one for one, taken in self.taken.items() if taken.parent == name]
        return children + [deeper for child in children for deeper in self.below(child)]

    def chain(self) -> set[str]:
        """Return the snapshots that the present state descends from."""
        found: set[str] = set()
        name = self.current
        while name is not None:
            found.add(name)
            name = self.taken[name].parent
        return found

    def beside(self, name: str) -> list[str]:
        """Return the other snapshots with the same parent."""
        return [one for one, taken in self.taken.items() if taken.parent == self.taken[name].parent and one != name]

    # images

    def is_lost(self, name: str) -> bool:
        """Return True if an image that should have the snapshot does not have it."""
        return self.kind == "internal" and any(name not in self.inside[target] for target in self.taken[name].data)

    def strays(self) -> list[str]:
        """Return the names in the images of the VM that libvirt does not know."""
        return sorted({name for target in self.data for name in self.inside[target]} - self.taken.keys())

    def is_free(self, name: str) -> bool:
        """Return True if neither an image nor libvirt has a snapshot with this name."""
        return name not in self.taken and not any(name in held for held in self.inside.values())

    def misses_a_disk(self, name: str) -> bool:
        return not self.taken[name].data.keys() <= self.data.keys()

    # operations that must be refused, each with the reason

    def why_not_created(self, name: str, *, memory: bool) -> str | None:
        if self.saved:
            return "memory is saved"
        if self.kind == "internal":
            if self.restored and self.by_jobs:
                return "has not run since its memory came back"
            return "name is taken in an image" if self.power == "off" and name in self.strays() else None
        if memory and self.restored:
            return "has not run since its memory came back"
        return "at a fork" if self.current and self.below(self.current) else None

    def why_not_reverted(self, name: str) -> str | None:
        return "lost" if self.is_lost(name) else None

    def why_not_removed(self, name: str, *, children: bool = False) -> str | None:
        """``children``: its descendants are removed too."""
        going = {name, *(self.below(name) if children else ())}
        if self.restored and (self.kind == "external" or self.by_jobs):
            return "has not run since its memory came back"
        if self.kind == "internal":
            return "disk is missing" if self.power != "off" and any(self.misses_a_disk(one) for one in going) else None
        if self.saved:
            return "memory is saved"
        if not children and not set(self.below(name)) <= self.chain():
            return "another branch stands on it"
        # The snapshot that is removed last has no children by then, is current, and has a sibling branch.
        alone = children or not self.below(name)
        return "the branch beside it would be lost" if alone and self.beside(name) and self.current in going else None

    # the effects of operations

    def create(self, name: str, *, memory: bool) -> None:
        self.taken[name] = Taken(dict(self.data), self.power, memory, self.current)
        self.current = name
        if self.kind == "internal":
            for target in self.data:
                self.inside[target].add(name)

    def revert(self, name: str, power: str) -> None:
        one = self.taken[name]
        as_snapshot = one.power if one.memory else "off"
        self.power = {"on": "running", "off": "off"}.get(power, as_snapshot)
        self.saved = self.restored = False
        self.unplugged.update(self.data)
        self.data = dict(one.data)
        self.unplugged = {target: byte for target, byte in self.unplugged.items() if target not in self.data}
        self.current = name

    def remove(self, name: str, *, record_only: bool = False) -> None:
        """Remove the snapshot; its children stay. ``record_only``: an image may keep it."""
        gone = self.taken.pop(name)
        for one in self.taken.values():
            one.parent = gone.parent if one.parent == name else one.parent
        self.current = gone.parent if self.current == name else self.current
        if not record_only:
            # Also from the image of a disk that is detached now (9.0, 11.3; the VM is off then).
            for target in gone.data:
                self.inside[target].discard(name)

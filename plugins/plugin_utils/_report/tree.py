# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The snapshots of a VM in the order in which the page draws them: lines of snapshots, which branch where two were taken on the same one.

A snapshot that was taken on top of another stands below it and not to the right of it: a chain of thirty fits on a telephone.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ansible_collections.safepoint.vm.plugins.plugin_utils._report.model import Snapshot

# So many branches within branches are drawn; deeper ones stand below.
_DEEPEST = 20


@dataclasses.dataclass(frozen=True)
class Node:
    """A snapshot in a line. Where the line forks, which is at its end, it has a branch for each snapshot that was taken on it."""

    snapshot: Snapshot
    branches: tuple[Line, ...] = ()


Line = tuple[Node, ...]


def tree(snapshots: Sequence[Snapshot]) -> tuple[Line, ...]:
    """A line for each snapshot without a parent."""
    known = {one.id for one in snapshots}
    children: dict[str | None, list[Snapshot]] = {}
    for one in snapshots:
        children.setdefault(one.parent if one.parent in known else None, []).append(one)
    drawn: set[str] = set()

    def draw(root: Snapshot, depth: int) -> Line:
        line = []
        waiting = [root]
        while waiting:
            one = waiting.pop()
            if one.id in drawn:
                continue
            drawn.add(one.id)
            below = children.get(one.id, [])
            if len(below) + bool(one.current) > 1 and depth < _DEEPEST:
                line.append(Node(one, tuple(draw(child, depth + 1) for child in below)))
            else:
                line.append(Node(one))
                waiting.extend(reversed(below))
        return tuple(line)

    roots = children.get(None, [])
    # A circle of parents has no root, and is shown all the same.
    return tuple(draw(root, 0) for root in [*roots, *snapshots] if root.id not in drawn)

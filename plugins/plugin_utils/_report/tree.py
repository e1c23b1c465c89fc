# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The snapshots of a VM as a picture: a line with a dot for each, and a branch where two were taken on the same one.

A list with nothing but HTML and a style, so that a screen reader reads it, a search finds what is in it, and a printer prints it. What was taken on
top of another stands below it and not to the right of it: a chain of thirty fits on a telephone.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Mapping, Sequence

Data = Mapping[str, t.Any]

# So many branches within branches are drawn; what is deeper stands below.
_DEEPEST = 20
_HERE = '<li class="here"><b>The VM as it is now</b></li>'


def tree(snapshots: Sequence[Data], show: Callable[[Data], str]) -> str:
    """The list; ``show`` gives the inside of a snapshot's entry, and escapes what is in it."""
    known = {one["id"] for one in snapshots}
    children: dict[t.Any, list[Data]] = {}
    for one in snapshots:
        children.setdefault(one["parent"] if one["parent"] in known else None, []).append(one)
    drawn: set[t.Any] = set()

    def draw(roots: Sequence[Data], depth: int) -> str:
        parts = []
        waiting = list(reversed(roots))
        while waiting:
            one = waiting.pop()
            if one["id"] in drawn:
                continue
            drawn.add(one["id"])
            below = children.get(one["id"], [])
            inside = show(one)
            here = _HERE if one["current"] else ""
            if len(below) + bool(here) > 1 and depth < _DEEPEST:
                branches = "".join(f"<ol>{draw([child], depth + 1)}</ol>" for child in below)
                parts.append(f'<li class="{one["class"]} fork">{inside}{branches}{f"<ol>{here}</ol>" if here else ""}</li>')
            else:
                parts.append(f'<li class="{one["class"]}">{inside}</li>{here}')
                waiting.extend(reversed(below))
        return "".join(parts)

    roots = children.get(None, [])
    # A circle of parents has no root, and is shown all the same.
    return "".join(f'<ol class="t">{draw([root], 0)}</ol>' for root in [*roots, *snapshots] if root["id"] not in drawn)

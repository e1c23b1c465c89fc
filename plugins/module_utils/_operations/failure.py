# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The error message of a call in which VMs failed. Pure: no I/O.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import typing as t
from collections.abc import Mapping, Sequence

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import NotStarted, Undone

Row = Mapping[str, t.Any]

# Further messages are only counted: those of 300 VMs are 27 kB, and the result has the message of each VM.
_MOST = 10


def failure(rows: Sequence[Row]) -> dict[str, str] | None:
    """Return ``error`` and ``msg`` of the call with these results, or None if no VM failed."""
    failed = [row for row in rows if "error" in row]
    if not failed:
        return None
    # VMs that were not started or undone because of other VMs are not a cause; their own rows say so.
    causes = [row for row in failed if row["error"] not in (NotStarted.code, Undone.code)] or failed
    msg = causes[0]["msg"]
    if len(rows) > 1:
        msg = f"{len(causes)} of {len(rows)} VMs failed. {_grouped(causes)}"
    return {"error": causes[0]["error"], "msg": msg}


def _grouped(causes: Sequence[Row]) -> str:
    """Join the first ten messages, grouped by error, and count the others. With up to ten different errors, each has at least one message."""
    groups: dict[str, list[Row]] = {}
    for row in causes:
        groups.setdefault(row["error"], []).append(row)
    firsts = [group[0] for group in groups.values()][:_MOST]
    others = [row for row in causes if not any(row is one for one in firsts)]
    told = [*firsts, *others[: _MOST - len(firsts)]]
    said = []
    for error, group in groups.items():
        by_text: dict[str, list[str]] = {}
        for row in group:
            if any(row is one for one in told):
                by_text.setdefault(row["msg"], []).append(row["ref"])
        said += [f"{', '.join(refs)}: {text}" for text, refs in by_text.items()]
        left = len(group) - sum(map(len, by_text.values()))
        if left:
            said.append(f"and {left} more with the error {error}")
    return "; ".join(said)

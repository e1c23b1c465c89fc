# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Say it: the one serializer of each object, and the tree that a diff shows.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import typing as t

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import format_time
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot, View
from ansible_collections.safepoint.vm.plugins.module_utils._outcome import Outcome


def snapshot_result(snapshot: Snapshot, *, owner: str) -> dict[str, t.Any]:
    """A snapshot as results show it. One that is only predicted has no id and no time."""
    label = snapshot.label
    return {
        "id": snapshot.id or None,
        "name": snapshot.name,
        "created": format_time(snapshot.created) if snapshot.created else None,
        "parent": snapshot.parent,
        "description": snapshot.text,
        "label": label.as_dict() if label else None,
        "ours": snapshot.belongs_to(owner),
        "memory": snapshot.memory,
        "consistency": snapshot.consistency,
        "size_bytes": snapshot.size_bytes,
        "current": snapshot.current,
    }


def outcome_result(outcome: Outcome, *, owner: str) -> dict[str, t.Any]:
    """What happened to one VM."""
    vm = outcome.vm
    result: dict[str, t.Any] = {
        "ref": outcome.target.ref,
        "vm": {"name": vm.name, "id": vm.id, "uuid": vm.uuid} if vm else None,
        "changed": outcome.changed,
        "action": outcome.word,
        "snapshot": snapshot_result(outcome.snapshot, owner=owner) if outcome.snapshot else None,
        "warnings": outcome.warnings,
    }
    if outcome.error is not None:
        result.update(error=outcome.error.code, msg=str(outcome.error))
    return result


def outcome_diff(outcome: Outcome) -> dict[str, str]:
    """The snapshot trees before and after, without what only the hypervisor can know (ids, times)."""
    name = str(outcome.vm or outcome.target.ref)
    return {
        "before_header": f"{name}: snapshots before",
        "after_header": f"{name}: snapshots after",
        "before": tree(outcome.before),
        "after": tree(outcome.after),
    }


def tree(view: View | None) -> str:
    """The snapshots of a VM as an indented tree, one line each and its description under it; a star marks the current one."""
    if view is None:
        return ""
    depth: dict[str, int] = {}
    lines = []
    for one in view.snapshots:
        level = depth[one.id] = 0 if one.parent is None else depth.get(one.parent, -1) + 1
        marks = f" [{one.consistency}]" + (" *" if one.current else "")
        lines.append("  " * level + one.name + marks)
        lines.extend("  " * level + "  | " + line for line in one.description.split("\n") if one.description)
    return "".join(line + "\n" for line in lines)


def outcome_info(outcome: Outcome, *, owner: str) -> dict[str, t.Any]:
    """What was seen of one VM, all its snapshots included."""
    row = outcome_result(outcome, owner=owner)
    view = outcome.after
    del row["snapshot"], row["action"]
    row["power"] = view.state.power if view else None
    row["snapshots"] = [snapshot_result(one, owner=owner) for one in view.snapshots] if view else []
    return row

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The state of a VM that results show, and the serialisation of results and diffs.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import typing as t
from datetime import datetime

from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import format_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Configuration, Finding, Snapshot, Target, View, Vm
from ansible_collections.safepoint.vm.plugins.module_utils._core.owner import Owner
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Delete
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Decision


@dataclasses.dataclass
class VmResult:
    """The state of one VM that results show. The engine fills it in."""

    target: Target
    vm: Vm | None = None
    before: View | None = None
    """The VM as it was first read."""
    after: View | None = None
    """The VM as it was last read, or in a dry run as it would be."""
    decision: Decision | None = None
    word: str = "none"
    snapshot: Snapshot | None = None
    changed: bool = False
    warnings: list[str] = dataclasses.field(default_factory=list)
    error: SafepointError | None = None
    then: dict[str, Configuration] = dataclasses.field(default_factory=dict)
    """Configurations by the id of the snapshot; read only on request."""
    now: Configuration | None = None
    """The configuration before the work; read only on request."""
    later: Configuration | None = None
    """The configuration after the work, or in a dry run the predicted one."""
    findings: list[Finding] = dataclasses.field(default_factory=list)
    done: list[Action] = dataclasses.field(default_factory=list)
    started: Action | None = None
    predicted: bool = False
    """True in a dry run: ``after`` is the predicted state."""

    @property
    def also_removed(self) -> list[str]:
        """The ids of further snapshots that were removed, or would be, besides the requested one."""
        if self.error is not None or self.decision is None:
            gone = [action.snapshot.id for action in self.done if isinstance(action, Delete)]
        else:
            gone = [action.snapshot.id for action in self.decision.actions if isinstance(action, Delete)]
        named = self.decision.snapshot.id if self.decision and self.decision.snapshot else None
        return [one for one in gone if one != named]


def snapshot_result(vm: Vm, snapshot: Snapshot, *, ours: Owner) -> dict[str, t.Any]:
    """Return a snapshot for results. A predicted snapshot has no id and no creation time."""
    label = snapshot.label
    return {
        "id": snapshot.id or None,
        "name": snapshot.name,
        "created": format_time(snapshot.created) if snapshot.created else None,
        "parent": snapshot.parent,
        "description": snapshot.text,
        "label": label.as_dict() if label else None,
        "ours": ours.owns(vm, snapshot),
        "kind": snapshot.kind,
        "memory": snapshot.memory,
        "consistency": snapshot.consistency,
        "size_bytes": snapshot.size_bytes,
        "size_unknown": snapshot.size_unknown,
        "current": snapshot.current,
    }


def outcome_result(outcome: VmResult, *, ours: Owner) -> dict[str, t.Any]:
    """Return the result of one VM for the modules that change snapshots."""
    vm = outcome.vm
    result: dict[str, t.Any] = {
        "ref": outcome.target.ref,
        "vm": {"name": vm.name, "id": vm.id, "uuid": vm.uuid} if vm else None,
        "changed": outcome.changed,
        "action": outcome.word,
        "snapshot": snapshot_result(vm, outcome.snapshot, ours=ours) if vm and outcome.snapshot else None,
        "also_removed": outcome.also_removed,
        "warnings": outcome.warnings,
    }
    if outcome.error is not None:
        result.update(error=outcome.error.code, msg=str(outcome.error))
    return result


def outcome_pruned(outcome: VmResult, *, ours: Owner, now: datetime) -> dict[str, t.Any]:
    """Return the result of one VM for prune, with the decision on each snapshot."""
    row = outcome_result(outcome, ours=ours)
    del row["snapshot"], row["also_removed"]
    row["snapshots"] = []
    for one in outcome.decision.verdicts if outcome.decision else ():
        row["snapshots"].append(
            {
                "id": one.snapshot.id,
                "name": one.snapshot.name,
                "created": format_time(one.snapshot.created) if one.snapshot.created else None,
                "age_seconds": int((now - one.snapshot.created).total_seconds()) if one.snapshot.created else None,
                "label": one.snapshot.label.as_dict() if one.snapshot.label else None,
                "decision": "keep" if one.keep else "remove",
                "rules": [reason.rule for reason in one.reasons],
                "reason": f"{one.snapshot} " + ", and ".join(reason.text for reason in one.reasons),
                "removed": _was_removed(outcome, one.snapshot),
            }
        )
    return row


def outcome_table(outcome: VmResult) -> dict[str, str]:
    """Return the diff of prune: the snapshots before and after, one line each with decision and reasons."""
    name = str(outcome.vm or outcome.target.ref)
    verdicts = outcome.decision.verdicts if outcome.decision else ()
    cells = [
        (
            one.snapshot.name,
            format_time(one.snapshot.created) if one.snapshot.created else "-",
            "keep" if one.keep else "remove",
            "; ".join(f"{reason.rule}: {reason.text}" for reason in one.reasons),
        )
        for one in verdicts
    ]
    widths = [max((len(row[column]) for row in cells), default=0) for column in range(3)]
    lines = ["  ".join([*(text.ljust(width) for text, width in zip(row, widths)), row[3]]) + "\n" for row in cells]
    return {
        "before_header": f"{name}: snapshots before",
        "after_header": f"{name}: snapshots after",
        "before": "".join(lines),
        "after": "".join(line for line, one in zip(lines, verdicts) if not _is_gone(outcome, one.snapshot)),
    }


def _was_removed(outcome: VmResult, snapshot: Snapshot) -> bool:
    """Return True if this call removed the snapshot, or in a dry run would. A snapshot that another run removed does not count."""
    tried = outcome.error is not None and isinstance(outcome.started, Delete) and outcome.started.snapshot.id == snapshot.id
    return (outcome.predicted or tried or _is_done(outcome, snapshot)) and _is_gone(outcome, snapshot)


def _is_done(outcome: VmResult, snapshot: Snapshot) -> bool:
    return any(isinstance(action, Delete) and action.snapshot.id == snapshot.id for action in outcome.done)


def _is_gone(outcome: VmResult, snapshot: Snapshot) -> bool:
    """Return True if the snapshot no longer exists, or in a dry run would not."""
    return _is_done(outcome, snapshot) or (outcome.after is not None and outcome.after.by_id(snapshot.id) is None)


def outcome_diff(outcome: VmResult) -> dict[str, str]:
    """Return the diff: the snapshot trees before and after, without ids and times, which a prediction lacks, and the configuration changes of a revert."""
    name = str(outcome.vm or outcome.target.ref)
    before, after = tree(outcome.before), tree(outcome.after)
    if outcome.now and outcome.later:
        drift = outcome.later.drift(outcome.now)
        before += "".join(f"{what}: {today}\n" for what, _then, today in drift if today is not None)
        after += "".join(f"{what}: {then}\n" for what, then, _today in drift if then is not None)
    return {
        "before_header": f"{name}: snapshots before",
        "after_header": f"{name}: snapshots after",
        "before": before,
        "after": after,
    }


def tree(view: View | None) -> str:
    """Format the snapshots of a VM as an indented tree, each with its description below it. A star marks the current snapshot."""
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


def configuration_result(configuration: Configuration) -> dict[str, t.Any]:
    """Return the configuration of a VM for results."""
    return {
        "cpus": configuration.cpus,
        "memory_bytes": configuration.memory_bytes,
        "disks": dict(configuration.disks),
        "networks": dict(configuration.networks),
        "next_start": dict(configuration.next_start),
    }

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The row of a VM in a listing: what was seen, and what a person should know about it.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import typing as t
from datetime import datetime

from ansible_collections.safepoint.vm.plugins.module_utils._core.filter import Filter
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Finding, View
from ansible_collections.safepoint.vm.plugins.module_utils._core.owner import Owner
from ansible_collections.safepoint.vm.plugins.module_utils._operations.results import (
    VmResult,
    configuration_result,
    outcome_result,
    snapshot_result,
)

_DEEP = 3


def outcome_info(outcome: VmResult, *, ours: Owner, wanted: Filter, which: str, now: datetime) -> dict[str, t.Any]:
    """Return the result of one VM for snapshot_info, with the snapshots that match ``wanted``; ``which`` is any, ours or foreign."""
    row = outcome_result(outcome, ours=ours)
    view = outcome.after
    del row["snapshot"], row["action"], row["also_removed"]
    row["power"] = view.state.power if view else None
    lost = [one.lost for one in view.snapshots if one.lost is not None] if view else []
    found = dict.fromkeys([*view.state.findings, *lost, *_depth(view), *outcome.findings]) if view else {}
    row["findings"] = [{"code": one.code, "msg": one.message, "remedy": one.remedy} for one in found]
    row["snapshots"] = []
    for one in view.snapshots if view else ():
        owned = ours.owns(view.vm, one) if view else False
        if view is None or not wanted.lets_through(one, now) or (which != "any" and owned != (which == "ours")):
            continue
        shown = snapshot_result(view.vm, one, ours=ours)
        shown["age_seconds"] = int((now - one.created).total_seconds()) if one.created else None
        shown["lease"] = one.label.lease(now) if one.label else None
        shown["why_not_ours"] = ours.why_not(view.vm, one)
        shown["obstacles"] = dict(one.obstacles)
        shown["not_included"] = list(one.not_included)
        then = outcome.then.get(one.id)
        if then is not None:
            shown["configuration"] = configuration_result(then)
            shown["drift"] = [
                {"what": what, "then": was, "now": today} for what, was, today in (then.drift(outcome.now) if outcome.now else [])
            ]
        row["snapshots"].append(shown)
    if outcome.now is not None:
        row["configuration"] = configuration_result(outcome.now)
    return row


def _depth(view: View) -> list[Finding]:
    """Return a finding for a long chain of snapshots: it costs space, disk speed if each snapshot is a file, and time to remove; VMware advises 2 or 3."""
    depth = len(view.chain())
    if depth < _DEEP:
        return []
    return [
        Finding(
            "deep_chain", f"{view.vm} has a chain of {depth} snapshots", "remove snapshots that are not needed, the oldest first"
        )
    ]

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The items of a report: what a person has to act on or to know, with the remedy. Pure: no I/O, the clock is an argument.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import parse_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.model import (
    Endpoint,
    Item,
    Limits,
    OwnerClass,
    Severity,
    Snapshot,
    SnapshotName,
    Subject,
    Vm,
)

# The severities of the drivers' findings; one that is not listed here is "warning".
_FINDINGS: Mapping[str, Severity] = {
    "consolidation_needed": "critical",
    "guest_crashed": "critical",
    "left_off": "critical",
    "left_paused": "critical",
    "locked": "critical",
    "migrated_away": "warning",
    "question_pending": "critical",
    "shared_image": "critical",
    "snapshot_lost": "critical",
    "unfinished_snapshot": "critical",
    "images_not_checked": "info",
}
# By less than that the clocks of well kept machines differ, and a slow login makes up for the rest.
_CLOCK_SECONDS = 60
_NAMED = 3


def advise_endpoint(endpoint: Endpoint) -> list[Item]:
    """The items about an endpoint itself."""
    name = endpoint.name
    if not endpoint.seen:
        remedy = "Fix this and rerun the report. What is on this endpoint is not in this one"
        return [item(endpoint.subject, "critical", "not_seen", f"The endpoint {name} was not seen: {endpoint.reason}", remedy)]
    ahead = endpoint.clock_ahead_seconds
    if ahead is not None and abs(ahead) > _CLOCK_SECONDS:
        what = f"The clock of the endpoint {name} is {words(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} that of the controller"
        remedy = "Let NTP set both. Ages, leases and expiries are counted by the endpoint's clock"
        return [item(endpoint.subject, "warning", "clock", what, remedy)]
    return []


def advise(vm: Vm, *, now: datetime, limits: Limits) -> list[Item]:
    """The items about a VM and its snapshots at that time."""
    subject = vm.subject
    said = []
    if vm.error:
        said.append(
            item(subject, "critical", str(vm.error), f"It was not seen in full: {vm.msg}", "Fix this and rerun the report")
        )
    for found in vm.findings:
        if found.code == "deep_chain":
            continue  # the report has a limit of its own, below
        said.append(item(subject, _FINDINGS.get(found.code, "warning"), found.code, found.msg, _sentence(found.remedy)))
    for one in vm.snapshots:
        said += _of_one(vm, one, now)
    said += _too_old(vm, limits)
    if vm.chain > limits.chain:
        what = f"It runs on a chain of {vm.chain} snapshots, and {limits.chain} are the limit. Each makes its disks slower, and removals longer"
        said.append(item(subject, "warning", "long_chain", what, "Remove those that are no longer needed, the oldest first"))
    expired = [one for one in vm.snapshots if one.expired and not one.held and one.class_ == "ours"]
    if expired:
        what = f"{_names(expired)} {_has(expired)} expired"
        said.append(
            item(subject, "warning", "expired", what, "Let the playbook safepoint.vm.prune remove what has expired", expired)
        )
    held = [one for one in vm.snapshots if one.held]
    if held:
        reasons = sorted({reason for one in held for reason in [_hold(one.label or {})] if reason})
        what = f"{_names(held)} {'is' if len(held) == 1 else 'are'} on hold" + (
            f": {'; '.join(reasons)}" if reasons else ", and no reason is given"
        )
        remedy = "When nobody needs it any more: safepoint.vm.snapshot with hold=false"
        said.append(item(subject, "info", "held", what, remedy, held))
    return said


def _hold(label: Mapping[str, str]) -> str:
    """The owner of the hold and the reason, as far as the label has them."""
    by, reason = label.get("hold_by"), label.get("hold_reason")
    return " ".join([*([f"by {by}"] if by else []), *([f"({reason})" if by else str(reason)] if reason else [])])


def words(seconds: float) -> str:
    """A duration for people, in the largest unit of which there are at least two."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} seconds"


def _of_one(vm: Vm, one: Snapshot, now: datetime) -> list[Item]:
    """A change that has not ended, and a label that is not valid."""
    label = one.label or {}
    if one.lease and one.class_ == "ours":
        change, lease = label.get("change") or "A change", moment(label.get("lease"))
        if one.lease == "running" and lease is not None:
            what = f"{change} is under way on it, until {label['lease']} at the latest"
            return [item(vm.subject, "info", "change_under_way", what, "Leave it alone until then", [one])]
        since = f"was to have ended {words((now - lease).total_seconds())} ago" if lease else "does not say when it was to end"
        what = f"{change} left the checkpoint {one.name} behind, and {since}"
        named = f" and guarded_change_reconcile_run={label['run']}" if label.get("run") else ""
        remedy = (
            f"If its run is no longer alive, let the playbook safepoint.vm.reconcile end the change of {vm.name}, with "
            f"guarded_change_reconcile_policy=rollback, which undoes it, or commit, which keeps it{named}"
        )
        return [item(vm.subject, "critical", "change_not_ended", what, remedy, [one])]
    why = one.why_not_ours or ""
    broken = not label and "[safepoint" in (one.description or "")
    if why and (broken or "label_key" in why):
        what = f"{one.name} looks as if it were ours, and is not: {why}"
        remedy = "Find out who wrote that label. When it was you: safepoint.vm.snapshot with its id signs it again, once its description has no label line"
        if not broken:
            remedy = "Find out who wrote that label. When it was you: safepoint.vm.snapshot with its id signs it"
        return [item(vm.subject, "warning", "label_not_valid", what, remedy, [one])]
    return []


def _too_old(vm: Vm, limits: Limits) -> list[Item]:
    """The snapshots that are too old, an item for each owner class. One on hold, or with an expiry of its own, is meant to be old."""
    said = []
    remedies: Mapping[OwnerClass, str] = {
        "ours": "Set expires on it, put it on hold with a reason, or remove it with safepoint.vm.snapshot and state=absent",
        "other_owner": "Ask its owner whether it is still needed",
        "backup": "See whether a job of that product is running. If not, let the product remove it, or remove it by its id",
        "person": "Ask who took it whether it is still needed, and remove it by its id with safepoint.vm.snapshot and state=absent",
    }
    for group, remedy in remedies.items():
        old = [
            one
            for one in vm.snapshots
            if one.class_ == group
            and (one.age_seconds or 0) > limits.age_seconds
            and not (one.held or one.lease or (group == "ours" and one.expires))
        ]
        if old:
            product = f" of {', '.join(sorted({str(one.product) for one in old}))}" if group in ("backup", "other_owner") else ""
            what = f"{_names(old)}{product} {'is' if len(old) == 1 else 'are'} older than {words(limits.age_seconds)}"
            said.append(item(vm.subject, "warning", "too_old", what, remedy, old))
    return said


def item(
    subject: Subject,
    severity: Severity,
    code: str,
    what: str,
    remedy: str,
    snapshots: Sequence[Snapshot] = (),
    *,
    age: int | None = None,
) -> Item:
    """An item; its age is that of its oldest snapshot, where it has any."""
    return Item(
        severity=severity,
        code=code,
        endpoint=subject.endpoint,
        backend=subject.backend,
        vm=subject.vm,
        vm_id=subject.vm_id,
        snapshots=tuple(SnapshotName(one.id, one.name) for one in snapshots),
        age_seconds=max((one.age_seconds for one in snapshots if one.age_seconds is not None), default=age),
        what=what,
        remedy=remedy,
    )


def _names(snapshots: Sequence[Snapshot]) -> str:
    named = ", ".join(str(one.name) for one in snapshots[:_NAMED])
    return named if len(snapshots) <= _NAMED else f"{named} and {len(snapshots) - _NAMED} more"


def _has(snapshots: Sequence[Snapshot]) -> str:
    return "has" if len(snapshots) == 1 else "have"


def _sentence(text: str) -> str:
    text = str(text)
    return text[:1].upper() + text[1:]


def moment(text: object) -> datetime | None:
    """The time in a field of a label, or None."""
    try:
        return parse_time(str(text), option="label") if text else None
    except InvalidOption:
        return None

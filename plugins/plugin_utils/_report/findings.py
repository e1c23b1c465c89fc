# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The items of a report: problems and their solutions. Pure: no I/O, the clock is an argument.

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
# Synchronized clocks differ by less than this, also after a slow login.
_CLOCK_SECONDS = 60
_NAMED = 3


def advise_endpoint(endpoint: Endpoint) -> list[Item]:
    """Return the items about an endpoint itself."""
    name = endpoint.name
    if not endpoint.seen:
        remedy = "Fix this and rerun the report. The VMs of this endpoint are missing in it"
        return [item(endpoint.subject, "critical", "not_seen", f"The endpoint {name} was not reached: {endpoint.reason}", remedy)]
    ahead = endpoint.clock_ahead_seconds
    if ahead is not None and abs(ahead) > _CLOCK_SECONDS:
        what = f"The clock of the endpoint {name} is {words(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} that of the controller"
        remedy = "Synchronize both clocks with NTP. Ages, leases and expiry times use the clock of the endpoint"
        return [item(endpoint.subject, "warning", "clock", what, remedy)]
    return []


def advise(vm: Vm, *, now: datetime, limits: Limits) -> list[Item]:
    """Return the items about a VM and its snapshots at this time."""
    subject = vm.subject
    said = []
    if vm.error:
        said.append(
            item(
                subject,
                "critical",
                str(vm.error),
                f"The VM could not be read completely: {vm.msg}",
                "Fix this and rerun the report",
            )
        )
    for found in vm.findings:
        if found.code == "deep_chain":
            continue  # the report has a limit of its own, below
        said.append(item(subject, _FINDINGS.get(found.code, "warning"), found.code, found.msg, _sentence(found.remedy)))
    for one in vm.snapshots:
        said += _of_one(vm, one, now)
    said += _too_old(vm, limits)
    if vm.chain > limits.chain:
        what = f"The VM has a chain of {vm.chain} snapshots; the limit is {limits.chain}. Each snapshot makes its disks slower and removals longer"
        said.append(
            item(subject, "warning", "long_chain", what, "Remove the snapshots that are no longer needed, the oldest first")
        )
    expired = [one for one in vm.snapshots if one.expired and not one.held and one.class_ == "ours"]
    if expired:
        what = f"{_names(expired)} {_has(expired)} expired"
        said.append(
            item(
                subject,
                "warning",
                "expired",
                what,
                "Run the playbook safepoint.vm.prune, which removes expired snapshots",
                expired,
            )
        )
    held = [one for one in vm.snapshots if one.held]
    if held:
        reasons = sorted({reason for one in held for reason in [_hold(one.label or {})] if reason})
        what = f"{_names(held)} {'is' if len(held) == 1 else 'are'} on hold" + (
            f": {'; '.join(reasons)}" if reasons else " without a reason"
        )
        remedy = "When it is no longer needed, release it with safepoint.vm.snapshot and hold=false"
        said.append(item(subject, "info", "held", what, remedy, held))
    return said


def _hold(label: Mapping[str, str]) -> str:
    """Return the user who set the hold and the reason, as far as the label has them."""
    by, reason = label.get("hold_by"), label.get("hold_reason")
    return " ".join([*([f"by {by}"] if by else []), *([f"({reason})" if by else str(reason)] if reason else [])])


def words(seconds: float) -> str:
    """Return a duration as text, in the largest unit with a value of at least two."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} seconds"


def _of_one(vm: Vm, one: Snapshot, now: datetime) -> list[Item]:
    """Return the items about a change that has not ended and about an invalid label."""
    label = one.label or {}
    if one.lease and one.class_ == "ours":
        change, lease = label.get("change") or "A change", moment(label.get("lease"))
        if one.lease == "running" and lease is not None:
            what = f"{change} is in progress, until {label['lease']} at the latest"
            return [item(vm.subject, "info", "change_under_way", what, "Wait until then", [one])]
        since = f"its lease expired {words((now - lease).total_seconds())} ago" if lease else "its label has no valid lease"
        what = f"{change} with the checkpoint {one.name} has not ended, and {since}"
        named = f" and guarded_change_reconcile_run={label['run']}" if label.get("run") else ""
        remedy = (
            f"If its run is no longer active, end the change of {vm.name} with the playbook safepoint.vm.reconcile and "
            f"guarded_change_reconcile_policy=rollback (undo it) or commit (keep it){named}"
        )
        return [item(vm.subject, "critical", "change_not_ended", what, remedy, [one])]
    why = one.why_not_ours or ""
    broken = not label and "[safepoint" in (one.description or "")
    if why and (broken or "label_key" in why):
        what = f"{one.name} has a label of this owner that is not valid: {why}"
        remedy = "Find out who wrote the label. If it was you, remove the label line from its description, and sign it with safepoint.vm.snapshot and its id"
        if not broken:
            remedy = "Find out who wrote the label. If it was you, sign it with safepoint.vm.snapshot and its id"
        return [item(vm.subject, "warning", "label_not_valid", what, remedy, [one])]
    return []


def _too_old(vm: Vm, limits: Limits) -> list[Item]:
    """Return one item per owner class about old snapshots. A snapshot that is on hold or has an expiry time is old on purpose."""
    said = []
    remedies: Mapping[OwnerClass, str] = {
        "ours": "Set expires on it, put it on hold with a reason, or remove it with safepoint.vm.snapshot and state=absent",
        "other_owner": "Ask its owner if it is still needed",
        "backup": "Check if a job of this product is running. If not, let the product remove it, or remove it by its id",
        "person": "Ask the person who took it if it is still needed, or remove it by its id with safepoint.vm.snapshot and state=absent",
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

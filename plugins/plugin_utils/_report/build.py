# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makes the report of the answers of several endpoints: rows, totals, and the items that a person has to see. Pure: no I/O, no clock.

The report is data, and documented in plugins/filter/snapshot_report.py. Page, JSON and metrics show it, and decide nothing.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
import typing as t
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import format_time, parse_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import chain_of
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.audit import advise_audit, read_audit, without_login
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.findings import advise, advise_endpoint, moment
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.model import (
    CLASSES,
    SEVERITIES,
    Counts,
    Data,
    Endpoint,
    Finding,
    Item,
    Lease,
    Limits,
    Report,
    ReportTotals,
    Snapshot,
    Totals,
    Vm,
)
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.owners import Product, owner_class, products

# Keys of a snapshot as snapshot_info returns it.
_TAKEN_OVER = (
    "id",
    "name",
    "created",
    "parent",
    "description",
    "ours",
    "why_not_ours",
    "kind",
    "memory",
    "consistency",
    "size_bytes",
    "size_unknown",
    "current",
    "age_seconds",
    "obstacles",
)


def build(
    answers: Sequence[Data],
    *,
    now: datetime,
    limits: Limits,
    backup_patterns: Sequence[Data] = (),
    audit: Iterable[str] = (),
) -> Report:
    """The report on endpoints that have been asked.

    Each answer has the ``name`` and the ``backend`` of an endpoint, ``where`` it is, ``at`` what time it was asked, and as ``answer`` what snapshot_info
    returned. ``audit`` are lines of an audit file, the oldest first; a line that is none counts as unreadable.

    :raises ValueError: a pattern of a backup product is none.
    """
    known = products(backup_patterns)
    endpoints: list[Endpoint] = []
    vms: list[Vm] = []
    attention: list[Item] = []
    for one in answers:
        endpoint = _endpoint(one, now)
        attention += advise_endpoint(endpoint)
        theirs = _time(endpoint.now) or now
        rows = []
        for row in (one.get("answer") or {}).get("vms") or ():
            vm = _vm(row, endpoint, theirs, known)
            items = advise(vm, now=theirs, limits=limits)
            rows.append(
                dataclasses.replace(vm, severity=min((item.severity for item in items), key=SEVERITIES.index, default=None))
            )
            attention += items
        endpoints.append(dataclasses.replace(endpoint, totals=_totals(rows, limits)) if endpoint.seen else endpoint)
        vms += rows
    recorded = read_audit(audit)
    attention += advise_audit(recorded, endpoints, now)
    counted = collections.Counter(item.severity for item in attention)
    totals = _totals(vms, limits)
    return Report(
        time=format_time(now),
        limits=limits,
        totals=ReportTotals(**vars(totals), attention={severity: counted[severity] for severity in SEVERITIES}),
        backends={
            backend: _totals([vm for vm in vms if vm.backend == backend], limits)
            for backend in sorted({endpoint.backend for endpoint in endpoints if endpoint.seen})
        },
        endpoints=tuple(endpoints),
        attention=tuple(sorted(attention, key=_urgency)),
        vms=tuple(sorted(vms, key=_vm_urgency)),
        audit=recorded,
    )


def _endpoint(one: Data, now: datetime) -> Endpoint:
    """The endpoint, still without totals."""
    answer: Data = one.get("answer") or {}
    seen = answer.get("vms") is not None
    theirs, asked = _time(answer.get("now")), _time(one.get("at")) or now
    return Endpoint(
        name=str(one["name"]),
        backend=str(one["backend"]),
        where=without_login(str(one.get("where") or "")) or None,
        seen=seen,
        error=None if seen else str(answer.get("error") or "no_answer"),
        reason=None if seen else str(answer.get("msg") or "it gave no answer"),
        now=format_time(theirs) if theirs else None,
        clock_ahead_seconds=int((theirs - asked).total_seconds()) if theirs else None,
        totals=None,
    )


def _vm(row: Data, endpoint: Endpoint, now: datetime, known: Sequence[Product]) -> Vm:
    vm = row.get("vm") or {}
    snapshots = tuple(_snapshot(one, now, known) for one in row.get("snapshots") or ())
    return Vm(
        endpoint=endpoint.name,
        backend=endpoint.backend,
        name=str(vm.get("name") or row.get("ref") or "?"),
        id=vm.get("id"),
        uuid=vm.get("uuid"),
        power=row.get("power"),
        error=row.get("error"),
        msg=row.get("msg"),
        findings=tuple(Finding(one["code"], one["msg"], one["remedy"]) for one in row.get("findings") or ()),
        chain=len(chain_of(snapshots)),
        oldest_seconds=_oldest(snapshots),
        size_bytes=_size(snapshots),
        snapshots=snapshots,
    )


def _snapshot(one: Data, now: datetime, known: Sequence[Product]) -> Snapshot:
    group, product = owner_class(one, known)
    label: Mapping[str, str] = {key: value for key, value in (one.get("label") or {}).items() if key not in ("sig", "at")}
    expires = moment(label.get("expires"))
    taken: dict[str, t.Any] = {key: one.get(key) for key in _TAKEN_OVER}
    return Snapshot(
        **taken,
        label=label or None,
        class_=group,
        product=product,
        held="hold" in label,
        expired=expires is not None and expires <= now,
        expires=label.get("expires"),
        state=label.get("state"),
        lease=_lease(label, now),
    )


def _lease(label: Mapping[str, str], now: datetime) -> Lease | None:
    """The state of the lease of a change that has not ended."""
    if label.get("state") != "guarding":
        return None
    lease = moment(label.get("lease"))
    if lease is None:
        return "none"
    return "over" if lease <= now else "running"


def _totals(vms: Sequence[Vm], limits: Limits) -> Totals:
    snapshots = [one for vm in vms for one in vm.snapshots]
    return Totals(
        **vars(_counts(snapshots, limits)),
        vms=len(vms),
        vms_with_snapshots=sum(bool(vm.snapshots) for vm in vms),
        vms_over_chain=sum(vm.chain > limits.chain for vm in vms),
        longest_chain=max((vm.chain for vm in vms), default=0),
        findings=dict(sorted(collections.Counter(found.code for vm in vms for found in vm.findings).items())),
        classes={group: _counts([one for one in snapshots if one.class_ == group], limits) for group in CLASSES},
    )


def _counts(snapshots: Sequence[Snapshot], limits: Limits) -> Counts:
    return Counts(
        snapshots=len(snapshots),
        over_age=sum((one.age_seconds or 0) > limits.age_seconds for one in snapshots),
        oldest_seconds=_oldest(snapshots),
        size_bytes=_size(snapshots),
        size_unknown=sum(one.size_bytes is None for one in snapshots),
        held=sum(one.held for one in snapshots),
        expired=sum(one.expired for one in snapshots),
        guarding=sum(one.lease is not None for one in snapshots),
        lease_over=sum(one.lease == "over" for one in snapshots),
    )


def _oldest(snapshots: Iterable[Snapshot]) -> int | None:
    return max((one.age_seconds for one in snapshots if one.age_seconds is not None), default=None)


def _size(snapshots: Iterable[Snapshot]) -> int | None:
    """The sum of the known sizes."""
    sizes = [one.size_bytes for one in snapshots if one.size_bytes is not None]
    return sum(sizes) if sizes else None


def _urgency(item: Item) -> tuple[t.Any, ...]:
    # An endpoint that was not seen hides all the rest.
    return (
        SEVERITIES.index(item.severity),
        item.vm is not None,
        -(item.age_seconds or 0),
        item.endpoint,
        item.vm or "",
        item.code,
    )


def _vm_urgency(vm: Vm) -> tuple[t.Any, ...]:
    rank = len(SEVERITIES) if vm.severity is None else SEVERITIES.index(vm.severity)
    return rank, -(vm.oldest_seconds or 0), vm.name, vm.endpoint, vm.id or ""


def _time(text: str | None) -> datetime | None:
    try:
        return parse_time(str(text), option="now") if text else None
    except InvalidOption:
        return None

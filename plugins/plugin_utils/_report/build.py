# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What several endpoints answered, to one report: rows, totals, and what a person has to see to. Pure: no I/O, no clock.

The report is data, and documented in plugins/filter/snapshot_report.py. Page, JSON and metrics show it, and decide nothing.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import types
import typing as t
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import format_time, parse_time
from ansible_collections.safepoint.vm.plugins.module_utils._errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._model import chain_of
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.audit import advise_audit, read_audit, without_login
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.findings import SEVERITIES, Limits, advise, advise_endpoint
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.owners import CLASSES, owner_class, products

FORMAT = "safepoint.vm.snapshot_report"
VERSION = 1

Data = dict[str, t.Any]

# Of a snapshot as snapshot_info returns it.
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
    answers: Sequence[Mapping[str, t.Any]],
    *,
    now: datetime,
    limits: Limits,
    backup_patterns: Sequence[Mapping[str, t.Any]] = (),
    audit: Iterable[str] = (),
) -> Data:
    """The report on endpoints that have been asked.

    Each answer has the ``name`` and the ``backend`` of an endpoint, ``where`` it is, ``at`` what time it was asked, and as ``answer`` what snapshot_info
    returned. ``audit`` are lines of an audit file, the oldest first; a line that is none counts as unreadable.

    :raises ValueError: a pattern of a backup product is none.
    """
    known = products(backup_patterns)
    endpoints, vms, attention = [], [], []
    for one in answers:
        endpoint, rows = _endpoint(one, now=now, known=known)
        attention += advise_endpoint(endpoint)
        moment = _time(endpoint["now"]) or now
        for vm in rows:
            said = advise(vm, now=moment, limits=limits)
            vm["severity"] = min((item["severity"] for item in said), key=SEVERITIES.index, default=None)
            attention += said
        endpoint["totals"] = _totals(rows, limits) if endpoint["seen"] else None
        endpoints.append(endpoint)
        vms += rows
    recorded = read_audit(audit)
    attention += advise_audit(recorded, endpoints, now)
    attention.sort(key=_urgency)
    return {
        "format": FORMAT,
        "version": VERSION,
        "time": format_time(now),
        "limits": {"age_seconds": limits.age_seconds, "chain": limits.chain},
        "totals": _totals(vms, limits) | {"attention": _by(SEVERITIES, (item["severity"] for item in attention))},
        "backends": {
            backend: _totals([vm for vm in vms if vm["backend"] == backend], limits) for backend in _backends(endpoints)
        },
        "endpoints": endpoints,
        "attention": attention,
        "vms": sorted(vms, key=_vm_urgency),
        "audit": recorded,
    }


def _endpoint(one: Mapping[str, t.Any], *, now: datetime, known: Sequence[t.Any]) -> tuple[Data, list[Data]]:
    """What is said of an endpoint, and its VMs."""
    answer: Mapping[str, t.Any] = one.get("answer") or {}
    rows = answer.get("vms")
    seen = rows is not None
    theirs, asked = _time(answer.get("now")), _time(one.get("at")) or now
    endpoint = {
        "name": str(one["name"]),
        "backend": str(one["backend"]),
        "where": without_login(str(one.get("where") or "")) or None,
        "seen": seen,
        "error": None if seen else str(answer.get("error") or "no_answer"),
        "reason": None if seen else str(answer.get("msg") or "it gave no answer"),
        "now": format_time(theirs) if theirs else None,
        "clock_ahead_seconds": int((theirs - asked).total_seconds()) if theirs else None,
    }
    return endpoint, [_vm(row, endpoint, known) for row in rows or ()]


def _vm(row: Mapping[str, t.Any], endpoint: Data, known: Sequence[t.Any]) -> Data:
    vm = row.get("vm") or {}
    snapshots = [_snapshot(one, known) for one in row.get("snapshots") or ()]
    chain = chain_of(types.SimpleNamespace(**one) for one in snapshots)  # type: ignore[misc]
    ages = [one["age_seconds"] for one in snapshots if one["age_seconds"] is not None]
    sizes = [one["size_bytes"] for one in snapshots if one["size_bytes"] is not None]
    return {
        "endpoint": endpoint["name"],
        "backend": endpoint["backend"],
        "name": str(vm.get("name") or row.get("ref") or "?"),
        "id": vm.get("id"),
        "uuid": vm.get("uuid"),
        "power": row.get("power"),
        "error": row.get("error"),
        "msg": row.get("msg"),
        "findings": [dict(one) for one in row.get("findings") or ()],
        "chain": len(chain),
        "oldest_seconds": max(ages, default=None),
        "size_bytes": sum(sizes) if sizes else None,
        "snapshots": snapshots,
    }


def _snapshot(one: Mapping[str, t.Any], known: Sequence[t.Any]) -> Data:
    group, product = owner_class(one, known)
    label = {key: value for key, value in (one.get("label") or {}).items() if key not in ("sig", "at")} or None
    return {key: one.get(key) for key in _TAKEN_OVER} | {"label": label, "class": group, "product": product}


def _totals(vms: Sequence[Data], limits: Limits) -> Data:
    """The counts over some VMs, by whose the snapshots are and together."""
    snapshots = [one for vm in vms for one in vm["snapshots"]]
    return {
        "vms": len(vms),
        "vms_with_snapshots": sum(bool(vm["snapshots"]) for vm in vms),
        "vms_over_chain": sum(vm["chain"] > limits.chain for vm in vms),
        "longest_chain": max((vm["chain"] for vm in vms), default=0),
        "findings": _counts(found["code"] for vm in vms for found in vm["findings"]),
        **_class_totals(snapshots, limits),
        "classes": {group: _class_totals([one for one in snapshots if one["class"] == group], limits) for group in CLASSES},
    }


def _class_totals(snapshots: Sequence[Data], limits: Limits) -> Data:
    ages = [one["age_seconds"] for one in snapshots if one["age_seconds"] is not None]
    sizes = [one["size_bytes"] for one in snapshots if one["size_bytes"] is not None]
    return {
        "snapshots": len(snapshots),
        "over_age": sum(age > limits.age_seconds for age in ages),
        "oldest_seconds": max(ages, default=None),
        "size_bytes": sum(sizes) if sizes else None,
        "size_unknown": len(snapshots) - len(sizes),
        "held": sum(one["held"] for one in snapshots),
        "expired": sum(one["expired"] for one in snapshots),
        "guarding": sum(one["lease"] is not None for one in snapshots),
        "lease_over": sum(one["lease"] == "over" for one in snapshots),
    }


def _backends(endpoints: Sequence[Data]) -> list[str]:
    return sorted({one["backend"] for one in endpoints if one["seen"]})


def _urgency(item: Data) -> tuple[t.Any, ...]:
    # An endpoint that was not seen hides all the rest.
    return (
        SEVERITIES.index(item["severity"]),
        item["vm"] is not None,
        -(item["age_seconds"] or 0),
        item["endpoint"],
        item["vm"] or "",
        item["code"],
    )


def _vm_urgency(vm: Data) -> tuple[t.Any, ...]:
    severity = vm["severity"]
    rank = len(SEVERITIES) if severity is None else SEVERITIES.index(severity)
    return rank, -(vm["oldest_seconds"] or 0), vm["name"], vm["endpoint"], vm["id"] or ""


def _by(keys: Sequence[str], found: Iterable[str]) -> dict[str, int]:
    counted = _counts(found)
    return {key: counted.get(key, 0) for key in keys}


def _counts(found: Iterable[str]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for one in found:
        counted[one] = counted.get(one, 0) + 1
    return dict(sorted(counted.items()))


def _time(text: t.Any) -> datetime | None:
    try:
        return parse_time(str(text), option="now") if text else None
    except InvalidOption:
        return None

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A report as metrics in Prometheus' text format. Pure: no I/O, no clock.

An endpoint that was not seen has ``safepoint_endpoint_up 0`` and nothing else: a zero would say that it has no snapshots. There is no series for
each VM, which would be thousands; page and JSON have those.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

from collections.abc import Callable

from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import parse_time
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.model import Endpoint, Report, Totals

_HELP = {
    "report_timestamp_seconds": "When the report was made, in seconds since 1970.",
    "report_age_limit_seconds": "From which age on a snapshot counts as old.",
    "report_chain_limit": "Above which length a chain counts as long.",
    "endpoint_up": "Whether the endpoint answered.",
    "endpoint_clock_ahead_seconds": "By how much the clock of the endpoint is ahead of that of the controller.",
    "vms": "How many VMs there are.",
    "vms_with_snapshots": "How many VMs have snapshots.",
    "vms_over_chain_limit": "How many VMs run on a chain of snapshots that is too long.",
    "longest_chain": "The most snapshots that a VM runs on.",
    "snapshots": "How many snapshots there are.",
    "snapshots_over_age_limit": "How many snapshots are old.",
    "oldest_snapshot_age_seconds": "The age of the oldest snapshot.",
    "snapshots_size_bytes": "The size of the snapshots whose size is known.",
    "snapshots_size_unknown": "How many snapshots have a size that the backend does not tell.",
    "snapshots_held": "How many snapshots are on hold.",
    "snapshots_expired": "How many snapshots have expired.",
    "snapshots_guarding": "How many snapshots guard a change that has not ended.",
    "snapshots_guarding_overdue": "How many snapshots guard a change that was to have ended by now.",
    "findings": "How many VMs have something wrong with them.",
    "attention": "How many things a person has to see to.",
}
_BY_CLASS = {
    "snapshots": "snapshots",
    "snapshots_over_age_limit": "over_age",
    "oldest_snapshot_age_seconds": "oldest_seconds",
    "snapshots_size_bytes": "size_bytes",
    "snapshots_size_unknown": "size_unknown",
    "snapshots_held": "held",
    "snapshots_expired": "expired",
    "snapshots_guarding": "guarding",
    "snapshots_guarding_overdue": "lease_over",
}
_BY_ENDPOINT = {
    "vms": "vms",
    "vms_with_snapshots": "vms_with_snapshots",
    "vms_over_chain_limit": "vms_over_chain",
    "longest_chain": "longest_chain",
}


def metrics(report: Report) -> str:
    """The whole file."""
    series: dict[str, list[str]] = {name: [] for name in _HELP}

    def add(name: str, value: float | None, **labels: str) -> None:
        if value is not None:
            pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            series[name].append(f"safepoint_{name}{f'{{{pairs}}}' if pairs else ''} {value}")

    add("report_timestamp_seconds", int(parse_time(report.time, option="time").timestamp()))
    add("report_age_limit_seconds", report.limits.age_seconds)
    add("report_chain_limit", report.limits.chain)
    for severity, number in report.totals.attention.items():
        add("attention", number, severity=severity)
    for one in report.endpoints:
        add("endpoint_up", int(one.seen), endpoint=one.name, backend=one.backend)
        if one.totals is not None:
            _add_endpoint(add, one, one.totals)
    parts = []
    for name, lines in series.items():
        if lines:
            parts += [f"# HELP safepoint_{name} {_HELP[name]}", f"# TYPE safepoint_{name} gauge", *lines]
    return "\n".join(parts) + "\n"


def _add_endpoint(add: Callable[..., None], one: Endpoint, totals: Totals) -> None:
    where = {"endpoint": one.name, "backend": one.backend}
    add("endpoint_clock_ahead_seconds", one.clock_ahead_seconds, **where)
    for name, field in _BY_ENDPOINT.items():
        add(name, getattr(totals, field), **where)
    for code, number in totals.findings.items():
        add("findings", number, **where, code=code)
    for group, counts in totals.classes.items():
        for name, field in _BY_CLASS.items():
            add(name, getattr(counts, field), **where, owner_class=group)


def _escaped(text: str) -> str:
    # Half a character has no UTF-8, and a carriage return is a line's end to some who read this.
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\r", " ")
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')

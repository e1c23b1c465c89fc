# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report as data classes, and as the plain data that the filters hand to each other and to files. Pure: no I/O, no clock.

The fields are documented in plugins/filter/snapshot_report.py. A field whose name is a word of Python ends with an underscore; its key does not.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import operator
import typing as t
from collections.abc import Mapping

FORMAT = "safepoint.vm.snapshot_report"
VERSION = 1

Severity = t.Literal["critical", "warning", "info"]
OwnerClass = t.Literal["ours", "other_owner", "backup", "person"]
Lease = t.Literal["running", "over", "none"]
Data = Mapping[str, t.Any]

# The most urgent first.
SEVERITIES: tuple[Severity, ...] = t.get_args(Severity)
CLASSES: tuple[OwnerClass, ...] = t.get_args(OwnerClass)

_T = t.TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Above these values a snapshot is too old, and a chain too long."""

    age_seconds: float
    chain: int


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A snapshot as snapshot_info returns it, with its owner class and the state that its label gives."""

    id: str
    name: str
    created: str | None
    parent: str | None
    description: str | None
    ours: bool
    why_not_ours: str | None
    kind: str | None
    memory: bool | None
    consistency: str | None
    size_bytes: int | None
    size_unknown: str | None
    current: bool
    age_seconds: int | None
    obstacles: Mapping[str, str] | None
    label: Mapping[str, str] | None
    class_: OwnerClass
    product: str | None
    held: bool
    expired: bool
    expires: str | None
    state: str | None
    lease: Lease | None


@dataclasses.dataclass(frozen=True)
class Finding:
    """A problem of a VM that its driver has found."""

    code: str
    msg: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Subject:
    """An endpoint, or a VM on it."""

    endpoint: str
    backend: str | None
    vm: str | None = None
    vm_id: str | None = None


@dataclasses.dataclass(frozen=True)
class Vm:
    """A VM with its snapshots. ``chain`` counts the snapshots that it runs on; ``severity`` is that of its most urgent item."""

    endpoint: str
    backend: str
    name: str
    id: str | None
    uuid: str | None
    power: str | None
    error: str | None
    msg: str | None
    findings: tuple[Finding, ...]
    chain: int
    oldest_seconds: int | None
    size_bytes: int | None
    snapshots: tuple[Snapshot, ...]
    severity: Severity | None = None

    @property
    def subject(self) -> Subject:
        """The VM as an item names it."""
        return Subject(self.endpoint, self.backend, self.name, self.id)

    @property
    def key(self) -> tuple[str, str | None, str | None]:
        """Equal to the key of each item about this VM."""
        return self.endpoint, self.name, self.id


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts over some snapshots. ``size_bytes`` is the sum of the known sizes, None where none is known."""

    snapshots: int
    over_age: int
    oldest_seconds: int | None
    size_bytes: int | None
    size_unknown: int
    held: int
    expired: int
    guarding: int
    lease_over: int


@dataclasses.dataclass(frozen=True)
class Totals(Counts):
    """Counts over some VMs and their snapshots; ``classes`` has the same for each owner class."""

    vms: int
    vms_with_snapshots: int
    vms_over_chain: int
    longest_chain: int
    findings: Mapping[str, int]
    classes: Mapping[OwnerClass, Counts]


@dataclasses.dataclass(frozen=True)
class ReportTotals(Totals):
    """The totals of the report; ``attention`` counts its items by severity."""

    attention: Mapping[Severity, int]


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """An endpoint. One that did not answer has no totals."""

    name: str
    backend: str
    where: str | None
    seen: bool
    error: str | None
    reason: str | None
    now: str | None
    clock_ahead_seconds: int | None
    totals: Totals | None

    @property
    def subject(self) -> Subject:
        """The endpoint as an item names it."""
        return Subject(self.name, self.backend)


@dataclasses.dataclass(frozen=True)
class SnapshotName:
    """A snapshot that an item is about."""

    id: str
    name: str


@dataclasses.dataclass(frozen=True)
class Item:
    """A problem that a person has to act on, or to know of, and the remedy."""

    severity: Severity
    code: str
    endpoint: str
    backend: str | None
    vm: str | None
    vm_id: str | None
    snapshots: tuple[SnapshotName, ...]
    age_seconds: int | None
    what: str
    remedy: str

    @property
    def key(self) -> tuple[str, str | None, str | None]:
        """Equal to the key of the VM that it is about."""
        return self.endpoint, self.vm, self.vm_id


@dataclasses.dataclass(frozen=True)
class Audit:
    """Entries of an audit file as they were written, the newest first, and the number of lines that cannot be read."""

    entries: tuple[Data, ...]
    unreadable: int


@dataclasses.dataclass(frozen=True)
class Report:
    """The whole report."""

    time: str
    limits: Limits
    totals: ReportTotals
    backends: Mapping[str, Totals]
    endpoints: tuple[Endpoint, ...]
    attention: tuple[Item, ...]
    vms: tuple[Vm, ...]
    audit: Audit

    def as_data(self) -> dict[str, t.Any]:
        """The report as plain data, which JSON can hold."""
        data: dict[str, t.Any] = _plain(self)
        return {"format": FORMAT, "version": VERSION, **data}

    @classmethod
    def from_data(cls, data: Data) -> Report:
        """The report that ``as_data()`` returned. Keys that it does not know are left out.

        :raises ValueError: it is no report of this version.
        """
        try:
            if (data["format"], data["version"]) != (FORMAT, VERSION):
                raise ValueError(
                    f"this is format {data['format']!r} version {data['version']!r}, not {FORMAT!r} version {VERSION}"
                )
            return _report(data)
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"this is not what the filter snapshot_report returns: {type(exc).__name__} {exc}") from exc


# Values that are their own plain data, which most are.
_PLAIN = (str, int, bool, type(None))
_KINDS = (Limits, Snapshot, Finding, Vm, Counts, Totals, ReportTotals, Endpoint, SnapshotName, Item, Audit, Report)
# The names of the fields of each data class, with their keys, and what gets the values of them all.
_KEYS: Mapping[t.Any, tuple[tuple[str, str], ...]] = {
    kind: tuple((field.name, field.name.rstrip("_")) for field in dataclasses.fields(kind)) for kind in _KINDS
}
_VALUES: Mapping[t.Any, t.Callable[[Data], tuple[t.Any, ...]]] = {
    kind: operator.itemgetter(*(key for _name, key in keys)) for kind, keys in _KEYS.items()
}


def _report(data: Data) -> Report:
    return Report(
        time=data["time"],
        limits=_read(Limits, data["limits"]),
        totals=_totals(ReportTotals, data["totals"]),
        backends={name: _totals(Totals, one) for name, one in data["backends"].items()},
        endpoints=tuple(
            _read(Endpoint, one, totals=None if one["totals"] is None else _totals(Totals, one["totals"]))
            for one in data["endpoints"]
        ),
        attention=tuple(
            _read(Item, one, snapshots=tuple(_read(SnapshotName, name) for name in one["snapshots"])) for one in data["attention"]
        ),
        vms=tuple(
            _read(
                Vm,
                one,
                findings=tuple(_read(Finding, found) for found in one["findings"]),
                snapshots=tuple(_read(Snapshot, snapshot) for snapshot in one["snapshots"]),
            )
            for one in data["vms"]
        ),
        audit=_read(Audit, data["audit"], entries=tuple(data["audit"]["entries"])),
    )


def _totals(kind: type[_T], data: Data) -> _T:
    return _read(kind, data, classes={name: _read(Counts, one) for name, one in data["classes"].items()})


def _read(kind: type[_T], data: Data, **made: t.Any) -> _T:
    """One data class of its data; what ``made`` has is not plain data any more."""
    return kind(*_VALUES[kind]({**data, **made} if made else data))


def _plain(value: t.Any) -> t.Any:
    keys = _KEYS.get(type(value))
    if keys is not None:
        fields = vars(value)
        return {key: fields[name] if type(fields[name]) in _PLAIN else _plain(fields[name]) for name, key in keys}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return value

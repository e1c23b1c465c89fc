# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A report as one page of HTML that needs nothing else, not even a network. No clock, and no I/O but to read the templates.

Names and texts come from hypervisors, where anybody may have typed anything: the templates escape every value. A policy on the page
allows no script but its own.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import pathlib
import re
import typing as t
from collections.abc import Mapping, Sequence

import jinja2
import markupsafe

from ansible_collections.safepoint.vm.plugins.plugin_utils._report.findings import words
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.model import (
    SEVERITIES,
    Data,
    Limits,
    OwnerClass,
    Report,
    Severity,
    Snapshot,
    Vm,
)
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.tree import Line, tree

_TEMPLATES = pathlib.Path(__file__).parent / "templates"
_BACKENDS = {"libvirt": "libvirt", "proxmox": "Proxmox VE", "vsphere": "vSphere"}
_CLASSES: Mapping[OwnerClass, str] = {
    "ours": "ours",
    "other_owner": "another owner",
    "backup": "backup product",
    "person": "person or other tool",
}
# Sign and word repeat the colour, for people who cannot distinguish colours.
_SEVERITIES: Mapping[Severity | None, str] = {"critical": "▲ Critical", "warning": "◆ Warning", "info": "○ Info", None: "✓ Fine"}
# Maximum number of items, or of snapshots of a VM, that are shown without a click.
_FEW = 12
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\dZ")
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclasses.dataclass(frozen=True)
class VmRow:
    """A VM that has snapshots or items, with the tree of its snapshots."""

    vm: Vm
    anchor: str
    lines: tuple[Line, ...]


@dataclasses.dataclass(frozen=True)
class AuditRow:
    """An entry of the audit in words."""

    time: str
    by: str
    vm: str
    what: str
    failure: str
    why: str
    seconds: str


def page(report: Report) -> str:
    """The whole page."""
    style, script = _asset("page.css"), _asset("page.js")
    rows = [VmRow(vm, f"v{number}", tree(vm.snapshots)) for number, vm in enumerate(report.vms) if vm.snapshots or vm.severity]
    groups = {severity: [one for one in report.attention if one.severity == severity] for severity in SEVERITIES}
    text = (
        _environment()
        .get_template("page.html.j2")
        .render(
            policy=f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
            "base-uri 'none'; form-action 'none'",
            style=style,
            script=script,
            report=report,
            attention={severity: items for severity, items in groups.items() if items},
            rows=rows,
            anchors={row.vm.key: row.anchor for row in rows},
            footnotes={},
            audit=[_audit_row(one) for one in report.audit.entries],
        )
    )
    return _NOT_TEXT.sub("\ufffd", text)


@functools.cache
def _environment() -> jinja2.Environment:
    # Not Ansible's, whose templates are the user's.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(_TEMPLATES)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        backend_words=_BACKENDS, class_words=_CLASSES, severity_words=_SEVERITIES, severities=SEVERITIES, few=_FEW
    )
    environment.filters.update(
        age=_age,
        capital=_capital,
        clock=_clock,
        count=_count,
        duration=words,
        facts=_facts,
        footnote=_footnote,
        marks=_marks,
        moment=_moment,
        rank=_rank,
        size=_size,
    )
    return environment


def _asset(name: str) -> markupsafe.Markup:
    """A file of the templates' folder as it is, without the comment at its begin."""
    text = (_TEMPLATES / name).read_text(encoding="utf-8")
    return markupsafe.Markup(re.sub(r"\A/\*.*?\*/\s*", "", text, flags=re.DOTALL))


def _digest(text: str) -> str:
    """Of a style or script, as a policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _audit_row(entry: Data) -> AuditRow:
    by = [
        entry.get("user"),
        entry.get("sudo_user") and f"for {entry['sudo_user']}",
        entry.get("host") and f"on {entry['host']}",
        entry.get("job") and f"job {entry['job']}",
    ]
    failure = "no outcome" if entry.get("event") == "intent" else entry.get("error")
    return AuditRow(
        time=_moment(entry.get("time") or "–"),
        by=_joined(" ", by),
        vm=str(entry.get("vm") or "–"),
        what=f"{entry.get('action') or '–'} {entry.get('snapshot') or ''}",
        failure=str(failure or ""),
        why=_joined(" · ", [entry.get("change"), entry.get("why"), entry.get("msg")]),
        seconds=str(entry.get("seconds", "–")),
    )


def _joined(between: str, parts: Sequence[t.Any]) -> str:
    return between.join(str(part) for part in parts if part) or "–"


def _marks(one: Snapshot, limits: Limits) -> list[tuple[str, str]]:
    """What is remarkable about a snapshot: for each the class in the style, and the text."""
    marks = []
    if _is_old(one, limits):
        marks.append(("warning", f"{_age(one.age_seconds)}, old"))
    if one.lease:
        guards = f"guards {(one.label or {}).get('change') or 'a change'}"
        marks.append(("info", guards) if one.lease == "running" else ("critical", f"{guards}, overdue"))
    elif one.state:
        marks.append(("info", one.state.replace("_", " ")))
    if one.held:
        marks.append(("info", "on hold"))
    if one.expired:
        marks.append(("warning", "expired"))
    return marks


def _facts(one: Snapshot, limits: Limits) -> str:
    """The product, if any, and then what is known of every snapshot, its size at the end."""
    size = "size unknown" if one.size_bytes is None else _size(one.size_bytes)
    age = "" if _is_old(one, limits) else _age(one.age_seconds)
    return " · ".join([one.product or "", *(part for part in (age, one.consistency, size) if part)])


def _footnote(one: Snapshot, footnotes: dict[str, int]) -> int:
    """The number of the reason why the size is not known; reasons are numbered as the page comes to them."""
    return footnotes.setdefault(str(one.size_unknown or "the backend does not report it"), len(footnotes) + 1)


def _is_old(one: Snapshot, limits: Limits) -> bool:
    return one.age_seconds is not None and one.age_seconds > limits.age_seconds


def _age(seconds: int | None) -> str:
    if seconds is None:
        return "age unknown"
    return "from the future" if seconds < 0 else words(seconds)


def _clock(ahead: int | None) -> str:
    """The clock of an endpoint beside that of the controller."""
    if ahead is None:
        return "–"
    if abs(ahead) < 2:
        return "the same"
    return f"{words(abs(ahead))} {'ahead' if ahead > 0 else 'behind'}"


def _size(size: int | None) -> str:
    if size is None:
        return "–"
    number, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{number:.0f} {unit}" if unit == "bytes" or number >= 100 else f"{number:.1f} {unit}"


def _moment(text: object) -> str:
    """A time of ISO 8601 in UTC, a little easier to read."""
    found = _MOMENT.fullmatch(str(text))
    return f"{found[1]} {found[2]} UTC" if found else str(text)


def _rank(severity: Severity | None) -> int:
    """By what the column of the severities is sorted."""
    return len(SEVERITIES) if severity is None else SEVERITIES.index(severity)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

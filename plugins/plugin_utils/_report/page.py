# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A report as one page of HTML that needs nothing else, not even a network. Pure: no I/O, no clock.

Names and texts come from hypervisors, where anybody may have typed anything: all of them go through ``_text()``. A policy on the page
lets nothing run but the script that is in it.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import typing as t
from collections.abc import Mapping, Sequence

from ansible_collections.safepoint.vm.plugins.plugin_utils._report.findings import words
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.model import SEVERITIES
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.style import SCRIPT, STYLE
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.tree import tree

Data = Mapping[str, t.Any]

_BACKENDS = {"libvirt": "libvirt", "proxmox": "Proxmox VE", "vsphere": "vSphere"}
# Never by the colour alone: the sign and the word say it as well.
_SEVERITIES = {"act": "▲ Act now", "look": "◆ Look at it", "note": "○ Note", None: "✓ Fine"}
CLASS_WORDS = {
    "ours": "ours",
    "other_owner": "another owner",
    "backup": "backup product",
    "person": "person or other tool",
}
_FOOTER = '<footer class="muted"><p>Made by safepoint.vm.snapshot_report. Times are UTC, ages by the clock of each endpoint.</p></footer>'
# So many things to see to, or snapshots of a VM, are shown without a click.
_FEW = 12
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def page(report: Data) -> str:
    """The whole page."""
    parts = [
        _header(report),
        "<main>",
        _tiles(report),
        _find(report),
        _attention(report),
        _totals(report),
        _endpoints(report["endpoints"]),
        _vms(report),
        _audit(report["audit"]),
        "</main>",
    ]
    title = f"Snapshots, {report['time']}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="referrer" content="no-referrer">\n'
        f'<link rel="icon" href="data:,">\n<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n'
        + "\n".join(part for part in parts if part)
        + f"\n{_FOOTER}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _policy() -> str:
    style, script = (base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in (STYLE, SCRIPT))
    return f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data:; base-uri 'none'; form-action 'none'"


def _header(report: Data) -> str:
    return (
        f'<header><h1>Snapshots of virtual machines</h1><p class="muted">As seen at <time datetime="{_text(report["time"])}">'
        f"{_text(_moment(report['time']))}</time>. A snapshot is old after "
        f"{words(report['limits']['age_seconds'])}, a chain is long above {report['limits']['chain']}.</p>{_jumps(report)}</header>"
    )


def _jumps(report: Data) -> str:
    shown = [("attention", "What needs you")]
    shown += [("totals", "By backend and owner")] if report["totals"]["snapshots"] else []
    shown += [("endpoints", "Endpoints")]
    shown += [("vms", "VMs")] if report["vms"] else []
    shown += [("audit", "What was done last")] if report["audit"]["entries"] else []
    return '<nav aria-label="On this page">' + "".join(f'<a href="#h-{name}">{title}</a>' for name, title in shown) + "</nav>"


def _tiles(report: Data) -> str:
    totals, limits = report["totals"], report["limits"]
    counted = totals["attention"]
    seen, asked = sum(one["seen"] for one in report["endpoints"]), len(report["endpoints"])
    told = totals["snapshots"] - totals["size_unknown"]
    tiles = [
        ("act" if counted["act"] else "ok", counted["act"], "to act on now"),
        ("look" if counted["look"] else "ok", counted["look"], "to look at"),
        ("act" if seen < asked else "ok", f"{seen} of {asked}", "endpoints seen"),
        (
            "act" if totals["lease_over"] else "",
            totals["guarding"],
            f"changes under guard; past their time: {totals['lease_over']}",
        ),
        ("", totals["snapshots"], f"snapshots, of {totals['vms_with_snapshots']} of {totals['vms']} VMs"),
        ("look" if totals["over_age"] else "ok", totals["over_age"], f"snapshots older than {words(limits['age_seconds'])}"),
        (
            "look" if totals["vms_over_chain"] else "ok",
            totals["vms_over_chain"],
            f"VMs on a chain of more than {limits['chain']}",
        ),
        ("", _bytes(totals["size_bytes"]), f"in snapshots; the size of {told} of {totals['snapshots']} is known"),
    ]
    return '<ul class="tiles">' + "".join(f'<li class="{cls}"><b>{value}</b> {said}</li>' for cls, value, said in tiles) + "</ul>"


def _find(report: Data) -> str:
    if not report["vms"]:
        return ""
    options = "".join(f'<option value="{key}">{_SEVERITIES[key]}</option>' for key in SEVERITIES)
    return (
        '<div class="find" role="search" hidden><p><label for="q">Find a VM, a snapshot or a word</label><input id="q" type="search"></p>'
        f'<p><label for="s">Show</label><select id="s"><option value="">Everything</option>{options}</select></p>'
        '<p id="found" class="muted" role="status"></p></div>'
    )


def _attention(report: Data) -> str:
    items, ids = report["attention"], _ids(report["vms"])
    if not items:
        return '<section aria-labelledby="h-attention"><h2 id="h-attention">What needs you</h2><p>Nothing.</p></section>'
    parts = []
    for severity in SEVERITIES:
        rows = [_item(one, ids) for one in items if one["severity"] == severity]
        if not rows:
            continue
        heads = ["How urgent", "VM and endpoint", "What it is", "What to do"]
        table = _table(heads, rows, css="todos", caption="The oldest first.")
        if severity != "act":
            # What can wait must not hide what follows, unless it is all there is.
            is_open = " open" if len(items) <= _FEW else ""
            table = f"<details{is_open}><summary>{_SEVERITIES[severity]}: {len(rows)}</summary>{table}</details>"
        parts.append(table)
    return f'<section aria-labelledby="h-attention"><h2 id="h-attention">What needs you</h2>{"".join(parts)}</section>'


def _item(item: Data, ids: Mapping[t.Any, str]) -> str:
    where = f"<small>{_name(item['endpoint'])}</small>"
    if item["vm"] is not None:
        target = ids.get((item["endpoint"], item["vm_id"], item["vm"]))
        name = _name(item["vm"])
        where = (f'<a href="#{target}">{name}</a>' if target else name) + f"<br>{where}"
    return (
        f'<tr data-s="{item["severity"]}"><td class="{item["severity"]}">{_badge(item["severity"])}</td><th scope="row">{where}</th>'
        f'<td>{_text(item["what"])}</td><td><span class="todo">{_text(item["remedy"])}</span></td></tr>'
    )


def _totals(report: Data) -> str:
    rows = []
    for backend, totals in report["backends"].items():
        for group, one in totals["classes"].items():
            if one["snapshots"]:
                rows.append(
                    f'<tr><th scope="row">{_text(_BACKENDS.get(backend, backend))}</th><td>{_group(group)}</td>'
                    f'<td class="n" data-l="Snapshots">{one["snapshots"]}</td><td class="n" data-l="Old">{one["over_age"]}</td>'
                    f'<td class="n" data-l="Oldest">{_age(one["oldest_seconds"], report)}</td><td class="n" data-l="On hold">{one["held"]}</td>'
                    f'<td class="n" data-l="Expired">{one["expired"]}</td><td class="n" data-l="Known size">{_bytes(one["size_bytes"])}</td>'
                    f'<td class="n" data-l="Size not known">{one["size_unknown"]}</td></tr>'
                )
    if not rows:
        return ""
    heads = ["Backend", "Whose", "Snapshots", "Old", "Oldest", "On hold", "Expired", "Known size", "Size not known"]
    return _section("totals", "By backend and owner", heads, rows, numbers=2)


def _endpoints(endpoints: Sequence[Data]) -> str:
    rows = []
    for one in endpoints:
        totals = one["totals"] or {}
        ahead = one["clock_ahead_seconds"]
        clock = (
            "–"
            if ahead is None
            else "the same"
            if abs(ahead) < 2
            else f"{words(abs(ahead))} {'ahead' if ahead > 0 else 'behind'}"
        )
        state = (
            '<span class="b ok">✓ Seen</span>' if one["seen"] else f'<span class="b act">▲ Not seen</span> {_text(one["reason"])}'
        )
        rows.append(
            f'<tr><th scope="row">{_name(one["name"])}</th><td>{_text(_BACKENDS.get(one["backend"], one["backend"]))}</td>'
            f'<td>{_text(one["where"] or "–")}</td><td>{state}</td><td class="n" data-l="VMs">{totals.get("vms", "–")}</td>'
            f'<td class="n" data-l="Snapshots">{totals.get("snapshots", "–")}</td><td class="n" data-l="Clock">{clock}</td></tr>'
        )
    heads = ["Endpoint", "Backend", "Where", "Seen", "VMs", "Snapshots", "Clock"]
    return _section("endpoints", "Endpoints", heads, rows, numbers=4)


def _vms(report: Data) -> str:
    ids = _ids(report["vms"])
    shown = [vm for vm in report["vms"] if vm["snapshots"] or vm["severity"]]
    reasons: dict[str, int] = {}
    bodies = [_vm(vm, ids[_key(vm)], report, reasons) for vm in shown]
    quiet = len(report["vms"]) - len(shown)
    said = f'<p class="muted">{_count(quiet, "VM")} without a snapshot, and with nothing to say about.</p>' if quiet else ""
    if not shown:
        return said and f'<section aria-labelledby="h-vms"><h2 id="h-vms">VMs</h2>{said}</section>'
    notes = "".join(f'<li id="r{number}">{_text(_capital(reason))}.</li>' for reason, number in reasons.items())
    if notes:
        said += f'<p class="muted">Why some sizes are not known:</p><ol class="muted">{notes}</ol>'
    heads = ["How urgent", "VM", "Power", "Snapshots", "Chain", "Oldest", "Size"]
    return _section(
        "vms",
        "VMs",
        heads,
        bodies,
        numbers=3,
        bodies=True,
        after=said,
        caption="Those that need you first. A dot is a snapshot, on top of the one above it.",
    )


def _vm(vm: Data, anchor: str, report: Data, reasons: dict[str, int]) -> str:
    severity = vm["severity"]
    chain, oldest = vm["chain"], vm["oldest_seconds"]
    long = ' <span class="b look">long</span>' if chain > report["limits"]["chain"] else ""
    number = -1 if severity is None else SEVERITIES.index(severity)
    summary = (
        f'<tr class="s"><td class="{severity or "ok"}" data-k="{number if number >= 0 else len(SEVERITIES)}">{_badge(severity)}</td>'
        f'<th scope="row">{_name(vm["name"])} <small>on {_name(vm["endpoint"])}</small></th><td data-l="Power">{_text(vm["power"] or "not known")}</td>'
        f'<td class="n" data-l="Snapshots" data-k="{len(vm["snapshots"])}">{len(vm["snapshots"])}</td>'
        f'<td class="n" data-l="Chain" data-k="{chain}">{chain}{long}</td><td class="n" data-l="Oldest" data-k="{oldest or 0}">{_age(oldest, report)}</td>'
        f'<td class="n" data-l="Size" data-k="{vm["size_bytes"] or 0}">{_bytes(vm["size_bytes"])}</td></tr>'
    )
    details = ""
    if vm["snapshots"]:
        is_open = " open" if severity == "act" and len(vm["snapshots"]) <= _FEW else ""
        shown = tree(vm["snapshots"], lambda one: _snapshot(one, report, reasons))
        details = f'<tr class="d"><td colspan="7"><details{is_open}><summary>{_count(len(vm["snapshots"]), "snapshot")}</summary>{shown}</details></td></tr>'
    return f'<tbody id="{anchor}" data-s="{severity or ""}">{summary}{details}</tbody>'


def _snapshot(one: Data, report: Data, reasons: dict[str, int]) -> str:
    """What stands beside a dot of the tree: the name and what is remarkable, then the rest."""
    old = _age(one["age_seconds"], report)
    marks, said = [], [_group(one["class"]) + (f" {_text(one['product'])}" if one["product"] else "")]
    (marks if old.startswith("<") else said).append(old)
    if one["lease"]:
        change = (one["label"] or {}).get("change") or "a change"
        over = one["lease"] != "running"
        marks.append(
            f'<span class="b {"act" if over else "note"}">guards {_text(change)}{", past its time" if over else ""}</span>'
        )
    elif one["state"]:
        marks.append(f'<span class="b note">{_text(str(one["state"]).replace("_", " "))}</span>')
    if one["held"]:
        marks.append('<span class="b note">on hold</span>')
    if one["expired"]:
        marks.append('<span class="b look">expired</span>')
    if one["consistency"]:
        said.append(_text(one["consistency"]))
    if one["size_bytes"] is not None:
        said.append(_bytes(one["size_bytes"]))
    else:
        number = reasons.setdefault(str(one["size_unknown"] or "the backend does not tell it"), len(reasons) + 1)
        said.append(f'size not known<sup><a href="#r{number}">{number}</a></sup>')
    if one["expires"] and not one["expired"]:
        said.append(f"expires {_text(_moment(one['expires']))}")
    lines = [" · ".join(said)]
    if one["description"]:
        lines.append(_text(one["description"]))
    for word, why in (one["obstacles"] or {}).items():
        if word != "remove_alone":
            lines.append(f"cannot {_text(word)}: {_text(why)}")
    return f"<b>{_name(one['name'])}</b> {' '.join(marks)}" + "".join(f"<small>{line}</small>" for line in lines)


def _audit(audit: Data) -> str:
    if not audit["entries"] and not audit["unreadable"]:
        return ""
    rows = []
    for one in audit["entries"]:
        by = [
            one.get("user"),
            one.get("sudo_user") and f"for {one['sudo_user']}",
            one.get("host") and f"on {one['host']}",
            one.get("job") and f"job {one['job']}",
        ]
        what = f"{one.get('action') or '–'} {one.get('snapshot') or ''}"
        failing = "no outcome" if one.get("event") == "intent" else one.get("error")
        failed = f' <span class="b act">▲ {_text(failing)}</span>' if failing else ""
        why = " · ".join(str(part) for part in (one.get("change"), one.get("why"), one.get("msg")) if part) or "–"
        rows.append(
            f"<tr><td>{_text(_moment(one.get('time') or '–'))}</td><td>{_text(' '.join(str(part) for part in by if part) or '–')}</td>"
            f'<th scope="row">{_name(one.get("vm") or "–")}</th><td>{_text(what)}{failed}</td><td>{_text(why)}</td>'
            f'<td class="n" data-l="Seconds">{_text(one.get("seconds", "–"))}</td></tr>'
        )
    after = (
        f'<p class="muted">{_count(audit["unreadable"], "line")} of the audit cannot be read.</p>' if audit["unreadable"] else ""
    )
    heads = ["When", "Who", "VM", "What", "Why", "Seconds"]
    return _section("audit", "What was done last", heads, rows, numbers=5, after=after)


def _section(name: str, title: str, heads: Sequence[str], rows: Sequence[str], *, after: str = "", **more: t.Any) -> str:
    """A table under a heading."""
    return f'<section aria-labelledby="h-{name}"><h2 id="h-{name}">{title}</h2>{_table(heads, rows, anchor=name, **more)}{after}</section>'


def _table(
    heads: Sequence[str],
    rows: Sequence[str],
    *,
    anchor: str = "",
    css: str = "",
    numbers: int = 99,
    bodies: bool = False,
    caption: str = "",
) -> str:
    """From the column ``numbers`` on the cells are numbers; the rows may be whole bodies of it."""
    cells = "".join(f'<th scope="col"{" class=n" if at >= numbers else ""}>{head}</th>' for at, head in enumerate(heads))
    inside = "\n".join(rows)
    if not bodies:
        inside = f"<tbody>{inside}</tbody>"
    named = (f' id="{anchor}"' if anchor else "") + (f' class="{css}"' if css else "")
    return f"<table{named}>{f'<caption>{caption}</caption>' if caption else ''}<thead><tr>{cells}</tr></thead>\n{inside}</table>"


def _ids(vms: Sequence[Data]) -> dict[t.Any, str]:
    return {_key(vm): f"v{number}" for number, vm in enumerate(vms) if vm["snapshots"] or vm["severity"]}


def _key(vm: Data) -> tuple[t.Any, ...]:
    return vm["endpoint"], vm["id"], vm["name"]


def _badge(severity: str | None) -> str:
    return f'<span class="b">{_SEVERITIES[severity]}</span>'


def _group(group: str) -> str:
    return f'<span class="g {group}">{CLASS_WORDS[group]}</span>'


def _age(seconds: int | None, report: Data) -> str:
    if seconds is None:
        return "age not known"
    if seconds < 0:
        return "from the future"
    said = words(seconds)
    return f'<span class="b look">{said}, old</span>' if seconds > report["limits"]["age_seconds"] else said


def _bytes(size: int | None) -> str:
    if size is None:
        return "–"
    number, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{number:.0f} {unit}" if unit == "bytes" or number >= 100 else f"{number:.1f} {unit}"


def _moment(text: t.Any) -> str:
    """A time as ISO 8601 in UTC has it, a little easier to read."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\dZ$", r"\1 \2 UTC", str(text))


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _name(text: t.Any) -> str:
    """A name, which may be written from right to left, and must not turn what stands beside it."""
    return f"<bdi>{_text(text)}</bdi>"


def _text(text: t.Any) -> str:
    return html.escape(_NOT_TEXT.sub("\ufffd", str(text)))

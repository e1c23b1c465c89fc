# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lines of an audit file, and its writes without a recorded outcome. Pure: no I/O, the clock is an argument.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime

from ansible_collections.safepoint.vm.plugins.plugin_utils._report.findings import item, moment
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.model import Audit, Data, Endpoint, Item, Subject


def read_audit(lines: Iterable[str]) -> Audit:
    """The results of the VMs and the writes without an outcome, the newest first, and how many lines cannot be read: a full disk leaves half of one.

    A write without an outcome is settled once another call has written to the same VM without an error: it read the state of the VM before.
    """
    entries: list[Data] = []
    waiting: dict[str, Data] = {}
    unreadable = 0
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            unreadable += 1
        elif entry.get("event") == "intent":
            waiting[str(entry.get("id"))] = entry
            entries.append(entry)
        elif entry.get("event") == "outcome":
            waiting.pop(str(entry.get("id")), None)
            if not entry.get("error"):
                waiting = {
                    key: one for key, one in waiting.items() if one.get("call") == entry.get("call") or not _same_vm(one, entry)
                }
        else:
            entries.append(entry)
    shown = [one for one in entries if one.get("event") != "intent" or str(one.get("id")) in waiting]
    return Audit(tuple(shown[::-1]), unreadable)


def advise_audit(audit: Audit, endpoints: Sequence[Endpoint], now: datetime) -> list[Item]:
    """Items about the writes without an outcome: those whose call may still be running, and those whose call has ended without recording one."""
    names = {one.where: one.name for one in endpoints if one.where}
    said = []
    for one in audit.entries:
        if one.get("event") != "intent":
            continue
        where = without_login(str(one.get("endpoint") or ""))
        subject = Subject(names.get(where, where), one.get("backend"), str(one.get("vm")), one.get("vm_id"))
        began, ends_by = moment(one.get("time")), moment(one.get("ends_by"))
        age = int((now - began).total_seconds()) if began else None
        what = (
            f"A call of {one.get('module')} began to {one.get('action')} the snapshot {one.get('snapshot')} at {one.get('time')}"
        )
        if ends_by is not None and ends_by > now:
            what += ", and may still be running"
            said.append(item(subject, "info", "write_under_way", what, f"Wait until {one['ends_by']}", age=age))
        else:
            what += ", and recorded no outcome: the call was killed, or did not see the end"
            remedy = "Check the VM with safepoint.vm.snapshot_info, and run the play of this call again"
            said.append(item(subject, "critical", "write_without_outcome", what, remedy, age=age))
    return said


def without_login(where: str) -> str:
    """An address without the user, a password or options in it."""
    return re.sub(r"//[^/@]*@", "//", where).split("?")[0]


def _same_vm(one: Data, other: Data) -> bool:
    return (one.get("endpoint"), one.get("vm_id")) == (other.get("endpoint"), other.get("vm_id"))

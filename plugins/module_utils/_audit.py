# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What was done, by whom, why, and how long it took: a line of JSON for each VM, at the end of a file.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import typing as t
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import format_time

# The fields of the line have their documentation in plugins/doc_fragments/_audit.py.
_VERSION = 1
# A reason for people; the whole of a long description is on the snapshot.
_LONGEST = 500

Options = Mapping[str, t.Any]
Row = Mapping[str, t.Any]


def who(environ: Mapping[str, str]) -> dict[str, str | None]:
    """On which machine and as whom this process runs; through sudo also who called it, and in AWX the number of the job."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)  # in an execution environment the user need not have a name
    return {
        "host": socket.gethostname(),
        "user": user,
        "sudo_user": environ.get("SUDO_USER") or None,
        "job": environ.get("JOB_ID") or None,
    }


def entries(
    rows: Sequence[Row],
    failure: Options | None,
    *,
    module: str,
    options: Options,
    by: Mapping[str, str | None],
    now: datetime,
    seconds: float,
    secrets: Collection[str],
) -> list[str]:
    """A line for each VM that was acted on or that failed; one for all of them when the endpoint was never reached.

    Of a prune each snapshot that went has a line, with the reason that the policy gave.

    ``rows`` are the results of the VMs, ``by`` says who called and where, and ``secrets`` are taken out of all of it.
    """
    asked = [*(options.get("vms") or []), *(one["vm"] for one in options.get("targets") or [])]
    if options.get("vm"):
        asked.append(options["vm"])
    told = [one for row in rows for one in _acts(row)]
    if failure is not None and not rows:
        told = [{"ref": ", ".join(asked), "vm": None, "changed": False, **failure}]
    common = {"version": _VERSION, "time": format_time(now), **by, "module": module, "seconds": round(seconds, 1)}
    return [_line({**common, **_entry(row, options)}, secrets) for row in told]


def append(path: str, lines: Sequence[str]) -> None:
    """Write the lines to the end of the file, which is made when it is not there.

    Each is one write to a file that is open for appending, so that lines of several runs never mix.

    :raises OSError: not all of them were written.
    """
    # Without O_NONBLOCK a pipe that nobody reads would hold the module for ever.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    try:
        for line in lines:
            data = line.encode() + b"\n"
            if os.write(descriptor, data) != len(data):
                raise OSError("only a part of a line was written; look whether the file system is full")
    finally:
        os.close(descriptor)


def _acts(row: Row) -> list[Row]:
    """What was done to one VM, as rows of one snapshot each."""
    if "snapshots" not in row:
        return [row] if row["changed"] or "error" in row or row.get("action") == "lost_race" else []
    bare = {key: value for key, value in row.items() if key not in ("error", "msg")}
    gone = [
        {**bare, "action": "removed", "snapshot": {**one, "description": one["reason"]}}
        for one in row["snapshots"]
        if one["removed"]
    ]
    return [*gone, row] if "error" in row else [*gone]


def _entry(row: Row, options: Options) -> dict[str, t.Any]:
    """What was done to one VM. What its result does not tell, because it failed, is taken from the options."""
    snapshot: Row = row.get("snapshot") or {}
    vm: Row = row["vm"] or {}
    label = {key: value for key, value in (snapshot.get("label") or options.get("labels") or {}).items() if key != "sig"}
    description = snapshot.get("description") or options.get("description")
    return {
        "vm": vm.get("name") or row["ref"],
        "vm_id": vm.get("id"),
        "backend": options["backend"],
        "action": row.get("action", "none"),
        "changed": row["changed"],
        "snapshot": snapshot.get("name") or options.get("name"),
        "snapshot_id": snapshot.get("id") or options.get("id"),
        "also_removed": row.get("also_removed") or [],
        "change": label.get("change"),
        "why": (description or "")[:_LONGEST] or None,
        "labels": label,
        "error": row.get("error"),
        "msg": (row.get("msg") or "")[:_LONGEST] or None,
    }


def _line(entry: Mapping[str, t.Any], secrets: Collection[str]) -> str:
    from ansible.module_utils.common.parameters import remove_values

    # ASCII: a name with half a character or a line separator in it must not break the line.
    return json.dumps(remove_values(entry, secrets), ensure_ascii=True, default=str)

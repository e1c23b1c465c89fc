# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The audit file: who changed VMs, when and why, as lines of JSON. The file is opened before the first write and only appended to.

Each write has two lines with the same id: the intent, written before the request to the hypervisor, and the outcome. A call that is killed in between leaves an
intent without an outcome. At the end of a call, each VM gets a line with its result.

The lines are not buffered, so a killed process loses none. They are not synced to disk: a power failure may lose the last ones.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import time
import typing as t
import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta, timezone

from ansible_collections.safepoint.vm.plugins.module_utils._core import label as _label
from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import format_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Create, Delete, Describe, Finished, Revert

# The fields of a line are documented in docs/docsite/rst/guide_report.rst.
_VERSION = 1
# Maximum length of a text. The snapshot itself has the full description.
_LONGEST = 500

Options = Mapping[str, t.Any]
Row = Mapping[str, t.Any]


def who(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Return the host and the user of this process, the user that called sudo, and the id of the AWX job."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)  # in an execution environment, the user may have no name
    return {
        "host": socket.gethostname(),
        "user": user,
        "sudo_user": environ.get("SUDO_USER") or None,
        "job": environ.get("JOB_ID") or None,
    }


class AuditFile:
    """The open audit file of one call. Implements Observer of _engine/jobs.py."""

    def __init__(
        self, path: str, *, module: str, options: Options, by: Mapping[str, str | None], seconds: float, secrets: Collection[str]
    ) -> None:
        """``by``: fields for the caller and the endpoint. ``seconds``: maximum duration of the call. ``secrets`` are masked in every line.

        :raises InvalidOption: the file cannot be opened for writing.
        """
        self.warnings: list[str] = []
        self._path, self._options, self._secrets = path, options, secrets
        self._call = uuid.uuid4().hex[:16]
        now = datetime.now(timezone.utc)
        self._ends_by = format_time(now + timedelta(seconds=seconds))
        self._common = {**by, "module": module, "backend": options["backend"], "call": self._call}
        self._began = time.monotonic()
        self._writes = 0
        # VM id -> the fields of its intent and the time of writing. A VM has one job at a time.
        self._intents: dict[str, tuple[dict[str, t.Any], float]] = {}
        self._torn = False
        self._descriptor = _open(path, os.O_CREAT)

    def before(self, action: Action) -> None:
        """Record the intent of ``action``.

        :raises InvalidOption: the line could not be written; the action must not be started.
        """
        self._writes += 1
        fields = {"id": f"{self._call}-{self._writes}", **_intent(action, self._options)}
        try:
            self._write("intent", {**fields, "ends_by": self._ends_by})
        except OSError as exc:
            raise InvalidOption(
                f"This call did not {action}, because audit_file={self._path!r} cannot be written: {_why(exc)}"
            ) from exc
        self._intents[action.vm.id] = fields, time.monotonic()

    def after(self, end: Finished) -> None:
        """Record the outcome of an action. The action has ended, so a failed write is only a warning."""
        action = end.job.action
        if action.vm.id not in self._intents:  # only an undo continues without an intent
            self.warnings.append(f"audit_file={self._path!r} cannot be written; it has no record of this action: {action}")
            return
        fields, began = self._intents.pop(action.vm.id)
        error = end.error
        more = {"error": error.code if error else None, "msg": str(error)[:_LONGEST] if error else None}
        seconds = round(time.monotonic() - began, 1)
        snapshot_id = end.snapshot_id or fields["snapshot_id"]
        try:
            self._write("outcome", {**fields, **more, "snapshot_id": snapshot_id, "seconds": seconds})
        except OSError as exc:
            self.warnings.append(f"audit_file={self._path!r} has no record of the outcome of this action: {action} ({_why(exc)})")

    def finish(self, rows: Sequence[Row], failure: Options | None) -> None:
        """Record the results and close the file. Each VM that was changed or that failed has one line; all share one if the endpoint was not reached.

        A prune has one line for each removed snapshot, with the reason from the policy. ``rows`` are the results of the VMs.
        """
        options = self._options
        asked = [*(options.get("vms") or []), *(one["vm"] for one in options.get("targets") or [])]
        if options.get("vm"):
            asked.append(options["vm"])
        told = [one for row in rows for one in _acts(row)]
        if failure is not None and not rows:
            told = [{"ref": ", ".join(asked), "vm": None, "changed": False, **failure}]
        seconds = round(time.monotonic() - self._began, 1)
        try:
            for row in told:
                self._write("result", {"id": None, **_entry(row, options), "seconds": seconds})
        except OSError as exc:
            self.warnings.append(f"The results of the VMs could not be written to audit_file={self._path!r}: {_why(exc)}")
        try:
            os.close(self._descriptor)
        except OSError as exc:  # NFS reports a full file system or an exceeded quota here
            self.warnings.append(f"audit_file={self._path!r} could not be closed; its last lines may be missing: {_why(exc)}")

    def _write(self, event: str, fields: Mapping[str, t.Any]) -> None:
        """Append a line with a single write() in append mode, so that the lines of parallel runs never mix.

        :raises OSError: the line was not written, or only a part of it.
        """
        head = {"version": _VERSION, "event": event, "time": format_time(datetime.now(timezone.utc))}
        text = _line({**head, **self._common, **fields}, self._secrets) + "\n"
        # End a partial line that was written to a full file system.
        data = ("\n" + text if self._torn else text).encode()
        written = os.write(self._descriptor, data)
        self._torn = written != len(data)
        if self._torn:
            raise OSError("only a part of the line was written; the file system may be full")


def check(path: str) -> None:
    """Check that the file can be opened for writing, without creating it. For check mode.

    :raises InvalidOption: the file cannot be opened for writing.
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        if not os.access(os.path.dirname(path) or ".", os.W_OK | os.X_OK):
            raise _unusable(path, FileNotFoundError("its folder does not exist, or this user may not write to it")) from None
    except (OSError, ValueError) as exc:
        raise _unusable(path, exc) from exc
    else:
        os.close(_open(path, 0))


def _open(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe that has no reader would block for ever.
    flags |= os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o600)
    except (OSError, ValueError) as exc:  # ValueError: a NUL, or an unpaired surrogate
        raise _unusable(path, exc) from exc


def _unusable(path: str, error: OSError | ValueError) -> InvalidOption:
    folder = os.path.dirname(path) or "."
    if isinstance(error, FileNotFoundError) and not os.path.isdir(folder):
        return InvalidOption(
            f"audit_file={path!r} cannot be written: the folder {folder} does not exist. Nothing was done; create the folder"
        )
    return InvalidOption(
        f"audit_file={path!r} cannot be written: {_why(error)}. Nothing was done; set a file in a folder that this user may write to"
    )


def _why(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _intent(action: Action, options: Options) -> dict[str, t.Any]:
    """Return the fields that the intent and the outcome of a write share."""
    if isinstance(action, Create):
        name, snapshot_id, described = action.name, None, action.description
    else:
        name, snapshot_id, described = action.snapshot.name, action.snapshot.id, action.snapshot.description
    if isinstance(action, Describe):
        described = action.description
    parsed = _label.parse(described)
    label = _shown(parsed.label.as_dict() if parsed.label else options.get("labels") or {})
    verbs: Mapping[type, str] = {Create: "take", Revert: "revert", Delete: "remove", Describe: "describe"}
    return {
        "vm": action.vm.name,
        "vm_id": action.vm.id,
        "action": verbs[type(action)],
        "snapshot": name,
        "snapshot_id": snapshot_id,
        "change": label.get("change"),
        "why": parsed.text[:_LONGEST] or None,
        "labels": label,
    }


def _shown(label: Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the label without its signature fields."""
    return {key: value for key, value in label.items() if key not in ("sig", "at")}


def _acts(row: Row) -> list[Row]:
    """Split the result of one VM into rows of one snapshot each; no row if nothing was done."""
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
    """Return the fields of a result line. Values that the result of a failed VM lacks are taken from the options."""
    snapshot: Row = row.get("snapshot") or {}
    vm: Row = row["vm"] or {}
    label = _shown(snapshot.get("label") or options.get("labels") or {})
    description = snapshot.get("description") or options.get("description")
    return {
        "vm": vm.get("name") or row["ref"],
        "vm_id": vm.get("id"),
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

    # ASCII: an unpaired surrogate or a line separator in a name must not break the line.
    return json.dumps(remove_values(entry, secrets), ensure_ascii=True, default=str)

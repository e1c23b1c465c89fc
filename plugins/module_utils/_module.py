# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""AnsibleModule <-> core: options in, results out. The only file that ends a module that talks to a hypervisor.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
import typing as t
from collections.abc import Callable, Mapping
from datetime import datetime, timezone

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.errors import AnsibleFallbackNotFound

from ansible_collections.safepoint.vm.plugins.module_utils import _audit
from ansible_collections.safepoint.vm.plugins.module_utils._connection import address, open_driver, secrets
from ansible_collections.safepoint.vm.plugins.module_utils._deadline import (
    Deadline,
    format_time,
    parse_duration,
    parse_expiry,
    parse_moment,
)
from ansible_collections.safepoint.vm.plugins.module_utils._errors import (
    InvalidOption,
    LibraryMissing,
    NotStarted,
    SafepointError,
    Undone,
)
from ansible_collections.safepoint.vm.plugins.module_utils._filter import Filter
from ansible_collections.safepoint.vm.plugins.module_utils._fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._label import check_description, check_labels
from ansible_collections.safepoint.vm.plugins.module_utils._model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._outcome import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._owner import Owner
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._progress import Progress
from ansible_collections.safepoint.vm.plugins.module_utils._progress_file import ProgressFile
from ansible_collections.safepoint.vm.plugins.module_utils._report import (
    outcome_diff,
    outcome_info,
    outcome_pruned,
    outcome_result,
    outcome_table,
)
from ansible_collections.safepoint.vm.plugins.module_utils._threads import in_time
from ansible_collections.safepoint.vm.plugins.module_utils._work import Bounds

Params = Mapping[str, t.Any]
Spec = dict[str, t.Any]


def _variable(name: str) -> str:
    """The value of an environment variable. In AWX a field that was left empty is an empty one."""
    if not os.environ.get(name):
        raise AnsibleFallbackNotFound
    return os.environ[name]


# Must be kept in sync with plugins/doc_fragments/_connection.py
CONNECTION_SPEC: Spec = {
    "backend": {"type": "str", "required": True, "choices": ["libvirt", "proxmox", "vsphere"]},
    "uri": {"type": "str"},
    "hostname": {"type": "str"},
    "port": {"type": "int"},
    "username": {"type": "str"},
    "password": {"type": "str", "no_log": True},
    "token_id": {"type": "str"},
    "token_secret": {"type": "str", "no_log": True},
    "validate_certs": {"type": "bool"},
    "ca_path": {"type": "path"},
    "connect_timeout": {"type": "str", "default": "15s"},
    "timeout": {"type": "str", "default": "15m"},
}

# Must be kept in sync with plugins/doc_fragments/_vms.py
VMS_SPEC: Spec = {
    "vm": {"type": "str"},
    "vms": {"type": "list", "elements": "str"},
    "owner": {"type": "str", "default": "safepoint", "fallback": (_variable, ["SAFEPOINT_OWNER"])},
    "label_key": {"type": "str", "no_log": True, "fallback": (_variable, ["SAFEPOINT_LABEL_KEY"])},
}
INFO_SPEC: Spec = {
    **VMS_SPEC,
    "scope": {"type": "str", "choices": ["vms", "endpoint"], "default": "vms"},
    "name": {"type": "str"},
    "labels": {"type": "dict"},
    "older_than": {"type": "str"},
    "newer_than": {"type": "str"},
    "ownership": {"type": "str", "choices": ["any", "ours", "foreign"], "default": "any"},
    "drift": {"type": "bool", "default": False},
    "check_images": {"type": "bool", "default": False},
}
# Must be kept in sync with plugins/doc_fragments/_audit.py
AUDIT_SPEC: Spec = {"audit_file": {"type": "path", "fallback": (_variable, ["SAFEPOINT_AUDIT_FILE"])}}
WORK_SPEC: Spec = {
    **AUDIT_SPEC,
    "lock_timeout": {"type": "str", "default": "60s"},
    "max_parallel": {"type": "int", "default": 16},
    "progress_file": {"type": "path"},
}
CHANGE_SPEC: Spec = {
    **VMS_SPEC,
    **WORK_SPEC,
    "targets": {
        "type": "list",
        "elements": "dict",
        "options": {
            "vm": {"type": "str", "required": True},
            "id": {"type": "str", "required": True},
            "labels": {"type": "dict"},
        },
    },
    "name": {"type": "str"},
    "id": {"type": "str"},
    "foreign": {"type": "str", "choices": ["refuse", "allow"], "default": "refuse"},
}
# One or several VMs, or all of the endpoint.
INFO_RULES: Spec = {"mutually_exclusive": [("vm", "vms")], "required_if": [("scope", "vms", ("vm", "vms"), True)]}
CHANGE_RULES: Spec = {
    "mutually_exclusive": [("vm", "vms", "targets"), ("name", "id", "targets")],
    "required_one_of": [("vm", "vms", "targets"), ("name", "id", "targets")],
}
REVERT_RULES: Spec = {
    "mutually_exclusive": [("vm", "vms", "targets"), ("name", "id", "targets", "select")],
    "required_one_of": [("vm", "vms", "targets"), ("name", "id", "targets", "select")],
    "required_if": [("select", "before", ("time",))],
}
# Shorter ones can be guessed, given one signed label.
_SHORTEST_KEY = 16


def run(module: AnsibleModule, plan: Callable[[Request, Params], Plan] | None) -> t.NoReturn:
    """Do what the module's options say and end the module. Without ``plan`` it only looks.

    The only place that calls fail_json() and exit_json().
    """
    params: Params = module.params
    module.no_log_values.update(secrets(params, os.environ))
    result: dict[str, t.Any] = {}
    failure: dict[str, t.Any] | None = None
    progress = ProgressFile(params["progress_file"], module.no_log_values).note if params.get("progress_file") else None
    began = time.monotonic()
    try:
        outcomes, now, sweeps = _work(params, plan, dry_run=module.check_mode, diff=module._diff, progress=progress)
    except LibraryMissing as exc:
        failure = {
            "error": exc.code,
            "msg": f"{missing_required_lib(exc.library)} For example: {sys.executable} -m pip install {shlex.quote(exc.library)}",
        }
    except SafepointError as exc:
        failure = {"error": exc.code, "msg": str(exc)}
    else:
        result, failure = _results(params, outcomes, now, info=plan is None, sweeps=sweeps, diff=module._diff)
    for row in result.get("vms", []):
        for warning in row["warnings"]:
            module.warn(warning)
    if params.get("audit_file") and not module.check_mode:
        _write_audit(module, result.get("vms", []), failure, seconds=time.monotonic() - began)
    if failure is not None:
        module.fail_json(**failure, **result)
    module.exit_json(**result)
    raise SystemExit  # exit_json() has no type that says it never returns


def _write_audit(
    module: AnsibleModule, rows: list[dict[str, t.Any]], failure: dict[str, t.Any] | None, *, seconds: float
) -> None:
    """Write down what was done. That this fails undoes nothing of it."""
    path = module.params["audit_file"]
    try:
        lines = _audit.entries(
            rows,
            failure,
            module=module._name,
            options=module.params,
            by={**_audit.who(os.environ), "endpoint": address(module.params, os.environ)},
            now=datetime.now(timezone.utc),
            seconds=seconds,
            secrets=module.no_log_values,
        )
        _audit.append(path, lines)
    except OSError as exc:
        module.warn(
            f"What was done is not in audit_file={path!r}: {exc.strerror or exc}. Make its folder, and let this user write there"
        )


def _work(
    params: Params,
    plan: Callable[[Request, Params], Plan] | None,
    *,
    dry_run: bool,
    diff: bool,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[list[Outcome], datetime, bool]:
    """Check all options, connect, and look or act; also what time it is by the endpoint's clock, and whether it was about whatever there is.

    :raises SafepointError: before anything was written.
    """
    targets = _targets(params)
    bounds = Bounds(
        timeout=_seconds(params, "timeout"),
        lock_timeout=_seconds(params, "lock_timeout") if plan else 0.0,
        max_parallel=_at_least_one(params, "max_parallel") if plan else 1,
        on_error=params.get("on_error") or "stop",
    )
    _ours(params)
    wanted = plan(_request(params), params) if plan else None
    if wanted is None:
        _filter(params)
    driver = open_driver(params, environ=os.environ, seconds=_seconds(params, "connect_timeout"))
    try:
        fleet = Fleet(driver, bounds, progress=progress)
        if wanted is not None:
            outcomes = fleet.apply(targets, wanted, dry_run=dry_run, drift=diff)
            return outcomes, driver.now(), wanted.sweeps
        return fleet.look(targets, drift=params["drift"], images=params["check_images"]), driver.now(), False
    finally:
        try:
            in_time("the log-out", driver.close, Deadline(5))
        except SafepointError:
            pass  # a mute peer; what matters has been said or raised already


def _results(
    params: Params, outcomes: list[Outcome], now: datetime, *, info: bool, sweeps: bool, diff: bool
) -> tuple[dict[str, t.Any], dict[str, t.Any] | None]:
    ours = _ours(params)
    if info:
        wanted = _filter(params)
        rows = [outcome_info(one, ours=ours, wanted=wanted, which=params["ownership"], now=now) for one in outcomes]
    elif sweeps:
        rows = [outcome_pruned(one, ours=ours, now=now) for one in outcomes]
    else:
        rows = [outcome_result(one, ours=ours) for one in outcomes]
    result: dict[str, t.Any] = {"changed": any(row["changed"] for row in rows), "vms": rows}
    if info:
        result["now"] = format_time(now)
    if diff and not info:
        shown = outcome_table if sweeps else outcome_diff
        result["diff"] = [shown(outcome) for outcome in outcomes if outcome.changed]
    failed = [row for row in rows if "error" in row]
    if not failed:
        return result, None
    # What was left alone or taken back because of others is told by its own row.
    causes = [row for row in failed if row["error"] not in (NotStarted.code, Undone.code)] or failed
    msg = causes[0]["msg"]
    if len(rows) > 1:
        msg = f"{len(causes)} of {len(rows)} VMs failed. " + "; ".join(f"{row['ref']}: {row['msg']}" for row in causes)
    return result, {"error": causes[0]["error"], "msg": msg}


def _targets(params: Params) -> list[Target] | None:
    """The VMs that are meant, or None for all of the endpoint."""
    if params.get("scope") == "endpoint":
        named = next((option for option in ("vm", "vms") if params.get(option) is not None), None)
        if named:
            raise InvalidOption(f"scope=endpoint means all VMs, and {named} names some; leave one of them out")
        return None
    snapshot_id = params.get("id")
    ids = [one["id"] for one in params.get("targets") or []]
    for option, value in (("name", params.get("name")), ("id", snapshot_id), *(("targets: id", one) for one in ids)):
        if value is not None and not value.strip():
            raise InvalidOption(f"{option} is empty; name the snapshot")
    if params.get("if_exists") == "fail" and not params.get("name"):
        raise InvalidOption("if_exists=fail goes with name; a snapshot named by its id is there to be updated")
    for option in ("vms", "targets"):
        if params.get(option) is not None and not params[option]:
            raise InvalidOption(f"{option} is empty; name at least one VM")
    if params.get("targets"):
        targets = [Target(one["vm"], one["id"], _expected(one["labels"])) for one in params["targets"]]
    else:
        targets = [Target(ref, snapshot_id) for ref in params["vms"] or [params["vm"]]]
    if snapshot_id is not None and len(targets) > 1:
        raise InvalidOption(
            f"id={snapshot_id!r} names the snapshot of one VM, and vms names {len(targets)}; use targets, a list of vm and id"
        )
    seen = [target.ref for target in targets]
    for ref in seen:
        if not ref.strip():
            raise InvalidOption("the name of a VM is empty; name each VM by its name, UUID or id")
        if seen.count(ref) > 1:
            raise InvalidOption(f"VM {ref!r} is named {seen.count(ref)} times; name it once")
    return targets


def _request(params: Params) -> Request:
    """The options of the changing modules; those a module does not have keep their defaults."""
    expires = params.get("expires")
    description = params.get("description")
    labels = check_labels(params.get("labels") or {})
    select = params.get("select")
    for option in ("labels", "time"):
        if "select" in params and params[option] is not None and select is None:
            raise InvalidOption(f"{option} goes with select; a snapshot named by name or id needs no more")
    if select == "newest" and params["time"] is not None:
        raise InvalidOption(f"time={params['time']!r} goes with select=before; select=newest takes the newest there is")
    if params.get("state") == "absent":
        meant = {
            "labels": labels,
            "quiesce": params["quiesce"] != "never",
            "kind": params["kind"] != "auto",
            "memory": params["memory"],
        }
        meant["if_exists"] = params["if_exists"] == "fail"
        meant.update(
            {option: params[option] is not None for option in ("description", "expires", "hold", "hold_by", "hold_reason")}
        )
        for option, given in meant.items():
            if given:
                raise InvalidOption(f"{option} goes with state=present, and with state=absent would choose nothing; leave it out")
    if params.get("children") == "remove" and params["state"] != "absent":
        raise InvalidOption("children=remove goes with state=absent; leave it out")
    for option in ("hold_by", "hold_reason"):
        if params.get(option) and params.get("hold") is False:
            raise InvalidOption(f"{option} is given and hold=false releases the snapshot; leave one of them out")
    kind = params.get("kind")
    return Request(
        name=params.get("name"),
        owner=params["owner"],
        foreign_allowed=params.get("foreign") == "allow",
        label_key=params["label_key"],
        kind=None if kind == "auto" else kind,
        memory=bool(params.get("memory")),
        quiesce=params.get("quiesce") or "never",
        description=None if description is None else check_description(description),
        expires=None if expires is None else parse_expiry(expires),
        hold=params.get("hold"),
        hold_by=params.get("hold_by"),
        hold_reason=params.get("hold_reason"),
        labels={} if select else labels,
        fail_if_exists=params.get("if_exists") == "fail",
        children=params.get("children") or "keep",
        select=select is not None,
        matching=Filter(labels=labels, older_than=parse_moment(params["time"], option="time") if params.get("time") else None),
        power=params.get("power") or "as_snapshot",
        discard_newer=bool(params.get("discard_newer")),
    )


def _ours(params: Params) -> Owner:
    if not params["owner"]:
        raise InvalidOption("owner is empty; leave it out for the default, safepoint")
    key = params["label_key"]
    if key is not None and len(key) < _SHORTEST_KEY:
        raise InvalidOption(
            f"label_key is shorter than {_SHORTEST_KEY} characters; make a longer one, for example with openssl rand -hex 32"
        )
    return Owner(params["owner"], key)


def _filter(params: Params) -> Filter:
    """Which snapshots the listing is to show."""
    limits = {option: parse_moment(params[option], option=option) for option in ("older_than", "newer_than") if params[option]}
    return Filter(
        name=params["name"],
        labels=_expected(params["labels"]),
        **limits,
    )


def _expected(labels: Mapping[str, t.Any] | None) -> dict[str, str]:
    """What a label is to say, as texts; empty is a field that it must not have."""
    return {key: "" if value is None else str(value) for key, value in (labels or {}).items()}


def _seconds(params: Params, option: str) -> float:
    seconds = parse_duration(params[option], option=option)
    if seconds <= 0 and option != "lock_timeout":
        raise InvalidOption(f"{option}={params[option]!r} leaves no time at all; write for example 15s")
    return seconds


def _at_least_one(params: Params, option: str) -> int:
    number: int = params[option]
    if number < 1:
        raise InvalidOption(f"{option}={number} would never do anything; use 1 or more")
    return number

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A call of a module from its checked options to its result. Nothing of Ansible is imported before it is used, so that a process that does this
starts at once.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import shlex
import sys
import typing as t
from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from ansible_collections.safepoint.vm.plugins.module_utils import _audit, _failure
from ansible_collections.safepoint.vm.plugins.module_utils._audit import AuditFile
from ansible_collections.safepoint.vm.plugins.module_utils._connection import open_driver
from ansible_collections.safepoint.vm.plugins.module_utils._credentials import address
from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline, format_time
from ansible_collections.safepoint.vm.plugins.module_utils._driver import SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._errors import Interrupted, LibraryMissing, SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._jobs import Observer
from ansible_collections.safepoint.vm.plugins.module_utils._outcome import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._params import Params, check_params
from ansible_collections.safepoint.vm.plugins.module_utils._phases import LOG_OUT_SECONDS
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._plans import Absent, Present, Reverted
from ansible_collections.safepoint.vm.plugins.module_utils._progress import Progress
from ansible_collections.safepoint.vm.plugins.module_utils._prune_options import pruned
from ansible_collections.safepoint.vm.plugins.module_utils._report import (
    outcome_diff,
    outcome_info,
    outcome_pruned,
    outcome_result,
    outcome_table,
)
from ansible_collections.safepoint.vm.plugins.module_utils._request import (
    at_least_one,
    longest,
    read_filter,
    read_owner,
    read_request,
    read_seconds,
    read_targets,
)
from ansible_collections.safepoint.vm.plugins.module_utils._stop import LOGOUT_SECONDS, Stop, Stopped
from ansible_collections.safepoint.vm.plugins.module_utils._threads import in_time
from ansible_collections.safepoint.vm.plugins.module_utils._work import Bounds

# As open_driver(), which it is unless a test has a hypervisor of its own.
Connect = Callable[..., SnapshotDriver]

# By the short name of a module. Without a plan it only looks.
_PLANS: Mapping[str, Callable[[Request, Params], Plan] | None] = {
    "snapshot": lambda request, params: Present(request) if params["state"] == "present" else Absent(request),
    "snapshot_info": None,
    "snapshot_revert": lambda request, _params: Reverted(request),
    "snapshot_prune": pruned,
}


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a module: its short name, and its options as they were checked by what _options.py says of them."""

    module: str
    params: Params
    check_mode: bool
    diff: bool
    secrets: Collection[str]
    """What must not be shown. The answer may still hold it."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of a call. ``failure`` has at least ``msg``, and is None when nothing failed; the result may be there nevertheless."""

    result: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    failure: dict[str, t.Any] | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)


def perform(
    call: Call, stop: Stop | None = None, *, connect: Connect = open_driver, progress: Callable[[Progress], None] | None = None
) -> Answer:
    """Do what the options say on the endpoint that ``connect`` connects to, or what is possible of it until ``stop`` is told.

    ``progress`` is told the progress of the work, as the engine tells it.
    """
    stop = stop or Stop()
    # What is read of many VMs is many objects that stay, and by default each 700 new ones have the collector go through some. A create on 500 VMs of
    # vSphere takes a twentieth less CPU so (CPython 3.11); the process is over before garbage could add up.
    gc.set_threshold(100_000)
    params = call.params
    plan = _PLANS[call.module]
    result: dict[str, t.Any] = {}
    failure: dict[str, t.Any] | None
    audit: AuditFile | None = None
    try:
        check_params(params, call.secrets)
        audit = _open_audit(call)
        outcomes, now, sweeps = _work(
            params, plan, connect, dry_run=call.check_mode, diff=call.diff, progress=progress, observer=audit, stop=stop
        )
    except Stopped:
        failure = {"error": Interrupted.code, "msg": f"Stopped by {stop.by} before anything was begun"}
    except LibraryMissing as exc:
        failure = {"error": exc.code, "msg": _missing(exc.library)}
    except SafepointError as exc:
        failure = {"error": exc.code, "msg": str(exc)}
    else:
        result, failure = _results(params, outcomes, now, info=plan is None, sweeps=sweeps, diff=call.diff)
        if failure is not None and stop.by is not None:
            failure = {"error": Interrupted.code, "msg": f"Stopped by {stop.by}. {failure['msg']}"}
    rows = result.get("vms", [])
    warnings = [warning for row in rows for warning in row["warnings"]]
    if audit is not None:
        audit.finish(rows, failure)
        warnings += audit.warnings
    return Answer(result, failure, warnings)


def _missing(library: str) -> str:
    from ansible.module_utils.basic import missing_required_lib

    return f"{missing_required_lib(library)} For example: {sys.executable} -m pip install {shlex.quote(library)}"


def _open_audit(call: Call) -> AuditFile | None:
    """Open the audit file, where there is one, before anything else is done.

    :raises InvalidOption: it cannot be written, or the call's time is none.
    """
    path = call.params.get("audit_file")
    if not path:
        return None
    if call.check_mode:
        _audit.check(path)
        return None
    return AuditFile(
        path,
        module=f"safepoint.vm.{call.module}",
        options=call.params,
        by={**_audit.who(os.environ), "endpoint": address(call.params, os.environ)},
        seconds=longest(call.params),
        secrets=call.secrets,
    )


def _work(
    params: Params,
    plan: Callable[[Request, Params], Plan] | None,
    connect: Connect,
    *,
    dry_run: bool,
    diff: bool,
    progress: Callable[[Progress], None] | None = None,
    observer: Observer | None = None,
    stop: Stop,
) -> tuple[list[Outcome], datetime, bool]:
    """Check all options, connect, and look or act; also what time it is by the endpoint's clock, and whether it was about whatever there is.

    :raises SafepointError: before anything was written.
    :raises Stopped: the same, and a signal came.
    """
    targets = read_targets(params)
    bounds = Bounds(
        timeout=read_seconds(params, "timeout"),
        lock_timeout=read_seconds(params, "lock_timeout") if plan else 0.0,
        max_parallel=at_least_one(params, "max_parallel") if plan else 1,
        on_error=params.get("on_error") or "stop",
    )
    read_owner(params)
    wanted = plan(read_request(params), params) if plan else None
    if wanted is None:
        read_filter(params)
    deadline = Deadline(bounds.timeout)
    with stop.breakable():
        driver = connect(params, environ=os.environ, seconds=min(bounds.timeout, read_seconds(params, "connect_timeout")))
    try:
        with stop.breakable():
            fleet = Fleet(driver, bounds, deadline=deadline, progress=progress, observer=observer, stop=stop)
            if wanted is not None:
                outcomes = fleet.apply(targets, wanted, dry_run=dry_run, drift=diff)
                return outcomes, driver.now(), wanted.sweeps
            return fleet.look(targets, drift=params["drift"], images=params["check_images"]), driver.now(), False
    finally:
        try:
            in_time("the log-out", driver.close, Deadline(LOG_OUT_SECONDS if stop.by is None else LOGOUT_SECONDS))
        except SafepointError:
            pass  # a mute peer; what matters has been said or raised already


def _results(
    params: Params, outcomes: list[Outcome], now: datetime, *, info: bool, sweeps: bool, diff: bool
) -> tuple[dict[str, t.Any], dict[str, t.Any] | None]:
    ours = read_owner(params)
    if info:
        wanted = read_filter(params)
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
    return result, _failure.failure(rows)

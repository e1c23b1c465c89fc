# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A call of a module from its checked options to its result: run() for a module that Ansible starts, perform() on the controller.

Ansible is imported only where it is used, so that a process that does this starts at once.

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

from ansible_collections.safepoint.vm.plugins.module_utils import _audit
from ansible_collections.safepoint.vm.plugins.module_utils._audit import AuditFile
from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import format_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import Interrupted, LibraryMissing, SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.connect import open_driver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.credentials import address, secrets
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._engine.jobs import Observer
from ansible_collections.safepoint.vm.plugins.module_utils._engine.phases import LOG_OUT_SECONDS
from ansible_collections.safepoint.vm.plugins.module_utils._engine.progress import Progress
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations import failure as _failure
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.info import outcome_info
from ansible_collections.safepoint.vm.plugins.module_utils._operations.params import Params, check_params
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.prune import pruned
from ansible_collections.safepoint.vm.plugins.module_utils._operations.request import (
    at_least_one,
    longest,
    read_filter,
    read_owner,
    read_request,
    read_seconds,
    read_targets,
)
from ansible_collections.safepoint.vm.plugins.module_utils._operations.results import (
    outcome_diff,
    outcome_pruned,
    outcome_result,
    outcome_table,
)
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.stop import STOP_LOG_OUT_SECONDS, Stop, Stopped
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.threads import in_time

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


# The signature of open_driver(). Tests pass a function that connects to their own hypervisor.
Connect = Callable[..., SnapshotDriver]

# Short name of a module -> its plan. A module without a plan only reads.
_PLANS: Mapping[str, Callable[[Request, Params], Plan] | None] = {
    "snapshot": lambda request, params: Present(request) if params["state"] == "present" else Absent(request),
    "snapshot_info": None,
    "snapshot_revert": lambda request, _params: Reverted(request),
    "snapshot_prune": pruned,
}


@dataclasses.dataclass(frozen=True)
class Call:
    """One module call: the short name of the module, and its options as checked by the spec in _options.py."""

    module: str
    params: Params
    check_mode: bool
    diff: bool
    secrets: Collection[str]
    """Values that must not be shown. The answer may still contain them; the caller masks them."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """The result of one module call. ``failure`` has at least ``msg``, and is None if nothing failed. A failed call may have a result too."""

    result: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    failure: dict[str, t.Any] | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)


def perform(
    call: Call, stop: Stop | None = None, *, connect: Connect = open_driver, progress: Callable[[Progress], None] | None = None
) -> Answer:
    """Run the call on the endpoint that ``connect`` connects to. A signal recorded by ``stop`` ends it early, with a partial result.

    ``progress`` is called with the progress of the work.
    """
    stop = stop or Stop()
    # The data of many VMs are many long-lived objects, and by default the garbage collector runs after every 700 new ones. This saves 5 % of the CPU time of
    # a create on 500 vSphere VMs (CPython 3.11); the process ends before garbage matters.
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
            params,
            plan,
            connect,
            dry_run=call.check_mode,
            diff=call.diff,
            progress=progress,
            observer=audit,
            stop=stop,
            secrets=call.secrets,
        )
    except Stopped:
        failure = {"error": Interrupted.code, "msg": f"Stopped by {stop.by} before anything was done"}
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
    """Open the audit file if one is set. In check mode, only check that it can be opened.

    :raises InvalidOption: the file cannot be written, or the option timeout is invalid.
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
    secrets: Collection[str],
) -> tuple[list[Outcome], datetime, bool]:
    """Check all options, connect, and run the plan or only read. Return the VMs, the time of the endpoint's clock, and ``sweeps`` of the plan.

    :raises SafepointError: nothing was written.
    :raises Stopped: a signal arrived; nothing was written.
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
            fleet = Fleet(driver, bounds, deadline=deadline, progress=progress, observer=observer, stop=stop, secrets=secrets)
            if wanted is not None:
                outcomes = fleet.apply(targets, wanted, dry_run=dry_run, drift=diff)
                return outcomes, driver.now(), wanted.sweeps
            return fleet.look(targets, drift=params["drift"], images=params["check_images"]), driver.now(), False
    finally:
        try:
            in_time("the log-out", driver.close, Deadline(LOG_OUT_SECONDS if stop.by is None else STOP_LOG_OUT_SECONDS))
        except SafepointError:
            pass  # the endpoint does not answer; the result does not depend on the log-out


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


def run(name: str, module: AnsibleModule) -> t.NoReturn:
    """Run the module with the short name ``name`` and exit.

    The only function that calls fail_json() and exit_json().
    """
    stop = Stop()
    stop.install()
    module.no_log_values.update(secrets(module.params, os.environ))
    answer = perform(Call(name, module.params, module.check_mode, module._diff, module.no_log_values), stop)
    for warning in answer.warnings:
        module.warn(warning)
    if answer.failure is not None:
        module.fail_json(**answer.failure, **answer.result)
    module.exit_json(**answer.result)
    raise SystemExit  # exit_json() is not annotated as NoReturn

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An outage, a lost answer or a proxy's error at any request: no additional failure, no leftovers, power as requested.

The tables are shown with ``-rP``; docs/reliability.md has those of the last full run.
"""

from __future__ import annotations

import threading
import time
import typing as t

import pytest
from outage_stage import FAULTS, OPERATIONS, STAGES, OutageStage, Row, prepare, strike, sweep_all, table

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError, TimedOut
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.threads import in_time

pytestmark = [pytest.mark.vcenter, pytest.mark.timeout(900)]

BACKENDS = sorted(STAGES)
# Allowance for a loaded machine, in addition to the 20 seconds that a call may take after its timeout.
LOAD_SECONDS = 5.0


def judge(rows: list[Row]) -> None:
    print(table(rows))
    assert all(row.tried for row in rows)
    assert [line for row in rows for line in row.wrong] == []


@pytest.mark.parametrize("fault", ["gone", "lost", "502"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_fault_at_every_fifth_request_changes_nothing(backend: str, fault: str) -> None:
    # Each fault starts at another request, so that together they cover most requests.
    judge(sweep_all(STAGES[backend], fault, first=1 + FAULTS.index(fault), step=5))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_fault_at_any_request_changes_nothing(backend: str, fault: str) -> None:
    judge(sweep_all(STAGES[backend], fault))


@pytest.fixture(params=BACKENDS)
def stage(request: pytest.FixtureRequest) -> t.Iterator[OutageStage]:
    made = STAGES[request.param]()
    yield made
    made.close()


def test_calls_succeed_without_a_fault(stage: OutageStage) -> None:
    """The other tests need this as a baseline."""
    for operation in OPERATIONS:
        hit, _rows, wrong = strike(stage, operation, "gone", 1000)
        assert (hit, wrong) == (False, [])


def seconds_of_a_call(backend: str, k: int, timeout: float) -> float:
    """Return the duration of a call whose k-th request and all later ones get no answer, including the log-out."""
    stage = STAGES[backend]()
    try:
        operation = OPERATIONS[0]
        vms = prepare(stage, operation)
        driver = stage.backend.open()
        stage.strike("silent", k)
        began = time.monotonic()
        try:
            Fleet(driver, Bounds(timeout=timeout, on_error="undo")).apply(
                [Target(vm) for vm in vms], operation.plan(), dry_run=False
            )
        except SafepointError:
            pass  # of the first read
        try:
            in_time("the log-out", driver.close, Deadline(1.5))
        except TimedOut:
            pass
        return time.monotonic() - began
    finally:
        stage.calm()
        stage.close()


def all_seconds(backend: str, numbers: t.Iterable[int], timeout: float) -> dict[int, float]:
    found: dict[int, float] = {}

    def work(k: int) -> None:
        found[k] = seconds_of_a_call(backend, k, timeout)

    threads = [threading.Thread(target=work, args=(k,)) for k in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_call_ends_in_time_if_the_server_falls_silent(backend: str) -> None:
    found = all_seconds(backend, (1, 5, 7, 10, 13), timeout=3.0)
    assert len(found) == 5
    assert {k: seconds for k, seconds in found.items() if seconds > 3.0 + 20.0 + LOAD_SECONDS} == {}


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_call_ends_in_time_if_the_server_falls_silent_at_any_request(backend: str) -> None:
    numbers = list(range(1, 25))
    found = {k: seconds for at in range(0, 24, 6) for k, seconds in all_seconds(backend, numbers[at : at + 6], 6.0).items()}
    print(f"the longest call took {max(found.values()):.1f} s with timeout=6")
    assert len(found) == len(numbers)
    assert {k: seconds for k, seconds in found.items() if seconds > 6.0 + 20.0 + LOAD_SECONDS} == {}

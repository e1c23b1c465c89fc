# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each pair of operations, with 2 and 5 parallel runs on one VM: no false result, no VM that is off, no avoidable error."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from outage_stage import STAGES, Stage, VsphereStage
from race_stage import RUNS, race

pytestmark = [pytest.mark.vcenter, pytest.mark.timeout(600)]

PAIRS = list(itertools.combinations_with_replacement(RUNS, 2))
# The result of a second task of a VM depends on the vCenter and on timing.
BUSY = ("task", "call", "queue")


@pytest.fixture(scope="module", params=sorted(STAGES))
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    made = STAGES[request.param]()
    made.backend.add("raced", power="running")
    yield made
    made.close()


def wrong(stage: Stage, pair: tuple[str, str], runs: int, rounds: range) -> list[str]:
    """Return the problems of these rounds with this number of runs, alternately with and without the snapshot."""
    found: list[str] = []
    for number in rounds:
        if isinstance(stage, VsphereStage):
            stage.vcenter.set(busy=BUSY[number % len(BUSY)])
        kinds = [pair[one % 2] for one in range(runs)]
        found += race(stage, "raced", kinds, there=number % 2 == 0)
    return found


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_parallel_runs_report_the_truth(stage: Stage, pair: tuple[str, str]) -> None:
    assert wrong(stage, pair, runs=2, rounds=range(2)) == []
    assert wrong(stage, pair, runs=5, rounds=range(2, 3)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("runs", [2, 5], ids=["two", "five"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_parallel_runs_report_the_truth_in_100_rounds(stage: Stage, pair: tuple[str, str], runs: int) -> None:
    assert wrong(stage, pair, runs=runs, rounds=range(100)) == []

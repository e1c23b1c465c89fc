# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each pair of operations, with 2 and 5 parallel runs on one VM: no false result, no VM that is off, no avoidable error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypervisor_stage import Stage
from outage_stage import STAGES
from race_stage import PAIRS, rounds

pytestmark = [pytest.mark.vcenter, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=sorted(STAGES))
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    made = STAGES[request.param]()
    made.backend.add("raced", power="running")
    yield made
    made.close()


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_parallel_runs_report_the_truth(stage: Stage, pair: tuple[str, str]) -> None:
    assert rounds(stage, "raced", pair, runs=2, numbers=range(2)) == []
    assert rounds(stage, "raced", pair, runs=5, numbers=range(2, 3)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("runs", [2, 5], ids=["two", "five"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_parallel_runs_report_the_truth_in_100_rounds(stage: Stage, pair: tuple[str, str], runs: int) -> None:
    assert rounds(stage, "raced", pair, runs=runs, numbers=range(100)) == []

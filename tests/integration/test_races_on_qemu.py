# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The races of test_races.py with processes, on real QEMU: with internal snapshots, and with external ones if libvirt can revert to them."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

import pytest
from libvirt_stage import ExternalStage, InternalStage, QemuStage
from race_stage import PAIRS, rounds

pytestmark = pytest.mark.qemu


def staged(stage: QemuStage) -> Iterator[QemuStage]:
    try:
        stage.backend.add("raced", power="running")
        yield stage
    finally:
        stage.close()


@pytest.fixture(scope="module")
def internal(lab: t.Any) -> Iterator[QemuStage]:
    yield from staged(InternalStage(lab))


@pytest.fixture(scope="module")
def newer_internal(new_lab: t.Any) -> Iterator[QemuStage]:
    yield from staged(InternalStage(new_lab))


@pytest.fixture(scope="module")
def newer_external(new_lab: t.Any) -> Iterator[QemuStage]:
    yield from staged(ExternalStage(new_lab))


@pytest.mark.parametrize(
    "pair", [("create", "create"), ("create", "remove"), ("revert", "revert"), ("revert", "prune")], ids="-".join
)
def test_two_parallel_processes_report_the_truth(internal: QemuStage, pair: tuple[str, str]) -> None:
    assert rounds(internal, "raced", pair, runs=2, numbers=range(2)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("runs", [2, 5], ids=["two", "five"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("stage", ["internal", "newer_internal", "newer_external"])
def test_parallel_processes_report_the_truth_in_20_rounds(
    request: pytest.FixtureRequest, stage: str, pair: tuple[str, str], runs: int
) -> None:
    if (stage, pair, runs) == ("newer_external", ("describe", "revert"), 5):
        # A redefinition that libvirt lets wait for a revert writes what it was before that; the file that the revert made is then forgotten.
        request.applymarker(pytest.mark.xfail(reason="one image that nothing uses was left in 3 of 20 rounds", strict=False))
    assert rounds(request.getfixturevalue(stage), "raced", pair, runs=runs, numbers=range(20)) == []

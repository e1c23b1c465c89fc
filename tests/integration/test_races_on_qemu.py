# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The races of test_races.py by processes, on a VM of real QEMU: with internal snapshots, and with external ones where libvirt can go back to them."""

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
def test_two_processes_at_once_say_what_is_true(internal: QemuStage, pair: tuple[str, str]) -> None:
    assert rounds(internal, "raced", pair, runs=2, numbers=range(2)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("runs", [2, 5], ids=["two", "five"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("stage", ["internal", "newer_internal", "newer_external"])
def test_processes_at_once_say_what_is_true_in_each_of_20_rounds(
    request: pytest.FixtureRequest, stage: str, pair: tuple[str, str], runs: int
) -> None:
    assert rounds(request.getfixturevalue(stage), "raced", pair, runs=runs, numbers=range(20)) == []

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Random operations on a real VM and on a model of it: data and results are right, and check mode agrees with the real run.

What the model does not expect to be refused has to succeed, and of each kind of operation so many (LEAST in libvirt_machine.py).

FUZZ_SEEDS (first-last) and FUZZ_OPERATIONS (for each seed) set how much. A failure names its seed, and prints the operations so far:

    FUZZ_SEEDS=7-7 FUZZ_OPERATIONS=200 .venv/bin/python -m pytest tests/integration/test_libvirt_fuzz.py
"""

from __future__ import annotations

import os
import typing as t

import pytest
from libvirt_kit import Make
from libvirt_machine import Machine

pytestmark = [pytest.mark.qemu, pytest.mark.slow]

OPERATIONS = int(os.environ.get("FUZZ_OPERATIONS", "60"))
FIRST, _dash, LAST = os.environ.get("FUZZ_SEEDS", "0-9").partition("-")
SEEDS = range(int(FIRST), int(LAST or FIRST) + 1)


def run(lab: t.Any, make: Make, seed: int, kind: str) -> None:
    machine = Machine(lab, make(f"fuzz{kind[:3]}{seed}"), seed, kind=kind, operations=OPERATIONS)
    try:
        for _number in range(OPERATIONS):
            machine.step()
        machine.finish()
    except BaseException:
        print(f"seed {seed}, {kind}:", *machine.story, sep="\n")
        raise
    print(f"seed {seed}, {kind}: done {dict(machine.done)}, refused as expected {dict(machine.refused)}")
    least = machine.least(OPERATIONS)
    assert {word: machine.done[word] for word, number in least.items() if machine.done[word] < number} == {}, least


@pytest.mark.parametrize("seed", SEEDS)
def test_random_operations_lose_no_data_and_report_correctly(lab: t.Any, tiny: Make, seed: int) -> None:
    run(lab, tiny, seed, "internal")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["internal", "external"])
def test_random_operations_lose_no_data_with_a_newer_libvirt(new_lab: t.Any, newer: Make, kind: str, seed: int) -> None:
    run(new_lab, newer, seed, kind)

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Parallel runs on one VM, each with its own login, and the rules that their results must follow."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone

from hypervisor_stage import Stage
from kit import only, pruning

from ansible_collections.safepoint.vm.plugins.module_utils._core.owner import Owner
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.results import outcome_pruned
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

# Name of the run -> its plan; the number makes the labels of several describing runs differ.
RUNS: dict[str, Callable[[int], Plan]] = {
    "create": lambda _number: Present(Request(name="sx")),
    "remove": lambda _number: Absent(Request(name="sx")),
    "describe": lambda number: Present(Request(name="sx", labels={f"run{number}": "was_here"})),
    "revert": lambda _number: Reverted(Request(name="sx", power="on")),
    "prune": lambda _number: pruning(everything=True, confirm=1),
}
PAIRS = list(itertools.combinations_with_replacement(RUNS, 2))


@dataclasses.dataclass
class Said:
    """The result of one run."""

    run: str
    outcome: Outcome

    @property
    def code(self) -> str | None:
        return self.outcome.error.code if self.outcome.error else None

    @property
    def made(self) -> str | None:
        """The id of the snapshot that the run reports as created."""
        return self.outcome.snapshot.id if self.outcome.word == "created" and self.outcome.snapshot else None

    @property
    def removed(self) -> list[str]:
        """The ids of the snapshots that the run reports as removed."""
        if self.run == "prune":
            row = outcome_pruned(self.outcome, ours=Owner(), now=datetime.now(timezone.utc))
            return [one["id"] for one in row["snapshots"] if one["removed"]]
        return [self.outcome.snapshot.id] if self.outcome.word == "removed" and self.outcome.snapshot else []

    def __str__(self) -> str:
        return f"{self.run}: {self.outcome.word}, changed={self.outcome.changed}, {self.outcome.error}"


def rounds(stage: Stage, vm: str, pair: tuple[str, str], *, runs: int, numbers: Iterable[int]) -> list[str]:
    """Return the problems of these rounds with this number of runs, alternately with and without the snapshot."""
    found: list[str] = []
    for number in numbers:
        stage.vary(number)
        found += race(stage, vm, [pair[one % 2] for one in range(runs)], there=number % 2 == 0)
    return found


def race(stage: Stage, vm: str, kinds: Sequence[str], *, there: bool) -> list[str]:
    """Start these kinds of runs in parallel on a VM with or without (``there``) the snapshot ``sx``; return the problems in their results."""
    reset(stage, vm, there=there)
    before, damaged = {one.id for one in stage.backend.list(vm)}, stage.damage(vm)
    done = stage.at_once(vm, [RUNS[kind](number) for number, kind in enumerate(kinds)], lock_timeout=60.0)
    said = [Said(kind, outcome) for kind, outcome in zip(kinds, done)]
    after = {one.id for one in stage.backend.list(vm)}
    power, names, data = stage.state(vm)
    unique = stage.unique_ids
    wrong = [*_claims(said, before, after, unique=unique), *_errors(said, unique=unique)]
    wrong += [one for one in stage.damage(vm) if one not in damaged]
    if power != "running":
        wrong.append(f"the VM is {power}")
    if names.count("sx") > 1:
        wrong.append(f"there are {names}")
    reverted = any(one.outcome.word == "reverted" for one in said)
    if not reverted and data != "new":
        wrong.append("the VM was reverted, and no run says so")
    if reverted and there and not {"create", "describe"} & set(kinds) and data != "old":
        wrong.append("a run says reverted, and the VM is not")
    return [f"{line}; {'; '.join(map(str, said))}" for line in wrong]


def reset(stage: Stage, vm: str, *, there: bool) -> None:
    """Prepare the VM: running, with the snapshot ``sw``, with or without ``sx``, and with data that differ from both."""
    cleared = only(stage.backend.run(pruning(everything=True, confirm=1), vm))
    assert cleared.error is None, cleared.error
    stage.write(vm, "old")
    for name in ("sw", *(["sx"] if there else [])):
        stage.backend.take(vm, name)
    stage.write(vm, "new")


def _claims(said: Sequence[Said], before: set[str], after: set[str], *, unique: bool) -> list[str]:
    """Check that each snapshot was created and removed by the one run that reports it. Without ``unique`` ids, names are ids."""
    wrong = []
    made = collections.Counter(one.made for one in said if one.made)
    removed = collections.Counter(snapshot_id for one in said for snapshot_id in one.removed)
    if unique:
        wrong += [f"{count} runs say that they made {one}" for one, count in made.items() if count > 1]
        wrong += [f"{count} runs say that they removed {one}" for one, count in removed.items() if count > 1]
    # Runs with an unverified result may have done it or not.
    maybe_made = sum(one.code == "unverified" and one.run in ("create", "describe") for one in said)
    maybe_removed = sum(one.code == "unverified" and one.run in ("remove", "prune") for one in said)
    for one in {*before, *after, *made, *removed}:
        least = (one in before) + made[one] - removed[one] - maybe_removed
        most = (one in before) + made[one] - removed[one] + maybe_made
        if not least <= (one in after) <= most:
            wrong.append(
                f"{one}: there before {one in before}, {made[one]} made it, {removed[one]} removed it, there now {one in after}"
            )
    wrong += [f"{one} says that it changed something" for one in said if one.outcome.changed and one.outcome.word == "lost_race"]
    return wrong


def _errors(said: Sequence[Said], *, unique: bool) -> list[str]:
    """Check that runs fail only for a true reason: no snapshot to revert to, or another run has undone this run's change at once."""
    removals = any(one.removed for one in said)
    creations = any(one.made or (one.code == "unverified" and one.run in ("create", "describe")) for one in said)
    wrong = []
    for one in said:
        if one.code is None:
            continue
        nothing_to_go_back_to = one.run == "revert" and one.code == "snapshot_not_found" and not one.outcome.changed
        gone_again = one.run in ("create", "describe") and one.code == "unverified" and removals
        # If ids are names: a snapshot created in the same second as the removed one looks the same.
        there_again = one.run in ("remove", "prune") and one.code == "unverified" and creations and not unique
        if not (nothing_to_go_back_to or gone_again or there_again):
            wrong.append(f"{one.run} failed with {one.code}")
    return wrong

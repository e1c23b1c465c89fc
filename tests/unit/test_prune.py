# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pruning of many VMs: waits for locked VMs, the order of deletions, and changes by parallel runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import pytest
from fake import FakeDriver, Hypervisor, Machine
from kit import code, pruning

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import BackendFailed, InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, Target, View, Vm, VmState, parents_first
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Delete
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.ways import Daemon, with_obstacles
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.prune import Pruned, deletion_order

NOW = datetime.now(timezone.utc).replace(microsecond=0)
VMS = ["web01", "web02", "web03"]


@pytest.fixture
def hypervisor() -> Hypervisor:
    made = Hypervisor()
    for name in VMS:
        made.add(name, power="off")
    return made


def machine(hypervisor: Hypervisor, name: str) -> Machine:
    return next(one for one in hypervisor.machines.values() if one.vm.name == name)


def put(hypervisor: Hypervisor, vm: str, name: str, *, days: float = 0, **label: str) -> None:
    """Return a snapshot of ours with this age in days, a child of the VM's current snapshot."""
    here = machine(hypervisor, vm)
    fields = "".join(f" {key}={value}" for key, value in label.items())
    here.snapshots[name] = Snapshot(
        name,
        name,
        NOW - timedelta(days=days),
        here.current,
        f"[safepoint v=1 owner=safepoint{fields}]",
        False,
        "crash",
        False,
    )
    here.powers[name] = "off"
    here.current = name


def run(
    hypervisor: Hypervisor, plan: Pruned, *, endpoint: bool = False, dry_run: bool = False, **bounds: object
) -> list[Outcome]:
    settings = Bounds(**{"timeout": 60.0, "lock_timeout": 0.5, "max_parallel": 1, "on_error": "continue", **bounds})  # type: ignore[arg-type]
    fleet = Fleet(FakeDriver(hypervisor), settings, now=lambda: NOW)
    return fleet.apply(None if endpoint else [Target(name) for name in VMS], plan, dry_run=dry_run)


def names(hypervisor: Hypervisor) -> dict[str, list[str]]:
    return {one.vm.name: sorted(one.snapshots) for one in hypervisor.machines.values()}


def test_pruning_all_vms_needs_as_many_reads_as_pruning_one(hypervisor: Hypervisor) -> None:
    for vm in VMS:
        put(hypervisor, vm, "old", days=9)
        put(hypervisor, vm, "new")
    hypervisor.requests.clear()
    done = run(hypervisor, pruning(max_age=timedelta(days=3)), endpoint=True)
    assert [one.word for one in done] == ["pruned"] * 3
    assert names(hypervisor) == {vm: ["new"] for vm in VMS}
    assert hypervisor.requests == [
        "vms", "snapshots", "inspect", *(f"Delete {vm}" for vm in VMS), "snapshots", "inspect",
    ]  # fmt: skip


def test_locked_vm_is_waited_for_only_if_it_has_snapshots_to_remove(hypervisor: Hypervisor) -> None:
    put(hypervisor, "web01", "old", days=9)
    put(hypervisor, "web02", "new")
    machine(hypervisor, "web02").busy = "a backup"
    assert [code(one) for one in run(hypervisor, pruning(max_age=timedelta(days=3)))] == [None] * 3
    put(hypervisor, "web02", "old", days=9)
    put(hypervisor, "web03", "old", days=9)
    done = run(hypervisor, pruning(max_age=timedelta(days=3)))
    assert [(one.word, code(one)) for one in done] == [("kept", None), ("none", "locked"), ("pruned", None)]
    assert names(hypervisor) == {"web01": [], "web02": ["new", "old"], "web03": []}


def test_decision_is_made_again_after_the_wait(hypervisor: Hypervisor) -> None:
    put(hypervisor, "web01", "old", days=9)
    put(hypervisor, "web01", "unfinished")
    here = machine(hypervisor, "web01")
    here.busy = "another run that takes a snapshot"
    original, looks = hypervisor.request, 0

    def request(name: str) -> None:
        nonlocal looks
        original(name)
        looks += name == "snapshots"
        if looks == 2 and here.busy:  # the other run fails, and a user puts the old snapshot on hold
            here.busy = None
            del here.snapshots["unfinished"]
            here.current = "old"

    hypervisor.request = request  # type: ignore[method-assign]
    done = run(hypervisor, pruning(keep_last=1))
    assert [(one.word, code(one)) for one in done] == [("kept", None)] * 3
    assert names(hypervisor)["web01"] == ["old"]


def test_max_delete_per_run_counts_all_vms_and_removes_groups_whole(hypervisor: Hypervisor) -> None:
    put(hypervisor, "web01", "a", days=9, group="g")
    put(hypervisor, "web02", "b", days=8, group="g")
    put(hypervisor, "web03", "c", days=7)
    run(hypervisor, pruning(max_age=timedelta(days=3), max_delete=1))
    assert names(hypervisor) == {"web01": ["a"], "web02": ["b"], "web03": []}
    run(hypervisor, pruning(max_age=timedelta(days=3), max_delete=2))
    assert names(hypervisor) == {vm: [] for vm in VMS}


def test_one_vm_has_one_deletion_at_a_time_and_no_more_vms_than_allowed(hypervisor: Hypervisor) -> None:
    for vm in VMS:
        for number in range(3):
            put(hypervisor, vm, f"s{number}", days=9)
    running: list[str] = []
    most: list[int] = []
    original = FakeDriver._run

    class Watched(FakeDriver):
        def _run(self, job, number):  # type: ignore[no-untyped-def]
            assert str(job.action.vm) not in running
            running.append(str(job.action.vm))
            most.append(len(running))
            try:
                return original(self, job, number)
            finally:
                running.remove(str(job.action.vm))

    fleet = Fleet(Watched(hypervisor), Bounds(max_parallel=2), now=lambda: NOW)
    done = fleet.apply([Target(name) for name in VMS], pruning(max_age=timedelta(days=3)), dry_run=False)
    assert [code(one) for one in done] == [None] * 3
    assert max(most) <= 2 and names(hypervisor) == {vm: [] for vm in VMS}


def test_snapshot_removed_by_another_run_is_no_failure(hypervisor: Hypervisor) -> None:
    for name in ("s1", "s2", "s3"):
        put(hypervisor, "web01", name, days=9)
        put(hypervisor, "web02", name, days=9)
    original = hypervisor.request

    def request(name: str) -> None:
        original(name)
        if name == "Delete web01":
            machine(hypervisor, "web01").snapshots.pop("s1", None)
        if name == "Delete web02":
            machine(hypervisor, "web02").snapshots.clear()

    hypervisor.request = request  # type: ignore[method-assign]
    done = run(hypervisor, pruning(max_age=timedelta(days=3)))
    assert [(one.word, one.changed, code(one)) for one in done] == [
        ("pruned", True, None),
        ("lost_race", False, None),
        ("kept", False, None),
    ]


def test_on_error_stop_removes_nothing_when_one_vm_is_refused_and_continue_does(hypervisor: Hypervisor) -> None:
    put(hypervisor, "web01", "old", days=9)
    hypervisor.failures[1] = BackendFailed("the disk is gone")
    put(hypervisor, "web02", "old", days=9)
    assert [code(one) for one in run(hypervisor, pruning(max_age=timedelta(days=3)), on_error="stop")] == [
        "backend_failed",
        "not_started",
        None,
    ]
    assert names(hypervisor)["web02"] == ["old"]


def test_all_requires_the_right_confirm_also_in_check_mode(hypervisor: Hypervisor) -> None:
    put(hypervisor, "web01", "s1")
    with pytest.raises(InvalidOption, match="confirm=3"):
        run(hypervisor, pruning(everything=True, confirm=2), endpoint=True, dry_run=True)
    assert run(hypervisor, pruning(everything=True, confirm=3), endpoint=True, dry_run=True)[0].changed


def test_creation_time_in_the_future_is_a_warning(hypervisor: Hypervisor) -> None:
    put(hypervisor, "web01", "late", days=-1)
    (done, *_others) = run(hypervisor, pruning(keep_last=1))
    assert (done.word, done.decision and done.decision.verdicts[0].reasons[0].rule) == ("kept", "future")
    assert any("late" in warning and "clocks" in warning for warning in done.warnings)


# in which order


def view(*rows: tuple[str, str | None], current: str, kind: str = "external") -> View:
    snapshots = [
        Snapshot(name, name, NOW + timedelta(seconds=number), parent, "", False, "crash", name == current, kind=kind)
        for number, (name, parent) in enumerate(rows)
    ]
    return View(Vm("web01", "web01"), VmState("off"), imagine(Vm("web01", "web01"), parents_first(snapshots)))


def imagine(vm: Vm, snapshots: Sequence[Snapshot]) -> tuple[Snapshot, ...]:
    bare = [dataclasses.replace(one, obstacles={}) for one in snapshots]
    return tuple(with_obstacles(vm.name, bare, Daemon(11_003_000, True)))


def order(seen: View, *going: str) -> tuple[list[str], list[str]]:
    ordered, stuck = deletion_order(seen, going, imagine)
    return [one.name for one in ordered], sorted(stuck)


def test_branches_are_deleted_leaves_first_then_the_chain_from_its_root() -> None:
    seen = view(("root", None), ("left", "root"), ("leaf", "left"), ("right", "root"), ("tip", "right"), current="tip")
    assert order(seen, "root", "left", "leaf", "right", "tip") == (["leaf", "left", "root", "right", "tip"], [])


def test_snapshot_below_a_kept_branch_is_kept() -> None:
    seen = view(("root", None), ("left", "root"), ("right", "root"), current="right")
    # libvirt cannot merge the root while the branch exists: it would lose the branch.
    assert order(seen, "root", "right") == ([], ["right", "root"])
    assert order(seen, "root", "left") == (["left", "root"], [])


def test_new_siblings_after_a_deletion_are_considered() -> None:
    # Without x, the present state and y are siblings on the root, and libvirt would lose y.
    seen = view(("root", None), ("x", "root"), ("y", "root"), ("run", "x"), current="run")
    assert order(seen, "x", "run") == (["x"], ["run"])


def test_undeletable_snapshot_is_kept_with_its_reason_and_its_group(hypervisor: Hypervisor) -> None:
    class Stuck(FakeDriver):
        def snapshots(self, vms, *, sizes=False):  # type: ignore[no-untyped-def]
            found = super().snapshots(vms, sizes=sizes)
            return {
                vm: tuple(
                    dataclasses.replace(one, obstacles={"remove": "cannot go"} if one.name == "stuck" else {}) for one in seen
                )
                for vm, seen in found.items()
            }

    put(hypervisor, "web01", "stuck", days=9, group="g")
    put(hypervisor, "web02", "other", days=9, group="g")
    put(hypervisor, "web02", "alone", days=9)
    fleet = Fleet(Stuck(hypervisor), Bounds(), now=lambda: NOW)
    done = fleet.apply([Target(name) for name in VMS], pruning(max_age=timedelta(days=3)), dry_run=False)
    found = {one.snapshot.name: one.reasons[0].rule for row in done if row.decision for one in row.decision.verdicts}
    assert found == {"stuck": "blocked", "other": "group", "alone": "max_age"}
    assert [str(action) for action in hypervisor.actions if isinstance(action, Delete)] == ["remove snapshot alone of web02"]

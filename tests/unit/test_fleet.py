# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Calls on many VMs, some of which fail, hang, are locked, or report a false success."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone

import pytest
from fake import FakeDriver, Hypervisor

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import (
    BackendFailed,
    ConnectionFailed,
    Locked,
    Unsupported,
)
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, Target
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Create, Describe
from ansible_collections.safepoint.vm.plugins.module_utils._engine import executor, phases
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

VMS = ["web01", "web02", "web03", "web04"]


@pytest.fixture
def hypervisor() -> Hypervisor:
    made = Hypervisor()
    for name in VMS:
        made.add(name)
    return made


def run(hypervisor: Hypervisor, plan: Plan, *, dry_run: bool = False, **bounds: object) -> list[Outcome]:
    settings = Bounds(**{"timeout": 60.0, "max_parallel": 1, **bounds})  # type: ignore[arg-type]
    fleet = Fleet(FakeDriver(hypervisor), settings, now=lambda: datetime.now(timezone.utc))
    return fleet.apply([Target(name) for name in VMS], plan, dry_run=dry_run)


def codes(outcomes: list[Outcome]) -> list[str | None]:
    return [one.error.code if one.error else None for one in outcomes]


def names(hypervisor: Hypervisor) -> dict[str, list[str]]:
    return {one.vm.name: sorted(snapshot.name for snapshot in one.snapshots.values()) for one in hypervisor.machines.values()}


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("on_error", ["undo", "stop", "continue"])
def test_failure_at_any_vm_ends_according_to_on_error(hypervisor: Hypervisor, number: int, on_error: str) -> None:
    hypervisor.failures[number] = BackendFailed("no space left on device")
    done = run(hypervisor, Present(Request(name="x")), on_error=on_error)
    before, after = VMS[: number - 1], VMS[number:]
    expected = {
        "undo": (["undone"] * len(before), [], ["not_started"] * len(after)),
        "stop": ([None] * len(before), before, ["not_started"] * len(after)),
        "continue": ([None] * len(before), before + after, [None] * len(after)),
    }[on_error]
    assert codes(done) == [*expected[0], "backend_failed", *expected[2]]
    assert [name for name, has in names(hypervisor).items() if has] == expected[1]
    assert [one.target.ref for one in done if one.changed] == expected[1]
    assert "no space left on device" in str(done[number - 1].error)


def test_undo_removes_only_what_the_call_created(hypervisor: Hypervisor) -> None:
    run(hypervisor, Present(Request(name="old")))
    hypervisor.actions.clear()
    run(hypervisor, Present(Request(name="x")), on_error="continue")
    machine = next(iter(hypervisor.machines.values()))
    hypervisor.actions.clear()
    for one in list(hypervisor.machines.values())[1:]:
        one.snapshots = {key: value for key, value in one.snapshots.items() if value.name != "x"}
    hypervisor.failures[2] = BackendFailed("no")
    done = run(hypervisor, Present(Request(name="x")), on_error="undo")
    assert codes(done) == [None, "undone", "backend_failed", "not_started"]
    assert names(hypervisor) == {"web01": ["old", "x"], "web02": ["old"], "web03": ["old"], "web04": ["old"]}
    assert machine.current is not None


def test_failed_undo_reports_the_remaining_snapshot(hypervisor: Hypervisor) -> None:
    hypervisor.failures[2] = BackendFailed("no space")
    hypervisor.failures[3] = BackendFailed("the disk is gone")
    done = run(hypervisor, Present(Request(name="x")), on_error="undo")
    assert codes(done) == ["backend_failed", "backend_failed", "not_started", "not_started"]
    assert done[0].changed
    assert "could not be removed again" in str(done[0].error) and "the disk is gone" in str(done[0].error)
    assert any("left behind" in warning for warning in done[0].warnings)


def test_timeout_ends_the_call_and_reports_running_jobs(hypervisor: Hypervisor) -> None:
    hypervisor.hangs.add(2)
    done = run(hypervisor, Present(Request(name="x")), timeout=0.5, on_error="stop")
    assert codes(done) == [None, "timed_out", "not_started", "not_started"]
    assert "take snapshot x of web02" in str(done[1].error)
    assert "timeout=0.5" in str(done[1].error)


def test_unverified_success_is_an_error(hypervisor: Hypervisor) -> None:
    run(hypervisor, Present(Request(name="x")))
    for plan in (Present(Request(name="y")), Reverted(Request(name="x", power="off")), Absent(Request(name="x"))):
        hypervisor.actions.clear()
        hypervisor.lies = {1}
        assert codes(run(hypervisor, plan, on_error="continue")) == ["unverified", None, None, None]


def test_briefly_locked_vm_is_waited_for(hypervisor: Hypervisor) -> None:
    machine = list(hypervisor.machines.values())[1]
    machine.busy = "a backup"
    seen = 0
    original = hypervisor.request

    def request(name: str) -> None:
        nonlocal seen
        original(name)
        seen += name == "inspect"
        if seen == 3:
            machine.busy = None

    hypervisor.request = request  # type: ignore[method-assign]
    assert codes(run(hypervisor, Present(Request(name="x")), lock_timeout=5.0)) == [None] * 4


def test_vm_locked_beyond_lock_timeout_is_reported_before_any_write(hypervisor: Hypervisor) -> None:
    list(hypervisor.machines.values())[1].busy = "a backup"
    done = run(hypervisor, Present(Request(name="x")), lock_timeout=0.3)
    assert codes(done) == ["not_started", "locked", "not_started", "not_started"]
    assert "a backup" in str(done[1].error) and "lock_timeout" in str(done[1].error)
    assert hypervisor.actions == []


def test_vm_locked_between_read_and_write_is_retried(hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_LOCK_PAUSE_SECONDS", 0.1)
    hypervisor.failures.update({2: Locked("a backup has it"), 5: Locked("a backup has it")})
    done = run(hypervisor, Present(Request(name="x")), lock_timeout=5.0)
    assert codes(done) == [None] * 4
    assert names(hypervisor) == {name: ["x"] for name in VMS}
    # the other VMs did not wait for it
    assert [str(action).split()[-1] for action in hypervisor.actions] == ["web01", "web02", "web03", "web04", "web02", "web02"]


def test_vm_that_stays_locked_is_reported_after_lock_timeout(hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_LOCK_PAUSE_SECONDS", 0.1)
    hypervisor.failures.update({number: Locked("a backup has it") for number in range(2, 100)})
    done = run(hypervisor, Present(Request(name="x")), lock_timeout=0.3, on_error="stop")
    assert codes(done)[:2] == [None, "locked"]
    assert "a backup has it" in str(done[1].error)
    assert done[1].changed is False


def test_unreadable_configuration_is_a_warning_and_the_revert_continues(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: FakeDriver, _wanted: object) -> object:
        raise BackendFailed("no such privilege")

    run(hypervisor, Present(Request(name="x")))
    monkeypatch.setattr(FakeDriver, "configurations", broken)
    fleet = Fleet(FakeDriver(hypervisor), Bounds(timeout=5), now=lambda: datetime.now(timezone.utc))
    (done,) = fleet.apply([Target("web01")], Reverted(Request(name="x")), dry_run=False, drift=True)
    assert (done.word, done.error) == ("reverted", None)
    assert any("no such privilege" in warning for warning in done.warnings)


def test_ways_to_take_a_snapshot_are_read_once_and_only_for_a_create(hypervisor: Hypervisor) -> None:
    run(hypervisor, Present(Request(name="x")))
    assert hypervisor.ways_read == 1
    run(hypervisor, Present(Request(name="x", labels={"a": "1"})))
    assert hypervisor.ways_read == 1
    run(hypervisor, Reverted(Request(name="x")))
    run(hypervisor, Absent(Request(name="x")))
    assert hypervisor.ways_read == 1
    assert "configurations" not in hypervisor.requests


def test_later_of_two_runs_with_the_same_name_removes_its_snapshot(hypervisor: Hypervisor) -> None:
    hypervisor.unique_names = False
    machine = next(iter(hypervisor.machines.values()))
    original = hypervisor.request

    def request(name: str) -> None:
        original(name)
        if name == "Create web01" and not machine.snapshots:  # the other run is slightly faster
            FakeDriver(hypervisor)._create(machine, Create(machine.vm, "x", "[safepoint v=1 owner=safepoint]", memory=False))

    hypervisor.request = request  # type: ignore[method-assign]
    done = run(hypervisor, Present(Request(name="x")))
    assert codes(done) == [None] * 4
    assert [(one.word, one.changed) for one in done] == [("lost_race", False)] + [("created", True)] * 3
    assert names(hypervisor) == {name: ["x"] for name in VMS}
    assert done[0].snapshot and done[0].snapshot.id == next(iter(machine.snapshots))


def test_number_of_read_requests_does_not_depend_on_the_number_of_vms(hypervisor: Hypervisor) -> None:
    run(hypervisor, Present(Request(name="x")), max_parallel=16)
    looks = [one for one in hypervisor.requests if " " not in one]
    assert looks == ["find", "snapshots", "inspect", "snapshots", "inspect"]
    hypervisor.requests.clear()
    run(hypervisor, Present(Request(name="x")), max_parallel=16)
    assert hypervisor.requests == ["find", "snapshots", "inspect"]


def test_hanging_vm_does_not_block_the_undo_of_the_others(hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "_UNDO_SECONDS", 1.0)
    hypervisor.hangs.add(2)
    done = run(hypervisor, Present(Request(name="x")), timeout=0.5, max_parallel=2, on_error="undo")
    assert codes(done) == ["undone", "timed_out", "undone", "undone"]
    assert [one.changed for one in done] == [False, True, False, False]
    assert any("may still appear" in warning for warning in done[1].warnings)
    assert set(map(tuple, names(hypervisor).values())) == {()}


def test_snapshot_finished_after_the_timeout_is_undone(hypervisor: Hypervisor) -> None:
    late = hypervisor.slow[2] = threading.Event()
    threading.Timer(2.0, late.set).start()
    done = run(hypervisor, Present(Request(name="x")), timeout=0.5, on_error="undo")
    assert codes(done) == ["undone", "timed_out", "not_started", "not_started"]
    assert [one.changed for one in done] == [False] * 4
    assert any("removed again" in warning for warning in done[1].warnings)
    assert set(map(tuple, names(hypervisor).values())) == {()}


def test_action_done_in_time_succeeds_although_the_time_is_up(hypervisor: Hypervisor) -> None:
    hypervisor.hangs.add(4)
    hypervisor.latency = 0.05
    done = run(hypervisor, Present(Request(name="x")), timeout=0.5, on_error="continue")
    assert codes(done) == [None, None, None, "timed_out"]
    assert [one.word for one in done] == ["created", "created", "created", "unverified"]


def test_create_that_was_never_sent_needs_no_undo(hypervisor: Hypervisor) -> None:
    hypervisor.lies = {1}
    (done, *_others) = run(hypervisor, Present(Request(name="x")), on_error="undo")
    assert done.error
    assert (done.error.code, done.changed) == ("unverified", False)


def test_unfinished_snapshot_of_another_run_does_not_count_as_finished(hypervisor: Hypervisor) -> None:
    machine = next(iter(hypervisor.machines.values()))
    original, looks = hypervisor.request, 0

    def request(name: str) -> None:
        nonlocal looks
        original(name)
        looks += name in ("inspect", "snapshots")
        if looks == 2:  # the other run starts, and its unfinished snapshot is already listed
            machine.busy = "a creation"
            machine.snapshots["theirs"] = Snapshot(
                "theirs", "x", None, None, "[safepoint v=1 owner=safepoint]", False, "crash", False
            )
        if looks == 4:  # it fails
            machine.busy = None
            machine.snapshots.clear()

    hypervisor.request = request  # type: ignore[method-assign]
    (done,) = Fleet(FakeDriver(hypervisor), Bounds(), now=lambda: datetime.now(timezone.utc)).apply(
        [Target("web01")], Present(Request(name="x")), dry_run=False
    )
    assert (done.word, done.error) == ("created", None)


def test_revert_refused_after_the_vm_was_stopped_is_a_change(hypervisor: Hypervisor) -> None:
    run(hypervisor, Present(Request(name="x")))
    hypervisor.actions.clear()
    hypervisor.failures[1] = Unsupported("the restored configuration cannot start")
    original = hypervisor.request

    def request(name: str) -> None:
        original(name)
        if name == "Revert web01":
            next(iter(hypervisor.machines.values())).power = "off"

    hypervisor.request = request  # type: ignore[method-assign]
    done = run(hypervisor, Reverted(Request(name="x")))
    assert codes(done)[0] == "unsupported"
    assert [one.changed for one in done] == [True, False, False, False]
    assert "The power state of web01 has changed from running to off" in done[0].warnings


def test_newer_snapshot_already_removed_by_another_run_is_no_failure(hypervisor: Hypervisor) -> None:
    for name in ("a", "b"):
        run(hypervisor, Present(Request(name=name)))
    hypervisor.actions.clear()
    machine = next(iter(hypervisor.machines.values()))
    original = hypervisor.request

    def request(name: str) -> None:
        original(name)
        if name == "Delete web01":
            machine.snapshots = {key: one for key, one in machine.snapshots.items() if one.name != "b"}

    hypervisor.request = request  # type: ignore[method-assign]
    fleet = Fleet(FakeDriver(hypervisor), Bounds(), now=lambda: datetime.now(timezone.utc))
    (done,) = fleet.apply([Target("web01")], Reverted(Request(name="a", discard_newer=True)), dry_run=False)
    assert (done.word, done.error) == ("reverted", None)


@pytest.mark.parametrize("plan", [Present(Request(name="x")), Absent(Request(name="old")), Reverted(Request(name="old"))])
def test_check_mode_starts_no_action(hypervisor: Hypervisor, plan: Plan) -> None:
    run(hypervisor, Present(Request(name="old")))
    hypervisor.actions.clear()
    assert all(one.changed for one in run(hypervisor, plan, dry_run=True))
    assert hypervisor.actions == []


def test_expiry_is_corrected_when_the_clocks_differ(hypervisor: Hypervisor) -> None:

    ours = datetime.now(timezone.utc) - timedelta(hours=5)
    fleet = Fleet(FakeDriver(hypervisor), Bounds(), now=lambda: ours)
    (done,) = fleet.apply([Target("web01")], Present(Request(name="x", expires=timedelta(hours=72))), dry_run=False)
    assert done.error is None
    assert [type(action) for action in hypervisor.actions] == [Create, Describe]
    assert done.snapshot and done.snapshot.label and done.snapshot.created
    assert done.snapshot.label.expires == done.snapshot.created + timedelta(hours=72)


def test_failed_revert_counts_as_a_change(hypervisor: Hypervisor) -> None:
    run(hypervisor, Present(Request(name="x")))
    hypervisor.actions.clear()
    hypervisor.failures[1] = ConnectionFailed("the connection broke")
    done = run(hypervisor, Reverted(Request(name="x")), on_error="stop")
    assert codes(done) == ["connection_failed", "not_started", "not_started", "not_started"]
    assert [one.changed for one in done] == [True, False, False, False]


def test_expiry_that_differs_by_seconds_is_unchanged(hypervisor: Hypervisor) -> None:
    for late in (0, 20):
        moment = datetime.now(timezone.utc) - timedelta(seconds=late)
        fleet = Fleet(FakeDriver(hypervisor), Bounds(), now=lambda moment=moment: moment)  # type: ignore[misc]
        (done,) = fleet.apply([Target("web01")], Present(Request(name=f"x{late}", expires=timedelta(hours=72))), dry_run=False)
        (again,) = fleet.apply([Target("web01")], Present(Request(name=f"x{late}", expires=timedelta(hours=72))), dry_run=False)
        assert (done.word, again.word, again.changed) == ("created", "exists", False)
    assert [type(action) for action in hypervisor.actions] == [Create, Create]


def test_newer_snapshots_are_discarded_newest_first_and_only_after_the_revert(hypervisor: Hypervisor) -> None:
    for name in ("a", "b", "c"):
        run(hypervisor, Present(Request(name=name)))
    hypervisor.actions.clear()
    fleet = Fleet(FakeDriver(hypervisor), Bounds(), now=lambda: datetime.now(timezone.utc))
    fleet.apply([Target("web01")], Reverted(Request(name="a", discard_newer=True)), dry_run=False)
    assert [str(action) for action in hypervisor.actions] == [
        "revert web01 to snapshot a",
        "remove snapshot c of web01",
        "remove snapshot b of web01",
    ]


def test_failed_discard_reports_the_remaining_snapshots(hypervisor: Hypervisor) -> None:
    for name in ("a", "b"):
        run(hypervisor, Present(Request(name=name)))
    hypervisor.actions.clear()
    hypervisor.failures[2] = BackendFailed("the disk is gone")
    done = run(hypervisor, Reverted(Request(name="a", discard_newer=True)), on_error="stop")
    assert codes(done) == ["backend_failed", "not_started", "not_started", "not_started"]
    assert [one.changed for one in done] == [True, False, False, False]
    assert names(hypervisor)["web01"] == ["a", "b"]


class NewestOnly(FakeDriver):
    """A backend that can revert to the newest snapshot only, such as ZFS."""

    revert_needs_newest = True


def test_newest_only_backend_removes_newer_snapshots_first_or_refuses(hypervisor: Hypervisor) -> None:
    for name in ("a", "b"):
        run(hypervisor, Present(Request(name=name)))
    hypervisor.actions.clear()
    fleet = Fleet(NewestOnly(hypervisor), Bounds(), now=lambda: datetime.now(timezone.utc))
    (refused,) = fleet.apply([Target("web01")], Reverted(Request(name="a")), dry_run=False)
    assert refused.error and refused.error.code == "newer_snapshots"
    assert "b" in str(refused.error) and "discard_newer=true" in str(refused.error)
    assert hypervisor.actions == []
    (done,) = fleet.apply([Target("web01")], Reverted(Request(name="a", discard_newer=True)), dry_run=False)
    assert done.error is None
    assert [str(action) for action in hypervisor.actions] == ["remove snapshot b of web01", "revert web01 to snapshot a"]

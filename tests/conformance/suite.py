# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every backend does alike. A backend joins by one class that says how to get VMs; see test_conformance.py.

Everything goes through the same road as the modules: Fleet, a plan, a driver with a connection of its own.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import threading
import typing as t
from datetime import datetime, timedelta, timezone

import pytest

from ansible_collections.safepoint.vm.plugins.module_utils._driver import SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._fleet import Bounds, Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot, Target
from ansible_collections.safepoint.vm.plugins.module_utils._outcome import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Absent, Plan, Present, Request, Reverted
from ansible_collections.safepoint.vm.plugins.module_utils._report import tree

_numbers = itertools.count(1)


class Backend(abc.ABC):
    """A hypervisor to test on."""

    memory_implied = False
    """Whether a snapshot of a running VM holds its memory without being asked."""
    duplicate_snapshot_names = False
    """Whether snapshots of one VM can have the same name."""

    @abc.abstractmethod
    def open(self) -> SnapshotDriver:
        """A connection of its own."""

    @abc.abstractmethod
    def add(self, name: str, *, power: str) -> None:
        """Make a VM of that name."""

    @abc.abstractmethod
    def uuid(self, name: str) -> str:
        """The UUID of the VM."""

    @abc.abstractmethod
    def by_hand(self, vm: str, name: str, description: str) -> None:
        """Take a snapshot the way a person does, without this collection."""

    def vm(self, *, power: str = "paused") -> str:
        """A new VM with a name that no other has."""
        name = f"conf{next(_numbers):03d}"
        self.add(name, power=power)
        return name

    def run(self, plan: Plan, *targets: str | Target, dry_run: bool = False, **bounds: t.Any) -> list[Outcome]:
        driver = self.open()
        try:
            fleet = Fleet(driver, Bounds(**{"timeout": 120.0, **bounds}), now=lambda: datetime.now(timezone.utc))
            named = [Target(one) if isinstance(one, str) else one for one in targets]
            return fleet.apply(named, plan, dry_run=dry_run)
        finally:
            driver.close()

    def look(self, vm: str) -> Outcome:
        driver = self.open()
        try:
            return Fleet(driver, Bounds(), now=lambda: datetime.now(timezone.utc)).look([Target(vm)])[0]
        finally:
            driver.close()

    def list(self, vm: str) -> list[Snapshot]:
        seen = self.look(vm)
        assert seen.error is None, seen.error
        assert seen.after is not None
        return list(seen.after.snapshots)

    def names(self, vm: str) -> list[str]:
        return [one.name for one in self.list(vm)]

    def take(self, vm: str, name: str, **request: t.Any) -> Snapshot:
        """Take a snapshot, which must work."""
        done = only(self.run(Present(Request(name=name, **request)), vm))
        assert done.error is None, done.error
        assert done.snapshot is not None
        return done.snapshot

    def revert(self, vm: str, name: str, **request: t.Any) -> Outcome:
        return only(self.run(Reverted(Request(name=name, **request)), vm))


def only(outcomes: list[Outcome]) -> Outcome:
    assert len(outcomes) == 1
    return outcomes[0]


def code(outcome: Outcome) -> str | None:
    return outcome.error.code if outcome.error else None


class Conformance:
    """The suite. Subclasses provide the fixture ``backend``."""

    # present

    def test_a_new_snapshot_is_what_was_asked_for_and_current(self, backend: Backend) -> None:
        vm = backend.vm()
        done = only(
            backend.run(Present(Request(name="before-upgrade", description="kernel <6>", labels={"change": "CHG 42"})), vm)
        )
        assert (done.word, done.changed, done.error) == ("created", True, None)
        seen = backend.list(vm)
        assert [one.name for one in seen] == ["before-upgrade"]
        assert seen[0] == done.snapshot
        assert seen[0].text == "kernel <6>"
        assert seen[0].label and seen[0].label.as_dict() == {"owner": "safepoint", "change": "CHG 42"}
        assert seen[0].current and seen[0].parent is None
        assert seen[0].created and abs(datetime.now(timezone.utc) - seen[0].created) < timedelta(minutes=5)

    def test_taken_again_it_is_the_same_one(self, backend: Backend) -> None:
        vm = backend.vm()
        first = backend.take(vm, "once", description="text", expires=timedelta(hours=72), labels={"a": "1"})
        again = only(
            backend.run(Present(Request(name="once", description="text", expires=timedelta(hours=72), labels={"a": "1"})), vm)
        )
        assert (again.word, again.changed) == ("exists", False)
        assert again.snapshot == first
        assert backend.names(vm) == ["once"]

    def test_check_mode_predicts_the_creation_and_writes_nothing(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.take(vm, "base")
        plan = Present(Request(name="next", description="text"))
        would = only(backend.run(plan, vm, dry_run=True))
        assert backend.names(vm) == ["base"]
        does = only(backend.run(plan, vm))
        assert (would.word, would.changed) == (does.word, does.changed) == ("created", True)
        assert tree(would.before) == tree(does.before)
        assert tree(would.after) == tree(does.after)

    def test_an_existing_name_can_be_asked_to_fail(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.take(vm, "once")
        again = only(backend.run(Present(Request(name="once", fail_if_exists=True)), vm))
        assert (code(again), again.changed) == ("snapshot_exists", False)

    def test_memory_is_reported_as_obtained(self, backend: Backend) -> None:
        vm = backend.vm()
        assert backend.take(vm, "with", memory=True).consistency == "memory"
        without = backend.take(vm, "without")
        assert without.memory is backend.memory_implied
        off = backend.vm(power="off")
        assert backend.take(off, "cold").consistency == "offline"

    def test_memory_of_a_vm_that_is_off_is_refused_before_any_write(self, backend: Backend) -> None:
        vm, off = backend.vm(), backend.vm(power="off")
        up, down = backend.run(Present(Request(name="with", memory=True)), vm, off)
        assert (code(up), code(down)) == ("not_started", "unsupported")
        assert off in str(down.error) and "start it" in str(down.error)
        assert backend.names(vm) == backend.names(off) == []

    def test_an_existing_snapshot_without_memory_is_no_stand_in_for_one_with(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        backend.take(vm, "cold")
        again = only(backend.run(Present(Request(name="cold", memory=True)), vm))
        assert (code(again), again.changed) == ("exists_differs", False)

    def test_also_by_its_id_a_snapshot_without_memory_is_no_stand_in_for_one_with(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        cold = backend.take(vm, "cold")
        again = only(backend.run(Present(Request(memory=True)), Target(vm, cold.id)))
        assert (code(again), again.changed) == ("exists_differs", False)

    def test_check_mode_predicts_where_a_new_branch_stands(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        for name in ("root", "left", "leaf"):
            backend.take(vm, name)
        assert backend.revert(vm, "root").error is None
        plan = Present(Request(name="z-right"))
        would = only(backend.run(plan, vm, dry_run=True))
        does = only(backend.run(plan, vm))
        assert tree(would.after) == tree(does.after)

    def test_quiescing_is_refused_when_required_and_warned_about_when_preferred(self, backend: Backend) -> None:
        vm = backend.vm()
        refused = only(backend.run(Present(Request(name="calm", quiesce="require")), vm))
        assert code(refused) == "unsupported"
        assert "quiesce=never" in str(refused.error)
        assert backend.names(vm) == []
        preferred = only(backend.run(Present(Request(name="calm", quiesce="prefer")), vm))
        assert preferred.error is None
        assert any("quiesce" in warning for warning in preferred.warnings)

    @pytest.mark.parametrize("name", ["", "a/b", ".hidden", "-x", "tab\there", "ümlaut", "x" * 81, "a b", "new\nline"])
    def test_a_name_that_does_harm_is_refused_before_any_request(self, backend: Backend, name: str) -> None:
        vm = backend.vm()
        with pytest.raises(InvalidOption, match="name"):
            backend.run(Present(Request(name=name)), vm)
        assert backend.names(vm) == []

    # absent

    def test_removed_it_is_gone_and_again_nothing_changes(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.take(vm, "gone")
        plan = Absent(Request(name="gone"))
        would = only(backend.run(plan, vm, dry_run=True))
        assert backend.names(vm) == ["gone"]
        does = only(backend.run(plan, vm))
        assert (would.word, would.changed) == (does.word, does.changed) == ("removed", True)
        assert tree(would.after) == tree(does.after)
        again = only(backend.run(plan, vm))
        assert (again.word, again.changed, again.error) == ("absent", False, None)
        assert backend.names(vm) == []

    def test_children_survive_the_removal_of_their_parent(self, backend: Backend) -> None:
        vm = backend.vm()
        for name in ("a", "b", "c"):
            backend.take(vm, name)
        plan = Absent(Request(name="b"))
        would = only(backend.run(plan, vm, dry_run=True))
        does = only(backend.run(plan, vm))
        assert tree(would.after) == tree(does.after)
        ids = {one.name: one.id for one in backend.list(vm)}
        assert {one.name: one.parent for one in backend.list(vm)} == {"a": None, "c": ids["a"]}

    def test_removing_the_current_one_makes_its_parent_current(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.take(vm, "a")
        backend.take(vm, "b")
        plan = Absent(Request(name="b"))
        would = only(backend.run(plan, vm, dry_run=True))
        does = only(backend.run(plan, vm))
        assert tree(would.after) == tree(does.after)
        assert [(one.name, one.current) for one in backend.list(vm)] == [("a", True)]

    # revert

    def test_reverted_the_vm_is_at_the_snapshot_and_each_time_it_is_a_change(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.take(vm, "a", memory=True)
        backend.take(vm, "b", memory=True)
        would = only(backend.run(Reverted(Request(name="a")), vm, dry_run=True))
        assert [one.name for one in backend.list(vm) if one.current] == ["b"]
        for _time in range(2):
            does = backend.revert(vm, "a")
            assert (does.word, does.changed, does.error) == ("reverted", True, None)
            assert tree(would.after) == tree(does.after)
            assert [one.name for one in backend.list(vm) if one.current] == ["a"]
        assert backend.names(vm) == ["a", "b"]
        assert would.changed
        assert does.after and does.after.state.power == "paused"

    @pytest.mark.parametrize("dry_run", [True, False])
    def test_a_revert_to_a_missing_snapshot_fails(self, backend: Backend, dry_run: bool) -> None:
        vm = backend.vm()
        backend.take(vm, "there")
        done = only(backend.run(Reverted(Request(name="elsewhere")), vm, dry_run=dry_run))
        assert (code(done), done.changed) == ("snapshot_not_found", False)
        assert "elsewhere" in str(done.error) and "there" in str(done.error)
        by_id = only(backend.run(Reverted(Request()), Target(vm, "no-such-id"), dry_run=dry_run))
        assert code(by_id) == "snapshot_not_found"

    def test_a_revert_can_say_how_the_power_ends(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.take(vm, "a", memory=True)
        for power, seen in (("off", "off"), ("on", "running"), ("as_snapshot", "paused")):
            done = backend.revert(vm, "a", power=power)
            assert done.error is None, done.error
            after = backend.look(vm).after
            assert after and after.state.power == seen

    def test_every_branch_is_found(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        root = backend.take(vm, "root")
        backend.take(vm, "left")
        backend.take(vm, "leaf")
        assert backend.revert(vm, "root").error is None
        right = backend.take(vm, "right")
        assert right.parent == root.id
        assert only(backend.run(Present(Request(name="leaf")), vm)).word == "exists"
        assert only(backend.run(Present(Request(name="right")), vm)).word == "exists"
        seen = backend.names(vm)
        assert sorted(seen) == ["leaf", "left", "right", "root"]
        assert seen.index("root") < seen.index("left") < seen.index("leaf")
        assert backend.revert(vm, "leaf").error is None
        assert only(backend.run(Absent(Request(name="right")), vm)).word == "removed"
        assert sorted(backend.names(vm)) == ["leaf", "left", "root"]

    def test_newer_snapshots_go_when_asked_and_stay_otherwise(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        for name in ("a", "b", "c"):
            backend.take(vm, name)
        assert backend.revert(vm, "b").error is None
        assert backend.names(vm) == ["a", "b", "c"]
        plan = Reverted(Request(name="a", discard_newer=True))
        would = only(backend.run(plan, vm, dry_run=True))
        does = only(backend.run(plan, vm))
        assert does.error is None, does.error
        assert tree(would.after) == tree(does.after)
        assert backend.names(vm) == ["a"]

    def test_newer_snapshots_of_others_are_not_discarded_unasked(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        backend.take(vm, "a")
        backend.by_hand(vm, "by-a-person", "mine, do not touch")
        refused = backend.revert(vm, "a", discard_newer=True)
        assert (code(refused), refused.changed) == ("foreign", False)
        assert "by-a-person" in str(refused.error)
        assert backend.names(vm) == ["a", "by-a-person"]
        allowed = backend.revert(vm, "a", discard_newer=True, foreign_allowed=True)
        assert allowed.error is None
        assert backend.names(vm) == ["a"]

    # label

    def test_a_differing_label_or_description_is_changed_once(self, backend: Backend) -> None:
        vm = backend.vm()
        before = backend.take(vm, "one", description="first", labels={"change": "1", "stage": "x"})
        backend.take(vm, "child")
        request = Request(
            name="one",
            description="zweite\nZeile & <b>",
            expires=timedelta(days=7),
            labels={"change": "zwölf %]", "stage": ""},
            hold=True,
        )
        would = only(backend.run(Present(request), vm, dry_run=True))
        assert backend.list(vm)[0] == dataclasses.replace(before, current=False)
        does = only(backend.run(Present(request), vm))
        assert (would.word, would.changed) == (does.word, does.changed) == ("updated", True)
        assert tree(would.after) == tree(does.after)
        again = only(backend.run(Present(request), vm))
        assert (again.word, again.changed) == ("exists", False)
        seen = {one.name: one for one in backend.list(vm)}
        one = seen["one"]
        assert one.text == "zweite\nZeile & <b>"
        assert one.label and one.label.fields["change"] == "zwölf %]"
        assert "stage" not in one.label.fields
        assert one.created and one.label.expires
        assert abs(one.created + timedelta(days=7) - one.label.expires) <= timedelta(minutes=1)
        assert seen["child"].parent == one.id and seen["child"].current and not one.current

    def test_options_that_are_left_out_stay_untouched(self, backend: Backend) -> None:
        vm = backend.vm()
        first = backend.take(
            vm, "one", description="text", expires=timedelta(days=7), labels={"a": "1"}, hold=True, hold_reason="audit"
        )
        assert only(backend.run(Present(Request(name="one")), vm)).snapshot == first

    def test_what_people_type_around_the_label_does_no_harm(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.by_hand(vm, "edited", "seen by Ann\n  [safepoint v=1 owner=safepoint change=7] \nand by Ben")
        done = only(backend.run(Present(Request(name="edited", labels={"stage": "two"})), vm))
        assert done.word == "updated"
        one = backend.list(vm)[0]
        assert one.text == "seen by Ann\nand by Ben"
        assert one.label and dict(one.label.fields) == {"change": "7", "stage": "two"}

    def test_a_held_snapshot_is_not_removed_until_it_is_released(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.take(vm, "kept", hold=True, hold_reason="incident 4711")
        refused = only(backend.run(Absent(Request(name="kept")), vm))
        assert code(refused) == "held" and "incident 4711" in str(refused.error)
        assert backend.names(vm) == ["kept"]
        assert only(backend.run(Present(Request(name="kept", hold=False)), vm)).word == "updated"
        assert only(backend.run(Absent(Request(name="kept")), vm)).word == "removed"

    def test_a_reason_to_hold_without_a_hold_is_refused(self, backend: Backend) -> None:
        vm = backend.vm()
        refused = only(backend.run(Present(Request(name="kept", hold_reason="audit")), vm))
        assert code(refused) == "invalid_option"
        assert "hold=true" in str(refused.error)
        assert backend.names(vm) == []

    def test_a_broken_label_is_not_labelled_over(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        backend.by_hand(vm, "odd", "[safepoint v=1 owner=safepoint]\n[safepoint v=1 owner=safepoint]")
        odd = backend.list(vm)[0]
        for dry_run in (True, False):
            refused = only(backend.run(Present(Request(labels={"a": "1"})), Target(vm, odd.id), dry_run=dry_run))
            assert (code(refused), refused.changed) == ("foreign", False)
            assert "more than one label line" in str(refused.error)
        assert backend.list(vm) == [odd]
        replaced = only(backend.run(Present(Request(labels={"a": "1"}, description="mended")), Target(vm, odd.id)))
        assert replaced.word == "updated"
        assert backend.list(vm)[0].text == "mended"
        assert backend.list(vm)[0].belongs_to("safepoint")

    # foreign

    @pytest.mark.parametrize(
        "description",
        [
            "",
            "before the holidays",
            "[safepoint v=1 owner=somebody-else]",
            "[safepoint v=1 owner=safepoint",
            "[safepoint v=1 owner=safepoint]\n[safepoint v=1 owner=safepoint]",
        ],
    )
    def test_a_foreign_snapshot_is_left_alone(self, backend: Backend, description: str) -> None:
        vm = backend.vm(power="off")
        backend.by_hand(vm, "theirs", description)
        before = backend.list(vm)
        for plan in (Present(Request(name="theirs")), Absent(Request(name="theirs")), Reverted(Request(name="theirs"))):
            done = only(backend.run(plan, vm))
            assert (code(done), done.changed) == ("foreign", False)
            assert "theirs" in str(done.error)
        assert only(backend.run(Present(Request(name="theirs", foreign_allowed=True)), vm)).changed is False
        assert backend.list(vm) == before
        assert backend.revert(vm, "theirs", foreign_allowed=True).error is None
        by_id = Target(vm, before[0].id)
        assert only(backend.run(Absent(Request()), by_id)).word == "removed"
        assert backend.names(vm) == []

    # which VM

    def test_a_vm_that_is_not_there_is_an_error_with_a_hint(self, backend: Backend) -> None:
        vm = backend.vm()
        done = only(backend.run(Present(Request(name="x")), vm + "x"))
        assert code(done) == "vm_not_found"
        assert vm in str(done.error)

    def test_a_vm_is_found_by_name_and_by_uuid(self, backend: Backend) -> None:
        vm = backend.vm()
        uuid = backend.uuid(vm)
        for ref in (vm, uuid, f"name:{vm}", f"uuid:{uuid}"):
            found = backend.look(ref).vm
            assert found and (found.name, found.uuid) == (vm, uuid)

    def test_a_name_that_matches_two_vms_is_an_error_that_lists_both(self, backend: Backend) -> None:
        vm = backend.vm()
        # A VM may be named like the UUID of another one.
        backend.add(backend.uuid(vm), power="off")
        done = only(backend.run(Present(Request(name="x")), backend.uuid(vm)))
        assert code(done) == "vm_ambiguous"
        assert str(done.error).count(backend.uuid(vm)) >= 2 and vm in str(done.error)
        assert only(backend.run(Present(Request(name="x")), f"uuid:{backend.uuid(vm)}")).word == "created"
        assert backend.names(vm) == ["x"]

    def test_a_vm_named_twice_in_two_ways_is_refused(self, backend: Backend) -> None:
        vm = backend.vm()
        outcomes = backend.run(Present(Request(name="x")), vm, backend.uuid(vm))
        assert [code(one) for one in outcomes] == ["not_started", "invalid_option"]
        assert backend.names(vm) == []

    # many

    def test_many_vms_are_answered_in_the_order_asked(self, backend: Backend) -> None:
        vms = [backend.vm() for _each in range(5)]
        asked = list(reversed(vms))
        done = backend.run(Present(Request(name="all")), *asked, max_parallel=2)
        assert [one.vm.name for one in done if one.vm] == asked
        assert {one.word for one in done} == {"created"}
        assert all(backend.names(vm) == ["all"] for vm in vms)

    def test_one_missing_vm_holds_back_the_others_unless_they_are_to_continue(self, backend: Backend) -> None:
        vm = backend.vm()
        stopped = backend.run(Present(Request(name="x")), vm, "nowhere", on_error="stop")
        assert [(code(one), one.changed) for one in stopped] == [("not_started", False), ("vm_not_found", False)]
        assert backend.names(vm) == []
        went_on = backend.run(Present(Request(name="x")), vm, "nowhere", on_error="continue")
        assert [(code(one), one.changed) for one in went_on] == [(None, True), ("vm_not_found", False)]
        assert backend.names(vm) == ["x"]

    # several at once

    def test_two_runs_at_once_leave_one_snapshot_and_both_succeed(self, backend: Backend) -> None:
        vm = backend.vm()
        done = at_once(4, lambda: only(backend.run(Present(Request(name="race")), vm)))
        assert [one.error for one in done] == [None] * 4
        assert sorted(one.changed for one in done) == [False, False, False, True]
        assert {one.word for one in done} <= {"created", "exists", "lost_race"}
        assert backend.names(vm) == ["race"]
        removed = at_once(4, lambda: only(backend.run(Absent(Request(name="race")), vm)))
        assert [one.error for one in removed] == [None] * 4
        assert sorted(one.changed for one in removed) == [False, False, False, True]
        assert backend.names(vm) == []

    def test_two_runs_at_once_with_different_names_both_get_theirs(self, backend: Backend) -> None:
        vm = backend.vm()
        names = iter(["left", "right"])
        lock = threading.Lock()

        def take() -> Outcome:
            with lock:
                name = next(names)
            return only(backend.run(Present(Request(name=name)), vm))

        assert [(one.error, one.word) for one in at_once(2, take)] == [(None, "created")] * 2
        assert sorted(backend.names(vm)) == ["left", "right"]


def at_once(number: int, call: t.Callable[[], Outcome]) -> list[Outcome]:
    """Run ``call`` in that many threads that start together, each with a connection of its own."""
    barrier = threading.Barrier(number)
    results: list[Outcome | BaseException] = []

    def work() -> None:
        barrier.wait()
        try:
            results.append(call())
        except BaseException as exc:
            results.append(exc)

    threads = [threading.Thread(target=work) for _each in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return t.cast("list[Outcome]", results)

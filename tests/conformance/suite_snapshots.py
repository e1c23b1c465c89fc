# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Conformance: create, remove and revert to snapshots."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from kit import Backend, bare, code, only

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._core.filter import Filter
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.results import tree
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline


class Snapshots:
    """Snapshots of one VM by their names."""

    # present

    def test_new_snapshot_is_as_requested_and_current(self, backend: Backend) -> None:
        vm = backend.vm()
        done = only(
            backend.run(Present(Request(name="before-upgrade", description="kernel <6>", labels={"change": "CHG 42"})), vm)
        )
        assert (done.word, done.changed, done.error) == ("created", True, None)
        seen = backend.list(vm)
        assert [one.name for one in seen] == ["before-upgrade"]
        assert seen[0] == bare(done.snapshot)
        assert seen[0].text == "kernel <6>"
        assert seen[0].label and seen[0].label.as_dict() == {"owner": "safepoint", "change": "CHG 42"}
        assert seen[0].current and seen[0].parent is None
        assert seen[0].created and abs(datetime.now(timezone.utc) - seen[0].created) < timedelta(minutes=5)

    def test_second_create_returns_the_same_snapshot(self, backend: Backend) -> None:
        vm = backend.vm()
        first = backend.take(vm, "once", description="text", expires=timedelta(hours=72), labels={"a": "1"})
        again = only(
            backend.run(Present(Request(name="once", description="text", expires=timedelta(hours=72), labels={"a": "1"})), vm)
        )
        assert (again.word, again.changed) == ("exists", False)
        assert bare(again.snapshot) == first
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

    def test_long_chain_is_a_finding(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.take(vm, "one")
        backend.take(vm, "two")
        assert backend.info(vm)["findings"] == []
        backend.take(vm, "three")
        (finding,) = backend.info(vm)["findings"]
        assert finding["code"] == "deep_chain"
        assert "has a chain of 3 snapshots" in finding["msg"]

    def test_existing_name_fails_with_if_exists_fail(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.take(vm, "once")
        again = only(backend.run(Present(Request(name="once", fail_if_exists=True)), vm))
        assert (code(again), again.changed) == ("snapshot_exists", False)

    def test_memory_is_reported_as_it_was_taken(self, backend: Backend) -> None:
        vm = backend.vm()
        if backend.memory_possible:
            assert backend.take(vm, "with", memory=True).consistency == "memory"
        without = backend.take(vm, "without")
        assert without.memory is backend.memory_implied
        off = backend.vm(power="off")
        assert backend.take(off, "cold").consistency == "offline"

    def test_memory_of_a_vm_that_is_off_is_refused_before_any_write(self, backend: Backend) -> None:
        vm, off = backend.vm(), backend.vm(power="off")
        up, down = backend.run(Present(Request(name="with", memory=True)), vm, off)
        assert (code(up), code(down)) == ("not_started" if backend.memory_possible else "unsupported", "unsupported")
        assert off in str(down.error) and ("start it" if backend.memory_possible else "leave memory out") in str(down.error)
        assert backend.names(vm) == backend.names(off) == []

    def test_missing_memory_of_a_vm_powered_off_just_before_is_an_error(self, backend: Backend) -> None:
        if not backend.memory_possible:
            return  # the request is refused, see another test
        plan = Present(Request(name="with", memory=True))
        for on_error, left in (("stop", ["with"]), ("undo", [])):
            vm = backend.vm()
            done = only(backend.run(plan, vm, meanwhile=lambda vm=vm: backend.switch_off(vm), on_error=on_error))  # type: ignore[misc]
            assert (code(done), done.changed) == ("unverified", bool(left))
            assert "has no memory" in str(done.error)
            assert backend.names(vm) == left

    def test_existing_snapshot_without_memory_differs_from_one_with_memory(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        backend.take(vm, "cold")
        again = only(backend.run(Present(Request(name="cold", memory=True)), vm))
        assert (code(again), again.changed) == ("exists_differs", False)

    def test_snapshot_by_id_without_memory_differs_from_one_with_memory(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        cold = backend.take(vm, "cold")
        again = only(backend.run(Present(Request(memory=True)), Target(vm, cold.id)))
        assert (code(again), again.changed) == ("exists_differs", False)

    def test_check_mode_predicts_the_place_of_a_new_branch(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        for name in ("root", "left", "leaf"):
            backend.take(vm, name)
        assert backend.revert(vm, "root").error is None
        plan = Present(Request(name="z-right"))
        would = only(backend.run(plan, vm, dry_run=True))
        does = only(backend.run(plan, vm))
        assert tree(would.after) == tree(does.after)

    def test_impossible_quiescing_is_refused_with_require_and_a_warning_with_prefer(self, backend: Backend) -> None:
        vm = backend.vm()
        refused = only(backend.run(Present(Request(name="calm", quiesce="require")), vm))
        assert code(refused) == "unsupported"
        assert "quiesce=never" in str(refused.error)
        assert backend.names(vm) == []
        preferred = only(backend.run(Present(Request(name="calm", quiesce="prefer")), vm))
        assert preferred.error is None
        assert any("quiesce" in warning for warning in preferred.warnings)

    @pytest.mark.parametrize("name", ["", "a/b", ".hidden", "-x", "tab\there", "ümlaut", "x" * 81, "a b", "new\nline"])
    def test_dangerous_name_is_refused_before_any_request(self, backend: Backend, name: str) -> None:
        vm = backend.vm()
        with pytest.raises(InvalidOption, match="name"):
            backend.run(Present(Request(name=name)), vm)
        assert backend.names(vm) == []

    # absent

    def test_removal_removes_once_and_then_changes_nothing(self, backend: Backend) -> None:
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

    def test_children_stay_when_their_parent_is_removed(self, backend: Backend) -> None:
        vm = backend.vm()
        for name in ("sa", "sb", "sc"):
            backend.take(vm, name)
        plan = Absent(Request(name="sb"))
        would = only(backend.run(plan, vm, dry_run=True))
        does = only(backend.run(plan, vm))
        assert tree(would.after) == tree(does.after)
        ids = {one.name: one.id for one in backend.list(vm)}
        assert {one.name: one.parent for one in backend.list(vm)} == {"sa": None, "sc": ids["sa"]}

    def test_children_remove_removes_the_children_too(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        for name in ("root", "left", "leaf"):
            backend.take(vm, name)
        assert backend.revert(vm, "root").error is None
        backend.take(vm, "right")
        plan = Absent(Request(name="left", children="remove"))
        would = only(backend.run(plan, vm, dry_run=True))
        does = only(backend.run(plan, vm))
        assert (would.word, would.changed) == (does.word, does.changed) == ("removed", True)
        assert tree(would.after) == tree(does.after)
        assert len(would.also_removed) == 1 and would.also_removed == does.also_removed
        assert backend.names(vm) == ["root", "right"]
        assert only(backend.run(Absent(Request(name="root", children="remove")), vm)).changed
        assert backend.names(vm) == []

    def test_foreign_or_held_children_keep_the_whole_subtree(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        backend.take(vm, "sa")
        backend.by_hand(vm, "by-a-person", "mine")
        backend.take(vm, "kept", hold=True)
        plan = Absent(Request(name="sa", children="remove"))
        foreign = only(backend.run(plan, vm))
        assert (code(foreign), foreign.changed) == ("foreign", False) and "by-a-person" in str(foreign.error)
        held = only(backend.run(Absent(Request(name="sa", children="remove", foreign_allowed=True)), vm))
        assert (code(held), held.changed) == ("held", False) and "kept" in str(held.error)
        assert backend.names(vm) == ["sa", "by-a-person", "kept"]

    def test_removal_of_the_current_snapshot_makes_its_parent_current(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.take(vm, "sa")
        backend.take(vm, "sb")
        plan = Absent(Request(name="sb"))
        would = only(backend.run(plan, vm, dry_run=True))
        does = only(backend.run(plan, vm))
        assert tree(would.after) == tree(does.after)
        assert [(one.name, one.current) for one in backend.list(vm)] == [("sa", True)]

    # revert

    def test_revert_makes_the_snapshot_current_and_is_always_a_change(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.take(vm, "sa", memory=backend.memory_possible)
        backend.take(vm, "sb", memory=backend.memory_possible)
        would = only(backend.run(Reverted(Request(name="sa")), vm, dry_run=True))
        assert [one.name for one in backend.list(vm) if one.current] == ["sb"]
        for _time in range(2):
            does = backend.revert(vm, "sa")
            assert (does.word, does.changed, does.error) == ("reverted", True, None)
            assert tree(would.after) == tree(does.after)
            assert [one.name for one in backend.list(vm) if one.current] == ["sa"]
        assert backend.names(vm) == ["sa", "sb"]
        assert would.changed
        assert does.after and does.after.state.power == (backend.up if backend.memory_possible else "off")

    @pytest.mark.parametrize("dry_run", [True, False])
    def test_revert_to_a_missing_snapshot_fails(self, backend: Backend, dry_run: bool) -> None:
        vm = backend.vm()
        backend.take(vm, "there")
        done = only(backend.run(Reverted(Request(name="elsewhere")), vm, dry_run=dry_run))
        assert (code(done), done.changed) == ("snapshot_not_found", False)
        assert "elsewhere" in str(done.error) and "there" in str(done.error)
        by_id = only(backend.run(Reverted(Request()), Target(vm, "no-such-id"), dry_run=dry_run))
        assert code(by_id) == "snapshot_not_found"

    def test_revert_sets_the_requested_power_state(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.take(vm, "sa", memory=backend.memory_possible)
        for power, seen in (("off", "off"), ("on", "running"), ("as_snapshot", backend.up if backend.memory_possible else "off")):
            done = backend.revert(vm, "sa", power=power)
            assert done.error is None, done.error
            after = backend.look(vm).after
            assert after and after.state.power == seen

    def test_snapshots_on_every_branch_are_found(self, backend: Backend) -> None:
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

    def test_newer_snapshots_are_removed_only_with_discard_newer(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        for name in ("sa", "sb", "sc"):
            backend.take(vm, name)
        assert backend.revert(vm, "sb").error is None
        assert backend.names(vm) == ["sa", "sb", "sc"]
        plan = Reverted(Request(name="sa", discard_newer=True))
        would = only(backend.run(plan, vm, dry_run=True))
        does = only(backend.run(plan, vm))
        assert does.error is None, does.error
        assert tree(would.after) == tree(does.after)
        assert backend.names(vm) == ["sa"]

    def test_foreign_newer_snapshots_need_foreign_allow_and_held_ones_always_stay(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        backend.take(vm, "sa")
        backend.by_hand(vm, "by-a-person", "mine, do not touch")
        refused = backend.revert(vm, "sa", discard_newer=True)
        assert (code(refused), refused.changed) == ("foreign", False)
        assert "by-a-person" in str(refused.error)
        assert backend.names(vm) == ["sa", "by-a-person"]
        backend.take(vm, "kept", hold=True, hold_by="ann", hold_reason="audit")
        held = backend.revert(vm, "sa", discard_newer=True, foreign_allowed=True)
        assert (code(held), held.changed) == ("held", False) and "by ann (audit)" in str(held.error)
        assert backend.names(vm) == ["sa", "by-a-person", "kept"]
        assert only(backend.run(Present(Request(name="kept", hold=False)), vm)).changed
        allowed = backend.revert(vm, "sa", discard_newer=True, foreign_allowed=True)
        assert allowed.error is None
        assert backend.names(vm) == ["sa"]

    # select the snapshot

    def test_select_newest_finds_the_newest_snapshot_with_the_label(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        backend.take(vm, "good", labels={"quality": "known-good"})
        backend.take(vm, "good-too", labels={"quality": "known-good"})
        backend.take(vm, "other")
        backend.by_hand(vm, "forged", "[safepoint v=1 owner=somebody-else quality=known-good]")
        plan = Reverted(Request(select=True, matching=Filter(labels={"quality": "known-good"})))
        would = only(backend.run(plan, vm, dry_run=True))
        does = only(backend.run(plan, vm))
        assert would.snapshot and does.snapshot
        assert would.snapshot.name == does.snapshot.name == "good-too"
        assert only(backend.run(Reverted(Request(select=True)), vm)).snapshot.name == "other"  # type: ignore[union-attr]

    def test_select_before_finds_the_newest_snapshot_before_a_time(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        first = backend.take(vm, "first")
        assert first.created
        deadline = Deadline(10)
        deadline.poll("the next second", lambda: datetime.now(timezone.utc) > first.created + timedelta(seconds=1.1) or None)  # type: ignore[operator]
        second = backend.take(vm, "second")
        assert second.created and second.created > first.created
        plan = Reverted(Request(select=True, matching=Filter(older_than=second.created)))
        done = only(backend.run(plan, vm))
        assert done.error is None, done.error
        assert done.snapshot and done.snapshot.name == "first"
        too_early = Reverted(Request(select=True, matching=Filter(older_than=first.created)))
        missing = only(backend.run(too_early, vm))
        assert (code(missing), missing.changed) == ("snapshot_not_found", False)
        assert "before" in str(missing.error) and "first" in str(missing.error)

    # many snapshots

    def test_fifty_snapshots_are_listed_in_order_and_found(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        for number in range(49):
            if number == 25:  # no chain of 50: the limit of vSphere is 32
                assert backend.revert(vm, "s00").error is None
            backend.by_hand(vm, f"s{number:02d}", "[safepoint v=1 owner=safepoint]")
        backend.take(vm, "s49")
        seen = backend.list(vm)
        assert [one.name for one in seen] == [f"s{number:02d}" for number in range(50)]
        above = [None, *(one.id for one in seen[:-1])]
        above[25] = seen[0].id
        assert [one.parent for one in seen] == above
        assert only(backend.run(Absent(Request(name="s26")), vm)).word == "removed"
        assert backend.revert(vm, "s10").error is None
        after = {one.name: one for one in backend.list(vm)}
        assert len(after) == 49 and after["s27"].parent == after["s25"].id and after["s10"].current

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Conformance: prune removes the snapshots that the policy does not keep, and no others."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from kit import Backend, at_once, code, only, pruning

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._core.filter import Filter
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.results import outcome_pruned, outcome_table, tree

HOUR = timedelta(hours=1)


def told(outcome: Outcome) -> dict[str, tuple[str, str]]:
    """Return name of the snapshot -> decision and rules."""
    row = outcome_pruned(outcome, ours=Request().ours, now=datetime.now(timezone.utc))
    return {one["name"]: (one["decision"], ",".join(one["rules"])) for one in row["snapshots"]}


class Prune:
    """A policy, and the snapshots after the run."""

    def test_snapshots_that_the_policy_does_not_keep_are_removed_once(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        for name in ("s1", "s2"):
            backend.take(vm, name)
        backend.by_hand(vm, "by-a-person", "mine")
        backend.take(vm, "s3", hold=True, hold_by="ann")
        backend.take(vm, "s4", labels={"state": "guarding"})
        for name in ("s5", "s6"):
            backend.take(vm, name)
        plan = pruning(keep_last=1)
        would = only(backend.run(plan, vm, dry_run=True))
        assert len(backend.names(vm)) == 7
        does = only(backend.run(plan, vm))
        assert (would.word, would.changed, does.word, does.changed, does.error) == ("pruned", True, "pruned", True, None)
        assert tree(would.after) == tree(does.after)
        assert backend.names(vm) == ["by-a-person", "s3", "s4", "s6"]
        assert told(would) == told(does) == {
            "s1": ("remove", "not_kept"),
            "s2": ("remove", "not_kept"),
            "by-a-person": ("keep", "foreign"),
            "s3": ("keep", "held"),
            "s4": ("keep", "in_flight"),
            "s5": ("remove", "not_kept"),
            "s6": ("keep", "keep_last"),
        }  # fmt: skip
        shown = outcome_table(does)
        assert shown == outcome_table(would)
        assert shown["before"].count("\n") == 7 and shown["after"].count("\n") == 4
        again = only(backend.run(plan, vm))
        assert (again.word, again.changed, again.error) == ("kept", False, None)

    def test_expired_snapshot_is_removed_even_if_it_is_the_last(self, backend: Backend) -> None:
        vm, other = backend.vm(power="off"), backend.vm(power="off")
        backend.take(vm, "gone", expires=HOUR)
        backend.take(other, "held", expires=datetime.now(timezone.utc) + HOUR, hold=True)
        backend.take(other, "gone", expires=HOUR)
        backend.take(other, "later", expires=timedelta(days=1))
        backend.take(other, "never")
        assert [one.word for one in backend.run(pruning(expired=True), vm, other)] == ["kept", "kept"]
        done = backend.run(pruning(expired=True), vm, other, later=2 * HOUR)
        assert [(one.word, one.error) for one in done] == [("pruned", None)] * 2
        assert (backend.names(vm), backend.names(other)) == ([], ["held", "later", "never"])
        # After its release, or with a later expiry, it is like any other.
        assert only(backend.run(Present(Request(name="held", hold=False)), other)).changed
        assert only(backend.run(Present(Request(name="never", expires=HOUR)), other)).changed
        assert only(backend.run(Present(Request(name="held", expires=timedelta(days=1))), other)).changed
        assert only(backend.run(pruning(expired=True), other, later=2 * HOUR)).changed
        assert backend.names(other) == ["held", "later"]

    def test_children_of_a_removed_snapshot_are_kept(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        for name in ("root", "left"):
            backend.take(vm, name)
        backend.take(vm, "leaf", labels={"keep": "yes"})
        assert backend.revert(vm, "root").error is None
        backend.take(vm, "right")
        backend.take(vm, "tip", labels={"keep": "yes"})
        plan = pruning(keep_labels={"keep": "yes"})
        would = only(backend.run(plan, vm, dry_run=True))
        does = only(backend.run(plan, vm))
        assert does.error is None, does.error
        assert tree(would.after) == tree(does.after)
        assert sorted((one.name, one.parent) for one in backend.list(vm)) == [("leaf", None), ("tip", None)]
        for name in ("leaf", "tip"):
            assert backend.revert(vm, name).error is None

    def test_only_snapshots_in_scope_are_pruned(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        for name in ("nightly-1", "nightly-2", "weekly-1"):
            backend.take(vm, name, labels={"policy": name[:-2]})
        done = only(backend.run(pruning(max_count=1, scope=Filter(name="n*", labels={"policy": "nightly"})), vm))
        assert told(done)["weekly-1"] == ("keep", "out_of_scope")
        assert backend.names(vm) == ["nightly-2", "weekly-1"]

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_failure_half_way_leaves_the_rest_to_the_next_run(self, backend: Backend, number: int) -> None:
        vms = [backend.vm(power="off") for _each in range(2)]
        for vm in vms:
            for name in ("s1", "s2", "s3"):
                backend.take(vm, name)
        plan = pruning(keep_last=1)
        done = backend.run(plan, *vms, on_error="continue", max_parallel=1, fails_at=number)
        failed, well = done if number < 3 else reversed(done)
        assert (code(failed), failed.changed) == ("backend_failed", number == 2), [str(one.error) for one in done]
        assert (well.word, well.error) == ("pruned", None)
        row = outcome_pruned(failed, ours=Request().ours, now=datetime.now(timezone.utc))
        left = [one["name"] for one in row["snapshots"] if not one["removed"]]
        assert backend.names(failed.target.ref) == left == (["s2", "s3"] if number == 2 else ["s1", "s2", "s3"])
        assert [one.error for one in backend.run(plan, *vms)] == [None, None]
        assert [backend.names(vm) for vm in vms] == [["s3"], ["s3"]]

    def test_two_parallel_prunes_remove_a_snapshot_once_and_both_succeed(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        for name in ("s1", "s2", "s3", "s4"):
            backend.take(vm, name)
        done = at_once(3, lambda: only(backend.run(pruning(keep_last=1), vm)))
        assert [one.error for one in done] == [None] * 3
        assert any(one.changed for one in done)
        assert backend.names(vm) == ["s4"]

    def test_all_removes_only_with_the_right_number_of_vms(self, backend: Backend) -> None:
        vms = [backend.vm(power="off") for _each in range(2)]
        for vm in vms:
            backend.take(vm, "s1")
            backend.by_hand(vm, "theirs", "mine")
            backend.take(vm, "held", hold=True)
        for wrong in (None, 1):
            with pytest.raises(InvalidOption, match="confirm=2"):
                backend.run(pruning(everything=True, confirm=wrong), *vms)
        assert all(len(backend.names(vm)) == 3 for vm in vms)
        assert all(one.changed for one in backend.run(pruning(everything=True, confirm=2), *vms))
        assert [backend.names(vm) for vm in vms] == [["theirs", "held"]] * 2

    def test_rules_that_would_remove_everything_are_refused_on_that_vm_only(self, backend: Backend) -> None:
        vms = [backend.vm(power="off") for _each in range(2)]
        for vm in vms:
            backend.take(vm, "s1")
        backend.take(vms[1], "good", labels={"quality": "good"})
        refused, done = backend.run(pruning(keep_labels={"quality": "good"}), *vms, on_error="continue")
        assert (code(refused), refused.changed) == ("unsupported", False) and vms[0] in str(refused.error)
        assert (done.word, backend.names(vms[0]), backend.names(vms[1])) == ("pruned", ["s1"], ["good"])

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Conformance: finding VMs, calls on many VMs, and parallel runs."""

from __future__ import annotations

import threading

import pytest
from kit import Backend, at_once, code, only

from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present


class FleetOfVms:
    """Finding VMs, many VMs, parallel runs."""

    # find VMs

    def test_missing_vm_is_an_error_with_a_suggestion(self, backend: Backend) -> None:
        vm = backend.vm()
        done = only(backend.run(Present(Request(name="sx")), vm + "x"))
        assert code(done) == "vm_not_found"
        assert vm in str(done.error)

    def test_name_with_a_domain_suggests_the_short_name_and_vice_versa(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        backend.add(f"{vm}y.example.com", power="off")
        for asked, near in ((f"{vm}.example.com", vm), (f"{vm}y", f"{vm}y.example.com"), (f"name:{vm}.lan", vm)):
            done = only(backend.run(Present(Request(name="sx")), asked))
            assert code(done) == "vm_not_found" and f"did you mean {near}?" in str(done.error)

    def test_unusual_reference_is_not_found(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        odd = [
            "id:",
            "name:",
            "path:",
            "uuid:x",
            "id:-1",
            "½",
            "path:a/½",
            "/",
            "//x",
            "a\nb",
            "&<>'\"",
            "%00",
            "x" * 5000,
            f"foo:{vm}",
            f"id:{vm}",
        ]
        assert {code(one) for one in backend.looks(*odd)} == {"vm_not_found"}

    def test_vm_is_found_by_name_and_by_unique_id(self, backend: Backend) -> None:
        vm = backend.vm()
        kind, text = backend.identity(vm)
        for ref in (vm, text, f"name:{vm}", f"{kind}:{text}"):
            found = backend.look(ref).vm
            assert found and found.name == vm and text in (found.uuid, found.id)

    def test_name_of_two_vms_is_an_error_that_lists_both(self, backend: Backend) -> None:
        vm = backend.vm()
        # The name of a VM may be the UUID of another one.
        kind, text = backend.identity(vm)
        backend.add(text, power="off")
        done = only(backend.run(Present(Request(name="sx")), text))
        assert code(done) == "vm_ambiguous"
        assert str(done.error).count(text) >= 2 and vm in str(done.error)
        assert only(backend.run(Present(Request(name="sx")), f"{kind}:{text}")).word == "created"
        assert backend.names(vm) == ["sx"]

    def test_same_vm_in_two_references_is_refused(self, backend: Backend) -> None:
        vm = backend.vm()
        outcomes = backend.run(Present(Request(name="sx")), vm, backend.identity(vm)[1])
        assert [code(one) for one in outcomes] == ["not_started", "invalid_option"]
        assert backend.names(vm) == []

    # many VMs

    def test_results_are_in_the_order_of_the_vms(self, backend: Backend) -> None:
        vms = [backend.vm() for _each in range(5)]
        asked = list(reversed(vms))
        done = backend.run(Present(Request(name="all")), *asked, max_parallel=2)
        assert [one.vm.name for one in done if one.vm] == asked
        assert {one.word for one in done} == {"created"}
        assert all(backend.names(vm) == ["all"] for vm in vms)

    def test_missing_vm_stops_the_others_unless_on_error_is_continue(self, backend: Backend) -> None:
        vm = backend.vm()
        stopped = backend.run(Present(Request(name="sx")), vm, "nowhere", on_error="stop")
        assert [(code(one), one.changed) for one in stopped] == [("not_started", False), ("vm_not_found", False)]
        assert backend.names(vm) == []
        went_on = backend.run(Present(Request(name="sx")), vm, "nowhere", on_error="continue")
        assert [(code(one), one.changed) for one in went_on] == [(None, True), ("vm_not_found", False)]
        assert backend.names(vm) == ["sx"]

    @pytest.mark.parametrize("number", [1, 2, 3])
    @pytest.mark.parametrize("on_error", ["undo", "stop", "continue"])
    def test_failure_at_any_vm_is_handled_according_to_on_error(self, backend: Backend, number: int, on_error: str) -> None:
        vms = [backend.vm(power="off") for _each in range(3)]
        plan = Present(Request(name="sx"))
        done = backend.run(plan, *vms, on_error=on_error, max_parallel=1, fails_at=number)
        failed = number - 1
        made = {"undo": [], "stop": vms[:failed], "continue": vms[:failed] + vms[failed + 1 :]}[on_error]
        assert [vm for vm in vms if backend.names(vm) == ["sx"]] == made
        assert [one.target.ref for one in done if one.changed] == made
        assert code(done[failed]) == "backend_failed" and "no space left" in str(done[failed].error)

    def test_undo_waits_for_a_locked_vm(self, backend: Backend) -> None:
        vms = [backend.vm(power="off") for _each in range(2)]
        done = backend.run(Present(Request(name="sx")), *vms, on_error="undo", max_parallel=1, fails_at=2, locked_at=3)
        assert [(code(one), one.changed) for one in done] == [("undone", False), ("backend_failed", False)]
        assert [backend.names(vm) for vm in vms] == [[], []]

    def test_all_vms_of_the_endpoint_are_listed(self, backend: Backend) -> None:
        vms = [backend.vm(power="off") for _each in range(3)]
        backend.take(vms[1], "sx")
        seen = {one.target.ref: one for one in backend.looks()}
        assert set(vms) <= set(seen)
        assert [len(seen[vm].after.snapshots) for vm in vms if seen[vm].after] == [0, 1, 0]  # type: ignore[union-attr]

    # parallel runs

    def test_two_parallel_runs_create_one_snapshot_and_both_succeed(self, backend: Backend) -> None:
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

    def test_two_parallel_runs_with_different_names_create_both_snapshots(self, backend: Backend) -> None:
        vm = backend.vm()
        names = iter(["left", "right"])
        lock = threading.Lock()

        def take() -> Outcome:
            with lock:
                name = next(names)
            return only(backend.run(Present(Request(name=name)), vm))

        assert [(one.error, one.word) for one in at_once(2, take)] == [(None, "created")] * 2
        assert sorted(backend.names(vm)) == ["left", "right"]

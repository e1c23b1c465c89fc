# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The choice between two ways to take a snapshot, and the error if neither is possible."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timezone

import pytest
from fake import FakeDriver, Hypervisor

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, Target, View, Vm, VmState, Way
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Create, Delete
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

VM = Vm("web01", "1", "6695eb01-f6a4-8304-79aa-97f2502e193f")
OURS = "[safepoint v=1 owner=safepoint]"
INTERNAL = Way("internal", {"quiesce": "internal ones are not quiesced"}, memory_implied=True)
EXTERNAL = Way("external", {"memory_and_quiesce": "memory or quiesce, not both"}, unrecorded=("filesystem",))


def snapshot(name: str, parent: str | None = None, **other: object) -> Snapshot:
    whole = Snapshot(name, name, None, parent, OURS, memory=False, consistency="crash", current=False)
    return dataclasses.replace(whole, **other)  # type: ignore[arg-type]


def create(
    *snapshots: Snapshot, ways: tuple[Way, ...] = (INTERNAL, EXTERNAL), power: str = "running", **request: object
) -> Create:
    view = View(VM, VmState(power, ways), snapshots)
    decision = Present(Request(name="x", **request)).decide(view, None, now=datetime.now(timezone.utc))  # type: ignore[arg-type]
    (action,) = decision.actions
    assert isinstance(action, Create)
    assert decision.snapshot and decision.snapshot.kind == action.kind
    return action


def refused(plan: Plan, *snapshots: Snapshot, ways: tuple[Way, ...] = (INTERNAL, EXTERNAL)) -> str:
    with pytest.raises(SafepointError) as caught:
        plan.decide(View(VM, VmState("running", ways), snapshots), None, now=datetime.now(timezone.utc))
    assert caught.value.code == "unsupported"
    return str(caught.value)


def test_preferred_way_is_used_unless_it_is_not_possible() -> None:
    assert (create().kind, create().memory) == ("internal", True)
    raw = dataclasses.replace(INTERNAL, refusals={"create": "vda is raw"})
    assert (create(ways=(raw, EXTERNAL)).kind, create(ways=(raw, EXTERNAL)).memory) == ("external", False)
    assert create(kind="external").kind == "external"


def test_quiesce_require_uses_a_way_that_can_quiesce() -> None:
    action = create(quiesce="require")
    assert (action.kind, action.memory, action.quiesce) == ("external", False, "require")
    assert "consistency=filesystem" in action.description


def test_quiesce_prefer_keeps_the_way_and_the_memory() -> None:
    action = create(quiesce="prefer")
    assert (action.kind, action.memory, action.quiesce) == ("internal", True, "never")
    assert "consistency" not in action.description


def test_quiesce_prefer_reports_filesystem_only_if_quiesced() -> None:
    action = create(kind="external", quiesce="prefer")
    assert action.quiesce == "prefer" and "consistency=filesystem" in action.description
    assert action.unquiesced_description and "consistency" not in action.unquiesced_description


def test_vm_that_is_off_needs_no_quiescing() -> None:
    action = create(power="off", quiesce="require")
    assert (action.kind, action.quiesce) == ("internal", "never")


def test_kind_of_existing_snapshots_is_used_and_never_mixed() -> None:
    assert create(snapshot("a", kind="external")).kind == "external"
    said = refused(Present(Request(name="x", kind="internal")), snapshot("a", kind="external"))
    assert "external snapshot a" in said and "destroy each other" in said
    said = refused(Present(Request(name="x", quiesce="require")), snapshot("a", kind="internal"))
    assert "internal ones are not quiesced" in said and "internal snapshot a" in said


def test_memory_and_quiesce_together_are_refused_with_both_reasons() -> None:
    said = refused(Present(Request(name="x", memory=True, quiesce="require")))
    assert "internal ones are not quiesced" in said and "memory or quiesce, not both" in said


def test_kind_that_the_backend_does_not_have_is_refused() -> None:
    assert "kind" in refused(Present(Request(name="x", kind="external")), ways=(Way(),))


def test_operation_with_an_obstacle_is_refused_with_its_reason() -> None:
    stuck = snapshot("a", obstacles={"revert": "is stuck; free it", "remove": "cannot go; unlock it"})
    assert "The VM cannot be reverted: the snapshot a of web01 is stuck; free it" in refused(Reverted(Request(name="a")), stuck)
    assert "unlock it" in refused(Absent(Request(name="a")), stuck)


def test_snapshot_that_cannot_be_removed_alone_is_removed_with_its_children() -> None:
    stays = snapshot("a", obstacles={"remove_alone": "has two children; remove them first"})
    tree = (stays, snapshot("b", "a"), snapshot("c", "b"), snapshot("d", "a"))
    assert "has two children" in refused(Absent(Request(name="a")), *tree)
    view = View(VM, VmState("running"), tree)
    decision = Absent(Request(name="a", children="remove")).decide(view, None, now=datetime.now(timezone.utc))
    assert [action.snapshot.id for action in decision.actions if isinstance(action, Delete)] == ["d", "c", "b", "a"]
    assert decision.predicted == ()
    without_children = View(VM, VmState("running"), (stays,))
    assert Absent(Request(name="a")).decide(without_children, None, now=datetime.now(timezone.utc)).word == "removed"


def test_current_branch_of_a_subtree_is_removed_last() -> None:
    alone = {"remove_alone": "shares its parent; remove the other branch first"}
    tree = (
        snapshot("a"),
        snapshot("b", "a", obstacles=alone, current=True),
        snapshot("c", "a"),
        snapshot("d", "c"),
    )
    assert "remove the other branch first" in refused(Absent(Request(name="b")), *tree)
    view = View(VM, VmState("running"), tree)
    decision = Absent(Request(name="a", children="remove")).decide(view, None, now=datetime.now(timezone.utc))
    assert [action.snapshot.id for action in decision.actions if isinstance(action, Delete)] == ["d", "c", "b", "a"]


def taken(agent: str, **request: object) -> Outcome:
    hypervisor = Hypervisor()
    vm = hypervisor.add("web01")
    hypervisor.machines[vm.id].agent = agent
    fleet = Fleet(FakeDriver(hypervisor), Bounds(timeout=5), now=lambda: datetime.now(timezone.utc))
    (done,) = fleet.apply([Target("web01")], Present(Request(name="x", **request)), dry_run=False)  # type: ignore[arg-type]
    return done


@pytest.mark.parametrize("quiesce", ["prefer", "require"])
def test_result_reports_that_it_was_quiesced(quiesce: str) -> None:
    done = taken("ready", quiesce=quiesce)
    assert done.snapshot and done.snapshot.consistency == "filesystem"
    assert done.warnings == []


def test_failed_quiescing_gives_the_actual_consistency_or_no_snapshot() -> None:
    done = taken("broken", quiesce="prefer")
    assert done.snapshot and done.snapshot.consistency == "crash"
    assert any("failed to quiesce" in warning for warning in done.warnings)
    refused = taken("broken", quiesce="require")
    assert refused.error and refused.error.code == "unsupported"
    assert (refused.changed, refused.snapshot) == (False, None)


def test_name_used_by_an_unlisted_snapshot_is_refused() -> None:
    taken = {"x": "an image holds x; remove it"}
    ways = tuple(dataclasses.replace(way, taken=taken) for way in (INTERNAL, EXTERNAL))
    assert "an image holds x" in refused(Present(Request(name="x")), ways=ways)
    view = View(VM, VmState("running", ways), ())
    assert Present(Request(name="y")).decide(view, None, now=datetime.now(timezone.utc)).word == "created"


def test_warnings_without_memory_appear_only_without_memory() -> None:
    way = dataclasses.replace(EXTERNAL, warnings=("always",), warnings_without_memory=("without",))
    for memory, warnings in ((True, ("always",)), (False, ("always", "without"))):
        plan = Present(Request(name="x", memory=memory))
        decision = plan.decide(View(VM, VmState("running", (way,)), ()), None, now=datetime.now(timezone.utc))
        assert decision.warnings == warnings

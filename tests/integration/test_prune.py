# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""snapshot_prune as users see it: the plan, the table, the removal, and contradictory options."""

from __future__ import annotations

import typing as t

import libvirt
from running import Module, run_module

from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

EXPIRED = "2020-01-01T00:00:00Z"


def names(state: libvirt.virConnect, vm: str = "test") -> list[str]:
    return sorted(one.getName() for one in state.lookupByName(vm).listAllSnapshots())


def by_hand(state: libvirt.virConnect, name: str, description: str = "", vm: str = "test") -> None:
    xml = f"<domainsnapshot><name>{name}</name><description>{description}</description></domainsnapshot>"
    state.lookupByName(vm).snapshotCreateXML(xml)


def ours(state: libvirt.virConnect, name: str, label: str = "", vm: str = "test") -> None:
    by_hand(state, name, f"[safepoint v=1 owner=safepoint{label}]", vm)


def test_check_mode_shows_the_plan_as_a_table_and_a_run_applies_it_once(lab: t.Any, state: libvirt.virConnect) -> None:
    for name in ("s1", "s2", "s3"):
        ours(state, name, " policy=nightly")
    by_hand(state, "mine")
    ours(state, "held", " policy=nightly hold=yes hold_by=ann hold_reason=audit")
    options = {
        "backend": "libvirt",
        "uri": lab.test_uri,
        "vm": "test",
        "policy": "nightly",
        "keep_daily": 1,
        "timezone": "Europe/Vienna",
    }
    would, shown = run_module("snapshot_prune", options, "--check", "--diff")
    lines = [line for line in shown.splitlines() if line.startswith(("+", "-")) and line[:3] not in ("+++", "---")]
    assert [line.split()[0] for line in lines] == ["-s1", "-s2"]
    assert "remove  not_kept: is not kept by any rule" in lines[0]
    assert "is on hold by ann (audit)" in shown and "mine" in shown
    assert len(names(state)) == 5
    does, _shown = run_module("snapshot_prune", options)
    (row,) = does["vms"]
    assert (row["action"], row["changed"], would["vms"]) == ("pruned", True, [{**row, "snapshots": would["vms"][0]["snapshots"]}])
    plan = {one["name"]: (one["decision"], one["rules"], one["removed"]) for one in row["snapshots"]}
    assert plan == {
        "s1": ("remove", ["not_kept"], True),
        "s2": ("remove", ["not_kept"], True),
        "s3": ("keep", ["keep_daily"], False),
        "mine": ("keep", ["foreign"], False),
        "held": ("keep", ["held"], False),
    }
    assert row["snapshots"][-1]["reason"] == "held is on hold by ann (audit)"
    assert names(state) == ["held", "mine", "s3"]
    again, _shown = run_module("snapshot_prune", options)
    assert (again["changed"], again["vms"][0]["action"]) == (False, "kept")


def test_expired_snapshots_of_all_vms_of_the_endpoint_are_removed(module: Module, state: libvirt.virConnect) -> None:
    state.createXML("<domain type='test'><name>other</name><memory>8192</memory><os><type>hvm</type></os></domain>")
    for vm in ("test", "other"):
        ours(state, "gone", f" expires={EXPIRED}", vm)
        ours(state, "stays", "", vm)
    failed = module("snapshot_prune", scope="endpoint", all=True)
    assert (failed["error"], failed.get("changed", False)) == ("invalid_option", False)
    assert "confirm=2" in failed["msg"]
    done = module("snapshot_prune", scope="endpoint", expired=True)
    assert [(row["ref"], row["action"]) for row in done["vms"]] == [("other", "pruned"), ("test", "pruned")]
    assert names(state) == names(state, "other") == ["stays"]
    assert module("snapshot_prune", scope="endpoint", all=True, confirm=2)["changed"]
    assert names(state) == names(state, "other") == []


def test_release_removes_holder_and_reason(module: Module) -> None:
    held = module("snapshot", vm="test", name="kept", hold=True, hold_by="ann", hold_reason="incident 4711", expires="1s")
    label = held["vms"][0]["snapshot"]["label"]
    assert (label["hold_by"], label["hold_reason"]) == ("ann", "incident 4711")
    refused = module("snapshot", vm="test", name="kept", state="absent")
    assert refused["error"] == "held" and "by ann (incident 4711)" in refused["msg"]
    assert not module("snapshot_prune", vm="test", expired=True)["changed"]
    released = module("snapshot", vm="test", name="kept", hold=False)
    assert not any(key.startswith("hold") for key in released["vms"][0]["snapshot"]["label"])
    longer = module("snapshot", vm="test", name="kept", expires="7d")
    assert longer["changed"] and not module("snapshot_prune", vm="test", expired=True)["changed"]
    assert module("snapshot", vm="test", name="kept", expires="1s")["changed"]
    pruned = Deadline(60).poll("the expiry", lambda: _if_changed(module("snapshot_prune", vm="test", expired=True)))
    assert pruned["vms"][0]["action"] == "pruned"


def _if_changed(done: dict[str, t.Any]) -> dict[str, t.Any] | None:
    return done if done["changed"] else None

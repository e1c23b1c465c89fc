# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the report says of what was seen."""

from __future__ import annotations

import copy
import json
import typing as t
from datetime import timedelta

import estate
import pytest
from ansible.errors import AnsibleFilterError
from estate import NOW, endpoint, iso, snapshot, vm
from reporting import metrics, page, report

OLD = timedelta(days=5)
Data = dict[str, t.Any]


def said(data: Data) -> list[tuple[str, str]]:
    return [(item["severity"], item["code"]) for item in data["attention"]]


@pytest.mark.parametrize(
    ("name", "description", "group", "product"),
    [
        ("VEEAM BACKUP TEMPORARY SNAPSHOT", "", "backup", "Veeam"),
        ("x", "Please do not delete this snapshot. It is being used by Veeam Backup.", "backup", "Veeam"),
        ("__GX_BACKUP__", "", "backup", "Commvault"),
        ("NBU_SNAPSHOT web01 1764061200", "", "backup", "NetBackup"),
        ("vzdump", "", "backup", "vzdump"),
        ("nakivo_tmp", "", "backup", "NAKIVO"),
        ("_Acronis_1", "", "backup", "Acronis"),
        ("4711", "Created by Rubrik at noon", "backup", "Rubrik"),
        ("before-veeam-upgrade", "ask Veeam people", "person", None),
        ("vzdump-test", "", "person", None),
        ("veeamtest", "", "person", None),
        ("houseproduct 7", "", "backup", "House"),
    ],
)
def test_whose_a_foreign_snapshot_is_is_told_by_its_name_or_description(
    name: str, description: str, group: str, product: str | None
) -> None:
    own = [{"product": "House", "name": "^houseproduct "}]
    data = report([endpoint("e", vm("v", snapshot(name, description=description)))], backup_patterns=own)
    (one,) = data["vms"][0]["snapshots"]
    assert (one["class"], one["product"]) == (group, product)


def test_a_label_says_more_than_a_name() -> None:
    ours = snapshot("vzdump", label={})
    theirs = snapshot("vzdump2", why_not_ours="owner 'awx' made it")
    theirs["label"] = {"owner": "awx", "sig": "abc"}
    one, other = report([endpoint("e", vm("v", ours, theirs))])["vms"][0]["snapshots"]
    assert (one["class"], other["class"], other["product"], other["label"]) == ("ours", "other_owner", "awx", {"owner": "awx"})


def test_what_is_old_is_told_unless_it_is_meant_to_be() -> None:
    meant = [snapshot("held", age=OLD, label={"hold": "yes", "hold_by": "alice", "hold_reason": "audit"})]
    meant += [snapshot("expires", age=OLD, label={"expires": iso(NOW + OLD)})]
    data = report([endpoint("e", vm("v", *meant, snapshot("young")))])
    assert said(data) == [("info", "held")] and data["attention"][0]["what"] == "held is on hold: by alice (audit)"
    assert data["totals"]["over_age"] == 2
    old = [snapshot(f"s{number}", age=OLD) for number in range(5)]
    data = report([endpoint("e", vm("v", *old, snapshot("mine", age=OLD, label={})))])
    assert said(data) == [("warning", "too_old")] * 2
    assert "s0, s1, s2 and 2 more are older than 3 days" in [item["what"] for item in data["attention"]]
    assert said(report([endpoint("e", vm("v", *old))], max_age="6d")) == []


def test_a_change_that_has_not_ended_is_urgent_once_its_time_is_over_by_the_endpoints_clock() -> None:
    lease = NOW + timedelta(minutes=10)
    guard = snapshot("sp-1", label={"state": "guarding", "change": "CHG1", "lease": iso(lease), "run": "45c1179503af"})
    without = snapshot("sp-2", label={"state": "guarding"})
    assert said(report([endpoint("e", vm("v", guard))])) == [("info", "change_under_way")]
    later = endpoint("e", vm("v", guard))
    later["answer"]["now"] = iso(NOW + timedelta(hours=3))
    data = report([later])
    assert said(data) == [("critical", "change_not_ended"), ("warning", "clock")]
    assert "CHG1" in data["attention"][0]["what"] and "2 hours ago" in data["attention"][0]["what"]
    assert "guarded_change_reconcile_run=45c1179503af" in data["attention"][0]["remedy"]
    assert said(report([endpoint("e", vm("v", without))])) == [("critical", "change_not_ended")]
    foreign = {**guard, "ours": False, "why_not_ours": "owner 'safepoint2' made it"}
    assert said(report([endpoint("e", vm("v", foreign))])) == []


def test_what_else_needs_somebody() -> None:
    expired = snapshot("expired", label={"expires": iso(NOW - timedelta(seconds=1))})
    unsigned = snapshot("unsigned", why_not_ours="its label is not signed, and label_key is set")
    unsigned["label"] = {"owner": "safepoint"}
    broken = snapshot("broken", description="[safepoint v=1] [", why_not_ours="it does not say its owner")
    finding = {"code": "consolidation_needed", "msg": "disks", "remedy": "consolidate the disks"}
    rows = [
        vm("a", expired),
        vm("b", unsigned),
        vm("c", broken),
        vm("d", findings=[finding, {"code": "new_one", "msg": "m", "remedy": "r"}]),
        vm("e", error="timed_out", msg="too slow"),
    ]
    data = report([endpoint("e", *rows)])
    assert sorted((item["vm"], item["severity"], item["code"]) for item in data["attention"]) == [
        ("a", "warning", "expired"),
        ("b", "warning", "label_not_valid"),
        ("c", "warning", "label_not_valid"),
        ("d", "critical", "consolidation_needed"),
        ("d", "warning", "new_one"),
        ("e", "critical", "timed_out"),
    ]
    assert [one["name"] for one in data["vms"]][:2] == ["d", "e"]
    assert data["totals"]["findings"] == {"consolidation_needed": 1, "new_one": 1}


def test_a_chain_is_what_the_vm_runs_on_and_not_all_there_is() -> None:
    names = ["a", "b", "c", "d"]
    chain = [snapshot(name, parent=parent) for name, parent in zip(names, [None, *names])]
    on_top = [*chain[:-1], {**chain[-1], "current": True}]
    beside = [{**chain[0], "current": True}, *chain[1:]]
    data = report([endpoint("e", vm("v", *on_top), vm("w", *beside))])
    assert {one["name"]: one["chain"] for one in data["vms"]} == {"v": 4, "w": 1}
    assert [(item["vm"], item["code"]) for item in data["attention"]] == [("v", "long_chain")]
    assert said(report([endpoint("e", vm("v", *on_top))], max_chain=4)) == []


def test_an_endpoint_that_was_not_seen_comes_first_and_counts_nothing() -> None:
    lost = {
        "name": "gone",
        "backend": "vsphere",
        "where": "https://u:p@gone/sdk?x=y",
        "answer": {"error": "connection_failed", "msg": "why"},
    }
    crashed = {"name": "mute", "backend": "proxmox", "answer": {"unreachable": True}}
    old = endpoint("e", vm("v", error="timed_out", msg="m"))
    data = report([old, lost, crashed])
    assert [item["endpoint"] for item in data["attention"]] == ["gone", "mute", "e"]
    assert [one["seen"] for one in data["endpoints"]] == [True, False, False]
    assert data["endpoints"][1]["where"] == "https://gone/sdk" and data["endpoints"][1]["reason"] == "why"
    assert data["endpoints"][2]["totals"] is None and list(data["backends"]) == ["libvirt"]


def test_the_same_input_is_the_same_report_and_stays_as_it_was() -> None:
    answers = estate.estate(vms=60, snapshots=200)
    before = copy.deepcopy(answers)
    one, other = report(answers, audit=estate.audit()), report(answers, audit=estate.audit())
    assert json.dumps(one) == json.dumps(other) and page(one) == page(other)
    assert answers == before
    assert len(one["audit"]["entries"]) == 12 and one["audit"]["unreadable"] == 1
    assert one["audit"]["entries"][0]["time"] > one["audit"]["entries"][1]["time"]


def written(event: str, call: str = "c1", number: int = 1, **more: t.Any) -> str:
    """A line of an audit file."""
    fields = {"event": event, "call": call, "id": f"{call}-{number}", "time": iso(NOW - timedelta(hours=1)), "error": None}
    where = {"endpoint": "qemu+ssh://root@kvm01/system?x=y", "backend": "libvirt", "vm": f"vm{number}", "vm_id": f"id{number}"}
    what = {"module": "safepoint.vm.snapshot", "action": "take", "snapshot": "x", "ends_by": iso(NOW - timedelta(minutes=40))}
    return json.dumps({**fields, **where, **what, **more})


def test_a_write_without_an_outcome_is_urgent_once_its_call_must_have_ended() -> None:
    answers = [endpoint("kvm", vm("vm1")) | {"where": "qemu+ssh://kvm01/system"}]
    ended = [written("intent"), written("outcome")]
    assert said(report(answers, audit=ended)) == []
    killed = [*ended, written("intent", number=2), written("intent", number=3), written("outcome", number=3)]
    data = report(answers, audit=killed)
    assert said(data) == [("critical", "write_without_outcome")]
    found = data["attention"][0]
    assert (found["endpoint"], found["vm"], found["vm_id"], found["age_seconds"]) == ("kvm", "vm2", "id2", 3600)
    assert [one["id"] for one in data["audit"]["entries"]] == ["c1-2"]
    assert "no outcome" in page(data)
    running = [written("intent", number=2, ends_by=iso(NOW + timedelta(minutes=1)))]
    assert said(report(answers, audit=running)) == [("info", "write_under_way")]
    # Another call has written to that VM since, and read its state before; one that failed settles nothing.
    later = [written("intent", "c2", 2), written("outcome", "c2", 2)]
    assert said(report(answers, audit=[*killed, *later])) == []
    failed = [written("intent", "c2", 2), written("outcome", "c2", 2, error="locked")]
    assert said(report(answers, audit=[*killed, *failed])) == [("critical", "write_without_outcome")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_age": "soon"}, "max_age='soon'"),
        ({"now": "today"}, "now='today'"),
        ({"backup_patterns": [{"product": "x", "name": "("}]}, "the pattern of x"),
        ({"backup_patterns": [{"product": "x"}]}, "is no pattern"),
    ],
)
def test_an_option_that_is_none_is_named(options: Data, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words.replace("(", r"\(")):
        report([endpoint("e")], **options)


def test_parents_in_a_circle_and_a_thousand_forks_are_drawn() -> None:
    circle = [snapshot("a", parent="b"), snapshot("b", parent="a")]
    forks = [snapshot("0")]
    for number in range(1, 1500):
        forks += [snapshot(f"{number}", parent=f"{number - 1}"), snapshot(f"{number}x", parent=f"{number - 1}")]
    shown = page(report([endpoint("e", vm("v", *circle), vm("w", *forks))]))
    for name in ("a", "b", "1499", "1499x"):
        assert shown.count(f"<b><bdi>{name}</bdi></b>") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2"),
        ({"format": "other"}, "format 'other'"),
        ({"totals": None}, "what the filter snapshot_report returns"),
        ({"vms": [{"name": "web01"}]}, "what the filter snapshot_report returns"),
    ],
)
@pytest.mark.parametrize("show", [page, metrics])
def test_data_that_is_no_report_is_refused_and_keys_that_are_new_are_not(
    show: t.Callable[[Data], str], change: Data, words: str
) -> None:
    data = report([endpoint("e", vm("v", snapshot("x")))])
    with pytest.raises(AnsibleFilterError, match=words):
        show({**data, **change})
    assert show({**data, "new": 1, "vms": [{**one, "new": 1} for one in data["vms"]]}) == show(data)

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The listing as users see it: filters, drift, signed labels, and contradictory options."""

from __future__ import annotations

import json
import typing as t

import libvirt
import pytest
from running import Module, run_module

KEY = "0123456789abcdef-secret"


def names(result: dict[str, t.Any]) -> list[str]:
    return [one["name"] for one in result["vms"][0]["snapshots"]]


def test_listing_can_be_filtered_by_name_label_age_and_owner(module: Module, state: libvirt.virConnect) -> None:
    module("snapshot", vm="test", name="nightly-1", labels={"stage": "test"})
    module("snapshot", vm="test", name="weekly-1")
    state.lookupByName("test").snapshotCreateXML("<domainsnapshot><name>mine</name></domainsnapshot>")
    assert names(module("snapshot_info", vm="test", name_pattern="*-1")) == ["nightly-1", "weekly-1"]
    assert names(module("snapshot_info", vm="test", match_labels={"stage": "test"})) == ["nightly-1"]
    assert names(module("snapshot_info", vm="test", ownership="foreign")) == ["mine"]
    assert names(module("snapshot_info", vm="test", older_than="1h")) == []
    assert len(names(module("snapshot_info", vm="test", newer_than="2020-01-01"))) == 3


def test_scope_endpoint_lists_all_vms(module: Module, state: libvirt.virConnect) -> None:
    state.createXML("<domain type='test'><name>other</name><memory>8192</memory><os><type>hvm</type></os></domain>")
    module("snapshot", vm="other", name="x")
    seen = module("snapshot_info", scope="endpoint")
    assert [(row["vm"]["name"], len(row["snapshots"])) for row in seen["vms"]] == [("other", 1), ("test", 0)]


def test_check_mode_with_diff_shows_what_a_revert_would_undo(lab: t.Any, module: Module, state: libvirt.virConnect) -> None:
    module("snapshot", vm="test", name="a")
    module("snapshot", vm="test", name="lost")
    domain = state.lookupByName("test")
    domain.setVcpus(1)
    before = module("snapshot_info", vm="test", drift=True)["vms"][0]
    drift = before["snapshots"][0]["drift"][0]
    assert (drift["what"], drift["now"]) == ("cpus", 1)
    options = {"backend": "libvirt", "uri": lab.test_uri, "vm": "test", "name": "a", "discard_newer": True}

    def changes(*flags: str) -> tuple[dict[str, t.Any], list[str]]:
        result, shown = run_module("snapshot_revert", options, *flags)
        return result, [line for line in shown.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]

    would, shown = changes("--check", "--diff")
    assert "-cpus: 1" in shown and f"+cpus: {drift['then']}" in shown
    assert any(line.startswith("-  lost ") for line in shown) and not any(line.startswith("+  lost ") for line in shown)
    assert domain.snapshotNum() == 2
    does, really = changes("--diff")
    assert really == shown
    assert would["vms"][0]["also_removed"] == does["vms"][0]["also_removed"] == ["lost"]


def test_select_newest_reverts_to_the_newest_match(module: Module) -> None:
    module("snapshot", vm="test", name="good", labels={"quality": "good"})
    module("snapshot", vm="test", name="bad")
    done = module("snapshot_revert", vm="test", select="newest", match_labels={"quality": "good"})
    assert done["vms"][0]["snapshot"]["name"] == "good"
    failed = module("snapshot_revert", vm="test", select="before", time="2020-01-01T00:00:00Z")
    assert (failed["error"], failed["changed"]) == ("snapshot_not_found", False)
    assert "2020-01-01T00:00:00Z" in failed["msg"] and "good, bad" in failed["msg"]


def test_children_remove_removes_children(module: Module) -> None:
    for name in ("a", "b", "c"):
        module("snapshot", vm="test", name=name)
    done = module("snapshot", vm="test", name="b", state="absent", children="remove")
    assert done["vms"][0]["also_removed"] == ["c"]
    assert names(module("snapshot_info", vm="test")) == ["a"]


def test_label_key_makes_unsigned_snapshots_foreign_and_is_never_shown(lab: t.Any, module: Module) -> None:
    options = {"backend": "libvirt", "uri": lab.test_uri, "vm": "test", "name": "signed"}
    made, shown = run_module("snapshot", {**options, "label_key": KEY}, "-vvv")
    assert KEY not in shown.split("=> {", 1)[1] and KEY not in json.dumps(made)
    assert made["vms"][0]["snapshot"]["ours"] and KEY not in made["vms"][0]["snapshot"]["label"]["sig"]
    by_env, shown = run_module(
        "snapshot", {**options, "state": "absent"}, "-vvv", SAFEPOINT_LABEL_KEY="another key of some length"
    )
    assert by_env["error"] == "foreign" and "another key of" not in json.dumps(by_env)
    gone, _shown = run_module("snapshot", {**options, "state": "absent"}, SAFEPOINT_LABEL_KEY=KEY)
    assert gone["vms"][0]["action"] == "removed"


def test_empty_environment_variable_counts_as_not_set(lab: t.Any, state: libvirt.virConnect) -> None:
    options = {"backend": "libvirt", "uri": lab.test_uri, "vm": "test", "name": "x"}
    made, _shown = run_module("snapshot", options, SAFEPOINT_OWNER="", SAFEPOINT_LABEL_KEY="")
    assert made["vms"][0]["snapshot"]["label"] == {"owner": "safepoint"}


def test_each_foreign_snapshot_has_the_reason(module: Module, state: libvirt.virConnect) -> None:
    xml = "<domainsnapshot><name>odd</name><description>[safepoint v=1 owner=safepoint] [</description></domainsnapshot>"
    state.lookupByName("test").snapshotCreateXML(xml)
    (one,) = module("snapshot_info", vm="test")["vms"][0]["snapshots"]
    assert one["ours"] is False and "label line" in one["why_not_ours"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("snapshot_info", {}, ["vm", "vms", "scope"]),
        ("snapshot_info", {"scope": "endpoint", "vm": "test"}, ["scope=endpoint", "vm"]),
        ("snapshot_info", {"vm": "test", "older_than": "yesterday"}, ["older_than", "yesterday", "72h"]),
        ("snapshot_info", {"vm": "test", "label_key": "short"}, ["label_key", "16", "openssl"]),
        ("snapshot", {"vm": "test", "name": "x", "children": "remove"}, ["children=remove", "state=absent"]),
        ("snapshot", {"vm": "test", "name": "x", "state": "absent", "labels": {"a": "b"}}, ["labels", "state=absent"]),
        ("snapshot", {"vm": "test", "name": "x", "state": "absent", "expires": "1h"}, ["expires", "state=absent"]),
        ("snapshot", {"vm": "test", "name": "x", "kind": "extern"}, ["kind", "external", "extern"]),
        ("snapshot", {"vm": "test", "name": "x", "kind": "external"}, ["test", "external"]),
        ("snapshot_revert", {"vm": "test", "select": "before"}, ["time", "select"]),
        ("snapshot_revert", {"vm": "test", "select": "newest", "time": "1h"}, ["time", "select=before"]),
        ("snapshot_revert", {"vm": "test", "name": "x", "match_labels": {"a": "b"}}, ["match_labels", "select"]),
        ("snapshot_revert", {"vm": "test", "name": "x", "select": "newest"}, ["name", "select"]),
        ("snapshot_revert", {"vm": "test"}, ["name", "id", "select"]),
        ("snapshot_info", {"vms": None}, ["no VM is set"]),
        ("snapshot", {"vms": None, "name": "x"}, ["no VM is set"]),
        ("snapshot", {"vm": "test", "id": None, "state": "absent"}, ["no snapshot is set"]),
        ("snapshot", {"vm": ["test", "other"], "name": "x"}, ["is a list", "vms: "]),
        ("snapshot", {"vms": "test, other", "name": "x"}, ["vms: ' other' begins or ends with a space"]),
        ("snapshot", {"vm": "test", "name": "x", "audit_file": "/tmp/a\0b"}, ["audit_file contains a NUL"]),
        ("snapshot", {"vm": "test", "name": f"x-{KEY}", "label_key": KEY}, ["name contains the value of a secret option"]),
        ("snapshot", {"vm": "test.example.com", "name": "x"}, ["did you mean test?"]),
    ],
)
def test_contradictory_options_are_named(
    module: Module, state: libvirt.virConnect, name: str, options: dict[str, t.Any], words: list[str]
) -> None:
    failed = module(name, **options)
    for word in words:
        assert word in failed["msg"]
    assert state.lookupByName("test").snapshotNum() == 0

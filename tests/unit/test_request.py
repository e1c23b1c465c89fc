# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Wrong options: refused before a connection is opened, with the option and the fix in the message."""

from __future__ import annotations

import typing as t
from collections.abc import Sequence

import pytest
from fake import FakeDriver, Hypervisor

from ansible_collections.safepoint.vm.plugins.module_utils._options import OPTIONS
from ansible_collections.safepoint.vm.plugins.module_utils._run import Answer, Call, perform

SECRET = "opensesame"


def call(module: str, *, others: Sequence[str] = (), **options: t.Any) -> tuple[Answer, Hypervisor]:
    """Return a call with options as Ansible has checked them, with defaults for those that are not set."""
    hypervisor = Hypervisor()
    for name in ("web01", *others):
        hypervisor.add(name)
    spec = OPTIONS[module]["argument_spec"]
    params = {option: one.get("default") for option, one in spec.items()}
    params.update(backend="libvirt", uri="test:///default", **options)
    answer = perform(Call(module, params, False, False, {SECRET}), connect=lambda *_given, **_more: FakeDriver(hypervisor))
    return answer, hypervisor


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        ("snapshot", {"vms": None, "name": "x"}, ["no VM is set", "vm or vms", "targets"]),
        ("snapshot_info", {"vms": None}, ["no VM is set", "scope to endpoint"]),
        ("snapshot_revert", {"vm": None, "name": "x"}, ["no VM is set"]),
        ("snapshot_prune", {"vms": None, "keep_last": 1}, ["no VM is set", "scope to endpoint"]),
        ("snapshot", {"vm": "web01", "name": None, "state": "absent"}, ["no snapshot is set"]),
        ("snapshot", {"vm": "web01", "id": None, "state": "absent"}, ["no snapshot is set", "name or id"]),
        ("snapshot", {"vm": "web01", "name": " "}, ["name is empty"]),
        ("snapshot_revert", {"vm": "web01", "select": None}, ["no snapshot is set", "or select"]),
        ("snapshot_revert", {"vm": "web01", "select": "before", "time": None}, ["select=before requires time"]),
        ("snapshot", {"targets": [{"vm": None, "id": "a", "match_labels": None}]}, ["targets: vm", "empty"]),
        ("snapshot", {"targets": [{"vm": "web01", "id": None, "match_labels": None}]}, ["targets: id is empty"]),
        ("snapshot", {"targets": None, "name": "x"}, ["no VM is set"]),
        ("snapshot", {"vm": "['web01', 'web02']", "name": "x"}, ["vm=['web01', 'web02'] is a list", "vms: ['web01', 'web02']"]),
        ("snapshot", {"vm": '["web01"]', "name": "x"}, ["is a list", 'vms: ["web01"]']),
        ("snapshot_info", {"vm": "[]"}, ["is a list"]),
        ("snapshot", {"vms": ["web01", " web02"], "name": "x"}, ["vms: ' web02' begins or ends with a space", "'web02'"]),
        ("snapshot", {"vms": ["web01\n"], "name": "x"}, ["begins or ends with a space"]),
        ("snapshot", {"vms": ["web01 web02"], "name": "x"}, ["'web01 web02'"]),
        ("snapshot", {"vms": [None], "name": "x"}, ["vms has an empty entry"]),
        ("snapshot", {"vms": [""], "name": "x"}, ["vms has an empty entry"]),
        ("snapshot", {"vm": "web01", "name": "x", "audit_file": "/tmp/a\0b"}, ["audit_file contains a NUL"]),
        ("snapshot", {"vm": "web01", "name": "x", "audit_file": "/tmp/\ud800"}, ["audit_file contains an unpaired surrogate"]),
        ("snapshot", {"vm": "web01", "name": "x", "labels": {"a": "\udcff"}}, ["labels contains an unpaired surrogate"]),
        ("snapshot", {"vm": "web01", "name": "x", "username": "\ud800"}, ["username contains an unpaired surrogate"]),
        ("snapshot", {"vm": "web01", "name": f"before-{SECRET}"}, ["name contains the value of a secret option"]),
        ("snapshot", {"vm": "web01", "id": SECRET}, ["id contains the value of a secret option"]),
        ("snapshot", {"vms": ["web01", f"{SECRET}1"], "name": "x"}, ["vms contains the value of a secret option"]),
        ("snapshot", {"vm": "web01", "name": "x", "description": f"so {SECRET}"}, ["description contains the value of a secret"]),
        ("snapshot", {"vm": "web01", "name": "x", "labels": {"a": SECRET}}, ["labels contains the value of a secret option"]),
        ("snapshot", {"vm": "web01", "name": "x", "labels": {SECRET: "a"}}, ["labels contains the value of a secret option"]),
        ("snapshot_info", {"vm": "web01", "name_pattern": f"{SECRET}*"}, ["name_pattern contains the value of a secret option"]),
        ("snapshot_info", {"vm": "web01", "match_labels": {"a": SECRET}}, ["match_labels contains the value of a secret option"]),
        ("snapshot_prune", {"vm": "web01", "keep_last": 1, "name_pattern": " "}, ["name_pattern is empty"]),
        ("snapshot_prune", {"vm": "web01", "keep_last": 1, "policy": SECRET}, ["policy contains the value of a secret option"]),
    ],
)
def test_invalid_options_are_refused_before_any_request(module: str, options: dict[str, t.Any], words: list[str]) -> None:
    answer, hypervisor = call(module, **options)
    assert answer.failure is not None
    assert answer.failure["error"] in ("invalid_option", "vm_not_found")
    for word in words:
        assert word in answer.failure["msg"]
    assert SECRET not in answer.failure["msg"]
    assert hypervisor.actions == []


@pytest.mark.parametrize("module", ["snapshot_info", "snapshot_prune"])
def test_masked_vm_name_of_the_endpoint_is_refused(module: str) -> None:
    """Ansible would mask it in the result, so that nobody knows which VM is meant."""
    policy = {"expired": True} if module == "snapshot_prune" else {}
    answer, hypervisor = call(module, scope="endpoint", others=["db01", f"{SECRET}-01"], **policy)
    assert answer.failure and answer.failure["error"] == "invalid_option"
    assert "vms" not in answer.result and not hypervisor.actions

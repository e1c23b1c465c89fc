# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role snapshot_retention, and the playbook that runs it, against libvirt's test driver."""

from __future__ import annotations

import json
import re

import pytest
from hypervisor import Hypervisor
from stage import Stage

pytestmark = [pytest.mark.core_versions, pytest.mark.newest]

GONE = "[safepoint v=1 owner=safepoint expires=2020-01-01T00:00:00Z]"
OURS = "[safepoint v=1 owner=safepoint]"
SECRET = "s3cret-of-the-tests"


def names(hypervisor: Hypervisor, vm: str) -> list[str]:
    return sorted(one["name"] for one in hypervisor.labels(vm))


def estate(hypervisor: Hypervisor) -> None:
    """Two VMs, each with one that has expired, two of ours and one of a person."""
    for vm in ("web01", "web02"):
        hypervisor.define(vm)
        for name, label in (("gone", GONE), ("sa", OURS), ("sb", OURS), ("mine", "")):
            hypervisor.take(vm, name, label)


def test_several_endpoints_are_pruned_each_by_its_policy_and_one_that_fails_stops_no_other(
    stage: Stage, hypervisor: Hypervisor
) -> None:
    estate(hypervisor)
    playbook = f"""
        - hosts: localhost
          gather_facts: false
          tasks:
            - name: Prune
              ansible.builtin.include_role:
                name: safepoint.vm.snapshot_retention
              vars:
                snapshot_retention_apply: true
                snapshot_retention_targets:
                  - name: the dead one
                    endpoint: {{backend: vsphere, hostname: 127.0.0.1, port: 1, username: u, password: {SECRET}, connect_timeout: 5s}}
                    scope: endpoint
                  - endpoint: {json.dumps(hypervisor.connection)}
                    vms: [web01]
                    policy: {{keep_last: 1}}
                  - name: the second
                    endpoint: {json.dumps(hypervisor.connection)}
                    vms: [web02]
    """
    run = stage.play(playbook, "-v")
    assert run.rc == 2
    assert run.said("the dead one: ") and run.said("refused")
    assert run.said(f"{hypervisor.uri}: 2 of 4 snapshots on 1 VMs removed")
    assert run.said("the second: 1 of 4 snapshots on 1 VMs removed")
    assert SECRET not in run.output
    assert names(hypervisor, "web01") == ["mine", "sb"]
    assert names(hypervisor, "web02") == ["mine", "sa", "sb"]


def test_the_role_only_plans_and_refuses_a_misspelled_variable(stage: Stage, hypervisor: Hypervisor) -> None:
    estate(hypervisor)
    playbook = """
        - hosts: localhost
          gather_facts: false
          tasks:
            - ansible.builtin.include_role:
                name: safepoint.vm.snapshot_retention
    """
    variables = {"snapshot_retention_endpoint": hypervisor.connection, "snapshot_retention_vms": ["web01"]}
    run = stage.play(playbook, "-e", json.dumps(variables))
    assert run.rc == 0 and run.said("1 of 4 snapshots on 1 VMs would be removed")
    run = stage.play(playbook, "-e", json.dumps({**variables, "snapshot_retention_aply": True}))
    assert run.rc == 2 and run.said("unknown variable snapshot_retention_aply; did you mean snapshot_retention_apply?")
    assert names(hypervisor, "web01") == ["gone", "mine", "sa", "sb"]
    run = stage.play(playbook, "-e", json.dumps({**variables, "snapshot_retention_apply": True}))
    assert run.rc == 0 and run.said("1 of 4 snapshots on 1 VMs removed")
    assert names(hypervisor, "web01") == ["mine", "sa", "sb"]


def test_the_playbook_only_plans_until_it_is_told_to_apply_and_needs_a_scope(stage: Stage, hypervisor: Hypervisor) -> None:
    estate(hypervisor)
    before = names(hypervisor, "web01")

    def prune(**extra: object) -> tuple[int, str, int]:
        variables = {"snapshot_retention_endpoint": hypervisor.connection, **extra}
        run = stage.play("- import_playbook: safepoint.vm.prune", "-e", json.dumps(variables))
        return run.rc, " ".join(run.output.split()), run.recap("localhost").get("changed", -1)

    rc, said, _changed = prune()
    assert rc == 2 and "snapshot_retention_scope" in said
    everywhere = {"snapshot_retention_scope": "endpoint"}
    rc, said, changed = prune(**everywhere)
    assert (rc, changed) == (0, 1) and "2 of 8 snapshots on 3 VMs would be removed" in said
    assert re.search(r"-gone .* remove expired: expired at 2020-01-01T00:00:00Z", said)
    assert names(hypervisor, "web01") == before
    rc, said, changed = prune(**everywhere, prune_apply=True)
    assert (rc, changed) == (0, 1) and "2 of 8 snapshots on 3 VMs removed" in said
    assert names(hypervisor, "web01") == names(hypervisor, "web02") == ["mine", "sa", "sb"]
    rc, said, changed = prune(**everywhere, prune_apply=True, snapshot_retention_policy={"expired": True, "keep_lst": 1})
    assert rc == 2 and "keep_lst" in said
    assert names(hypervisor, "web01") == ["mine", "sa", "sb"]


def test_check_mode_tells_what_would_change(stage: Stage, hypervisor: Hypervisor) -> None:
    estate(hypervisor)
    variables = {
        "snapshot_retention_endpoint": hypervisor.connection,
        "snapshot_retention_vms": ["web01"],
        "snapshot_retention_policy": {"all": True, "confirm": 1},
        "prune_apply": True,
    }
    run = stage.play("- import_playbook: safepoint.vm.prune", "--check", "-e", json.dumps(variables))
    assert (run.rc, run.recap("localhost")["changed"]) == (0, 1)
    assert run.said("3 of 4 snapshots on 1 VMs would be removed")
    assert names(hypervisor, "web01") == ["gone", "mine", "sa", "sb"]

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role guarded_change refuses before anything is written, with what code word; on the simulated cluster, which counts the writes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from change import GOOD, Change
from hypervisor import ProxmoxHypervisor
from pve_server import PveServer
from stage import Stage

pytestmark = [pytest.mark.core_versions, pytest.mark.newest]


@pytest.fixture
def cluster() -> Iterator[PveServer]:
    with PveServer() as pve:
        yield pve


@pytest.fixture
def change(stage: Stage, cluster: PveServer) -> Change:
    """web01 is well; the other hosts have each a VM that is not."""
    change = Change(stage, ProxmoxHypervisor(cluster))
    change.stage.write("change.yml", GOOD)
    for name, made in (
        ("web02", {"storage": ["dir-qcow2", "raw"]}),
        ("web03", {}),
        ("web04", {}),
    ):
        change.stage.guest(name)
        vmid = cluster.make_guest(name, **made)
        for number in range(3 if name == "web04" else 0):
            cluster.snapshot_by_hand(vmid, f"old{number}")
        if name == "web03":
            cluster.set_guest(vmid, lock="backup")
    cluster.reset_counters()
    return change


def writes(cluster: PveServer) -> int:
    return sum(number for call, number in cluster.counters().items() if not call.startswith("GET"))


def test_each_reason_has_its_code_and_remedy_and_nothing_is_written(change: Change, cluster: PveServer) -> None:
    run = change.run(entry="preflight", tasks="change.yml")
    assert run.rc == 2
    assert {name: run.recap(name)["failed"] for name in change.stage.guests} == {"web01": 0, "web02": 1, "web03": 1, "web04": 0}
    assert run.said(
        "Nothing was changed: unsupported: Proxmox VE failed to allow a snapshot of web02: snapshot feature is not available"
    )
    assert run.said("move the disk, for example to qcow2")
    assert run.said("Nothing was changed: locked: web03 has the lock 'backup': ")
    assert run.said("web04 has a chain of 3 snapshots")
    assert writes(cluster) == 0


def test_a_vm_that_cannot_be_guarded_may_be_left_out(change: Change, cluster: PveServer) -> None:
    run = change.run(
        hosts="web01,web02",
        on_unsupported="skip",
        head="post_tasks: [{ansible.builtin.debug: {msg: 'AFTER {{ inventory_hostname }} {{ guarded_change_skipped }}'}}]",
    )
    assert run.rc == 0
    assert run.said("web02 is left as it is, without a change: unsupported: ")
    assert run.said("AFTER web01 False") and run.said("AFTER web02 True")
    assert [line for line in run.output.splitlines() if line == "changed: [web02]"] == []
    assert change.labels() == []
    assert run.calls("Take the checkpoints") == ["web01"]

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The commands in messages about libvirt VMs can be pasted into a shell, for any VM name and any host."""

from __future__ import annotations

import dataclasses
import re
import shlex

import pytest

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.limits import (
    MIGRATED_AWAY,
    bitmaps_hinder,
    chain_near_limit,
    findings_of_state,
    has_crashed,
    left_by_dead_daemon,
    why_not_deeper,
    why_not_written,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.qcow2 import Kept
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.records import Record, differing
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.removal import Present, why_not_removed
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.ways import Daemon, with_obstacles

VM = "web 01; reboot"
WHERE = "qemu+ssh://root@host/system?socket=/run/x"
ATTACHED = "<domainsnapshot><disks><disk name='vdb' snapshot='external'/></disks></domainsnapshot>"


def snapshot(name: str, kind: str, parent: str | None = None) -> Snapshot:
    whole = Snapshot(name, name, None, parent, "", memory=False, consistency="crash", current=False)
    return dataclasses.replace(whole, kind=kind)


def messages() -> dict[str, str | None]:
    daemon = Daemon(11_003_000, True, WHERE)
    outer, inner = snapshot("a", "external"), snapshot("b", "internal", "a")
    away = Present(VM, WHERE, up=False, disks=frozenset(), saved=True, restored=False)
    awake = Present(VM, WHERE, up=True, disks=frozenset(), saved=False, restored=True)
    near = chain_near_limit(VM, 15, WHERE)
    left = left_by_dead_daemon(VM, (3, 9), where=WHERE)
    differs = differing(VM, Record("a", 1, {}), "vda", "/x", [Kept("1", "a", 10_000)], where=WHERE)
    return {
        "checkpoints": bitmaps_hinder(VM, ["monday"], WHERE),
        "migrated": why_not_written(VM, WHERE),
        "migrated finding": findings_of_state(VM, *MIGRATED_AWAY, where=WHERE)[0].remedy,
        "crashed": has_crashed(VM, WHERE),
        "chain": near.remedy if near else None,
        "deep chain": why_not_deeper(VM, 22, WHERE),
        "restored": why_not_removed(outer, "<domainsnapshot/>", awake),
        "unplugged": why_not_removed(outer, ATTACHED, dataclasses.replace(awake, restored=False)),
        "old daemon": with_obstacles(VM, [outer], Daemon(9_000_000, False, WHERE))[0].obstacles["revert"],
        "left": left.remedy if left else None,
        "saved": why_not_removed(outer, "<domainsnapshot/>", away),
        "branch": with_obstacles(VM, [outer], daemon, branch_lost=True)[0].obstacles["revert"],
        "mixed": with_obstacles(VM, [outer, inner], daemon)[0].obstacles["remove"],
        "differs": differs.remedy if differs else None,
    }


@pytest.mark.parametrize("case", sorted(messages()))
def test_each_command_names_the_daemon_and_the_vm_as_one_word_each(case: str) -> None:
    text = messages()[case] or ""
    commands = re.findall(r"virsh (?:'[^']*'|[^\s')]+| )*", text)
    assert commands
    for command in commands:
        words = shlex.split(command)
        assert words[:3] == ["virsh", "-c", WHERE] and words[4] == VM, command

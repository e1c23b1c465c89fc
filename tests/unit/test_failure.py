# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The error message of a call in which some VMs failed."""

from __future__ import annotations

import typing as t

from ansible_collections.safepoint.vm.plugins.module_utils._operations.failure import failure


def row(ref: str, error: str | None = None, msg: str = "") -> dict[str, t.Any]:
    return {"ref": ref, "changed": False, **({"error": error, "msg": msg or f"no VM {ref!r}"} if error else {})}


def test_no_failure_gives_no_message() -> None:
    assert failure([]) is None
    assert failure([row("a"), row("b")]) is None


def test_single_vm_gives_its_own_message() -> None:
    assert failure([row("a", "vm_not_found", "no VM 'a'")]) == {"error": "vm_not_found", "msg": "no VM 'a'"}


def test_message_names_only_the_causes() -> None:
    rows = [
        row("a", "undone", "was undone"),
        row("b"),
        row("c", "locked", "is locked"),
        row("d", "not_started", "was not started"),
    ]
    assert failure(rows) == {"error": "locked", "msg": "1 of 4 VMs failed. c: is locked"}


def test_message_names_ten_of_300_missing_vms_and_counts_the_rest() -> None:
    seen = failure(
        [
            row(f"web{number:03}", "vm_not_found", f"libvirt at qemu:///system has no VM {number}; check its name")
            for number in range(300)
        ]
    )
    assert seen is not None
    assert seen["msg"].startswith("300 of 300 VMs failed. web000: libvirt at")
    assert seen["msg"].count("has no VM") == 10
    assert seen["msg"].endswith("; and 290 more with the error vm_not_found")
    assert len(seen["msg"]) < 1000


def test_message_has_each_cause_once() -> None:
    rows = [row(f"a{number}", "connection_failed", "kvm01 does not answer") for number in range(30)]
    rows += [row("b", "locked", "is locked"), row("c", "vm_not_found"), row("d", "vm_not_found")]
    seen = failure(rows)
    assert seen is not None
    assert seen["msg"] == (
        "33 of 33 VMs failed. a0, a1, a2, a3, a4, a5, a6, a7: kvm01 does not answer; and 22 more with the error connection_failed; b: is locked; "
        "c: no VM 'c'; and 1 more with the error vm_not_found"
    )

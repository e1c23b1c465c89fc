# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two operations on one VM at the same time, on real QEMU."""

from __future__ import annotations

import typing as t
from concurrent.futures import ThreadPoolExecutor

import libvirt
import pytest
from libvirt_kit import Make, apply, domain, take

from ansible_collections.safepoint.vm.plugins.module_utils._model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Request
from ansible_collections.safepoint.vm.plugins.module_utils._plans import Absent, Present

pytestmark = pytest.mark.qemu


def before_the_next(monkeypatch: pytest.MonkeyPatch, method: str, happens: t.Callable[[], object]) -> None:
    """Let something happen between our last look and this call of libvirt's library, once."""
    real = getattr(libvirt.virDomain, method)
    left = [happens]

    def call(*args: t.Any) -> t.Any:
        if left:
            left.pop()()
        return real(*args)

    monkeypatch.setattr(libvirt.virDomain, method, call)


def test_a_snapshot_that_is_removed_while_it_is_labelled_stays_removed(
    lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = tiny("relabelled", paused=True)
    take(lab.uri, vm, "x")
    person = domain(lab, vm)
    taken = person.snapshotLookupByName("x").getXMLDesc()
    before_the_next(monkeypatch, "snapshotCreateXML", lambda: person.snapshotLookupByName("x").delete())
    done = apply(lab.uri, Present(Request(name="x", labels={"step": "two"})), vm)
    # It is to be present: there is none any more, so that one is taken, with its data.
    assert (done.word, done.error) == ("created", None)
    assert person.snapshotLookupByName("x").getXMLDesc() != taken
    person.revertToSnapshot(person.snapshotLookupByName("x"), libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED)


def check_label_against_delete(lab: t.Any, vm: str, rounds: int) -> None:
    person = domain(lab, vm)
    with ThreadPoolExecutor(2) as pool:
        for number in range(rounds):
            take(lab.uri, vm, "x")
            label = pool.submit(apply, lab.uri, Present(Request(labels={"step": str(number)})), Target(vm, "x"))
            delete = pool.submit(apply, lab.uri, Absent(Request(name="x")), vm)
            labelled, deleted = label.result(), delete.result()
            assert (deleted.word, deleted.error) == ("removed", None)
            # Of a label that was first the last look does not see the snapshot any more.
            assert labelled.error is None or labelled.error.code in ("snapshot_not_found", "unverified"), labelled.error
            assert person.snapshotListNames() == []


def test_a_label_that_meets_a_removal_leaves_no_record_without_data(lab: t.Any, tiny: Make) -> None:
    check_label_against_delete(lab, tiny("labels", paused=True), 15)


@pytest.mark.slow
def test_a_label_that_meets_a_removal_leaves_no_record_with_a_newer_libvirt(new_lab: t.Any, newer: Make) -> None:
    check_label_against_delete(new_lab, newer("labels", paused=True), 60)

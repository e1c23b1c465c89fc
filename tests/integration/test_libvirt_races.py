# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two operations on one VM at the same time, on real QEMU."""

from __future__ import annotations

import contextlib
import time
import typing as t
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from xml.etree import ElementTree

import libvirt
import pytest
from kit import pruning
from libvirt_kit import Make, apply, domain, is_busy, listed, look, power, qemu_pid, stopped, stopped_when, take, until

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target, Vm
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Create
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.actions import _new_files
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.driver import LibvirtDriver
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

pytestmark = pytest.mark.qemu


def before_the_next(
    monkeypatch: pytest.MonkeyPatch, method: str, happens: t.Callable[[], object], *, of: type = libvirt.virDomain
) -> None:
    """Run an action once between our last read and the next call of this function, by default in the libvirt library."""
    real = getattr(of, method)
    left = [happens]

    def call(*arguments: t.Any) -> t.Any:
        if left:
            left.pop()()
        return real(*arguments)

    monkeypatch.setattr(of, method, call)


def test_snapshot_removed_during_labelling_stays_removed(lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = tiny("relabelled", paused=True)
    take(lab.uri, vm, "x")
    person = domain(lab, vm)
    taken = person.snapshotLookupByName("x").getXMLDesc()
    before_the_next(monkeypatch, "snapshotCreateXML", lambda: person.snapshotLookupByName("x").delete())
    done = apply(lab.uri, Present(Request(name="x", labels={"step": "two"})), vm)
    # state=present: there is no snapshot any more, so a new one is taken, with its data.
    assert (done.word, done.error) == ("created", None)
    assert person.snapshotLookupByName("x").getXMLDesc() != taken
    person.revertToSnapshot(person.snapshotLookupByName("x"), libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED)


def test_snapshot_is_labelled_although_its_parent_is_removed_at_the_same_time(
    lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = tiny("orphaned", paused=True)
    for name in ("w", "x"):
        take(lab.uri, vm, name)
    before_the_next(monkeypatch, "snapshotCreateXML", domain(lab, vm).snapshotLookupByName("w").delete)
    done = apply(lab.uri, Present(Request(name="x", labels={"step": "two"})), vm)
    assert (done.word, done.error) == ("updated", None)
    (left,) = listed(lab.uri, vm).values()
    assert (left.name, left.parent) == ("x", None) and left.label and left.label.fields["step"] == "two"


def check_label_against_delete(lab: t.Any, vm: str, rounds: int) -> None:
    person = domain(lab, vm)
    with ThreadPoolExecutor(2) as pool:
        for number in range(rounds):
            take(lab.uri, vm, "x")
            label = pool.submit(apply, lab.uri, Present(Request(labels={"step": str(number)})), Target(vm, "x"))
            delete = pool.submit(apply, lab.uri, Absent(Request(name="x")), vm)
            labelled, deleted = label.result(), delete.result()
            assert (deleted.word, deleted.error) == ("removed", None)
            # If the label was first, the last read does not show the snapshot any more.
            assert labelled.error is None or labelled.error.code in ("snapshot_not_found", "unverified"), labelled.error
            assert person.snapshotListNames() == []


def test_label_during_a_removal_leaves_no_record_without_data(lab: t.Any, tiny: Make) -> None:
    check_label_against_delete(lab, tiny("labels", paused=True), 15)


@pytest.mark.slow
def test_label_during_a_removal_leaves_no_record_with_a_newer_libvirt(new_lab: t.Any, newer: Make) -> None:
    check_label_against_delete(new_lab, newer("labels", paused=True), 60)


@pytest.mark.parametrize("what", ["absent", "prune", "revert", "describe"])
def test_new_snapshot_with_the_same_name_is_not_changed(
    lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    vm = tiny("replaced", paused=True)
    take(lab.uri, vm, "x")
    person = domain(lab, vm)

    def replace() -> None:
        taken = person.snapshotLookupByName("x")
        born = ElementTree.fromstring(taken.getXMLDesc()).findtext("creationTime")
        taken.delete()
        until(lambda: int(time.time()) > int(born or 0))
        person.snapshotCreateXML("<domainsnapshot><name>x</name><description>by another user</description></domainsnapshot>")

    before_the_next(monkeypatch, "start", replace, of=LibvirtDriver)
    plan = {
        "absent": Absent(Request(name="x")),
        "prune": pruning(everything=True, confirm=1),
        "revert": Reverted(Request(name="x", power="on")),
        "describe": Present(Request(name="x", description="text")),
    }[what]
    done = apply(lab.uri, plan, vm)
    assert not done.changed and (done.error.code if done.error else None) == (None if what == "prune" else "foreign"), done.error
    assert "by another user" in person.snapshotLookupByName("x").getXMLDesc() and power(lab, vm) == "paused"


# a managed save by another client


def while_it_is_saved(lab: t.Any, vm: str, plan: t.Any, monkeypatch: pytest.MonkeyPatch) -> t.Any:
    """Run a call that finds the VM locked by a managed save, which ends only after the call has read it twice."""
    real = libvirt.virDomain.controlInfo
    looks: list[None] = []

    def control(domain: t.Any) -> t.Any:
        looks.append(None)
        return real(domain)

    with ThreadPoolExecutor(2) as pool:
        with stopped(lab, vm):
            saving = pool.submit(domain(lab, vm).managedSave)
            until(lambda: is_busy(lab, vm))
            monkeypatch.setattr(libvirt.virDomain, "controlInfo", control)
            call = pool.submit(apply, lab.uri, plan, vm)
            until(lambda: len(looks) >= 2)
            monkeypatch.undo()
        saving.result()
        return call.result()


def test_snapshot_is_refused_after_waiting_for_a_managed_save(lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = tiny("saving", running=True)
    done = while_it_is_saved(lab, vm, Present(Request(name="x")), monkeypatch)
    assert done.error and (done.error.code, done.changed) == ("unsupported", False), done.word
    assert "managedsave-remove" in str(done.error)
    assert domain(lab, vm).snapshotListNames() == []
    assert domain(lab, vm).hasManagedSaveImage()


def test_revert_drops_a_managed_save_that_it_waited_for(lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = tiny("saving", running=True)
    take(lab.uri, vm, "x")
    done = while_it_is_saved(lab, vm, Reverted(Request(name="x", power="off")), monkeypatch)
    assert (done.word, done.error) == ("reverted", None)
    assert not domain(lab, vm).hasManagedSaveImage()
    assert any("managed save" in warning for warning in done.warnings)


def test_snapshot_taken_during_a_managed_save_is_removed(lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = tiny("saving", running=True)
    person = domain(lab, vm)
    before_the_next(monkeypatch, "snapshotCreateXML", person.managedSave)
    done = apply(lab.uri, Present(Request(name="x")), vm)
    assert done.error and (done.error.code, done.changed) == ("unsupported", False), done.word
    assert person.snapshotListNames() == [] and person.hasManagedSaveImage()
    person.create()
    assert power(lab, vm) == "running"


# other jobs


def test_revert_succeeds_if_another_run_has_powered_off_the_vm(lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = tiny("twice", running=True)
    take(lab.uri, vm, "x")
    person = domain(lab, vm)
    before_the_next(monkeypatch, "destroy", person.destroy)
    done = apply(lab.uri, Reverted(Request(name="x", power="off")), vm)
    assert (done.word, done.error, power(lab, vm)) == ("reverted", None, "off")


def test_failed_last_step_of_a_revert_is_not_reported_as_not_started(
    lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = tiny("stuck", running=True)
    take(lab.uri, vm, "x")
    real = libvirt.virDomain.destroy
    # A libvirt error whose code elsewhere means that nothing was done (no such domain).
    monkeypatch.setattr(libvirt.virDomain, "destroy", lambda domain: real(domain.connect().lookupByName("nobody")))
    done = apply(lab.uri, Reverted(Request(name="x", power="off")), vm)
    assert done.error and (done.error.code, done.changed) == ("backend_failed", True)
    assert "was reverted to x" in str(done.error)


def check_backup(lab: t.Any, vm: str) -> None:
    take(lab.uri, vm, "x")
    person = domain(lab, vm)
    person.backupBegin(
        f"<domainbackup mode='pull'><server transport='unix' socket='{lab.disk_folder(vm)}/nbd.sock'/></domainbackup>", None
    )
    plans = (
        Present(Request(name="y")),
        Present(Request(name="x", labels={"step": "two"})),
        Reverted(Request(name="x")),
        Absent(Request(name="x")),
    )
    for plan in plans:
        began = time.monotonic()
        done = apply(lab.uri, plan, vm, lock_timeout=2)
        assert done.error and (done.error.code, done.changed) == ("locked", False), (done.word, done.error)
        assert time.monotonic() - began < 28  # libvirt itself waits for 30 seconds
    assert listed(lab.uri, vm)["x"].label == take(lab.uri, vm, "x").label  # a call without a write does not wait
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(apply, lab.uri, Present(Request(name="y")), vm)
        person.abortJob()
        assert call.result().word == "created"


def test_backup_is_waited_for_up_to_lock_timeout(lab: t.Any, tiny: Make) -> None:
    check_backup(lab, tiny("backup", running=True))


@pytest.mark.slow
def test_backup_is_waited_for_up_to_lock_timeout_with_a_newer_libvirt(new_lab: t.Any, newer: Make) -> None:
    check_backup(new_lab, newer("backup", running=True))


@contextlib.contextmanager
def being_taken(lab: t.Any, vm: str, name: str) -> Iterator[None]:
    """Let another run take a snapshot of the VM, and stop QEMU in the middle of it during the block."""
    mine = domain(lab, vm)
    with ThreadPoolExecutor(1) as pool:
        pid = qemu_pid(lab, vm)
        other = pool.submit(take, lab.uri, vm, name)
        with stopped_when(pid, lambda: mine.state() == [3, 3] and is_busy(lab, vm)):
            yield
        other.result()


def test_vm_paused_for_a_snapshot_of_another_run_counts_as_running(lab: t.Any, tiny: Make) -> None:
    vm = tiny("passing", running=True, memory_mib=3000)
    with being_taken(lab, vm, "x"):
        view = look(lab.uri, vm).after
        assert view is not None
        assert (view.state.power, view.state.findings) == ("running", ())
        assert view.state.busy


def test_vm_resumed_by_another_run_during_the_read_is_running(lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = tiny("resumed", paused=True)
    before_the_next(monkeypatch, "controlInfo", domain(lab, vm).resume)  # a revert of that run ends between the two requests
    view = look(lab.uri, vm).after
    assert view is not None
    assert (view.state.power, view.state.busy) == ("running", None)


def test_revert_is_confirmed_while_another_run_takes_a_snapshot(lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = tiny("confirmed", running=True, memory_mib=3000)
    take(lab.uri, vm, "x")
    with contextlib.ExitStack() as stack:
        # The revert is done, but its result is not read yet.
        before_the_next(monkeypatch, "hasManagedSaveImage", lambda: stack.enter_context(being_taken(lab, vm, "y")))
        done = apply(lab.uri, Reverted(Request(name="x", power="on")), vm)
        assert (done.word, done.error) == ("reverted", None)
        assert domain(lab, vm).state() == [3, 3]  # the test did something


def test_external_snapshots_get_unique_file_names(lab: t.Any, tiny: Make) -> None:
    """With the same file name in the same millisecond, libvirt would refuse the second snapshot (67), like on a VM that cannot have external ones."""
    vm = domain(lab, tiny("names"))
    create = Create(Vm(vm.name(), vm.UUIDString(), vm.UUIDString()), "x", "", memory=False, kind="external")
    named = [_new_files(create, vm)[0]["vda"] for _time in range(200)]
    assert len(set(named)) == 200


@pytest.mark.slow
def test_removal_of_the_current_snapshot_during_the_read_is_handled(
    new_lab: t.Any, newer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = newer("removed", running=True)
    take(new_lab.uri, vm, "x", kind="external")
    current = domain(new_lab, vm).snapshotCurrent()
    before_the_next(monkeypatch, "listAllChildren", current.delete, of=libvirt.virDomainSnapshot)
    done = apply(new_lab.uri, Present(Request(name="y", kind="external")), vm)
    assert (done.word, done.error) == ("created", None)
    assert domain(new_lab, vm).snapshotListNames() == ["y"]


@pytest.mark.slow
def test_unfinished_snapshot_of_another_run_does_not_block_a_revert(new_lab: t.Any, newer: Make) -> None:
    """A snapshot is listed as a child of the current one while it is being taken, like those of a branch that libvirt has lost."""
    vm = newer("making", running=True, memory_mib=1000)
    take(new_lab.uri, vm, "x", kind="external")
    person = domain(new_lab, vm)
    with ThreadPoolExecutor(2) as pool:
        pid = qemu_pid(new_lab, vm)
        other = pool.submit(take, new_lab.uri, vm, "y", kind="external", memory=True)
        with stopped_when(pid, lambda: "y" in person.snapshotListNames() and is_busy(new_lab, vm)):
            listed_now = listed(new_lab.uri, vm)
            call = pool.submit(apply, new_lab.uri, Present(Request(name="z", kind="external")), vm)
            wait([call], timeout=3)  # longer than its first read takes
            assert person.snapshotCurrent().getName() == "x"  # y is still being taken
        other.result()
        done = call.result()
    assert [one.name for one in listed_now.values() if "revert" in one.obstacles] == []
    assert (done.word, done.error) == ("created", None)


@pytest.mark.slow
def test_external_snapshot_can_be_taken_twice_in_one_second(new_lab: t.Any, newer: Make) -> None:
    vm = newer("again", paused=True)
    for _time in range(3):
        snapshot = take(new_lab.uri, vm, "x", kind="external")
        # As after a daemon crash: the record is gone, but the file exists.
        domain(new_lab, vm).snapshotLookupByName(snapshot.id).delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)

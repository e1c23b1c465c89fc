# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controllers that are killed in a guarded change of a real QEMU, and what reconcile makes of it."""

from __future__ import annotations

import os
import signal
import typing as t
from collections.abc import Iterator

import libvirt
import pytest
from change import FAIL, GOOD, Change
from hypervisor import Hypervisor
from stage import Stage, wait_until

pytestmark = [pytest.mark.core_versions, pytest.mark.qemu, pytest.mark.oldest]


class Machine(Hypervisor):
    """The private libvirtd with tiny VMs, which have no operating system."""

    def __init__(self, lab: t.Any) -> None:
        self.lab = lab
        self.person = lab.connect()
        super().__init__(self.person, lab.uri)

    def define(self, name: str) -> None:
        self.lab.define_tiny(name, running=True)

    def runs(self, name: str) -> bool:
        return bool(self.person.lookupByName(name).isActive())

    def freeze(self, number: int) -> None:
        """Send a signal to the only QEMU."""
        for pid in self.lab.qemu_pids():
            os.kill(pid, number)


@pytest.fixture
def machine(lab: t.Any) -> Iterator[Machine]:
    machine = Machine(lab)
    try:
        yield machine
    finally:
        lab.remove("web01")
        machine.person.close()


# Until the test is over, whose folder goes then.
WAITS = "- name: Wait\n  ansible.builtin.shell: touch {flag}; while test -e {flag}; do sleep 0.2; done\n"


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("takes", marks=pytest.mark.slow),
        "change",
        pytest.param("checks", marks=pytest.mark.slow),
        pytest.param("reverts", marks=pytest.mark.slow),
        "checks-again",
    ],
)
def test_what_a_killed_controller_leaves_is_rolled_back_once(stage: Stage, machine: Machine, point: str) -> None:
    change = Change(stage, machine)
    flag = stage.folder / "flag"
    waits = WAITS.format(flag=flag)
    stage.write("change.yml", waits if point == "change" else FAIL if point in ("checks-again", "reverts") else GOOD)
    stage.write("checks.yml", waits if point in ("checks", "checks-again") else GOOD)
    domain = machine.person.lookupByName("web01")
    playing = change.start(checks="checks.yml", id="CHG1", evidence_dir=str(stage.folder))
    try:
        if point == "reverts":
            # What is kept on the controller comes right before the revert, whose QEMU is the one that is there by then.
            wait_until(lambda: list(stage.folder.glob("sp-CHG1-*.json")))
            wait_until(lambda: _has_job(domain) or change.labels()[0].get("state") == "rolled_back")
        elif point == "takes":
            # After the looks before it, which need an answer of QEMU, and with tasks to spare: a tiny VM is saved in milliseconds.
            wait_until(lambda: "Checkpoint | Take the snapshot]" in playing.said())
            machine.freeze(signal.SIGSTOP)
            # libvirt lists a snapshot from the moment on in which it begins with it.
            wait_until(change.labels)
        else:
            wait_until(flag.exists)
    finally:
        said = playing.kill()
        if point == "takes":
            machine.freeze(signal.SIGCONT)
    print(said)
    if point == "takes":
        assert said.rpartition("TASK [")[2].startswith("safepoint.vm.guarded_change : Take the checkpoints]")
    if point in ("change", "checks"):
        domain.destroy()  # so bad was the change
    wait_until(lambda: not _has_job(domain))
    left = [label["run"] for label in change.labels() if label["state"] == "guarding"]

    # The leases run by our own clock here, so they are not over yet.
    force = {
        "reconcile_policy": "rollback",
        "reconcile_run": left[0] if left else "",
        "reconcile_force": True,
        "reconcile_settle": "4s",
    }
    first = change.run(entry="reconcile", **force)
    assert first.rc == 0
    assert [label["state"] for label in change.labels()] in ([["rolled_back"]] if left else [[], ["rolled_back"]])
    assert first.said("web01 was rolled back to sp-CHG1-") == bool(left)
    assert machine.runs("web01")
    second = change.run(entry="reconcile", **force)
    assert second.rc == 0
    assert second.recap("web01")["changed"] == 0
    assert second.said("Nothing: no change on web01 has been left without an end")


def _has_job(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
    except libvirt.libvirtError:
        return False

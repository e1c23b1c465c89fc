# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A stage on real QEMU; each run is a separate process."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import typing as t
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from xml.etree import ElementTree

from hypervisor_stage import Stage
from libvirt_backends import QemuBackend
from libvirt_kit import apply, files, image, power

from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan

_NUMBERS = (2, 5)
# Time limit for the start of a process on a busy machine.
_START_SECONDS = 120.0
_barriers: dict[int, Barrier] = {}


class RawBackend(QemuBackend):
    """VMs with raw disks, so that their snapshots are external."""

    def add(self, name: str, *, power: str) -> None:
        self.made.append(name)
        self.lab.define_tiny(name, disks=0, raw_disks=1, running=power == "running", paused=power == "paused")


class QemuStage(Stage):
    unique_ids = False

    def __init__(self, backend: QemuBackend) -> None:
        self.backend = self.qemu = backend
        # Not fork: a child process would have broken copies of libvirt's connections and threads.
        context = multiprocessing.get_context("spawn")
        barriers = {number: context.Barrier(number) for number in _NUMBERS}
        self._pool = ProcessPoolExecutor(max(_NUMBERS), mp_context=context, initializer=_begin, initargs=(barriers,))

    def state(self, vm: str) -> tuple[str, list[str], str]:
        names = self.qemu.person.lookupByName(vm).snapshotListNames()
        return power(self.qemu.lab, vm), sorted(names), self.qemu.read(vm)

    def write(self, vm: str, text: str) -> None:
        self.qemu.write(vm, text)

    def at_once(self, vm: str, plans: Sequence[Plan], **bounds: t.Any) -> list[Outcome]:
        """Run each plan in a process. The processes are reused: their start takes longer than most runs, so new ones would hardly run in parallel."""
        number = len(plans)
        runs = [self._pool.submit(_carry_out, number, self.qemu.uri, plan, vm, {"timeout": 120.0, **bounds}) for plan in plans]
        return [run.result() for run in runs]

    def close(self) -> None:
        self._pool.shutdown()
        for vm in self.qemu.made:
            self.qemu.lab.remove(vm)
        self.qemu.person.close()


class InternalStage(QemuStage):
    def __init__(self, lab: t.Any) -> None:
        super().__init__(QemuBackend(lab))

    def damage(self, vm: str) -> list[str]:
        recorded = sorted(self.qemu.person.lookupByName(vm).snapshotListNames())
        held = sorted(one["name"] for one in _layers(image(self.qemu.lab, vm))[0].get("snapshots", []))
        return [] if held == recorded else [f"libvirt lists the snapshots {recorded}, and the image holds {held}"]


class ExternalStage(QemuStage):
    def __init__(self, lab: t.Any) -> None:
        super().__init__(RawBackend(lab))

    def damage(self, vm: str) -> list[str]:
        written = image(self.qemu.lab, vm)
        used = {Path(layer["filename"]).name for layer in _layers(written)}
        found = []
        for one in self.qemu.person.lookupByName(vm).listAllSnapshots():
            source = ElementTree.fromstring(one.getXMLDesc()).find("domain/devices/disk/source")
            assert source is not None
            base = Path(source.get("file", ""))
            if base == written:
                found.append(f"the VM writes to the image of the snapshot {one.getName()}")
            used |= {Path(layer["filename"]).name for layer in _layers(base)}
        return [*found, *(f"nothing uses {name}" for name in files(self.qemu.lab, vm) if name not in used)]


def _layers(path: Path) -> list[dict[str, t.Any]]:
    """Return the output of qemu-img for an image and its base images, which must all exist."""
    command = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", str(path)]
    found: list[dict[str, t.Any]] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def _begin(barriers: Mapping[int, Barrier]) -> None:
    _barriers.update(barriers)


def _carry_out(number: int, uri: str, plan: Plan, vm: str, bounds: Mapping[str, t.Any]) -> Outcome:
    _barriers[number].wait(_START_SECONDS)
    return apply(uri, plan, vm, **bounds)

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A model of one VM with its snapshots. Random operations run on the model and on the real VM, and both are compared after each."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import re
import subprocess
import typing as t
from collections.abc import Callable

import libvirt
import libvirt_qemu
from libvirt_kit import apply, domain, image, listed, power, until

from ansible_collections.safepoint.vm.plugins.module_utils._model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._outcome import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._plans import Absent, Present, Reverted

# Refusals before the first write. Any other error is a bug of the collection, unless it has a remedy.
REFUSALS = ("unsupported", "foreign", "snapshot_exists", "snapshot_not_found")


@dataclasses.dataclass
class Taken:
    """The state that a revert to a snapshot must restore."""

    data: dict[str, int]
    """Name of the disk in the VM -> the first byte of its data."""
    power: str
    memory: bool
    ours: bool


class Machine:
    """A real VM, its expected state, and the operations that change both."""

    def __init__(self, lab: t.Any, vm: str, seed: int, *, kind: str) -> None:
        self.lab = lab
        self.vm = vm
        self.kind = kind
        self.random = random.Random(seed)
        self.power = "off"
        self.data = {"vda": 0}
        self.detached: dict[str, tuple[str, int]] = {}
        """The definition and the data of a detached disk."""
        self.taken: dict[str, Taken] = {}
        self.story: list[str] = []
        self._names = 0
        self._free_names: list[str] = []
        self.counts: dict[str, int] = {}

    # the real VM

    def byte(self, target: str) -> int:
        command = ["qemu-io", "-r", "-U", "-c", "read -v 0 512", str(image(self.lab, self.vm, target))]
        dump = subprocess.run([*self.lab.as_user(), *command], capture_output=True, text=True, check=True).stdout
        found = re.search(r"^00000000:\s+([0-9a-f]{2})", dump, re.MULTILINE)
        assert found, dump
        return int(found.group(1), 16)

    def _monitor(self, command: str) -> str:
        return str(libvirt_qemu.qemuMonitorCommand(domain(self.lab, self.vm), command, 1))

    def check(self) -> None:
        """Check that the real VM matches the model, as read by libvirt and by the collection."""
        assert power(self.lab, self.vm) == self.power
        assert sorted(domain(self.lab, self.vm).snapshotListNames()) == sorted(self.taken)
        seen = listed(self.lab.uri, self.vm)
        assert sorted(seen) == sorted(self.taken)
        for name, one in self.taken.items():
            assert seen[name].memory == one.memory, name
        assert {target: self.byte(target) for target in self.data} == self.data

    # operations of the collection

    def _apply(self, plan: Plan, target: str | Target) -> Outcome:
        """Run one call, with a dry run before it that must give the same result."""
        would = apply(self.lab.uri, plan, target, dry_run=True)
        done = apply(self.lab.uri, plan, target)
        self._say(f"  {done.word} {done.error or ''}")
        code = done.error.code if done.error else None
        assert (would.error.code if would.error else None) == code, f"check mode said {would.word} {would.error}"
        if done.error is None:
            assert would.word == done.word
        else:
            assert code in REFUSALS, done.error
            assert not done.changed
        return done

    def create(self) -> None:
        name = self._new_name()
        memory = self.kind == "external" and self.power == "running" and self.random.random() < 0.5
        self._say(f"create {name} memory={memory}")
        done = self._apply(Present(Request(name=name, kind=self.kind, memory=memory)), self.vm)
        if done.error is None:
            holds = self.power != "off" if self.kind == "internal" else memory
            self.taken[name] = Taken(dict(self.data), self.power, holds, True)

    def revert(self) -> None:
        name = self._some_name()
        if name is None:
            return
        wanted = self.random.choice(["as_snapshot", "on", "off"])
        self._say(f"revert {name} power={wanted}")
        self.revert_to(name, wanted)

    def revert_to(self, name: str, wanted: str = "as_snapshot") -> None:
        done = self._apply(Reverted(Request(power=wanted)), Target(self.vm, name))
        if done.error is not None:
            return
        one = self.taken[name]
        as_snapshot = one.power if one.memory else "off"
        self.power = {"on": "running", "off": "off"}.get(wanted, as_snapshot)
        for target, byte in self.data.items():
            if target not in one.data:
                self.detached[target] = (self.definition, byte)
        self.data = dict(one.data)
        for target in self.data:
            self.detached.pop(target, None)

    def remove(self) -> None:
        name = self._some_name()
        if name is None:
            return
        children = self.random.choice(["keep", "keep", "keep", "remove"])
        self._say(f"remove {name} children={children}")
        done = self._apply(Absent(Request(children=children, foreign_allowed=True)), Target(self.vm, name))
        if done.error is None:
            for gone in (name, *done.also_removed):
                del self.taken[gone]
                self._free_names.append(gone)

    def label(self) -> None:
        name = self._some_name()
        if name is None:
            return
        step = str(self.random.randrange(1000))
        self._say(f"label {name} step={step}")
        done = self._apply(Present(Request(labels={"step": step})), Target(self.vm, name))
        if done.error is None:
            label = listed(self.lab.uri, self.vm)[name].label
            assert label is not None and label.fields["step"] == step

    # operations of a user

    def write(self) -> None:
        target = self.random.choice(sorted(self.data))
        byte = self.random.randrange(1, 256)
        self._say(f"write {byte} to {target}")
        command = f"write -P {byte} 0 64k"
        path = str(image(self.lab, self.vm, target))
        if self.power == "off":
            self.lab.run_as_user("qemu-io", "-c", command, path)
        else:
            if self.power == "paused":
                # QEMU 10 crashes on a write to a VM that is paused since its memory was restored from a file: do not write before it has run.
                domain(self.lab, self.vm).resume()
                domain(self.lab, self.vm).suspend()
            answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain(self.lab, self.vm), '{"execute": "query-block"}', 0))
            drives = {drive["inserted"]["file"]: drive["qdev"] for drive in answer["return"] if "inserted" in drive}
            for one in (command, "flush"):
                answer = self._monitor(f'qemu-io -d {drives[path]} "{one}"')
                assert "error" not in answer.lower(), answer
        self.data[target] = byte

    def switch(self) -> None:
        """Start, stop, pause or resume the VM by hand."""
        person = domain(self.lab, self.vm)
        moves: dict[str, list[tuple[str, Callable[[], object]]]] = {
            "off": [("running", person.create)],
            "running": [("off", person.destroy), ("paused", person.suspend)],
            "paused": [("off", person.destroy), ("running", person.resume)],
        }
        after, move = self.random.choice(moves[self.power])
        self._say(f"switch to {after}")
        move()
        self.power = after

    def save(self) -> None:
        """Save the memory by hand, run an operation of the collection, and start the VM again."""
        if self.power == "off":
            return
        before = self.power
        person = domain(self.lab, self.vm)
        self._say("managed save")
        person.managedSave()
        self.power = "off"
        self.check()
        self.random.choice([self.create, self.remove, self.label, self.revert])()
        self.check()
        if person.hasManagedSaveImage():
            self._say("start from saved memory")
            person.create()
            self.power = before

    def plug(self) -> None:
        """Attach or detach a second disk by hand."""
        if self.kind == "external":
            return  # a detached disk of an external snapshot blocks every removal
        flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG | (libvirt.VIR_DOMAIN_AFFECT_LIVE if self.power != "off" else 0)
        person = domain(self.lab, self.vm)
        if "vdb" in self.data:
            if self.power != "off":
                return  # a guest without an operating system does not release a disk
            self._say("unplug vdb")
            person.detachDeviceFlags(self.definition, flags)
            self.detached["vdb"] = (self.definition, self.data.pop("vdb"))
            return
        self._say("plug vdb")
        path = self.lab.disk_folder(self.vm) / "added.qcow2"
        byte = 0
        if "vdb" in self.detached:
            byte = self.detached.pop("vdb")[1]
        elif not path.exists():
            self.lab.run_as_user("qemu-img", "create", "-q", "-f", "qcow2", str(path), "16M")
        person.attachDeviceFlags(self.definition, flags)
        self.data["vdb"] = byte

    def by_hand(self) -> None:
        """Take or delete a snapshot with virsh."""
        person = domain(self.lab, self.vm)
        name = self._some_name()
        if name is None or self.random.random() < 0.5:
            name = self._new_name()
            self._say(f"virsh snapshot-create-as {name}")
            flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY if self.kind == "external" else 0
            with contextlib.suppress(libvirt.libvirtError):
                person.snapshotCreateXML(f"<domainsnapshot><name>{name}</name></domainsnapshot>", flags)
                holds = self.kind == "internal" and self.power != "off"
                self.taken[name] = Taken(dict(self.data), self.power, holds, False)
            return
        if "remove" in listed(self.lab.uri, self.vm)[name].obstacles or self.kind == "external":
            return  # operations that crash libvirtd or lose branches
        orphan = self.random.random() < 0.3
        self._say(f"virsh snapshot-delete {name} {'--metadata' if orphan else ''}")
        person.snapshotLookupByName(name).delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY if orphan else 0)
        del self.taken[name]
        if not orphan:
            self._free_names.append(name)

    # inside

    @property
    def definition(self) -> str:
        path = self.lab.disk_folder(self.vm) / "added.qcow2"
        return (
            f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{path}'/><target dev='vdb' bus='virtio'/></disk>"
        )

    def _say(self, text: str) -> None:
        self.story.append(text)

    def _new_name(self) -> str:
        """Return a name without a snapshot in any image: a removed one, or a new one."""
        if self._free_names and self.random.random() < 0.3:
            return self._free_names.pop()
        self._names += 1
        return f"s{self._names}"

    def _some_name(self) -> str | None:
        return self.random.choice(sorted(self.taken)) if self.taken else None

    def step(self) -> None:
        """Run one random operation and compare."""
        choices = {
            self.write: 4,
            self.create: 4,
            self.revert: 4,
            self.remove: 2,
            self.label: 2,
            self.switch: 3,
            self.save: 1,
            self.plug: 1,
            self.by_hand: 1,
        }
        operation = self.random.choices(list(choices), list(choices.values()))[0]
        self.counts[operation.__name__] = self.counts.get(operation.__name__, 0) + 1
        operation()
        self.check()

    def finish(self) -> None:
        """Revert to every remaining snapshot that is not refused, and compare."""
        for name in sorted(self.taken):
            self._say(f"at the end: revert {name}")
            self.revert_to(name, "as_snapshot")
            self.check()
        until(lambda: domain(self.lab, self.vm).isPersistent())

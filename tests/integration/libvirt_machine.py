# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real VM and a model of it. Random operations change both, and both are compared after each operation."""

from __future__ import annotations

import collections
import json
import random
import re
import subprocess
import typing as t
from collections.abc import Callable

import libvirt
import libvirt_qemu
from libvirt_kit import apply, domain, image, look, power, until
from libvirt_model import Model

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, Target
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

# How often each operation comes in 60 of them. They are shuffled, and not drawn one by one, so that no seed lacks one of them. An external snapshot of a
# disk would be in the way of every removal while the disk is out, so that disks are plugged in and out with internal ones only.
SHARES = {
    "internal": {"create": 11, "revert": 12, "remove": 8, "label": 5, "switch": 6, "save": 4, "plug": 4, "hand": 5, "write": 5},
    "external": {"create": 12, "revert": 13, "remove": 9, "label": 5, "switch": 6, "save": 4, "hand": 5, "write": 6},
}
# So many of each have to succeed in 60 operations: the others may be refused, or not be possible at all.
LEAST = {"create": 7, "revert": 8, "remove": 5, "label": 4, "switch": 5, "save": 3, "plug": 3, "hand": 3, "write": 4}
# An external snapshot more makes libvirt's chains longer, and warnings about them are another test's.
_MOST = 8

# The disk that is plugged in and out.
PLUGGED = "vdb"


class Machine:
    """A real VM and its model."""

    def __init__(self, lab: t.Any, vm: str, seed: int, *, kind: str, operations: int) -> None:
        self.lab = lab
        self.vm = vm
        self.random = random.Random(seed)
        self.model = Model(kind, by_jobs=lab.connect().getLibVersion() >= 10_009_000)
        self.story: list[str] = []
        self.done: collections.Counter[str] = collections.Counter()
        """The operations that succeeded."""
        self.refused: collections.Counter[str] = collections.Counter()
        """The operations that were refused as the model expected, with its reason."""
        self._names = 0
        self._free_names: list[str] = []
        self._labels = 0
        self._deck = [word for word, share in SHARES[kind].items() for _time in range(share)]
        self._deck *= -(-operations // len(self._deck))
        self.random.shuffle(self._deck)

    def least(self, operations: int) -> dict[str, int]:
        """Return the number of operations of each kind that must succeed, for this total number."""
        return {word: LEAST[word] * operations // 60 for word in SHARES[self.model.kind]}

    # the comparison

    def check(self) -> None:
        """Check that the real VM matches the model, as read by libvirt and by the collection."""
        model = self.model
        assert power(self.lab, self.vm) == model.power
        assert domain(self.lab, self.vm).hasManagedSaveImage() == model.saved
        assert sorted(domain(self.lab, self.vm).snapshotListNames()) == sorted(model.taken)
        outcome = look(self.lab.uri, self.vm, images=True)
        view = outcome.after
        assert view is not None and view.state.power == model.power
        seen = {one.name: one for one in view.snapshots}
        assert sorted(seen) == sorted(model.taken)
        assert [name for name, one in seen.items() if one.current] == ([model.current] if model.current else [])
        for name, one in seen.items():
            self._compare(name, one)
        found = {"snapshot_lost": any(model.is_lost(name) for name in model.taken), "orphan": bool(model.strays())}
        assert {one.code for one in outcome.findings} == {code for code, there in found.items() if there}, outcome.findings
        assert {target: self.byte(target) for target in model.data} == model.data

    def _compare(self, name: str, seen: Snapshot) -> None:
        expected = self.model.taken[name]
        assert (seen.memory, seen.parent, seen.kind) == (expected.memory, expected.parent, self.model.kind), name
        assert bool(seen.lost) == self.model.is_lost(name), (name, seen.lost)
        assert ("revert" in seen.obstacles) == bool(self.model.why_not_reverted(name)), (name, seen.obstacles)

    def byte(self, target: str) -> int:
        command = ["qemu-io", "-r", "-U", "-c", "read -v 0 512", str(image(self.lab, self.vm, target))]
        dump = subprocess.run([*self.lab.as_user(), *command], capture_output=True, text=True, check=True).stdout
        found = re.search(r"^00000000:\s+([0-9a-f]{2})", dump, re.MULTILINE)
        assert found, dump
        return int(found.group(1), 16)

    # operations of the collection

    def _apply(self, operation: str, plan: Plan, target: str | Target, word: str, expected: str | None) -> Outcome | None:
        """Run one call, with a dry run that must agree. Return None if it was refused for the reason that the model ``expected``."""
        would = apply(self.lab.uri, plan, target, dry_run=True)
        done = apply(self.lab.uri, plan, target)
        self._say(f"  {done.word} {done.error or ''}")
        code = done.error.code if done.error else None
        assert (would.error.code if would.error else None) == code, f"check mode said {would.word} {would.error}"
        if expected is not None:
            assert (code, done.changed) == ("unsupported", False), f"not refused ({expected}): {done.word} {done.error}"
            self.refused[f"{operation}: {expected}"] += 1
            return None
        assert done.error is None, f"refused without a reason that the model knows: {done.error}"
        assert (would.word, done.word, done.changed) == (word, word, True)
        self.done[operation] += 1
        return done

    def create(self) -> None:
        name, model = self._new_name(), self.model
        memory = model.kind == "external" and model.power == "running" and self.random.random() < 0.5
        self._say(f"create {name} memory={memory}")
        plan = Present(Request(name=name, kind=model.kind, memory=memory))
        if self._apply("create", plan, self.vm, "created", model.why_not_created(name, memory=memory)):
            model.create(name, memory=model.power != "off" if model.kind == "internal" else memory)

    def revert(self) -> None:
        name = self._some_name(self.model.why_not_reverted)
        self.revert_to(name, self.random.choice(["as_snapshot", "on", "off"]))

    def revert_to(self, name: str, wanted: str) -> None:
        self._say(f"revert {name} power={wanted}")
        plan = Reverted(Request(power=wanted))
        if self._apply("revert", plan, Target(self.vm, name), "reverted", self.model.why_not_reverted(name)):
            self.model.revert(name, wanted)

    def remove(self) -> None:
        children = self.random.random() < 0.25
        name = self._some_name(lambda one: self.model.why_not_removed(one, children=children))
        self._say(f"remove {name} {'with' if children else 'without'} children")
        plan = Absent(Request(children="remove" if children else "keep", foreign_allowed=True))
        expected = self.model.why_not_removed(name, children=children)
        going = [*(self.model.below(name) if children else ()), name]
        done = self._apply("remove", plan, Target(self.vm, name), "removed", expected)
        if done:
            assert sorted([*done.also_removed, name]) == sorted(going)
            for gone in reversed(going):
                self.model.remove(gone)
            self._free_names.extend(going)

    def label(self) -> None:
        name = self._some_name()
        self._labels += 1
        self._say(f"label {name} step={self._labels}")
        plan = Present(Request(labels={"step": str(self._labels)}))
        done = self._apply("label", plan, Target(self.vm, name), "updated", None)
        view = look(self.lab.uri, self.vm).after
        seen = view.by_id(name) if view else None
        assert done and seen and seen.label and seen.label.fields["step"] == str(self._labels)

    # operations of a user

    def write(self) -> None:
        target = self.random.choice(sorted(self.model.data))
        byte = self.random.randrange(1, 256)
        self._say(f"write {byte} to {target}")
        command = f"write -P {byte} 0 64k"
        path = str(image(self.lab, self.vm, target))
        if self.model.power == "off":
            self.lab.run_as_user("qemu-io", "-c", command, path)
        else:
            self._run_once()
            answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain(self.lab, self.vm), '{"execute": "query-block"}', 0))
            drives = {drive["inserted"]["file"]: drive["qdev"] for drive in answer["return"] if "inserted" in drive}
            for one in (command, "flush"):
                answer = libvirt_qemu.qemuMonitorCommand(domain(self.lab, self.vm), f'qemu-io -d {drives[path]} "{one}"', 1)
                assert "error" not in answer.lower(), answer
        self.model.data[target] = byte
        self.done["write"] += 1

    def _run_once(self) -> None:
        """Let a paused VM run for a moment: QEMU 10 crashes on a write to a VM that is paused since its memory was restored from a file."""
        if self.model.power == "paused":
            domain(self.lab, self.vm).resume()
            domain(self.lab, self.vm).suspend()
            self.model.restored = False

    def switch(self) -> None:
        """Start, stop, pause or resume the VM by hand."""
        person = domain(self.lab, self.vm)
        moves: dict[str, list[tuple[str, Callable[[], object]]]] = {
            "off": [("running", person.create)],
            "running": [("off", person.destroy), ("paused", person.suspend)],
            "paused": [("off", person.destroy), ("running", person.resume)],
        }
        after, move = self.random.choice(moves[self.model.power])
        self._say(f"switch to {after}")
        move()
        self.model.power, self.model.restored = after, False
        self.done["switch"] += 1

    def save(self) -> None:
        """Save the memory by hand, run an operation of the collection, and start the VM again."""
        self._run_once()
        before = self.model.power
        person = domain(self.lab, self.vm)
        self._say("managed save")
        person.managedSave()
        self.model.power, self.model.saved = "off", True
        self.done["save"] += 1
        self.check()
        self._do(self.random.choice(["create", *(["remove", "label", "revert"] if self.model.taken else [])]))
        self.check()
        if self.model.saved:
            self._say(f"start from saved memory, {before}")
            person.create()
            self.model.power, self.model.saved, self.model.restored = before, False, before == "paused"

    def plug(self) -> None:
        """Attach or detach a second disk by hand."""
        model = self.model
        person = domain(self.lab, self.vm)
        if PLUGGED in model.data:
            if model.power != "off":
                self._say("power off")  # a guest without an operating system does not release a disk
                person.destroy()
                model.power, model.restored = "off", False
            self._say(f"unplug {PLUGGED}")
            person.detachDeviceFlags(self._definition, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
            model.unplugged[PLUGGED] = model.data.pop(PLUGGED)
        else:
            self._say(f"plug {PLUGGED}")
            path = self.lab.disk_folder(self.vm) / "added.qcow2"
            if not path.exists():
                self.lab.run_as_user("qemu-img", "create", "-q", "-f", "qcow2", str(path), "16M")
            live = libvirt.VIR_DOMAIN_AFFECT_LIVE if model.power != "off" else 0
            person.attachDeviceFlags(self._definition, libvirt.VIR_DOMAIN_AFFECT_CONFIG | live)
            model.data[PLUGGED] = model.unplugged.pop(PLUGGED, 0)
        self.done["plug"] += 1

    def hand(self) -> None:
        """Take or delete a snapshot with virsh, or delete its data with qemu-img."""
        model = self.model
        mine = [name for name in sorted(model.taken) if not model.misses_a_disk(name) and model.why_not_removed(name) is None]
        if not mine or self.random.random() < 0.5:
            self._create_by_hand()
            return
        name = self.random.choice(mine)
        how = "virsh"
        if model.kind == "internal":
            how = self.random.choice(["virsh", "record only", "data only"] if model.power == "off" else ["virsh", "record only"])
        self._say(f"delete {name} by hand, {how}")
        if how == "data only":
            self.lab.run_as_user("qemu-img", "snapshot", "-d", name, str(image(self.lab, self.vm)))
            model.inside["vda"].discard(name)
        else:
            flags = libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY if how == "record only" else 0
            domain(self.lab, self.vm).snapshotLookupByName(name).delete(flags)
            model.remove(name, record_only=how == "record only")
        self.done["hand"] += 1

    def _create_by_hand(self) -> None:
        name = self._unused_name()
        self._say(f"virsh snapshot-create-as {name}")
        external = self.model.kind == "external"
        if self.model.restored and not external:
            self._run_once()  # 11.3 refuses it
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY if external else 0
        domain(self.lab, self.vm).snapshotCreateXML(f"<domainsnapshot><name>{name}</name></domainsnapshot>", flags)
        self.model.create(name, memory=not external and self.model.power != "off")
        self.done["hand"] += 1

    # inside

    @property
    def _definition(self) -> str:
        path = self.lab.disk_folder(self.vm) / "added.qcow2"
        return f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{path}'/><target dev='{PLUGGED}' bus='virtio'/></disk>"

    def _say(self, text: str) -> None:
        self.story.append(text)

    def _unused_name(self) -> str:
        self._names += 1
        return f"s{self._names}"

    def _new_name(self) -> str:
        """Return a name for a snapshot: unused, free again, or one that an image still has, which is refused while the VM is off."""
        strays = self.model.strays() if self.model.power == "off" else []
        if strays and self.random.random() < 0.3:
            return self.random.choice(strays)
        free = [name for name in self._free_names if self.model.is_free(name)]
        if free and self.random.random() < 0.3:
            return self.random.choice(free)
        return self._unused_name()

    def _some_name(self, why_not: Callable[[str], str | None] = lambda _name: None) -> str:
        """Return a snapshot for which the operation usually works."""
        names = sorted(self.model.taken)
        works = [name for name in names if why_not(name) is None]
        return self.random.choice(works if works and self.random.random() < 0.75 else names)

    def _makes_sense(self, operation: str) -> bool:
        if operation in ("revert", "remove", "label"):
            return bool(self.model.taken)
        if operation in ("create", "hand"):
            return len(self.model.taken) < _MOST
        return operation != "save" or self.model.power != "off"

    def _do(self, operation: str) -> None:
        getattr(self, operation)()

    def step(self) -> None:
        """Run the next operation that is possible, and compare."""
        place = next((number for number, one in enumerate(self._deck) if self._makes_sense(one)), None)
        self._do(self._deck.pop(place) if place is not None else "create" if not self.model.taken else "switch")
        self.check()

    def finish(self) -> None:
        """Revert to every remaining snapshot, and compare."""
        for name in sorted(self.model.taken):
            self.revert_to(name, "as_snapshot")
            self.check()
        until(lambda: domain(self.lab, self.vm).isPersistent())

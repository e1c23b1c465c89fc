# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What vSphere tells about VMs and snapshots, as the values of the core. Properties come by name through the PropertyCollector only.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import typing as t
from collections.abc import Iterator, Mapping, Sequence
from datetime import timezone

from ansible_collections.safepoint.vm.plugins.module_utils import _label
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._vsphere_answers import Lazy, LazyStub
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._vsphere_library import (
    QUIESCE_ADVICE,
    BadAnswer,
    Session,
    pyvmomi,
    typed,
    vim,
    vmodl,
)
from ansible_collections.safepoint.vm.plugins.module_utils._errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._model import Configuration, Finding, Snapshot, VmState, Way

Properties = Mapping[str, t.Any]

STATE = (
    "runtime.powerState",
    "runtime.question",
    "runtime.consolidationNeeded",
    "recentTask",
)
WAYS = (
    "config.template",
    "config.hardware.device",
    "capability.snapshotOperationsSupported",
)
MEMORY_WAYS = (
    "config.hardware.memoryMB",
    "config.files.snapshotDirectory",
    "capability.memorySnapshotsSupported",
    "datastore",
)
QUIESCE_WAYS = ("capability.quiescedSnapshotsSupported", "guest.toolsRunningStatus")
# So many objects are named in an error.
_NAMED = 3
# No property has this name.
NOT_READ = ""
CONFIGURATION = ("config.hardware.numCPU", "config.hardware.memoryMB", "config.hardware.device")

# vSphere 8 documentation, "Snapshot Limitations" and TooManySnapshotLevels: a chain has 32 levels at most.
DEEPEST = 32
_POWERS = {"poweredOn": "running", "poweredOff": "off", "suspended": "paused"}
# How vSphere writes these characters in the names of entities and snapshots.
_ESCAPES = (("%2f", "/"), ("%2F", "/"), ("%5c", "\\"), ("%5C", "\\"), ("%25", "%"))


class Gone(SafepointError):
    """A managed object does not exist any more. Never leaves the driver."""

    def __init__(self, gone: str) -> None:
        super().__init__(f"{gone} does not exist any more")
        self.id = gone


def plain(name: str) -> str:
    """A name as people wrote it."""
    for escaped, char in _ESCAPES:
        name = name.replace(escaped, char)
    return name


def retrieve(session: Session, what: str, specs: Sequence[t.Any]) -> list[tuple[t.Any, Properties]]:
    """The objects that the filter specs select, with those of the properties that are set. One request, and one more for each full page.

    There must be one at least: an answer without a value is taken for none.
    """
    collector = vmodl.query.PropertyCollector(session.content.propertyCollector._moId, LazyStub(session.stub))

    def ask() -> list[tuple[t.Any, Properties]]:
        found: list[tuple[t.Any, Properties]] = []
        try:
            page = _page(collector.RetrievePropertiesEx(specs, vmodl.query.PropertyCollector.RetrieveOptions()))
            while True:
                found += [(_object(one), _properties(one)) for one in page.objects]
                if not page.token:
                    return found
                page = _page(collector.ContinueRetrievePropertiesEx(page.token))
        except vmodl.fault.ManagedObjectNotFound as exc:
            raise Gone(exc.obj._moId if exc.obj else "") from exc

    return session.call(what, ask)


def _page(answer: t.Any) -> t.Any:
    """One page of objects.

    :raises BadAnswer: it is none, or has no objects. A server has no pages without.
    """
    if answer is None or not answer.objects:
        raise BadAnswer("no objects at all")
    return answer


def _object(one: t.Any) -> t.Any:
    """The managed object that something is said about."""
    if not isinstance(one.obj, pyvmomi.VmomiSupport.ManagedObject):
        raise BadAnswer("properties that are of no object")
    return one.obj


def _properties(one: t.Any) -> dict[str, t.Any]:
    """What was read of an object, and under NOT_READ by its path what could not be, with the fault."""
    if isinstance(one, Lazy):  # then nothing is missing
        return one.properties()
    seen = {prop.name: prop.val for prop in one.propSet}
    missing = {lost.path: lost.fault for lost in one.missingSet or ()}
    if missing:
        seen[NOT_READ] = missing
    return seen


def retrieve_each(
    session: Session, what: str, objects: Sequence[t.Any], paths: Mapping[t.Any, Sequence[str]]
) -> dict[str, Properties]:
    """The properties of these objects by their ids; ``paths`` are by the type. Those that are gone are not among them."""
    left = {one._moId: one for one in objects}
    while left:
        spec = vmodl.query.PropertyCollector.FilterSpec(
            objectSet=[vmodl.query.PropertyCollector.ObjectSpec(obj=one) for one in left.values()],
            propSet=[vmodl.query.PropertyCollector.PropertySpec(type=kind, pathSet=list(names)) for kind, names in paths.items()],
        )
        try:
            found = {one._moId: properties for one, properties in retrieve(session, what, [spec])}
        except Gone as exc:
            if exc.id not in left:
                raise
            del left[exc.id]
            continue
        # One that is gone would have been a fault, see Gone; one of which nothing is set has no properties, and is there.
        missing = left.keys() - found.keys()
        if missing:
            raise typed(BadAnswer(f"nothing about {', '.join(sorted(missing)[:_NAMED])}"), what, where=session.where)
        return found
    return {}


def read_state(name: str, seen: Properties, *, ways: bool, busy: str | None, free: Mapping[str, tuple[str, int]]) -> VmState:
    """The state of a VM, and with ``ways`` how a snapshot can be taken. ``free`` has the name and the free bytes of datastores by their ids."""
    power = _POWERS.get(str(seen.get("runtime.powerState")), "running")
    findings = []
    question = seen.get("runtime.question")
    if question is not None:
        findings.append(
            Finding(
                "question_pending",
                f"{name} waits for an answer: {' '.join(question.text.split())}",
                "answer it in the vSphere client",
            )
        )
    if seen.get("runtime.consolidationNeeded"):
        findings.append(
            Finding(
                "consolidation_needed",
                f"Disks of {name} were left behind by the removal of a snapshot, and go on growing",
                "consolidate them in the vSphere client (Snapshots, Consolidate)",
            )
        )
    return VmState(power, (_way(name, power, seen, free),) if ways else (), busy=busy, findings=tuple(findings))


def _way(name: str, power: str, seen: Properties, free: Mapping[str, tuple[str, int]]) -> Way:
    independent = [one.deviceInfo.label for one in disks(seen) if "independent" in str(getattr(one.backing, "diskMode", ""))]
    why_not = {
        "create": _why_not_create(name, seen),
        "memory": _why_not_memory(name, power, seen, free, independent),
        "quiesce": _why_not_quiesce(name, power, seen),
        "memory_and_quiesce": None
        if power == "off"
        else f"{name} keeps its memory or is quiesced, and vSphere ignores quiescing with memory; leave one out",
    }
    missed = [
        f"The independent disk {one} of {name} is not part of the snapshot, and does not come back with it" for one in independent
    ]
    refusals = {what: why for what, why in why_not.items() if why}
    return Way(refusals=refusals, unrecorded=("offline",), deepest=DEEPEST, warnings=tuple(missed))


def _why_not_create(name: str, seen: Properties) -> str | None:
    question = seen.get("runtime.question")
    if seen.get("config.template"):
        return f"{name} is a template, which has no snapshots; convert it to a VM first"
    if question is not None:
        return f"{name} waits for an answer ({' '.join(question.text.split())}); answer it in the vSphere client first"
    if seen.get("capability.snapshotOperationsSupported") is False:
        return f"{name} cannot have snapshots, as its host says; look for disks or devices that are passed through"
    return None


def _why_not_memory(
    name: str, power: str, seen: Properties, free: Mapping[str, tuple[str, int]], independent: Sequence[str]
) -> str | None:
    if power == "off":
        return f"{name} is off and has no memory to keep; start it first, or leave memory out"
    if power == "paused":
        return f"{name} is suspended, its memory is on disk already; resume it first, or leave memory out"
    if seen.get("capability.memorySnapshotsSupported") is False:
        return f"{name} cannot have snapshots with memory, as its host says; leave memory out"
    if independent:
        return f"{name} has the independent disk {independent[0]}, which rules out memory; leave memory out, or make it dependent"
    needed = int(seen.get("config.hardware.memoryMB") or 0) * 1024**2
    # As in "[LocalDS_0] web01/"; the others may be those of a CD image.
    where = str(seen.get("config.files.snapshotDirectory") or "").partition("]")[0].lstrip("[")
    stores = [free[one._moId] for one in seen.get("datastore") or () if one._moId in free]
    full = [(store, left) for store, left in stores if store == where and left < needed]
    if full:
        store, left = full[0]
        return f"The memory of {name} needs {needed} bytes, and the datastore {store} has {left} free; free some, or leave memory out"
    return None


def _why_not_quiesce(name: str, power: str, seen: Properties) -> str | None:
    if power == "off":
        return None
    if power == "paused":
        return f"{name} is suspended, and nothing in it can be quiesced; resume it first, or set quiesce=never"
    if seen.get("capability.quiescedSnapshotsSupported") is False:
        return f"{name} cannot be quiesced, as its host says; {QUIESCE_ADVICE}"
    if seen.get("guest.toolsRunningStatus") not in (None, "guestToolsRunning"):
        return f"{name} cannot be quiesced, since VMware Tools do not run in it; {QUIESCE_ADVICE}"
    return None


def disks(seen: Properties, path: str = "config.hardware.device") -> list[t.Any]:
    """The virtual disks among a VM's devices."""
    return [one for one in seen.get(path) or () if isinstance(one, vim.vm.device.VirtualDisk)]


def read_snapshots(seen: Properties) -> list[Snapshot]:
    """The tree as a flat list."""
    info = seen.get("snapshot")
    if info is None:
        return []
    current = info.currentSnapshot._moId if info.currentSnapshot else None
    sizes = _sizes(seen.get("layoutEx"))
    return list(_walk(info.rootSnapshotList, None, current, sizes))


def _walk(nodes: Sequence[t.Any], parent: str | None, current: str | None, sizes: Mapping[str, int]) -> Iterator[Snapshot]:
    for node in nodes:
        name, description = plain(node.name), node.description or ""
        label = _label.parse(description).label
        memory = str(node.state) == "poweredOn"
        if memory:
            consistency = "memory"
        elif node.quiesced:
            consistency = "filesystem"
        else:
            # Without memory the state is poweredOff, whether the VM was or not.
            consistency = "offline" if label is not None and label.consistency == "offline" else "crash"
        size = sizes.get(node.snapshot._moId)
        yield Snapshot(
            id=node.snapshot._moId,
            name=name,
            created=node.createTime.astimezone(timezone.utc).replace(microsecond=0),
            parent=parent,
            description=description,
            memory=memory,
            consistency=consistency,
            current=node.snapshot._moId == current,
            size_bytes=size,
            size_unknown=None if size is not None else "the sizes of files are read for a listing only",
        )
        yield from _walk(node.childSnapshotList, node.snapshot._moId, current, sizes)


def _sizes(layout: t.Any) -> dict[str, int]:
    """By the id of the snapshot: the bytes of its own files (its state, its memory, and the disk files that it has frozen last)."""
    if layout is None:
        return {}
    files = {one.key: one.size for one in layout.file or ()}
    found = {}
    for one in layout.snapshot or ():
        keys = [one.dataKey, *([one.memoryKey] if one.memoryKey is not None and one.memoryKey >= 0 else [])]
        for disk in one.disk or ():
            # The last of the chain is what was written to before this snapshot; the first one belongs to the VM itself.
            if len(disk.chain) > 1:
                keys += list(disk.chain[-1].fileKey)
        found[one.key._moId] = sum(files.get(key, 0) for key in keys)
    return found


def read_configuration(seen: Properties) -> Configuration:
    """What a VM is made of, or was when the snapshot was taken."""
    memory = seen.get("config.hardware.memoryMB")
    cards = [one for one in seen.get("config.hardware.device") or () if isinstance(one, vim.vm.device.VirtualEthernetCard)]
    return Configuration(
        cpus=seen.get("config.hardware.numCPU"),
        memory_bytes=None if memory is None else memory * 1024**2,
        disks={one.deviceInfo.label: f"{one.capacityInKB * 1024} bytes ({one.backing.diskMode})" for one in disks(seen)},
        networks={one.macAddress or one.deviceInfo.label: one.deviceInfo.summary for one in cards},
    )

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Convert vSphere's data about VMs and snapshots to the core's data classes. Properties are only read by path, through the PropertyCollector.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import typing as t
from collections.abc import Iterator, Mapping, Sequence
from datetime import timezone

from ansible_collections.safepoint.vm.plugins.module_utils._core import label as _label
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Configuration, Finding, Snapshot, VmState, Way
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.lazy import Lazy, LazyStub
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.session import (
    QUIESCE_ADVICE,
    BadAnswer,
    Session,
    pyvmomi,
    typed,
    vim,
    vmodl,
)

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
# Maximum number of objects that an error lists.
_NAMED = 3
# Key for the properties that could not be read; no property has this path.
NOT_READ = ""
CONFIGURATION = ("config.hardware.numCPU", "config.hardware.memoryMB", "config.hardware.device")

# vSphere 8 documentation, "Snapshot Limitations" and TooManySnapshotLevels: a chain has 32 levels at most.
DEEPEST = 32
_POWERS = {"poweredOn": "running", "poweredOff": "off", "suspended": "paused"}
# Escapes in the names of entities and snapshots.
_ESCAPES = (("%2f", "/"), ("%2F", "/"), ("%5c", "\\"), ("%5C", "\\"), ("%25", "%"))


class Gone(SafepointError):
    """A managed object does not exist any more. Internal to this backend."""

    def __init__(self, gone: str) -> None:
        super().__init__(f"{gone} does not exist any more")
        self.id = gone


def plain(name: str) -> str:
    """Return the name without vSphere's escapes."""
    for escaped, char in _ESCAPES:
        name = name.replace(escaped, char)
    return name


def retrieve(session: Session, what: str, specs: Sequence[t.Any]) -> list[tuple[t.Any, Properties]]:
    """Return the objects that the filter specs select, with their set properties. One request, and one more for each further page.

    The specs must select at least one object: an empty answer raises BadAnswer.
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
    """Return the answer if it is a page with objects.

    :raises BadAnswer: it has no objects, which a real server never sends.
    """
    if answer is None or not answer.objects:
        raise BadAnswer("no objects at all")
    return answer


def _object(one: t.Any) -> t.Any:
    """Return the managed object of an ObjectContent."""
    if not isinstance(one.obj, pyvmomi.VmomiSupport.ManagedObject):
        raise BadAnswer("properties without an object")
    return one.obj


def _properties(one: t.Any) -> dict[str, t.Any]:
    """Return the properties of an object by path; NOT_READ has the faults, by path, of those that could not be read."""
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
    """Return the properties of these objects by id; ``paths`` are by type. Objects that no longer exist are left out."""
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
        # A deleted object would have been a fault, see Gone; an object without set properties is included, with none.
        missing = left.keys() - found.keys()
        if missing:
            raise typed(BadAnswer(f"no data about {', '.join(sorted(missing)[:_NAMED])}"), what, where=session.where)
        return found
    return {}


def read_state(name: str, seen: Properties, *, ways: bool, busy: str | None, free: Mapping[str, tuple[str, int]]) -> VmState:
    """Return the state of a VM, with ``ways`` also how a snapshot can be taken. ``free`` has name and free bytes of datastores by id."""
    power = _POWERS.get(str(seen.get("runtime.powerState")), "running")
    findings = []
    question = seen.get("runtime.question")
    if question is not None:
        findings.append(
            Finding(
                "question_pending",
                f"{name} waits for an answer to a question: {' '.join(question.text.split())}",
                "answer the question in the vSphere client",
            )
        )
    if seen.get("runtime.consolidationNeeded"):
        findings.append(
            Finding(
                "consolidation_needed",
                f"Disk files of {name} remain from the removal of a snapshot and keep growing",
                "consolidate the disks in the vSphere client (Snapshots, Consolidate)",
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
        else f"{name} cannot have a snapshot with memory that is also quiesced: vSphere does not quiesce a guest if memory is included; leave one out",
    }
    missed = [
        f"The independent disk {one} of {name} is not included in the snapshot; a revert does not change it"
        for one in independent
    ]
    refusals = {what: why for what, why in why_not.items() if why}
    return Way(refusals=refusals, unrecorded=("offline",), deepest=DEEPEST, warnings=tuple(missed))


def _why_not_create(name: str, seen: Properties) -> str | None:
    question = seen.get("runtime.question")
    if seen.get("config.template"):
        return f"{name} is a template, and templates have no snapshots; convert it to a VM first"
    if question is not None:
        return (
            f"{name} waits for an answer to a question ({' '.join(question.text.split())}); answer it in the vSphere client first"
        )
    if seen.get("capability.snapshotOperationsSupported") is False:
        return f"{name} cannot have snapshots, as reported by its host; check for passthrough disks or devices"
    return None


def _why_not_memory(
    name: str, power: str, seen: Properties, free: Mapping[str, tuple[str, int]], independent: Sequence[str]
) -> str | None:
    if power == "off":
        return f"{name} is off and has no memory to include; start it first, or leave memory out"
    if power == "paused":
        return f"{name} is suspended, so its memory is already on disk; resume it first, or leave memory out"
    if seen.get("capability.memorySnapshotsSupported") is False:
        return f"{name} cannot have snapshots with memory, as reported by its host; leave memory out"
    if independent:
        return f"{name} has the independent disk {independent[0]}, so a snapshot cannot include memory; leave memory out, or make the disk dependent"
    needed = int(seen.get("config.hardware.memoryMB") or 0) * 1024**2
    # For example "[LocalDS_0] web01/". The VM's other datastores may only hold a CD image.
    where = str(seen.get("config.files.snapshotDirectory") or "").partition("]")[0].lstrip("[")
    stores = [free[one._moId] for one in seen.get("datastore") or () if one._moId in free]
    full = [(store, left) for store, left in stores if store == where and left < needed]
    if full:
        store, left = full[0]
        return f"The memory of {name} needs {needed} bytes, but the datastore {store} has only {left} free; free some space, or leave memory out"
    return None


def _why_not_quiesce(name: str, power: str, seen: Properties) -> str | None:
    if power == "off":
        return None
    if power == "paused":
        return f"{name} is suspended and cannot be quiesced; resume it first, or set quiesce=never"
    if seen.get("capability.quiescedSnapshotsSupported") is False:
        return f"{name} cannot be quiesced, as reported by its host; {QUIESCE_ADVICE}"
    if seen.get("guest.toolsRunningStatus") not in (None, "guestToolsRunning"):
        return f"{name} cannot be quiesced, because VMware Tools is not running in the guest; {QUIESCE_ADVICE}"
    return None


def disks(seen: Properties, path: str = "config.hardware.device") -> list[t.Any]:
    """Return the virtual disks among a VM's devices."""
    return [one for one in seen.get(path) or () if isinstance(one, vim.vm.device.VirtualDisk)]


def read_snapshots(seen: Properties) -> list[Snapshot]:
    """Return the snapshot tree as a flat list, parents before their children."""
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
            # Without memory the state is always poweredOff, also if the VM was running.
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
            size_unknown=None if size is not None else "file sizes are only read by snapshot_info",
        )
        yield from _walk(node.childSnapshotList, node.snapshot._moId, current, sizes)


def _sizes(layout: t.Any) -> dict[str, int]:
    """Return the bytes of each snapshot's own files by snapshot id: state, memory, and the last disk files that it froze."""
    if layout is None:
        return {}
    files = {one.key: one.size for one in layout.file or ()}
    found = {}
    for one in layout.snapshot or ():
        keys = [one.dataKey, *([one.memoryKey] if one.memoryKey is not None and one.memoryKey >= 0 else [])]
        for disk in one.disk or ():
            # The last file of the chain is the one that was written to before this snapshot; the first is the VM's base disk.
            if len(disk.chain) > 1:
                keys += list(disk.chain[-1].fileKey)
        found[one.key._moId] = sum(files.get(key, 0) for key in keys)
    return found


def read_configuration(seen: Properties) -> Configuration:
    """Read the configuration of a VM or of a snapshot."""
    memory = seen.get("config.hardware.memoryMB")
    cards = [one for one in seen.get("config.hardware.device") or () if isinstance(one, vim.vm.device.VirtualEthernetCard)]
    return Configuration(
        cpus=seen.get("config.hardware.numCPU"),
        memory_bytes=None if memory is None else memory * 1024**2,
        disks={one.deviceInfo.label: f"{one.capacityInKB * 1024} bytes ({one.backing.diskMode})" for one in disks(seen)},
        networks={one.macAddress or one.deviceInfo.label: one.deviceInfo.summary for one in cards},
    )

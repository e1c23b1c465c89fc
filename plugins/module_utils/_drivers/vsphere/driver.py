# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The vSphere backend: vCenter and ESXi, through pyVmomi.

All VMs of a call are looked up, read and awaited together. The number of requests grows by one for each task, which starts it, and by two for each
group of tasks that end at about the same time. While tasks report progress, there is one more request each 0.2 to 2 seconds, less often the longer
the tasks take.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import functools
import typing as t
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone

from ansible_collections.safepoint.vm.plugins.module_utils._core import errors
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Configuration, Snapshot, Vm, VmState
from ansible_collections.safepoint.vm.plugins.module_utils._core.names import NameRule, did_you_mean
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Finished, Job, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.actions import Actions
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.lookup import Lookup
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.parse import (
    CONFIGURATION,
    MEMORY_WAYS,
    NOT_READ,
    QUIESCE_WAYS,
    STATE,
    WAYS,
    Properties,
    plain,
    read_configuration,
    read_snapshots,
    read_state,
    retrieve,
    retrieve_each,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.session import (
    BadAnswer,
    Session,
    expect,
    typed,
    vim,
    vmodl,
)
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

_NAMES = ("name", "config.uuid", "config.instanceUuid")


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A VM in the inventory."""

    vm: Vm
    path: str
    bios_uuid: str | None
    """Not unique: clones can share it. ``vm`` has the instance UUID, which is unique in a vCenter."""


class _Index:
    """An index of the inventory by id, name, path and UUIDs."""

    def __init__(self, entries: Sequence[_Entry]) -> None:
        self.entries = entries
        self._by: dict[tuple[str, str], list[_Entry]] = {}
        for one in entries:
            keys = {("id", one.vm.id), ("name", one.vm.name), ("path", one.path)}
            keys |= {("uuid", uuid.lower()) for uuid in (one.vm.uuid, one.bios_uuid) if uuid}
            for key in keys:
                self._by.setdefault(key, []).append(one)

    def matching(self, kind: str, text: str) -> list[_Entry]:
        """Return the VMs whose ``id``, ``name``, ``uuid`` or ``path`` (``kind``) is ``text``; with ``any`` one of these."""
        keys = [("id", text), ("name", text), ("uuid", text.lower())]
        if "/" in text:
            keys.append(("path", "/" + text.strip("/")))
        found = {one.vm.id: one for key in keys if kind in (key[0], "any") for one in self._by.get(key, ())}
        return list(found.values())


def _vm(moid: str, seen: Properties) -> Vm:
    return Vm(plain(seen.get("name", moid)), moid, seen.get("config.instanceUuid") or seen.get("config.uuid"))


_Method = t.TypeVar("_Method", bound=Callable[..., t.Any])


def _reads(what: str) -> Callable[[_Method], _Method]:
    """Decorate a method that only reads: all exceptions are translated to an error of the endpoint, with ``what`` as the operation."""

    def around(method: _Method) -> _Method:
        @functools.wraps(method)
        def read(self: VsphereDriver, *args: t.Any, **kwargs: t.Any) -> t.Any:
            try:
                return method(self, *args, **kwargs)
            except Exception as exc:
                raise typed(exc, what, where=self._session.where) from exc

        return t.cast("_Method", read)

    return around


class VsphereDriver(SnapshotDriver):
    """A login to vCenter or ESXi. The id of a snapshot is its managed object id, which is never reused."""

    name = "vsphere"
    # The limit of the vSphere client. vSphere would also accept spaces and other characters, but other backends do not.
    name_rule = NameRule(max_bytes=80)

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lookup = Lookup(session)
        self._actions = Actions(session, self._lookup)

    def set_deadline(self, deadline: Deadline) -> None:
        self._session.deadline = deadline

    def now(self) -> datetime:
        return datetime.now(timezone.utc) + self._session.ahead

    @_reads("find the VMs")
    def find(self, refs: Sequence[str]) -> Mapping[str, Vm | SafepointError]:
        if all(ref.startswith("id:") for ref in refs):
            # Does not read the inventory, which may be large.
            vms = [self._vm(ref[3:]) for ref in refs]
            found = retrieve_each(self._session, "find the VMs", vms, {vim.VirtualMachine: _NAMES})
            known = {moid: _vm(moid, seen) for moid, seen in found.items()}
            return {ref: known.get(ref[3:]) or self._missing(ref, []) for ref in refs}
        index = _Index(self._inventory())
        return {ref: self._pick(ref, index) for ref in refs}

    @_reads("list the VMs")
    def vms(self) -> Sequence[Vm]:
        return sorted((one.vm for one in self._inventory()), key=lambda vm: (vm.name, vm.id))

    @_reads("read the VMs")
    def inspect(
        self, vms: Sequence[Vm], *, ways: bool, memory: bool = False, quiesce: bool = False
    ) -> Mapping[str, VmState | SafepointError]:
        paths = [*STATE, *(WAYS if ways else ()), *(MEMORY_WAYS if memory else ()), *(QUIESCE_WAYS if quiesce else ())]
        seen = retrieve_each(self._session, "read the VMs", [self._vm(vm.id) for vm in vms], {vim.VirtualMachine: paths})
        tasks = [task for one in seen.values() for task in one.get("recentTask") or ()]
        self._lookup.known.update(task._moId for task in tasks)
        running = self._running_tasks(tasks)
        free = self._free_space([store for one in seen.values() for store in one.get("datastore") or ()])
        states: dict[str, VmState | SafepointError] = {}
        for vm in vms:
            error = self._unreadable(vm, seen, "runtime.powerState")
            if error is not None:
                states[vm.id] = error
                continue
            busy = next((running[task._moId] for task in seen[vm.id].get("recentTask") or () if task._moId in running), None)
            states[vm.id] = read_state(vm.name, seen[vm.id], ways=ways, busy=busy, free=free)
        return states

    @_reads("list the snapshots")
    def snapshots(self, vms: Sequence[Vm], *, sizes: bool = False) -> Mapping[str, tuple[Snapshot, ...] | SafepointError]:
        paths = ["snapshot", *(["layoutEx"] if sizes else [])]
        seen = retrieve_each(self._session, "list the snapshots", [self._vm(vm.id) for vm in vms], {vim.VirtualMachine: paths})
        found = {vm.id: self._unreadable(vm, seen, "snapshot") or tuple(read_snapshots(seen[vm.id])) for vm in vms}
        self._lookup.note_snapshots({vm_id: one for vm_id, one in found.items() if not isinstance(one, SafepointError)})
        return found

    @_reads("read the configurations")
    def configurations(
        self, wanted: Sequence[tuple[Vm, Snapshot | None]]
    ) -> Mapping[tuple[str, str | None], Configuration | SafepointError]:
        objects = [self._snapshot(snapshot.id) if snapshot else self._vm(vm.id) for vm, snapshot in wanted]
        seen = retrieve_each(
            self._session,
            "read the configurations",
            objects,
            dict.fromkeys({type(one) for one in objects}, CONFIGURATION),
        )
        return {
            (vm.id, snapshot.id if snapshot else None): (
                read_configuration(seen[(snapshot or vm).id])
                if (snapshot or vm).id in seen
                else errors.SnapshotNotFound(f"{vm} has no snapshot {snapshot} any more")
                if snapshot
                else self._gone(vm)
            )
            for vm, snapshot in wanted
        }

    def start(self, action: Action) -> Job:
        self._actions.lock_timeout = self.lock_timeout
        return self._actions.start(action)

    def wait(self, jobs: Sequence[Job], deadline: Deadline) -> list[Finished]:
        return self._actions.endings.wait(jobs, deadline)

    def close(self) -> None:
        self._session.close()

    # look up

    def _inventory(self) -> list[_Entry]:
        """Return all VMs with their paths. Two requests."""
        content = self._session.content
        kinds = [vim.VirtualMachine, vim.Folder, vim.Datacenter]
        view = self._session.call(
            "list the VMs",
            lambda: expect(
                content.viewManager.CreateContainerView(container=content.rootFolder, type=kinds, recursive=True),
                vim.view.ContainerView,
                "view",
            ),
        )
        collector = vmodl.query.PropertyCollector
        over_view = collector.TraversalSpec(type=vim.view.ContainerView, path="view", skip=False)
        spec = collector.FilterSpec(
            # The root folder is added, since no view contains it: then even an inventory without VMs is not an empty answer.
            objectSet=[
                collector.ObjectSpec(obj=view, skip=True, selectSet=[over_view]),
                collector.ObjectSpec(obj=content.rootFolder),
            ],
            propSet=[
                collector.PropertySpec(type=vim.VirtualMachine, pathSet=["parent", *_NAMES]),
                collector.PropertySpec(type=vim.Folder, pathSet=["name", "parent"]),
                collector.PropertySpec(type=vim.Datacenter, pathSet=["name", "parent"]),
            ],
        )
        seen = {one._moId: (one, properties) for one, properties in retrieve(self._session, "list the VMs", [spec])}
        # The logout destroys the view; no separate request is needed.

        def path(moid: str | None) -> str:
            if moid not in seen or moid == content.rootFolder._moId:
                return ""
            properties = seen[moid][1]
            return path(getattr(properties.get("parent"), "_moId", None)) + "/" + plain(properties.get("name", "?"))

        return [
            _Entry(_vm(moid, properties), path(moid), properties.get("config.uuid"))
            for moid, (one, properties) in seen.items()
            if isinstance(one, vim.VirtualMachine)
        ]

    def _pick(self, ref: str, index: _Index) -> Vm | SafepointError:
        kind, colon, rest = ref.partition(":")
        if not colon or kind not in ("name", "uuid", "id", "path"):
            kind, rest = "any", ref
        found = index.matching(kind, rest)
        if len(found) > 1:
            listed = ", ".join(f"{one.path} (id:{one.vm.id})" for one in found)
            return errors.VmAmbiguous(f"{len(found)} VMs match {ref!r}: {listed}. Use the id or the path")
        return found[0].vm if found else self._missing(ref, index.entries)

    def _missing(self, ref: str, everything: Sequence[_Entry]) -> errors.VmNotFound:
        last = ref.rpartition("/")[2].rpartition(":")[2]
        hint = did_you_mean(last, (one.vm.name for one in everything)) or "check its name, and that the user may see it"
        return errors.VmNotFound(f"{self._session.where} has no VM {ref!r}; {hint}")

    def _unreadable(self, vm: Vm, seen: Mapping[str, Properties], path: str) -> SafepointError | None:
        """Return why a property of the VM could not be read, or None; an unset property is no error."""
        if vm.id not in seen:
            return self._gone(vm)
        fault = seen[vm.id].get(NOT_READ, {}).get(path)
        if fault is None and path == "runtime.powerState" and path not in seen[vm.id]:
            fault = BadAnswer(f"no {path}")  # every VM has a power state
        return typed(fault, f"read {path} of {vm}", where=self._session.where) if fault is not None else None

    def _gone(self, vm: Vm) -> errors.VmNotFound:
        return errors.VmNotFound(f"The VM {vm} ({vm.id}) does not exist any more")

    def _running_tasks(self, tasks: Sequence[t.Any]) -> dict[str, str]:
        """Return the tasks that have not ended, in words, by id."""
        tasks = [task for task in tasks if task._moId not in self._lookup.over]
        seen = retrieve_each(
            self._session, "read the tasks", tasks, {vim.Task: ["info.state", "info.descriptionId", "info.progress"]}
        )
        running = {
            moid: f"the task {moid} ({one.get('info.descriptionId', 'unknown')}, {one.get('info.progress') or 0}% done)"
            for moid, one in seen.items()
            if str(one.get("info.state")) in ("queued", "running")
        }
        self._lookup.over |= {task._moId for task in tasks} - running.keys()
        return running

    def _free_space(self, stores: Sequence[t.Any]) -> dict[str, tuple[str, int]]:
        seen = retrieve_each(self._session, "read the datastores", stores, {vim.Datastore: ["summary.name", "summary.freeSpace"]})
        return {
            moid: (plain(one["summary.name"]), one["summary.freeSpace"])
            for moid, one in seen.items()
            if "summary.freeSpace" in one
        }

    def _vm(self, moid: str) -> t.Any:
        return vim.VirtualMachine(moid, self._session.stub)

    def _snapshot(self, moid: str) -> t.Any:
        return vim.vm.Snapshot(moid, self._session.stub)

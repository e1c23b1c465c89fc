# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A minimal client for the tests of the simulator, with pyVmomi. Independent of the collection's driver."""

from __future__ import annotations

import contextlib
import ssl
import typing as t
from collections.abc import Iterator

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim, vmodl
from server import VCenter

PropertyCollector = vmodl.query.PropertyCollector


class Client:
    """A login to the simulator."""

    def __init__(self, vcenter: VCenter, user: str | None = None, password: str | None = None) -> None:
        self.si = SmartConnect(
            host=vcenter.hostname,
            port=vcenter.port,
            user=user or vcenter.username,
            pwd=password or vcenter.password,
            sslContext=ssl.create_default_context(cafile=vcenter.ca_path),
        )
        self.content = self.si.content

    @property
    def collector(self) -> t.Any:
        """Return the PropertyCollector of the session."""
        return self.content.propertyCollector

    def by_id(self, moid: str) -> t.Any:
        """The VM of that managed object id."""
        return vim.VirtualMachine(moid, self.si._stub)

    def read(self, managed: t.Any, *paths: str) -> dict[str, t.Any]:
        """Return properties, read with RetrievePropertiesEx; unset ones are left out."""
        spec = PropertyCollector.FilterSpec(
            objectSet=[PropertyCollector.ObjectSpec(obj=managed)],
            propSet=[PropertyCollector.PropertySpec(type=type(managed), pathSet=list(paths))],
        )
        answer = self.collector.RetrievePropertiesEx([spec], PropertyCollector.RetrieveOptions())
        return {one.name: one.val for one in answer.objects[0].propSet}

    @contextlib.contextmanager
    def watch(self, managed: list[t.Any], *paths: str) -> Iterator[t.Any]:
        """Create a ListView of objects of one kind with a filter; WaitForUpdatesEx then reports their properties."""
        view = self.content.viewManager.CreateListView(obj=managed)
        spec = PropertyCollector.FilterSpec(
            objectSet=[
                PropertyCollector.ObjectSpec(
                    obj=view,
                    skip=True,
                    selectSet=[PropertyCollector.TraversalSpec(type=vim.view.ListView, path="view", skip=False)],
                )
            ],
            propSet=[PropertyCollector.PropertySpec(type=type(managed[0]), pathSet=list(paths))],
        )
        watched = self.collector.CreateFilter(spec, partialUpdates=False)
        try:
            yield view
        finally:
            watched.Destroy()
            view.Destroy()

    def updates(self, version: str, seconds: int = 10) -> tuple[str, list[tuple[t.Any, str, dict[str, t.Any]]]]:
        """Return the new version, and the next updates as rows of object, kind of the update and properties."""
        answer = self.collector.WaitForUpdatesEx(version, PropertyCollector.WaitOptions(maxWaitSeconds=seconds))
        if answer is None:
            return version, []
        return answer.version, [
            (one.obj, one.kind, {change.name: change.val for change in one.changeSet})
            for filter_set in answer.filterSet
            for one in filter_set.objectSet
        ]

    def info(self, *tasks: t.Any) -> t.Any:
        """Wait until one or several tasks have ended, and return their info."""
        left = {task._moId for task in tasks}
        with self.watch(list(tasks), "info.state"):
            version = ""
            while left:
                version, rows = self.updates(version)
                assert rows, "the tasks do not end"
                left -= {one._moId for one, _, seen in rows if seen.get("info.state") in ("success", "error")}
        infos = [self.read(task, "info")["info"] for task in tasks]
        return infos[0] if len(infos) == 1 else infos

    def done(self, task: t.Any) -> t.Any:
        """Return the result of a task that must succeed."""
        info = self.info(task)
        assert info.state == "success", info.error
        return info.result

    def error(self, task: t.Any) -> t.Any:
        """Return the fault of a task that must fail."""
        info = self.info(task)
        assert info.state == "error"
        assert info.error.msg or info.error.localizedMessage
        return info.error

    def create(self, vm: t.Any, name: str, *, memory: bool = False, quiesce: bool = False, description: str = "") -> t.Any:
        """Start CreateSnapshotEx_Task."""
        spec = vim.vm.GuestQuiesceSpec(timeout=1) if quiesce else None
        return vm.CreateSnapshotEx_Task(name=name, description=description, memory=memory, quiesceSpec=spec)

    def tree(self, vm: t.Any) -> dict[str, tuple[str | None, bool]]:
        """Return all snapshots by name, with the name of the parent, and true for the current one."""
        info = self.read(vm, "snapshot").get("snapshot")
        rows: dict[str, tuple[str | None, bool]] = {}

        def walk(nodes: t.Any, parent: str | None) -> None:
            for node in nodes:
                rows[node.name] = (parent, node.snapshot == info.currentSnapshot)
                walk(node.childSnapshotList, node.name)

        if info:
            walk(info.rootSnapshotList, None)
        return rows


@contextlib.contextmanager
def login(vcenter: VCenter, user: str | None = None, password: str | None = None) -> Iterator[Client]:
    """Log in until the end of the block."""
    client = Client(vcenter, user, password)
    try:
        yield client
    finally:
        with contextlib.suppress(vim.fault.NotAuthenticated, OSError):
            Disconnect(client.si)

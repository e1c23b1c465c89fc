# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Direct access for tests: read and change the state of the cluster without the API, as an administrator would."""

from __future__ import annotations

import copy
import threading
import time
import typing as t
from collections.abc import Sequence

from pve_cluster import Cluster, Place
from pve_guests import Config, Guest, Snapshot, copied, stored
from pve_storage import make_state_volid, make_volid


def _configuration(name: str, type: str, memory_mb: int) -> Config:  # noqa: A002 - as the vendor calls it
    """Return the configuration of a new guest, without its disks."""
    made: Config = {"memory": str(memory_mb), "cores": 1, "ostype": "l26"}
    if type == "qemu":
        made |= {"name": name, "boot": "order=scsi0", "cpu": "qemu64", "kvm": 0, "scsihw": "virtio-scsi-pci"}
    else:
        made |= {
            "hostname": name,
            "ostype": "debian",
            "arch": "amd64",
            "memory": memory_mb,
            "swap": 512,
            "unprivileged": 1,
        }
    return made


class ByHand(Cluster):
    """A cluster that tests can read and change directly."""

    # -- guests --------------------------------------------------------------------------------------------------------

    def make_guest(
        self,
        name: str,
        vmid: int | None = None,
        node: str | None = None,
        type: str = "qemu",  # noqa: A002 - what the vendor calls it
        status: str = "running",
        storage: str | Sequence[str] = "dir-qcow2",
        memory_mb: int = 512,
        template: bool = False,
        agent: bool | str = False,
        disks: int = 1,
        tags: str = "",
        pool: str | None = None,
        config: Config | None = None,
    ) -> int:
        """Create a guest, by default on the first node, and return its id, by default the next free one from 100.

        `storage` is a class of pve_storage.CLASSES for all disks, or a list with one for each. `agent` "silent": it is enabled
        but does not answer. `config` overrides the configuration of a new guest.
        """
        with self.lock:
            vmid = vmid or next(number for number in range(100, 10**9) if number not in self.guests)
            if vmid in self.guests:
                raise ValueError(f"There is a guest {vmid} already")
            node = node or self.nodes[0]
            if node not in self.nodes:
                raise ValueError(f"There is no node {node}")
            made = _configuration(name, type, memory_mb)
            classes = [storage] * disks if isinstance(storage, str) else list(storage)
            for number, one in enumerate(classes):
                key = f"scsi{number}" if type == "qemu" else f"mp{number - 1}" if number else "rootfs"
                made[key] = f"{make_volid(one, type, vmid, number)},size=1G" + (
                    f",mp=/srv{number}" if key.startswith("mp") else ""
                )
            if template:
                made["template"] = 1
            if agent:
                made["agent"] = "1"
            if tags:
                made["tags"] = tags
            guest = Guest(vmid, type, node, made | (config or {}), data=f"fresh {name}", pool=pool)
            guest.agent = "silent" if agent == "silent" else "ok"
            guest.power(status)
            self.guests[vmid] = guest
            return vmid

    def guest(self, vmid: int) -> dict[str, t.Any]:
        """Return the real state of a guest: name, vmid, type, node, status, lock, config, data, pool, and its snapshots in order of creation.

        A snapshot has name, snaptime, parent, vmstate, description, snapstate (None if unset), config and data.
        """
        with self.lock:
            guest = self.guests[vmid]
            return {
                "name": guest.name,
                "vmid": vmid,
                "type": guest.type,
                "node": guest.node,
                "status": guest.status,
                "lock": guest.config.get("lock"),
                "config": copy.deepcopy(guest.config),
                "data": guest.data,
                "pool": guest.pool,
                "snapshots": [
                    {
                        "name": name,
                        "snaptime": snapshot.section.get("snaptime"),
                        "parent": snapshot.section.get("parent"),
                        "vmstate": bool(snapshot.section.get("vmstate")),
                        "description": snapshot.section.get("description"),
                        "snapstate": snapshot.section.get("snapstate"),
                        "config": copy.deepcopy(snapshot.section),
                        "data": snapshot.data,
                    }
                    for name, snapshot in guest.snapshots.items()
                ],
            }

    def set_guest(self, vmid: int, **changes: t.Any) -> None:
        """Change a guest regardless of locks, as an administrator on the node could.

        name, lock, protection, template, tags, memory_mb; status, node (it was migrated), data, pool; agent (True, False, "silent"),
        managed (by high availability), ha_state ("started" or "stopped"), replicated (a replication job needs its snapshots), paused;
        config and pending (changes until the next start), dicts. None removes a value.
        """
        with self.lock:
            guest = self.guests[vmid]
            config = dict(changes.pop("config", {}))
            guest.pending.update(changes.pop("pending", {}))
            for key, value in changes.items():
                if key in ("lock", "tags", "protection", "template"):
                    config[key] = int(value) if isinstance(value, bool) and value else value or None
                elif key == "name":
                    config[guest.name_key] = value
                elif key == "memory_mb":
                    config["memory"] = str(value) if guest.type == "qemu" else value
                elif key == "status":
                    guest.power(value)
                elif key == "agent":
                    config["agent"] = "1" if value else None
                    guest.agent = "silent" if value == "silent" else "ok"
                elif key in ("node", "data", "pool", "managed", "ha_state", "replicated", "paused"):
                    setattr(guest, key, value)
                else:
                    raise TypeError(f"A guest has no {key}")
            for key, value in config.items():
                if value is None:
                    guest.config.pop(key, None)
                else:
                    guest.config[key] = value

    def remove_guest(self, vmid: int) -> None:
        """Remove a guest with its snapshots."""
        with self.lock:
            guest = self.guests.pop(vmid)
            for _, volid in guest.disks(guest.config):
                self.volumes.snapshots.pop(volid, None)

    def add_disk(self, vmid: int, storage: str = "dir-qcow2") -> str:
        """Attach one more disk and return its key."""
        with self.lock:
            guest = self.guests[vmid]
            number = len(list(guest.disks(guest.config)))
            key = f"scsi{number}" if guest.type == "qemu" else f"mp{number - 1}"
            guest.config[key] = f"{make_volid(storage, guest.type, vmid, number)},size=1G"
            return key

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def snapshot_by_hand(self, vmid: int, name: str, description: str = "", vmstate: bool = False) -> None:
        """Create a snapshot at once, regardless of locks."""
        with self.lock:
            guest = self.guests[vmid]
            section = copied(guest.config) | {"snaptime": int(time.time())}
            text = stored(guest.type, description)
            if text is not None:
                section["description"] = text
            if vmstate:
                section["vmstate"] = make_state_volid(vmid, name, "local")
            for _, volid in guest.disks(section):
                self.volumes.take(volid, name)
            guest.snapshots[name] = Snapshot(section, guest.data)
            guest.config["parent"] = name

    def remove_snapshot(self, vmid: int, name: str) -> None:
        """Delete a snapshot at once."""
        with self.lock:
            guest = self.guests[vmid]
            section = guest.snapshots.pop(name).section
            for _, volid in guest.disks(section):
                self.volumes.delete(volid, name)
            guest.unlink(name, section.get("parent"))

    def set_snapshot(self, vmid: int, name: str, **section: t.Any) -> None:
        """Change the configuration of a snapshot: snaptime, parent, snapstate, description; None removes a value."""
        with self.lock:
            kept = self.guests[vmid].snapshots[name].section
            kept.update(section)
            for key in [key for key, value in kept.items() if value is None]:
                del kept[key]

    def snapshots_on_disk(self, vmid: int) -> dict[str, list[str]]:
        """Return the snapshots that the volumes of a guest really have, by volume id."""
        with self.lock:
            guest = self.guests[vmid]
            return {volid: list(self.volumes.snapshots.get(volid, [])) for _, volid in guest.disks(guest.config)}

    # -- tasks and nodes -----------------------------------------------------------------------------------------------

    def set_task_seconds(self, seconds: float, type: str | None = None) -> None:  # noqa: A002
        """Set the duration of new tasks: of one type, such as qmsnapshot, or of all types without their own duration."""
        with self.lock:
            self.task_seconds[type] = seconds

    def open_console(self, vmid: int) -> None:
        """Open the console of a VM: a task of root that runs for the duration of vncproxy."""
        guest, begun = self.guests[vmid], threading.Event()

        def begin() -> None:
            with self.lock:
                self.fork("vncproxy", Place(vmid, guest.type, guest.node), "root@pam", lambda task: task.work())
            begun.set()

        if self.loop is not None:
            self.loop.call_soon_threadsafe(begin)
            begun.wait()

    def finish_tasks(self) -> None:
        """End all running tasks now, with success."""
        with self.lock:
            for task in self.tasks.values():
                if task.running and self.loop is not None:
                    self.loop.call_soon_threadsafe(task.hurry)

    def task_list(self, type: str | None = None) -> list[dict[str, t.Any]]:  # noqa: A002
        """Return all tasks in the order of their start, or those of one type: upid, type, vmid, user, exitstatus (None: it runs), log."""
        with self.lock:
            return [
                {
                    "upid": task.upid,
                    "type": task.type,
                    "vmid": int(task.id),
                    "user": task.user,
                    "exitstatus": task.exitstatus,
                    "log": list(task.log),
                }
                for task in self.tasks.values()
                if type in (None, task.type)
            ]

    def node_offline(self, node: str, status: int = 595, reason: str = "Connection refused") -> None:
        """Take a node down: requests for it get this answer, and its guests have no name and an unknown status."""
        with self.lock:
            self.offline[node] = (status, reason)
            self._broadcast_at = 0.0

    def node_online(self, node: str) -> None:
        """Bring a node back."""
        with self.lock:
            self.offline.pop(node, None)
            self._broadcast_at = 0.0

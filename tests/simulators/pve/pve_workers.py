# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The workers, with the order of checks in pve-guest-common 6.0.2 and qemu-server 9.2.6.

A worker does all fast steps at once; its whole duration is spent at the point where PVE snapshots the disks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid

from pve_cluster import STEP, Cluster, Place
from pve_errors import Died, Refused
from pve_guests import RUNNING_KEYS, WORDS, Config, Guest, Snapshot, copied, stored
from pve_storage import make_state_volid, storage_of
from pve_tasks import Task

START = {"qemu": "qmstart", "lxc": "vzstart"}
STOP = {"qemu": "qmstop", "lxc": "vzstop"}


class Snapshots:
    """The operations on one snapshot of one guest."""

    def __init__(self, cluster: Cluster, place: Place, name: str) -> None:
        self.cluster = cluster
        self.place = place
        self.name = name

    # -- create --------------------------------------------------------------------------------------------------------

    async def create(self, task: Task, *, description: str, memory: bool) -> None:
        """Create the snapshot."""
        async with self.cluster.config(self.place) as guest:
            self._prepare(guest, description=description, memory=memory)
            self._say_freeze(task, guest)
            interrupted = self._interrupted_text(guest)
        try:
            await task.work(interrupted)
            with self.cluster.lock:
                guest = self.cluster.load(self.place)
                snapshot = guest.snapshot(self.name)
                snapshot.data = guest.data
                for _, volid in guest.disks(snapshot.section):
                    self.cluster.volumes.take(volid, self.name)
        except Died:
            task.say("snapshot create failed: starting cleanup")
            with self.cluster.lock:
                guest = self.cluster.load(self.place)
                guest.snapshots.pop(self.name, None)
                guest.config.pop("lock", None)
            raise
        async with self.cluster.config(self.place) as guest:
            if guest.config.get("lock") != "snapshot":
                raise Died("missing snapshot lock")
            section = guest.snapshot(self.name).section
            if section.pop("snapstate", None) != "prepare":
                raise Died("wrong snapshot state")
            del guest.config["lock"]
            guest.config["parent"] = self.name

    def _prepare(self, guest: Guest, *, description: str, memory: bool) -> None:
        if guest.is_template:
            raise Died("you can't take a snapshot if it's a template")
        guest.check_lock()
        if self.name in guest.snapshots:
            raise Died(f"snapshot name '{self.name}' already used")
        if not guest.can_snapshot(self.cluster.volumes):
            raise Died("snapshot feature is not available")
        section: Config = {}
        if memory and guest.running:  # PVE silently takes a snapshot without memory of a VM that is off
            section = self._memory(guest)
        section = copied(guest.config) | section
        section |= {"snapstate": "prepare", "snaptime": int(time.time())}
        # "0" is false in Perl, so it counts as no description.
        text = stored(guest.type, description) if description != "0" else None
        if text is not None:
            section["description"] = text
        for other in guest.snapshots.values():
            if other.section.get("parent") == self.name:
                del other.section["parent"]
        guest.config["lock"] = "snapshot"
        guest.snapshots[self.name] = Snapshot(section)

    def _memory(self, guest: Guest) -> Config:
        # A shared storage of its disks is preferred to a local one.
        storages = sorted((volid.partition(":")[0] for _, volid in guest.disks(guest.config)), key=lambda one: one != "rbd")
        storage = str(guest.config.get("vmstatestorage") or [*storages, "local"][0])
        storage_of(f"{storage}:")
        return {
            "vmstate": make_state_volid(guest.vmid, self.name, storage),
            "runningmachine": "pc-i440fx-10.0+pve0",
            "runningcpu": guest.config.get("cpu", "kvm64"),
            "running-nets-host-mtu": " ",
        }

    def _say_freeze(self, task: Task, guest: Guest) -> None:
        agent = str(guest.config.get("agent") or "0").split(",")
        if guest.type == "qemu" and guest.running and agent[0] in ("1", "enabled=1"):
            if {"freeze-fs=0", "freeze-fs-on-backup=0"} & set(agent):
                task.say("skipping guest filesystem freeze - disabled in VM options")
            elif guest.agent == "silent":
                task.say("skipping guest filesystem freeze - agent configured but not running?")

    def _interrupted_text(self, guest: Guest) -> str:
        for _, volid in guest.disks(guest.config):
            if volid.startswith("local:") and not guest.running:
                image = f"/var/lib/vz/images/{volid.partition(':')[2]}"
                return f"command '/usr/bin/qemu-img snapshot -c {self.name} {image}' failed: received interrupt "
        return "received interrupt"

    # -- delete --------------------------------------------------------------------------------------------------------

    async def delete(self, task: Task, *, force: bool) -> None:
        """Delete the snapshot. `force` skips the migration lock and ignores failures of disks, but respects the guest's lock."""
        if force or self.place.type == "lxc":
            # A delete for a container does not wait for another delete (pve-container 6.1.10).
            await self._delete(task, force=force)
        else:
            text = "Failed to obtain guest migration lock - replication running?"
            async with self.cluster.migration_lock(self.place.vmid, text):
                await self._delete(task, force=False)

    async def _delete(self, task: Task, *, force: bool) -> None:
        with self.cluster.lock:
            guest = self.cluster.load(self.place)
            guest.snapshot(self.name)
            if guest.replicated and not force:
                job = f"{guest.vmid}-0"
                raise Died(f"snapshot '{self.name}' needed by replication job '{job}' - run replication first")
        if self.place.type == "lxc" and self.cluster.container_deletes_meet:
            await self._until_alone()
        async with self.cluster.config(self.place) as guest:
            guest.check_lock()
            guest.config["lock"] = "snapshot-delete"
        async with self.cluster.config(self.place) as guest:
            # The guest is already locked, and the lock remains.
            if guest.is_template:
                raise Died("you can't delete a snapshot if vm is a template")
            guest.snapshot(self.name).section["snapstate"] = "delete"
        try:
            await task.work()
            self._delete_disks(task, force=force)
        except Died as exc:
            if not force or task.interrupted:
                raise
            task.say(str(exc))
        async with self.cluster.config(self.place) as guest:
            if guest.config.get("lock") != "snapshot-delete":
                raise Died("encountered invalid lock, expected 'snapshot-delete'")
            guest.unlink(self.name, guest.snapshot(self.name).section.get("parent"))
            del guest.snapshots[self.name]
            del guest.config["lock"]

    async def _until_alone(self) -> None:
        """Simulate two parallel deletes of one snapshot: this one has found it, and continues when the other has ended."""
        end = time.monotonic() + self.cluster.lock_seconds
        while time.monotonic() < end:
            with self.cluster.lock:
                guest = self.cluster.load(self.place)
                section = guest.snapshots[self.name].section if self.name in guest.snapshots else {}
                if guest.config.get("lock") != "snapshot-delete" or section.get("snapstate") != "delete":
                    return
            await asyncio.sleep(STEP)

    def _delete_disks(self, task: Task, *, force: bool) -> None:
        with self.cluster.lock:
            guest = self.cluster.load(self.place)
            section = guest.snapshot(self.name).section
            if not force:
                section.pop("vmstate", None)
            for key, volid in list(guest.disks(section)):
                # PVE uses this name for backups and skips disks that are excluded from them: so their snapshot remains.
                if self.name == "vzdump" and key != "rootfs" and "backup=1" not in section[key].split(","):
                    continue
                try:
                    self.cluster.volumes.delete(volid, self.name)
                except Died as exc:
                    if not force:
                        raise
                    task.say(str(exc))
                if not force:
                    del section[key]

    # -- rollback ------------------------------------------------------------------------------------------------------

    async def rollback(self, task: Task, *, start: bool) -> None:
        """Roll back; a start after it is a separate task that this one does not wait for."""
        text = f"can't lock file '/var/lock/pve-manager/pve-migrate-{self.place.vmid}' - got timeout"
        async with self.cluster.migration_lock(self.place.vmid, text):
            async with self.cluster.config(self.place) as guest:
                snapshot = self._check_rollback(guest)
                guest.check_lock()
                guest.power("stopped")
                guest.config["lock"] = "rollback"
            await task.work()
            async with self.cluster.config(self.place) as guest:
                if guest.config.get("lock") != "rollback":
                    raise Died("got wrong lock")
                self._apply(guest, snapshot)
                if start and not guest.running:
                    start_guest(self.cluster, self.place, task.user, seconds=self.cluster.second_start_seconds)

    def _check_rollback(self, guest: Guest) -> Snapshot:
        if guest.is_template:
            raise Died("you can't rollback if vm is a template")
        snapshot = guest.snapshot(self.name)
        for _, volid in guest.disks(snapshot.section):
            self.cluster.volumes.check_rollback(volid, self.name)
        if snapshot.section.get("snapstate"):
            raise Died(f"unable to rollback to incomplete snapshot (snapstate = {snapshot.section['snapstate']})")
        return snapshot

    def _apply(self, guest: Guest, snapshot: Snapshot) -> None:
        """Revert the whole configuration including the name; only the notes and the unused volumes are kept."""
        kept = {volid for _, volid in guest.disks(snapshot.section)}
        for _, volid in list(guest.disks(guest.config)):
            if volid not in kept:
                guest.add_unused(volid)
        replaced = {*copied(guest.config), "lock"}
        config = {key: value for key, value in guest.config.items() if key not in replaced}
        config |= copied(snapshot.section) | {"parent": self.name}
        for key in RUNNING_KEYS:
            config.pop(key, None)
        if "vmgenid" in config:
            # The VM generation id: software in the guest reseeds its random numbers when it changes.
            config["vmgenid"] = str(uuid.uuid4())
        guest.config = config
        guest.pending.clear()
        guest.data = snapshot.data
        guest.power("running" if snapshot.section.get("vmstate") else "stopped")


# -- power ---------------------------------------------------------------------------------------------------------------


def start_guest(cluster: Cluster, place: Place, user: str, *, skip_lock: bool = False, seconds: float | None = None) -> str:
    """Start a guest in a task; with high availability the task only requests it, and a task of root starts the guest."""
    guest = cluster.guests.get(place.vmid)
    if guest is not None and guest.managed:
        return _order(cluster, place, user, "started", seconds=seconds)
    return _start(cluster, place, user, skip_lock=skip_lock, seconds=seconds)


def watch_ha(cluster: Cluster, off_since: dict[int, float]) -> None:
    """One round of high availability: start guests that are off but should run."""

    def start(guest: Guest) -> None:
        with contextlib.suppress(Refused):  # the next round tries again
            _start(cluster, Place(guest.vmid, guest.type, guest.node), "root@pam")

    with cluster.lock:
        cluster.start_by_ha(start, off_since)


def _order(cluster: Cluster, place: Place, user: str, state: str, *, seconds: float | None = None) -> str:
    """Request a state from high availability: a task of root sets it shortly after this task has ended."""

    async def request(task: Task) -> None:
        await task.work()
        task.say(f"Requesting HA {'start' if state == 'started' else 'stop'} for {WORDS[place.type]} {place.vmid}")
        with cluster.lock:
            guest = cluster.load(place)
            guest.ha_state = state
            begin = _start if state == "started" else _stop
            if guest.running != (state == "started"):
                begin(cluster, place, "root@pam", seconds=cluster.second_start_seconds)

    return cluster.fork("hastart" if state == "started" else "hastop", place, user, request, seconds=seconds)


def _start(cluster: Cluster, place: Place, user: str, *, skip_lock: bool = False, seconds: float | None = None) -> str:
    async def start(task: Task) -> None:
        async with cluster.config(place) as guest:
            if guest.is_template:
                raise Died(f"you can't start a {'vm' if place.type == 'qemu' else 'CT'} if it's a template")
            if not skip_lock:
                guest.check_lock()
            if guest.running:
                raise Died(f"{'VM' if place.type == 'qemu' else 'CT'} {place.vmid} already running")
        await task.work()
        with cluster.lock:
            cluster.load(place).power("running")

    return cluster.fork(START[place.type], place, user, start, seconds=seconds)


def stop_guest(cluster: Cluster, place: Place, user: str, task_type: str, *, skip_lock: bool = False) -> str:
    """Stop or shut down a guest in a task; succeeds if it is already stopped. With high availability the task only requests it."""
    guest = cluster.guests.get(place.vmid)
    if guest is not None and guest.managed:
        return _order(cluster, place, user, "stopped")
    return _stop(cluster, place, user, task_type=task_type, skip_lock=skip_lock)


def _stop(
    cluster: Cluster, place: Place, user: str, *, task_type: str = "", skip_lock: bool = False, seconds: float | None = None
) -> str:

    async def stop(task: Task) -> None:
        await asyncio.sleep(0)
        with cluster.lock:
            guest = cluster.load(place)
            if guest.running and not skip_lock:
                guest.check_lock()
        await task.work()
        with cluster.lock:
            cluster.load(place).power("stopped")

    return cluster.fork(task_type or STOP[place.type], place, user, stop, seconds=seconds)


def suspend_guest(cluster: Cluster, place: Place, user: str, *, to_disk: bool) -> str:
    """Stop the vCPUs of a VM; suspended to disk, it is off and locked until it is resumed."""

    async def suspend(task: Task) -> None:
        async with cluster.config(place) as guest:
            guest.check_lock()
            if not guest.running:
                raise Died(f"VM {place.vmid} not running")
            if to_disk:
                guest.config["lock"] = "suspending"
        await task.work()
        with cluster.lock:
            guest = cluster.load(place)
            if to_disk:
                guest.power("stopped")
                guest.config["lock"] = "suspended"
            else:
                guest.paused = True

    return cluster.fork("qmsuspend" if to_disk else "qmpause", place, user, suspend)


def resume_guest(cluster: Cluster, place: Place, user: str) -> str:
    """Resume a VM, also one that was suspended to disk."""

    async def resume(task: Task) -> None:
        async with cluster.config(place) as guest:
            if guest.config.get("lock") == "suspended":
                del guest.config["lock"]
            guest.check_lock()
            guest.power("running")

    return cluster.fork("qmresume", place, user, resume)

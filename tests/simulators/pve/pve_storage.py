# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Storages and the snapshots of their volumes."""

from __future__ import annotations

import dataclasses

from pve_errors import Died

DIRECTORY = "/var/lib/vz/images"


@dataclasses.dataclass(frozen=True)
class Storage:
    """A storage of the cluster. `newest_only`: a volume can only be reverted to its newest snapshot."""

    kind: str
    newest_only: bool = False
    containers: bool = True


STORAGES = {
    "local": Storage("dir", containers=False),
    "chain": Storage("dir", newest_only=True, containers=False),
    "local-zfs": Storage("zfspool", newest_only=True),
    "local-lvm": Storage("lvmthin"),
    "rbd": Storage("rbd"),
}
# The name for tests -> the storage and the format of a VM's image. "gone" is not in storage.cfg.
CLASSES = {
    "dir-qcow2": ("local", "qcow2"),
    "raw": ("local", "raw"),
    "chain": ("chain", "qcow2"),
    "zfs": ("local-zfs", ""),
    "lvmthin": ("local-lvm", ""),
    "rbd": ("rbd", ""),
    "gone": ("gone", ""),
}


def make_volid(storage_class: str, guest_type: str, vmid: int, index: int) -> str:
    """Return the volume id of a new disk. A container has raw images in a folder and subvolumes on ZFS."""
    storage, image = CLASSES[storage_class]
    if image:
        return f"{storage}:{vmid}/vm-{vmid}-disk-{index}.{image if guest_type == 'qemu' else 'raw'}"
    prefix = "subvol" if guest_type == "lxc" and storage_class == "zfs" else "vm"
    return f"{storage}:{prefix}-{vmid}-disk-{index}"


def make_state_volid(vmid: int, name: str, storage: str) -> str:
    """Return the volume for the memory of a VM."""
    if STORAGES[storage].kind == "dir":
        return f"{storage}:{vmid}/vm-{vmid}-state-{name}.raw"
    return f"{storage}:vm-{vmid}-state-{name}"


def storage_of(volid: str) -> Storage:
    """Return the storage of a volume; Died if it does not exist."""
    name = volid.partition(":")[0]
    if name not in STORAGES:
        raise Died(f"storage '{name}' does not exist")
    return STORAGES[name]


class Volumes:
    """The snapshots of each volume: names, oldest first. A name can be there twice, see `vzdump` in qcow2 images."""

    def __init__(self) -> None:
        self.snapshots: dict[str, list[str]] = {}

    def can_snapshot(self, volid: str, guest_type: str) -> bool:
        """Return True if storage and format support snapshots; a device or folder of the host is not a volume and does not."""
        if ":" not in volid:
            return False
        storage = storage_of(volid)
        if storage.kind == "dir":
            return guest_type == "qemu" and volid.endswith(".qcow2")
        return guest_type == "qemu" or storage.containers

    def take(self, volid: str, name: str) -> None:
        """Create a snapshot."""
        self.snapshots.setdefault(volid, []).append(name)

    def check_rollback(self, volid: str, name: str) -> None:
        """Raise Died if the volume cannot be reverted to that snapshot."""
        storage = storage_of(volid)
        if not storage.newest_only:
            return
        # The error text has no storage for a chain of qcow2 files, but has it for a ZFS volume (pve-storage 9.1.7).
        where = volid.partition(":")[2] if storage.kind == "dir" else volid
        taken = self.snapshots.get(volid, [])
        if name not in taken:
            raise Died(f"can't rollback, snapshot '{name}' does not exist on '{where}'")
        if taken[-1] != name:
            raise Died(f"can't rollback, '{name}' is not most recent snapshot on '{where}'")

    def delete(self, volid: str, name: str) -> None:
        """Delete a snapshot; Died if the volume does not have it."""
        taken = self.snapshots.get(volid, [])
        if name in taken:
            taken.remove(name)
            return
        storage, _, volume = volid.partition(":")
        kind = storage_of(volid).kind
        if kind == "dir":
            raise Died(f"command '/usr/bin/qemu-img snapshot -d {name} {DIRECTORY}/{volume}' failed: exit code 1 ")
        if kind == "zfspool":
            raise Died("zfs error: could not find any snapshots to destroy; check snapshot names.")
        raise Died(f"{kind} snapshot '{storage}/snap_{volume}_{name}' error: not found")

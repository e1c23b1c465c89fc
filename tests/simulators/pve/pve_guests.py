# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests, their configuration and their snapshots, as plain objects."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
import typing as t
from collections.abc import Iterator

from pve_errors import Died
from pve_storage import Volumes

Config = dict[str, t.Any]

DISKS = {"qemu": re.compile(r"(scsi|virtio|sata|ide|efidisk|tpmstate)\d+$"), "lxc": re.compile(r"(rootfs|mp\d+)$")}
WORDS = {"qemu": "VM", "lxc": "CT"}
# Options that a snapshot does not copy from the configuration, nor a rollback from the snapshot (pve-guest-common 6.0.2).
NOT_COPIED = {"snapstate", "snaptime", "vmstate", "lock", "digest", "description"}
RUNNING_KEYS = ("runningmachine", "runningcpu", "running-nets-host-mtu")
SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass
class Snapshot:
    """A snapshot: its section of the configuration file, and the disk contents at its creation."""

    section: Config
    data: str = ""


@dataclasses.dataclass
class Guest:
    """A VM or a container."""

    vmid: int
    type: str
    node: str
    config: Config
    status: str = "stopped"
    data: str = ""
    # The guest agent: "ok", or "silent" if it is configured but does not answer.
    agent: str = "ok"
    pool: str | None = None
    managed: bool = False
    # The requested state in high availability: "started" or "stopped".
    ha_state: str = "started"
    # True if the vCPUs of a running VM are stopped.
    paused: bool = False
    # Changes that are pending until the next start; None removes the option.
    pending: Config = dataclasses.field(default_factory=dict)
    made: float = dataclasses.field(default_factory=time.monotonic)
    replicated: bool = False
    snapshots: dict[str, Snapshot] = dataclasses.field(default_factory=dict)
    started: float = 0.0

    @property
    def name_key(self) -> str:
        """The configuration key of the name."""
        return "name" if self.type == "qemu" else "hostname"

    @property
    def name(self) -> str:
        """The name; a guest without one gets one from its id, as in pvestatd."""
        return str(self.config.get(self.name_key) or f"{WORDS[self.type]}{self.vmid}")

    @property
    def is_template(self) -> bool:
        """True if it is a template."""
        return bool(self.config.get("template"))

    @property
    def running(self) -> bool:
        """True if it runs."""
        return self.status == "running"

    def power(self, status: str) -> None:
        """Set the status to running or stopped."""
        if status == "running" and not self.running:
            self.started = time.time()
            self.config = self.planned()
            self.pending.clear()
        self.status = status
        self.paused = False

    def planned(self) -> Config:
        """Return the configuration with the pending changes."""
        return {key: value for key, value in {**self.config, **self.pending}.items() if value is not None}

    def check_lock(self) -> None:
        """Raise Died if another operation has locked the guest."""
        if self.config.get("lock"):
            raise Died(f"{WORDS[self.type]} is locked ({self.config['lock']})")

    def snapshot(self, name: str) -> Snapshot:
        """Return the snapshot of that name; case-sensitive."""
        if name not in self.snapshots:
            raise Died(f"snapshot '{name}' does not exist")
        return self.snapshots[name]

    def disks(self, section: Config) -> Iterator[tuple[str, str]]:
        """Return key and volume id of each disk that a snapshot includes; not CD-ROMs and cloud-init drives."""
        for key, value in section.items():
            if DISKS[self.type].match(key):
                volid, *options = str(value).split(",")
                if "media=cdrom" not in options and volid != "none":
                    yield key, volid

    def can_snapshot(self, volumes: Volumes) -> bool:
        """Return True if all disks support snapshots; Died for a missing storage."""
        return all(volumes.can_snapshot(volid, self.type) for _, volid in self.disks(self.config))

    def digest(self) -> str:
        """Return the SHA-1 of the configuration including snapshots, so it differs after every change."""
        file = [self.config, {name: snapshot.section for name, snapshot in self.snapshots.items()}]
        return hashlib.sha1(json.dumps(file, sort_keys=True).encode()).hexdigest()

    def unlink(self, name: str, parent: str | None) -> None:
        """Change the parent `name` of snapshots and guest to `parent`."""
        for section in [self.config, *(snapshot.section for snapshot in self.snapshots.values())]:
            if section.get("parent") == name:
                if parent:
                    section["parent"] = parent
                else:
                    del section["parent"]

    def add_unused(self, volid: str) -> None:
        """Keep a volume that no key refers to, as the first free `unused` key."""
        kept = {key: value for key, value in self.config.items() if re.match(r"unused\d+$", key)}
        if volid not in kept.values():
            self.config[next(f"unused{n}" for n in range(256) if f"unused{n}" not in kept)] = volid

    def memory_bytes(self) -> int:
        """The memory in bytes."""
        return int(self.config.get("memory") or 512) << 20

    def disk_bytes(self) -> int:
        """The size of its first disk, as shown in lists."""
        for key, _ in self.disks(self.config):
            found = re.search(r",size=(\d+)([KMGT]?)", str(self.config[key]))
            return int(found[1]) * SIZES[found[2]] if found else 0
        return 0


def copied(section: Config) -> Config:
    """Return the options that a snapshot copies from the configuration, and a rollback from the snapshot."""
    return {key: value for key, value in section.items() if key not in NOT_COPIED and not re.match(r"unused\d+$", key)}


def stored(guest_type: str, description: str) -> str | None:
    """Return a description as PVE reads it back from the comment lines of the configuration file.

    For a VM trailing white space is removed, for a container a newline is added (qemu-server 9.2.6, pve-container 6.1.10).
    """
    if guest_type == "qemu":
        return description.rstrip() or None
    return description.rstrip("\n") + "\n" if description.strip() else None

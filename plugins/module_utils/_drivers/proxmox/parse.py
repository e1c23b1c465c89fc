# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Convert Proxmox VE's data about guests and snapshots to the core's data classes.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone

from ansible_collections.safepoint.vm.plugins.module_utils._core import label as _label
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import (
    Configuration,
    Finding,
    Snapshot,
    Vm,
    VmState,
    Way,
    parents_first,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.errors import locked_by, way_out
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.session import Row

# The list entry for the present state of the guest.
_NOW = "current"
_QEMU_DISK = re.compile(r"(?:scsi|virtio|ide|sata|efidisk|tpmstate)\d+")
_LXC_DISK = re.compile(r"rootfs|mp\d+")
# In these states high availability does not start a guest (pve-ha-manager 5.0).
_HA_LEFT_OFF = ("stopped", "request_stop", "disabled", "ignored", "error")
# QEMU states in which the guest does not run.
_STILL = ("paused", "suspended", "io-error", "internal-error", "guest-panicked", "watchdog")
_TEMPLATE = "is a template, and templates have no snapshots (PVE would leave it locked); clone it, and use the clone"
_SIZE_UNKNOWN = "Proxmox VE does not report the size of a snapshot"
# "agent: 1", or "agent: enabled=1,fstrim_cloned_disks=1".
_AGENT = re.compile(r"(?:^|,)(?:enabled=)?1(?:,|$)")
_NO_FREEZE = re.compile(r"(?:^|,)(freeze-fs(?:-on-backup)?=0)(?:,|$)")
# Locks of operations that create or remove no snapshots that a user can see.
_NOT_ABOUT_SNAPSHOTS = ("backup", "suspended", "suspending", "mounted", "fstrim")
QUIESCE_ADVICE = "enable the agent in the VM's options and install qemu-guest-agent in the guest, or set quiesce=never"


@dataclasses.dataclass(frozen=True)
class Guest:
    """A row of cluster/resources. Name, status and template are up to ten seconds old; the lock is current."""

    vmid: str
    kind: str
    """``qemu`` or ``lxc``."""
    node: str
    name: str | None
    """None if its node is not available."""
    running: bool
    template: bool
    lock: str | None
    heard: bool = True
    """True if its node reported it recently; False if the node is down, and for the first ten seconds of a guest."""
    ha: str | None = None
    """Its present or requested state in high availability; None if high availability does not manage it."""
    pool: str | None = None

    @property
    def kept_running(self) -> bool:
        """True if high availability would start it again when it is off."""
        return self.ha is not None and self.ha not in _HA_LEFT_OFF

    @property
    def vm(self) -> Vm:
        return Vm(self.name or self.vmid, self.vmid)

    @property
    def path(self) -> str:
        return f"nodes/{self.node}/{self.kind}/{self.vmid}"

    @property
    def container(self) -> bool:
        return self.kind == "lxc"

    @property
    def tool(self) -> str:
        """The command that manages it on its node."""
        return "pct" if self.container else "qm"

    def worker(self, action: str) -> str:
        """Return PVE's task type for an action: ``snapshot``, ``delsnapshot``, ``rollback``, ``start``, ``stop``."""
        return f"{'vz' if self.container else 'qm'}{action}"


def read_guest(row: Row, *, kind: str | None = None, node: str | None = None) -> Guest:
    """Read a guest from cluster/resources, or from the list of a ``node`` for one ``kind``.

    :raises ValueError: the row is not a guest.
    """
    for key in ("type", "node", "name", "status"):
        if not isinstance(row.get(key) or "", str):
            raise ValueError(f"{key} is not a string")
    return Guest(
        vmid=str(int(row["vmid"])),
        kind=kind or row["type"],
        node=node or row["node"],
        name=row.get("name"),
        running=row.get("status") == "running",
        template=bool(int(row.get("template") or 0)),
        lock=row.get("lock") or None,
        heard=row.get("status") != "unknown",
        ha=row.get("hastate") or None,
        pool=row.get("pool") or None,
    )


def ref_kind(ref: str) -> tuple[str, str]:
    """Split a ref into its prefix (``name``, ``id``, ``path``, ``uuid``, or ``any`` without one) and the rest."""
    kind, colon, rest = ref.partition(":")
    return (kind, rest) if colon and kind in ("name", "id", "path", "uuid") else ("any", ref)


def matching(ref: str, guests: Iterable[Guest]) -> list[Guest]:
    """Return the guests that match a ref: a vmid, a name, or NODE/VMID."""
    kind, text = ref_kind(ref)
    return [
        guest
        for guest in guests
        if (kind in ("id", "any") and guest.vmid == text)
        or (kind in ("name", "any") and guest.name == text)
        or (kind in ("path", "any") and f"{guest.node}/{guest.vmid}" == text.strip("/"))
    ]


@dataclasses.dataclass(frozen=True)
class Listing:
    """The snapshot list of one guest."""

    snapshots: tuple[Snapshot, ...]
    running: bool
    unfinished: Mapping[str, str]
    """Incomplete snapshots: name to snapstate, ``prepare`` or ``delete``."""


def read_still(rows: Iterable[Row]) -> frozenset[str]:
    """Return the vmids of the paused VMs, from a node's list with ``full``."""
    return frozenset(str(row["vmid"]) for row in rows if row.get("qmpstatus") in _STILL)


def read_listing(rows: Iterable[Row], guest: Guest) -> Listing:
    """Read the snapshot list. PVE returns it in random order."""
    by_name = {row["name"]: row for row in rows}
    # Only the entry of the guest itself has no time.
    now = by_name.get(_NOW, {})
    if "snaptime" not in now:
        by_name.pop(_NOW, None)
    snapshots = []
    for name, row in by_name.items():
        # qemu strips trailing white space, lxc adds a newline.
        description = str(row.get("description") or "").rstrip()
        label = _label.parse(description).label
        memory = bool(int(row.get("vmstate") or 0))
        known = label.consistency if label is not None else None
        snapshots.append(
            Snapshot(
                id=name,
                name=name,
                created=read_snapshot_time(row),
                parent=row.get("parent") or None,
                description=description,
                memory=memory,
                consistency="memory" if memory else known if known in ("filesystem", "offline") else "crash",
                current=name == now.get("parent"),
                size_unknown=_SIZE_UNKNOWN,
                obstacles=_obstacles(guest, name, row.get("snapstate")),
            )
        )
    unfinished = {name: str(row["snapstate"]) for name, row in by_name.items() if row.get("snapstate")}
    return Listing(parents_first(snapshots), bool(int(now.get("running") or 0)), unfinished)


def read_snapshot_time(row: Row) -> datetime | None:
    """Return the creation time of a snapshot, from its row in the list or from its configuration."""
    return datetime.fromtimestamp(int(row["snaptime"]), timezone.utc) if row.get("snaptime") else None


def _remove_by_force(guest: Guest, name: str) -> str:
    return f"run {guest.tool} delsnapshot {guest.vmid} {name} --force on its node"


def _obstacles(guest: Guest, name: str, snapstate: str | None) -> dict[str, str]:
    obstacles = {}
    if snapstate:
        obstacles["revert"] = f"is incomplete (snapstate {snapstate}); {_remove_by_force(guest, name)}"
    if snapstate == "prepare":
        # If a disk does not have it yet, the removal fails and leaves the guest locked (qemu-server 9.2).
        obstacles["remove"] = obstacles["revert"]
    if guest.template:
        obstacles["revert"] = obstacles["remove"] = f"belongs to {guest.vm}, which {_TEMPLATE}"
    return obstacles


def read_state(
    guest: Guest, listing: Listing | None, holder: str | None, *, no_freeze: str | None = None, still: bool = False
) -> VmState:
    """Return the state of a guest; ``holder`` is the task that holds it, ``no_freeze`` why it cannot be quiesced, ``still`` true if it is paused."""
    running = listing.running if listing is not None else guest.running
    unfinished = listing.unfinished if listing is not None else {}
    busy = None
    findings = []
    if guest.lock:
        busy = locked_by(guest.lock, holder, tool=guest.tool, vmid=guest.vmid, unfinished=unfinished)
        if holder is None:
            out = way_out(guest.lock, guest.tool, guest.vmid, unfinished)
            findings.append(Finding("locked", f"{guest.vm} has the lock {guest.lock!r}", out))
    for name, snapstate in unfinished.items():
        if not guest.lock:
            said = f"The snapshot {name} of {guest.vm} is incomplete (snapstate {snapstate})"
            findings.append(Finding("unfinished_snapshot", said, _remove_by_force(guest, name)))
    # A snapshot or a backup stops the guest for a moment; that does not count as paused.
    power = "off" if not running else "paused" if still and not guest.lock else "running"
    return VmState(
        power,
        (_way(guest, running, no_freeze),),
        busy=busy,
        settled=guest.lock in _NOT_ABOUT_SNAPSHOTS,
        started_by="high availability" if guest.kept_running else None,
        findings=tuple(findings),
    )


def _way(guest: Guest, running: bool, no_freeze: str | None) -> Way:
    refusals = {}
    if guest.template:
        refusals["create"] = f"{guest.vm} {_TEMPLATE}"
    if guest.container:
        refusals["memory"] = f"{guest.vm} is a container, and snapshots of containers cannot include memory; leave memory out"
        refusals["quiesce"] = f"{guest.vm} is a container and cannot be quiesced; set quiesce=never"
    elif not running:
        # PVE would take one without memory, and not report it (9.2).
        refusals["memory"] = f"{guest.vm} is off and has no memory to include; start it first, or leave memory out"
    elif no_freeze:
        refusals["quiesce"] = f"{guest.vm} cannot be quiesced: {no_freeze}; {QUIESCE_ADVICE}"
    if running:
        refusals.setdefault(
            "memory_and_quiesce",
            f"{guest.vm} cannot have a snapshot with memory that is also quiesced: Proxmox VE does not quiesce a guest if memory is included; leave one out",
        )
    return Way(refusals=refusals, unrecorded=("filesystem", "offline"))


def read_no_freeze(configuration: Row) -> str | None:
    """Return why PVE would not try to quiesce a VM, or None."""
    agent = str(configuration.get("agent") or "")
    if not _AGENT.search(agent):
        return "the guest agent is disabled in its options"
    off = _NO_FREEZE.search(agent)
    return f"its options forbid it (agent: {off[1]})" if off else None


def with_pending(now: Configuration, planned: Configuration) -> Configuration:
    """Return the present configuration with the changes that are pending until the next start."""
    later: dict[str, int | str | None] = {}
    for what in ("cpus", "memory_bytes"):
        if getattr(planned, what) != getattr(now, what):
            later[what] = getattr(planned, what)
    for word, is_now, will_be in (("disk", now.disks, planned.disks), ("network", now.networks, planned.networks)):
        for name in sorted({*is_now, *will_be}):
            if is_now.get(name) != will_be.get(name):
                later[f"{word} {name}"] = will_be.get(name)
    return dataclasses.replace(now, next_start=later)


def read_configuration(found: Row, *, container: bool) -> Configuration:
    """Read the configuration of a guest or of a snapshot."""
    disk = _LXC_DISK if container else _QEMU_DISK
    if container:
        cpus = found.get("cores")
    else:
        cpus = int(found.get("sockets") or 1) * int(found.get("cores") or 1)
    memory = found.get("memory") or 512  # PVE's own default, in MiB
    return Configuration(
        cpus=None if cpus is None else int(cpus),
        memory_bytes=int(re.sub(r"^(?:current=)?(\d+).*$", r"\1", str(memory))) * 1024**2,
        disks={key: str(value) for key, value in found.items() if disk.fullmatch(key) and "media=cdrom" not in str(value)},
        networks={key: str(value) for key, value in found.items() if re.fullmatch(r"net\d+", key)},
    )


def disk_storages(found: Row, guest: Guest) -> dict[str, str]:
    """Return the storages of a guest's disks by volume."""
    disk = _LXC_DISK if guest.container else _QEMU_DISK
    volumes = [
        str(value).partition(",")[0] for key, value in found.items() if disk.fullmatch(key) and "media=cdrom" not in str(value)
    ]
    return {volume: volume.partition(":")[0] for volume in volumes if ":" in volume}

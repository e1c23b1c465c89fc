# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read and write the XML of libvirt's domains and snapshots. Pure: no connection, no library.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from ansible_collections.safepoint.vm.plugins.module_utils._core import label as _label
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import BackendFailed
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Configuration, Snapshot

INTERNAL, EXTERNAL = "internal", "external"

_SIZE_UNKNOWN = {
    INTERNAL: "it is stored inside the VM's disk images, and libvirt does not report its share",
    EXTERNAL: "its data are shared with the later files of the disks, and libvirt does not report its share",
}


@dataclasses.dataclass(frozen=True)
class Disk:
    """A disk of a VM, with a medium."""

    target: str
    """The disk's name in the VM, for example vda."""
    type: str
    """libvirt's disk type: file, block, network and others."""
    path: str | None
    """The image, if ``type`` is file."""
    format: str
    writable: bool
    mode: str | None
    """The ``snapshot`` attribute in the configuration."""
    device: str | None = None
    """The block device, if ``type`` is block."""
    volume: tuple[str, str] | None = None
    """Storage pool and volume, if ``type`` is volume."""
    alias: str | None = None
    """The disk's name in QEMU, while the VM is up."""
    chain: tuple[str, ...] = ()
    """The active image and its backing files, as far as the definition lists them: all of them while the VM is up."""
    merging_into: str | None = None
    """The target image of a running block job (active commit)."""

    @property
    def image(self) -> str | None:
        """The path of the active image: a file or block device."""
        return self.path or self.device


def read_disks(domain: ElementTree.Element) -> list[Disk]:
    """Return the disks of a ``<domain>``, without empty drives."""
    found = []
    for disk in domain.iterfind("devices/disk"):
        source, driver, target = disk.find("source"), disk.find("driver"), disk.find("target")
        if source is None or target is None:
            continue
        alias, merging = disk.find("alias"), disk.find("mirror[@job='active-commit']/source")
        found.append(
            Disk(
                target=target.get("dev", "?"),
                type=disk.get("type", "file"),
                path=source.get("file"),
                format=driver.get("type", "raw") if driver is not None else "raw",
                writable=disk.find("readonly") is None and disk.get("device") != "cdrom",
                mode=disk.get("snapshot"),
                device=source.get("dev") if disk.get("type") == "block" else None,
                volume=(source.get("pool", ""), source.get("volume", "")) if disk.get("type") == "volume" else None,
                alias=alias.get("name") if alias is not None else None,
                chain=_chain(disk),
                merging_into=merging.get("file") or merging.get("dev") if merging is not None else None,
            )
        )
    return found


def _chain(disk: ElementTree.Element) -> tuple[str, ...]:
    found = []
    layer: ElementTree.Element | None = disk
    while layer is not None:
        source = layer.find("source")
        if source is None:
            break
        found.append(source.get("file") or source.get("dev") or source.get("name") or "?")
        layer = layer.find("backingStore")
    return tuple(found)


def colliding_disks(disks: Iterable[Disk]) -> tuple[str, str] | None:
    """Return two disks for which libvirt would create the same file at a revert to an external snapshot, or None.

    libvirt derives the file name from the image name without its suffix, also for read-only media, and only fails after it has stopped the VM (11.3).
    """
    seen: dict[str, str] = {}
    for disk in disks:
        if disk.path is not None:
            folder, name = os.path.split(disk.path)
            stem = os.path.join(folder, name.rpartition(".")[0] or name)
            if stem in seen:
                return seen[stem], disk.target
            seen[stem] = disk.target
    return None


def read_snapshot(xml: str, *, current: str | None) -> Snapshot:
    """Read a snapshot from its definition; ``current`` is the name of the VM's current snapshot."""
    root = ElementTree.fromstring(xml)
    name = root.findtext("name") or ""
    kept = root.find("memory")
    memory = kept is not None and kept.get("snapshot") != "no"
    parts = [*root.iterfind("disks/disk"), *([kept] if kept is not None else [])]
    kind = EXTERNAL if EXTERNAL in [part.get("snapshot") for part in parts] else INTERNAL
    created = root.findtext("creationTime")
    description = root.findtext("description") or ""
    label = _label.parse(description).label
    obstacles = {}
    domain = root.find("domain")
    clash = colliding_disks(read_disks(domain)) if kind == EXTERNAL and domain is not None else None
    if clash:
        obstacles["revert"] = (
            f"is external, and libvirt would use the same new file for the disks {clash[0]} and {clash[1]}, because the names of their images differ in "
            "the suffix only; merge it (virsh snapshot-delete), power the VM off and rename one of the images"
        )
    if memory:
        consistency = "memory"
    elif root.findtext("state") == "shutoff":
        consistency = "offline"
    else:
        # libvirt does not record if a snapshot was quiesced; the label does.
        consistency = "filesystem" if label is not None and label.consistency == "filesystem" else "crash"
    return Snapshot(
        id=name,
        name=name,
        created=datetime.fromtimestamp(int(created), timezone.utc) if created else None,
        parent=root.findtext("parent/name"),
        description=description,
        memory=memory,
        consistency=consistency,
        current=name == current,
        kind=kind,
        size_unknown=_SIZE_UNKNOWN[kind],
        obstacles=obstacles,
        not_included=tuple(outside_of_snapshots(domain, kind=kind, memory=memory)) if domain is not None else (),
    )


def external_bases(snapshot_xml: str) -> dict[str, str]:
    """Return the base images of an external snapshot by disk name. A write to one of them destroys the snapshot."""
    root = ElementTree.fromstring(snapshot_xml)
    domain = root.find("domain")
    outside = {disk.get("name") for disk in root.iterfind("disks/disk") if disk.get("snapshot") == EXTERNAL}
    disks = read_disks(domain) if domain is not None else []
    return {disk.target: disk.image for disk in disks if disk.image and disk.target in outside}


def external_files(snapshot_xml: str) -> list[str]:
    """Return the files that were created for an external snapshot."""
    root = ElementTree.fromstring(snapshot_xml)
    sources = [disk.find("source") for disk in root.iterfind("disks/disk") if disk.get("snapshot") == EXTERNAL]
    found = [source.get("file") or source.get("dev") or "" for source in sources if source is not None]
    memory = root.find("memory")
    return list(filter(None, [*found, memory.get("file") if memory is not None else None]))


def new_snapshot(name: str, description: str, *, files: Mapping[str, str] | None = None, memory_file: str | None = None) -> str:
    """Return the definition of a new snapshot: external with ``files`` (the new file of each disk by target), else internal."""
    parts = f"<name>{escape(name)}</name><description>{escape(description)}</description>"
    if files is not None:
        if memory_file is not None:
            parts += f"<memory snapshot='external' file={quoteattr(memory_file)}/>"
        disks = [
            f"<disk name={quoteattr(target)} snapshot='external'><source file={quoteattr(path)}/></disk>"
            for target, path in files.items()
        ]
        parts += f"<disks>{''.join(disks)}</disks>"
    return f"<domainsnapshot>{parts}</domainsnapshot>"


def with_description(snapshot_xml: str, description: str) -> str:
    """Return the definition with another description and without the VM's configuration; all else is unchanged to the byte.

    Without the configuration libvirt keeps the stored one, and refuses to redefine a snapshot that was deleted in the meantime (seen with 9.0, 11.3).
    With it, a snapshot that is removed at the same time would be recreated as a record without data.

    :raises BackendFailed: the definition does not have the format that libvirt writes.
    """
    # libvirt writes the description after the name, and escapes its text.
    head = re.match(r"\s*<domainsnapshot>\s*<name>[^<]*</name>\s*", snapshot_xml)
    rest = snapshot_xml[head.end() :] if head else ""
    rest = re.sub(r"\A<description>[^<]*</description>|\A<description/>", "", rest)
    # The configuration includes the VM's metadata, which can contain any text.
    rest, found = re.subn(r"\n  <domain[ >].*?\n  </domain>(?=\n  <|\n</domainsnapshot>)", "", rest, count=1, flags=re.DOTALL)
    changed = f"{head.group()}<description>{escape(description)}</description>{rest}" if head and found else ""
    if not changed or ElementTree.fromstring(changed).find("domain") is not None:
        raise BackendFailed("libvirt's definition of the snapshot has an unexpected format; the description was not changed")
    return changed


def outside_of_snapshots(domain: ElementTree.Element, *, kind: str, memory: bool) -> list[str]:
    """Return the parts of a VM that a snapshot does not include.

    libvirt copies neither nvram nor TPM state (9.0, 11.3). The memory includes the state of the TPM.
    """
    parts = []
    if kind == EXTERNAL and domain.find("os/nvram") is not None:
        parts.append("the variables of its UEFI firmware (nvram)")
    if not memory and domain.find("devices/tpm") is not None:
        parts.append("the state of its TPM")
    return parts


def agent_channel(domain_xml: str) -> str | None:
    """Return the state of the guest agent's channel (``connected`` or ``disconnected``, empty if the VM is off), or None without a channel."""
    for target in ElementTree.fromstring(domain_xml).iterfind("devices/channel/target"):
        if target.get("name") == "org.qemu.guest_agent.0":
            return target.get("state", "")
    return None


def snapshot_configuration(snapshot_xml: str, *, moving_files: bool) -> Configuration:
    """Return the VM's configuration in the snapshot; for ``moving_files`` see read_configuration()."""
    root = ElementTree.fromstring(snapshot_xml)
    domain, inactive = root.find("domain"), root.find("inactiveDomain")
    if domain is None:
        raise BackendFailed(f"libvirt has no configuration of the VM in the snapshot {root.findtext('name')}")
    return _configuration(domain, inactive, moving_files=moving_files)


def read_configuration(domain_xml: str, inactive_xml: str | None, *, moving_files: bool) -> Configuration:
    """Return the VM's configuration from its definition; ``inactive_xml`` is that of its next start, for a VM that is up and persistent.

    With ``moving_files`` only the folders of images are shown: external snapshots and reverts change the names of the files.
    """
    inactive = ElementTree.fromstring(inactive_xml) if inactive_xml is not None else None
    return _configuration(ElementTree.fromstring(domain_xml), inactive, moving_files=moving_files)


def _configuration(domain: ElementTree.Element, inactive: ElementTree.Element | None, *, moving_files: bool) -> Configuration:
    kept = domain if inactive is None else inactive
    now, next_start = _size(domain), _size(kept)
    return Configuration(
        cpus=now["cpus"],
        memory_bytes=now["memory_bytes"],
        disks=_both(_disks(domain, moving_files), _disks(kept, moving_files)),
        networks=_both(_networks(domain), _networks(kept)),
        next_start={what: size for what, size in next_start.items() if size is not None and size != now[what]},
    )


def _size(domain: ElementTree.Element) -> dict[str, int | None]:
    vcpu, memory = domain.find("vcpu"), domain.findtext("memory")
    return {
        "cpus": int(vcpu.get("current") or vcpu.text or 1) if vcpu is not None else None,
        "memory_bytes": int(memory) * 1024 if memory else None,  # libvirt always writes KiB
    }


def _both(now: Mapping[str, str], next_start: Mapping[str, str]) -> dict[str, str]:
    """Join the present and the future value of each device; equal values are shown once."""
    said = {}
    for name in sorted({*now, *next_start}):
        if name not in next_start:
            said[name] = f"{now[name]}, until the VM is powered off"
        elif name not in now:
            said[name] = f"{next_start[name]}, from the next start on"
        elif now[name] != next_start[name]:
            said[name] = f"{now[name]}, from the next start on {next_start[name]}"
        else:
            said[name] = now[name]
    return said


def _disks(domain: ElementTree.Element, moving_files: bool) -> dict[str, str]:
    found = {}
    for disk in domain.iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is None:
            continue
        if source is None:
            words = "empty"
        elif source.get("file") and moving_files:
            words = f"a file in {os.path.dirname(source.get('file', ''))}"
        else:
            # The attribute with the location depends on the disk type; a network disk has protocol and name.
            words = source.get("file") or source.get("dev") or source.get("dir") or ""
            words = words or ":".join(
                filter(None, [source.get("protocol"), source.get("pool"), source.get("name"), source.get("volume")])
            )
        found[target.get("dev", "?")] = f"{words} ({disk.get('device', 'disk')} on {target.get('bus', '?')})"
    return found


def _networks(domain: ElementTree.Element) -> dict[str, str]:
    found = {}
    for number, interface in enumerate(domain.iterfind("devices/interface")):
        mac, source, model = interface.find("mac"), interface.find("source"), interface.find("model")
        kind = interface.get("type", "?")
        to = (
            (source.get(kind) or source.get("dev") or source.get("name") or source.get("path") or "")
            if source is not None
            else ""
        )
        address = mac.get("address") if mac is not None else None
        found[address or f"interface {number}"] = f"{kind} {to}".strip() + (
            f" ({model.get('type')})" if model is not None else ""
        )
    return found

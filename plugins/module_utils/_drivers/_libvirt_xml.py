# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The XML of libvirt's domains and snapshots, read and written. Pure: no connection, no library.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from ansible_collections.safepoint.vm.plugins.module_utils._errors import BackendFailed
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot

# Deleting an external one below an internal one takes the internal one's data with it and leaves a VM that cannot start (9.0).
_EXTERNAL = (
    "is external, which this collection does not handle yet, and external and internal snapshots of one VM destroy each other; "
    "merge it first (virsh snapshot-delete)"
)


def why_no_snapshot(domain_xml: str, *, daemon_version: int) -> str | None:
    """Why QEMU cannot take an internal snapshot of the VM, with the remedy; known before libvirt is asked to write.

    It says nothing about going back: a revert brings the configuration of then, whatever the present one is.
    """
    config = ElementTree.fromstring(domain_xml)
    reason = None
    disks = [
        disk
        for disk in config.iterfind("devices/disk")
        if disk.get("device", "disk") in ("disk", "lun") and disk.find("readonly") is None
    ]
    for disk in disks:
        target = disk.find("target")
        driver = disk.find("driver")
        shown = target.get("dev") if target is not None else "?"
        kind = driver.get("type", "raw") if driver is not None else "raw"
        if kind != "qcow2":
            reason = (
                f"disk {shown} is {kind}, and an internal snapshot needs qcow2 on every writable disk; "
                "convert it (qemu-img convert -O qcow2), or make it readonly"
            )
        elif disk.get("snapshot", "internal") != "internal":
            reason = (
                f"disk {shown} has snapshot={disk.get('snapshot')!r} in its configuration, and an internal snapshot takes every "
                "writable disk; remove that attribute"
            )
    if not disks:
        reason = "it has no writable disk, and an internal snapshot is kept in one; add a qcow2 disk"
    loader = config.find("os/loader")
    nvram = config.find("os/nvram")
    if loader is not None and loader.get("type") == "pflash":
        # libvirt 9.0.0: 'internal snapshots of a VM with pflash based firmware are not supported'; NEWS of 10.9.0: allowed with a qcow2 nvram.
        if daemon_version < 10_009_000:
            reason = "it boots by UEFI (pflash), and libvirt takes internal snapshots of such VMs from 10.9 on; boot it by BIOS, or upgrade libvirt"
        elif nvram is None or nvram.get("format") != "qcow2":
            reason = "it boots by UEFI (pflash) with a raw nvram; give it an nvram of format qcow2"
    return reason


def read_snapshot(xml: str, *, current: str | None) -> Snapshot:
    """One snapshot from its definition; ``current`` is the name of the VM's current one."""
    root = ElementTree.fromstring(xml)
    name = root.findtext("name") or ""
    state = root.findtext("state")
    kept = root.find("memory")
    memory = kept is not None and kept.get("snapshot") != "no"
    parts = [*root.iterfind("disks/disk"), *([kept] if kept is not None else [])]
    created = root.findtext("creationTime")
    return Snapshot(
        id=name,
        name=name,
        created=datetime.fromtimestamp(int(created), timezone.utc) if created else None,
        parent=root.findtext("parent/name"),
        description=root.findtext("description") or "",
        memory=memory,
        consistency="memory" if memory else "offline" if state == "shutoff" else "crash",
        current=name == current,
        obstacle=_EXTERNAL if "external" in [part.get("snapshot") for part in parts] else None,
    )


def new_snapshot(name: str, description: str) -> str:
    """The definition of a snapshot that is to be taken."""
    return f"<domainsnapshot><name>{escape(name)}</name><description>{escape(description)}</description></domainsnapshot>"


def with_description(snapshot_xml: str, description: str) -> str:
    """The whole definition with another description; all else stays to the letter.

    :raises BackendFailed: the definition does not begin as libvirt writes it.
    """
    # libvirt writes the description behind the name, and escapes what is in it.
    head = re.match(r"\s*<domainsnapshot>\s*<name>[^<]*</name>\s*", snapshot_xml)
    if head is None:
        raise BackendFailed("libvirt's definition of the snapshot is not understood; it was not changed")
    rest = re.sub(r"\A<description>[^<]*</description>|\A<description/>", "", snapshot_xml[head.end() :])
    return f"{head.group()}<description>{escape(description)}</description>{rest}"


def has_agent(domain_xml: str) -> bool:
    """Whether the VM has a channel to a guest agent, which is no sign that one listens."""
    targets = ElementTree.fromstring(domain_xml).iterfind("devices/channel/target")
    return "org.qemu.guest_agent.0" in [target.get("name") for target in targets]

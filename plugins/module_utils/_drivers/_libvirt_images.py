# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A look into disk images: snapshots that libvirt does not know, such as a crash or an undefined VM leave behind.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import typing as t
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import format_time
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_library import libvirt_qemu
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_ways import losses
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_xml import EXTERNAL, Disk, external_bases, read_disks
from ansible_collections.safepoint.vm.plugins.module_utils._model import Finding, Snapshot, Vm, chain_of

_QEMU_IMG_SECONDS = 30


def look(vm: Vm, domain: t.Any, *, where: str, local: bool) -> tuple[Finding, ...]:
    """What is wrong in the images that the VM writes to now, not in those that they are based on.

    A VM that is up is asked through QEMU's monitor, upon which libvirt notes it as tainted. Of one that is off the images themselves are
    read, with qemu-img, which needs the daemon to be ``local``.

    :raises libvirtError: the VM did not answer.
    """
    disks = [disk for disk in read_disks(ElementTree.fromstring(domain.XMLDesc())) if disk.path and disk.format == "qcow2"]
    up = domain.isActive()
    held = _ask_qemu(domain) if up else {}
    found = []
    for disk in disks:
        if not up:
            listed = _ask_qemu_img(disk) if local else "the images are on another machine"
            if isinstance(listed, str):
                found.append(_not_checked(vm, disk, listed))
                continue
            held[disk.path or ""] = listed
    # Only now: what is being taken meanwhile is listed before it is in the image.
    known = set(domain.snapshotListNames())
    for disk in disks:
        for one in held.get(disk.path or "", ()):
            if one["name"] not in known:
                found.append(_orphan(vm, disk, one, up=up, where=where))
    return tuple(found)


def with_losses(domain: t.Any, snapshots: Sequence[Snapshot], texts: Mapping[str, str]) -> Sequence[Snapshot]:
    """The snapshots of a VM, with those told whose data are gone; ``texts`` are their definitions.

    One request more for a VM that has external snapshots (the definition of the VM): without it a merged one passes for a way back.

    :raises libvirtError: the VM did not answer.
    """
    # One that is being made is listed before the VM leaves the image that it stands on, and before it is the current one.
    chain = chain_of(snapshots)
    bases = {one.id: external_bases(texts[one.id]) for one in snapshots if one.kind == EXTERNAL and one.id in chain}
    return losses(domain.name(), snapshots, bases, read_disks(ElementTree.fromstring(domain.XMLDesc())))


def _ask_qemu(domain: t.Any) -> dict[str, Sequence[Mapping[str, t.Any]]]:
    """The snapshots in the topmost image of each disk of a VM that is up, by the path of the image."""
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": "query-block"}), 0))
    images = [drive["inserted"]["image"] for drive in answer.get("return", []) if drive.get("inserted")]
    return {image["filename"]: image.get("snapshots", []) for image in images}


def _ask_qemu_img(disk: Disk) -> Sequence[Mapping[str, t.Any]] | str:
    """The snapshots in an image that no QEMU has open, or why they could not be read."""
    if not os.access(disk.path or "", os.R_OK):
        return "it is not readable from here"
    # -U: somebody may be starting the VM this moment.
    command = ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", disk.path or ""]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_QEMU_IMG_SECONDS, check=False
        )
    except FileNotFoundError:
        return "qemu-img is not installed here"
    except subprocess.TimeoutExpired:
        return f"qemu-img took longer than {_QEMU_IMG_SECONDS} seconds"
    if done.returncode != 0:
        return " ".join(done.stderr.split())
    snapshots: Sequence[Mapping[str, t.Any]] = json.loads(done.stdout).get("snapshots", [])
    return snapshots


def _not_checked(vm: Vm, disk: Disk, why: str) -> Finding:
    return Finding(
        "images_not_checked",
        f"Disk {disk.target} of {vm} ({disk.path}) was not searched for snapshots that libvirt does not know: {why}",
        f"run on the host, while the VM is off: qemu-img snapshot -l {shlex.quote(disk.path or '')}",
    )


def _orphan(vm: Vm, disk: Disk, snapshot: Mapping[str, t.Any], *, up: bool, where: str) -> Finding:
    name = str(snapshot["name"])
    taken = format_time(datetime.fromtimestamp(snapshot["date-sec"], timezone.utc))
    if up:
        # QEMU holds the image, and deletes on all disks at once. To take a snapshot of that name and to remove it helps with 9.0, where
        # it replaces the old one, and fails with 11.3.
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        delete = shlex.quote(f'delvm "{quoted}"')
        remedy = f"run: virsh -c {shlex.quote(where)} qemu-monitor-command {shlex.quote(vm.name)} --hmp {delete}"
    else:
        remedy = f"run on the host, while the VM is off: qemu-img snapshot -d {shlex.quote(name)} {shlex.quote(disk.path or '')}"
    return Finding(
        "orphan",
        f"Disk {disk.target} of {vm} ({disk.path}) holds the snapshot {name!r} of {taken} that libvirt does not know",
        remedy,
    )

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt's own test driver as the hypervisor of the role's tests: the real modules, without QEMU."""

from __future__ import annotations

import re

import libvirt


class Hypervisor:
    """What is on the endpoint ``uri``, seen through a connection of its own."""

    def __init__(self, connection: libvirt.virConnect, uri: str) -> None:
        self.uri = uri
        self._connection = connection

    def define(self, name: str) -> None:
        """Add a running VM."""
        self._connection.createXML(
            f"<domain type='test'><name>{name}</name><memory>65536</memory><os><type>hvm</type></os><devices>"
            f"<disk type='file' device='disk'><source file='/{name}'/><target dev='vda' bus='virtio'/></disk></devices></domain>"
        )

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of the snapshots of a VM, each with the ``name`` of its snapshot."""
        found = []
        for snapshot in self._connection.lookupByName(name).listAllSnapshots():
            line = re.search(r"\[safepoint ([^\]]*)\]", snapshot.getXMLDesc())
            fields = dict(pair.split("=", 1) for pair in line[1].split()) if line else {}
            found.append({**fields, "name": snapshot.getName()})
        return found

    def take(self, name: str, snapshot: str, label: str = "") -> None:
        """Take a snapshot as somebody else would."""
        self._connection.lookupByName(name).snapshotCreateXML(
            f"<domainsnapshot><name>{snapshot}</name><description>{label}</description></domainsnapshot>"
        )

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hypervisors of the role's tests, under the real modules: libvirt's own test driver, without QEMU, and the simulators."""

from __future__ import annotations

import re
import typing as t

import libvirt


class Endpoint(t.Protocol):
    """What the tests of the role need of a hypervisor."""

    connection: dict[str, t.Any]
    """The value of guarded_change_endpoint."""

    def define(self, name: str) -> None:
        """Add a running VM."""

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of the snapshots of a VM, each with the ``name`` of its snapshot."""


class ElsewhereEndpoint(Endpoint, t.Protocol):
    """One that is logged in to."""

    secret: str

    def runs(self, name: str) -> bool:
        """Whether a VM is switched on."""


class Hypervisor:
    """What is on the endpoint ``uri``, seen through a connection of its own."""

    def __init__(self, connection: libvirt.virConnect, uri: str) -> None:
        self.uri = uri
        self.connection = {"backend": "libvirt", "uri": uri}
        self._connection = connection

    def define(self, name: str) -> None:
        """Add a running VM."""
        self._connection.createXML(
            f"<domain type='test'><name>{name}</name><memory>65536</memory><os><type>hvm</type></os><devices>"
            f"<disk type='file' device='disk'><source file='/{name}'/><target dev='vda' bus='virtio'/></disk></devices></domain>"
        )

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of the snapshots of a VM, each with the ``name`` of its snapshot."""
        snapshots = self._connection.lookupByName(name).listAllSnapshots()
        return [{**fields(one.getXMLDesc()), "name": one.getName()} for one in snapshots]

    def take(self, name: str, snapshot: str, label: str = "") -> None:
        """Take a snapshot as somebody else would."""
        self._connection.lookupByName(name).snapshotCreateXML(
            f"<domainsnapshot><name>{snapshot}</name><description>{label}</description></domainsnapshot>"
        )


class VsphereHypervisor:
    """A simulated vCenter, seen through its control port."""

    def __init__(self, vcenter: t.Any) -> None:
        self._vcenter = vcenter
        self.secret: str = vcenter.password
        self.connection = {
            "backend": "vsphere",
            "hostname": vcenter.hostname,
            "port": vcenter.port,
            "username": vcenter.username,
            "password": vcenter.password,
            "ca_path": vcenter.ca_path,
        }

    def define(self, name: str) -> None:
        self._vcenter.make_vms({"name": name, "power": "poweredOn"})

    def labels(self, name: str) -> list[dict[str, str]]:
        return [{**fields(one["description"]), "name": one["name"]} for one in self._vcenter.vm(name)["snapshots"]]

    def runs(self, name: str) -> bool:
        return bool(self._vcenter.vm(name)["power"] == "poweredOn")


class ProxmoxHypervisor:
    """A simulated Proxmox VE cluster, which is in this process."""

    def __init__(self, pve: t.Any) -> None:
        self._pve = pve
        self._vmids: dict[str, int] = {}
        self.secret: str = pve.token_secret
        self.connection = {
            "backend": "proxmox",
            "hostname": pve.hostname,
            "port": pve.port,
            "token_id": pve.token_id,
            "token_secret": pve.token_secret,
            "ca_path": pve.ca_path,
        }

    def define(self, name: str) -> None:
        self._vmids[name] = self._pve.make_guest(name)

    def labels(self, name: str) -> list[dict[str, str]]:
        return [{**fields(one["description"]), "name": one["name"]} for one in self._pve.guest(self._vmids[name])["snapshots"]]

    def runs(self, name: str) -> bool:
        return bool(self._pve.guest(self._vmids[name])["status"] == "running")

    def reverts(self, name: str) -> int:
        """How often a VM has been reverted."""
        return sum(one["vmid"] == self._vmids[name] and one["exitstatus"] == "OK" for one in self._pve.task_list("qmrollback"))

    def vmid(self, name: str) -> int:
        return self._vmids[name]


def fields(description: str) -> dict[str, str]:
    """What the label in it says, still encoded."""
    line = re.search(r"\[safepoint ([^\]]*)\]", description)
    return dict(pair.split("=", 1) for pair in line[1].split()) if line else {}

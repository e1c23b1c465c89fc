# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Proxmox VE for the conformance suite: the simulator with the recorded behaviour of the real API."""

from __future__ import annotations

import typing as t

from suite_data import DataBackend

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.driver import ProxmoxDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.session import Session


class ProxmoxBackend(DataBackend):
    # A paused guest counts as running.
    up = "running"
    kind = "qemu"
    storage = "dir-qcow2"

    def __init__(self, pve: t.Any) -> None:
        self.pve = pve
        self.vmids: dict[str, int] = {}

    def open(self) -> SnapshotDriver:
        user, _mark, name = self.pve.token_id.partition("!")
        return ProxmoxDriver(
            Session(
                hostname=self.pve.hostname,
                port=self.pve.port,
                user=user,
                token=(name, self.pve.token_secret),
                ca_path=self.pve.ca_path,
            )
        )

    def add(self, name: str, *, power: str) -> None:
        status = "running" if power == "running" else "stopped"
        self.vmids[name] = self.pve.make_guest(name, type=self.kind, status=status, storage=self.storage)

    def identity(self, name: str) -> tuple[str, str]:
        return "id", str(self.vmids[name])

    def by_hand(self, vm: str, name: str, description: str) -> None:
        self.pve.snapshot_by_hand(self.vmids[vm], name, description=description)

    def switch_off(self, vm: str) -> None:
        self.pve.set_guest(self.vmids[vm], status="stopped")

    def grow(self, vm: str) -> None:
        vmid = self.vmids[vm]
        self.pve.set_guest(vmid, memory_mb=2 * int(self.pve.guest(vmid)["config"]["memory"]))

    def write(self, vm: str, text: str) -> None:
        self.pve.set_guest(self.vmids[vm], data=text)

    def read(self, vm: str) -> str:
        return t.cast("str", self.pve.guest(self.vmids[vm])["data"])


class ContainerBackend(ProxmoxBackend):
    """Proxmox VE with containers instead of VMs."""

    memory_possible = False
    kind = "lxc"
    storage = "lvmthin"


def options(pve: t.Any, **changed: t.Any) -> dict[str, t.Any]:
    """Return the options of a task for a login with the token."""
    found = {
        "backend": "proxmox",
        "hostname": pve.hostname,
        "port": pve.port,
        "token_id": pve.token_id,
        "token_secret": pve.token_secret,
        "ca_path": pve.ca_path,
    }
    return {**found, **changed}

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Proxmox VE for the conformance suite, as an independent simulator implements its API: fakepve from PyPI."""

from __future__ import annotations

import time
import typing as t

from kit import Backend
from proxmoxer import ProxmoxAPI

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.driver import ProxmoxDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.session import Session

NODE = "pve1"
STORAGE = "slow"
USER, TOKEN, SECRET = "safepoint@pve", "conformance", "11111111-2222-3333-4444-555555555555"
# The smallest role that the driver needs.
PRIVILEGES = ("VM.Audit", "VM.Snapshot", "VM.Snapshot.Rollback", "VM.PowerMgmt")
# Duration of a create, while its lock and its unfinished snapshot are visible.
WORK_SECONDS = 0.15


def prepare(pve: t.Any) -> None:
    """Let tasks take time, and create the user of the tests."""
    # The release that the answers of the suite come from; the driver reads it before it quiesces.
    pve.version, pve.release_version = "9.2.11", "9.2"
    pve.time_scale = 1.0
    # The only step of a snapshot that takes time there is the work on a Ceph pool.
    pve.add_ceph_storage(STORAGE)
    pve.ceph_slow(WORK_SECONDS)
    pve.apitokens[f"{USER}!{TOKEN}"] = SECRET


class FakePveBackend(Backend):
    # A paused guest counts as running.
    up = "running"

    def __init__(self, pve: t.Any, ca_path: str) -> None:
        """A server prepared with prepare(), and the path of its certificate."""
        self.pve = pve
        self.ca_path = ca_path
        self.person = ProxmoxAPI(pve.host, port=pve.port, user=pve.user, password=pve.password, verify_ssl=ca_path, timeout=30)

    def open(self) -> SnapshotDriver:
        driver = ProxmoxDriver(
            Session(hostname=self.pve.host, port=self.pve.port, user=USER, token=(TOKEN, SECRET), ca_path=self.ca_path)
        )
        # For the features of a guest, fakepve 0.5.0 always answers 0, even if its task then takes the snapshot.
        driver.foresee = lambda vms: {}  # type: ignore[method-assign]
        return driver

    def add(self, name: str, *, power: str) -> None:
        vmid = 1000 + len(self.pve.vms)
        made = {"memory": 512, "cores": 1, "scsi0": f"{STORAGE}:vm-{vmid}-disk-0,size=1G"}
        self.pve.add_vm(vmid, name, node=NODE, status="running" if power == "running" else "stopped", config=made)
        # Not on /vms: for a guest, fakepve 0.5.0 lists an inherited permission under the path where it was granted, PVE under the guest.
        self.pve.grant(USER, f"/vms/{vmid}", *PRIVILEGES)

    def vmid(self, name: str) -> int:
        return next(vm.vmid for vm in self.pve.vms if vm.name == name)

    def guest(self, name: str) -> t.Any:
        return self.person.nodes(NODE).qemu(self.vmid(name))

    def identity(self, name: str) -> tuple[str, str]:
        return "id", str(self.vmid(name))

    def by_hand(self, vm: str, name: str, description: str) -> None:
        self._work(self.guest(vm).snapshot.post(snapname=name, description=description))

    def switch_off(self, vm: str) -> None:
        self._work(self.guest(vm).status.stop.post())

    def _work(self, upid: str) -> None:
        task = self.person.nodes(NODE).tasks(upid)
        while (status := task.status.get())["status"] == "running":
            time.sleep(0.01)
        assert status["exitstatus"] == "OK", status

    def grow(self, vm: str) -> None:
        config = self.guest(vm).config
        config.put(memory=2 * int(config.get()["memory"]))

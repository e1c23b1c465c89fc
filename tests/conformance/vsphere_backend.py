# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vSphere for the conformance suite: govmomi's simulator, extended with behaviour of a real vCenter that it lacks."""

from __future__ import annotations

import ssl
import typing as t

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim
from suite_data import DataBackend

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.driver import VsphereDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.session import Session
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

POWERS = {"running": "poweredOn", "off": "poweredOff", "paused": "suspended"}


class VsphereBackend(DataBackend):
    # The memory of a suspended VM is already on its disk.
    up = "running"

    def __init__(self, vcenter: t.Any) -> None:
        self.vcenter = vcenter
        self.person = SmartConnect(
            host=vcenter.hostname,
            port=vcenter.port,
            user=vcenter.username,
            pwd=vcenter.password,
            sslContext=ssl.create_default_context(cafile=vcenter.ca_path),
        )

    def close(self) -> None:
        Disconnect(self.person)

    def open(self) -> SnapshotDriver:
        return VsphereDriver(
            Session(
                hostname=self.vcenter.hostname,
                port=self.vcenter.port,
                username=self.vcenter.username,
                password=self.vcenter.password,
                validate_certs=True,
                ca_path=self.vcenter.ca_path,
            )
        )

    def add(self, name: str, *, power: str) -> None:
        self.vcenter.make_vms({"name": name, "power": POWERS[power], "tools": False})

    def identity(self, name: str) -> tuple[str, str]:
        return "uuid", t.cast("str", self.vcenter.vm(name)["instance_uuid"])

    def by_hand(self, vm: str, name: str, description: str) -> None:
        machine = vim.VirtualMachine(self.vcenter.vm(vm)["moid"], self.person._stub)
        task = machine.CreateSnapshotEx_Task(name=name, description=description, memory=False)
        Deadline(30).poll("the task", lambda: task.info.state in ("success", "error") or None, first=0.005)
        assert task.info.state == "success", task.info.error

    def switch_off(self, vm: str) -> None:
        task = vim.VirtualMachine(self.vcenter.vm(vm)["moid"], self.person._stub).PowerOffVM_Task()
        Deadline(30).poll("the task", lambda: task.info.state in ("success", "error") or None, first=0.005)
        assert task.info.state == "success", task.info.error

    def grow(self, vm: str) -> None:
        self.vcenter.set_vm(vm, memory_mb=2 * self.vcenter.vm(vm)["memory_mb"])

    def write(self, vm: str, text: str) -> None:
        self.vcenter.set_vm(vm, data=text)

    def read(self, vm: str) -> str:
        return t.cast("str", self.vcenter.vm(vm)["data"])

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt for the conformance suite: its test driver and real QEMU, both with the daemon of the lab."""

from __future__ import annotations

import re
import subprocess
import typing as t
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import libvirt
import libvirt_qemu
from kit import Backend
from suite_data import MemoryBackend

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.driver import LibvirtDriver
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline


class LibvirtBackend(Backend):
    """Base class of both libvirt backends: a daemon of the lab, used without the collection for the actions of a user."""

    memory_implied = True
    uri: str

    def __init__(self, uri: str, person: libvirt.virConnect) -> None:
        self.uri = uri
        self.person = person

    def open(self) -> SnapshotDriver:
        return LibvirtDriver(self.uri)

    def identity(self, name: str) -> tuple[str, str]:
        return "uuid", t.cast("str", self.person.lookupByName(name).UUIDString())

    def by_hand(self, vm: str, name: str, description: str) -> None:
        xml = f"<domainsnapshot><name>{name}</name><description>{escape(description)}</description></domainsnapshot>"
        self.person.lookupByName(vm).snapshotCreateXML(xml)

    def switch_off(self, vm: str) -> None:
        self.person.lookupByName(vm).destroy()

    def grow(self, vm: str) -> None:
        domain = self.person.lookupByName(vm)
        xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        kib = domain.maxMemory()
        self.person.defineXML(xml.replace(f">{kib}<", f">{2 * kib}<"))


class LibvirtTestBackend(LibvirtBackend):
    def add(self, name: str, *, power: str) -> None:
        xml = f"<domain type='test'><name>{name}</name><memory>8192</memory><os><type>hvm</type></os></domain>"
        domain = self.person.defineXML(xml)
        if power != "off":
            domain.create()
        if power == "paused":
            domain.suspend()


class QemuBackend(LibvirtBackend, MemoryBackend):
    def __init__(self, lab: t.Any) -> None:
        super().__init__(lab.uri, libvirt.open(lab.uri))
        self.lab = lab
        self.made: list[str] = []
        self.texts = ["nothing"]

    def add(self, name: str, *, power: str) -> None:
        self.made.append(name)
        self.lab.define_tiny(name, running=power == "running", paused=power == "paused")

    def _disk(self, vm: str) -> str:
        domain = ElementTree.fromstring(self.person.lookupByName(vm).XMLDesc())
        source = domain.find("devices/disk/source")
        assert source is not None
        return source.get("file") or ""

    def _monitor(self, vm: str, command: str) -> str:
        return str(
            libvirt_qemu.qemuMonitorCommand(
                self.person.lookupByName(vm), command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
            )
        )

    def write(self, vm: str, text: str) -> None:
        # A text is represented by one byte: qemu-io writes patterns.
        command = f"write -P {self._pattern(text)} 0 512"
        if self.person.lookupByName(vm).isActive():
            drive = re.search(r"Attached to:\s+(\S+)", self._monitor(vm, "info block"))
            assert drive
            for one in (command, "flush"):
                self._monitor(vm, f'qemu-io -d {drive.group(1)} "{one}"')
        else:
            self.lab.run_as_user("qemu-io", "-c", command, self._disk(vm))
        assert self.read(vm) == text

    def read(self, vm: str) -> str:
        # QEMU locks the image of a running VM; -U reads it nevertheless.
        command = [*self.lab.as_user(), "qemu-io", "-r", "-U", "-c", "read -v 0 512", self._disk(vm)]
        dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        byte = re.search(r"^00000000:\s+([0-9a-f]{2})", dump, re.MULTILINE)
        assert byte, dump
        return self.texts[int(byte.group(1), 16)]

    def _pattern(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text)

    def memory(self, vm: str) -> str:
        # The BIOS stores its timer ticks there.
        return self._monitor(vm, "xp /1wx 0x46c")

    def stir(self, vm: str) -> None:
        domain = self.person.lookupByName(vm)
        before = self.memory(vm)
        domain.resume()
        Deadline(60).poll("the BIOS to count on", lambda: self.memory(vm) != before or None)
        domain.suspend()

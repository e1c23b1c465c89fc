# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real Linux guests: Debian with Python, sshd and the guest agent; boots under TCG in about ten seconds."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import socket
import subprocess
import time
import typing as t
from pathlib import Path

import libvirt
import libvirt_qemu
from lab_xml import guest_xml

if t.TYPE_CHECKING:
    from lab import Lab

BUILD_SCRIPT = Path(__file__).resolve().parent / "build_guest.sh"
CACHE = Path(__file__).resolve().parents[2] / ".cache/guest"

# Each guest has a new host key, possibly on a port of an earlier guest: do not store host keys.
SSH_OPTIONS = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")


class GuestGone(Exception):
    """The guest did not answer in time; the message has the end of its console."""


@dataclasses.dataclass(frozen=True)
class GuestImage:
    """The files that a guest boots from, readable by the daemon's user, and the ssh key of its root user."""

    disk: Path
    kernel: Path
    initrd: Path
    key: Path

    @classmethod
    def for_lab(cls, lab: Lab) -> GuestImage:
        """Build the image if it does not exist, and copy it into the lab if QEMU cannot read the checkout."""
        subprocess.run([str(BUILD_SCRIPT)], stdin=subprocess.DEVNULL, check=True)
        folder = CACHE
        readable = subprocess.run([*lab.as_user(), "test", "-r", str(CACHE / "base.qcow2")], check=False).returncode == 0
        if lab.root or not readable:
            folder = lab.folder / "image"
            folder.mkdir(mode=0o755)
            for name in ("base.qcow2", "vmlinuz", "initrd.img"):
                shutil.copyfile(CACHE / name, folder / name)
                (folder / name).chmod(0o644)
        return cls(folder / "base.qcow2", folder / "vmlinuz", folder / "initrd.img", CACHE / "id_ed25519")


@dataclasses.dataclass(frozen=True)
class Guest:
    """A started Linux guest. It opens a new connection to libvirt for each use, so it survives a restart of the daemon."""

    lab: Lab
    name: str
    port: int
    key: Path
    console: Path

    @contextlib.contextmanager
    def domain(self) -> t.Iterator[libvirt.virDomain]:
        """Return the guest's domain, on a connection that is closed at the end of the block."""
        with contextlib.closing(self.lab.connect()) as connection:
            yield connection.lookupByName(self.name)

    def wait_ssh(self, timeout: float = 180) -> None:
        """Wait until sshd sends its banner. QEMU itself accepts connections, so an open port proves nothing."""
        deadline = time.monotonic() + timeout
        while not self.ssh_answers():
            if time.monotonic() > deadline:
                raise GuestGone(f"No SSH banner of {self.name} after {timeout:g} s; its console ends:\n{self.console_tail()}")
            time.sleep(0.2)

    def ssh_answers(self, timeout: float = 5) -> bool:
        """Return True if sshd sends its banner now."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as probe:
            return probe.recv(4) == b"SSH-"
        return False

    def ssh(self, command: str, *, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the guest as root; return code 255 is an error of ssh itself."""
        return subprocess.run(
            ["ssh", "-F", "none", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", *SSH_OPTIONS]
            + ["-o", "ConnectTimeout=30", "-p", str(self.port), "root@127.0.0.1", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def agent(self, command: dict[str, t.Any], *, timeout: int = 30) -> t.Any:
        """Return the guest agent's answer to a command such as {"execute": "guest-ping"}."""
        with self.domain() as domain:
            answer = libvirt_qemu.qemuAgentCommand(domain, json.dumps(command), timeout, 0)
        return json.loads(answer)["return"]

    def boot_id(self) -> str:
        """Return the boot id: each boot has a new one, and a revert with memory restores the old one."""
        result = self.ssh("cat /proc/sys/kernel/random/boot_id")
        if result.returncode != 0:
            raise GuestGone(f"Reading the boot id of {self.name} failed: {result.stderr.strip()}")
        return result.stdout.strip()

    def inventory_vars(self) -> dict[str, t.Any]:
        """Return the host variables for Ansible's connection to the guest."""
        return {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": " ".join(SSH_OPTIONS),
            "ansible_python_interpreter": "/usr/bin/python3",
        }

    def inventory_line(self) -> str:
        """Return the guest as a line of an INI inventory."""
        return " ".join([self.name, *(f"{key}={str(value)!r}" for key, value in self.inventory_vars().items())])

    def console_tail(self) -> str:
        """Return the last lines of the guest's serial console."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "\n".join(text.splitlines()[-15:])

    def remove(self) -> None:
        """Destroy the guest and delete its disk and snapshots."""
        self.lab.remove(self.name)


def start_guest(lab: Lab, image: GuestImage, name: str, *, memory_mib: int) -> Guest:
    """Start a guest on an overlay of the image, with SSH on a free port of the loopback interface."""
    folder = lab.disk_folder(name)
    disk, console = folder / f"{name}.qcow2", folder / "console.log"
    lab.run_as_user("mkdir", "-p", str(folder))
    lab.run_as_user("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image.disk), str(disk))
    for attempt in range(5):
        port = _free_port()
        xml = guest_xml(
            name, disk=disk, kernel=image.kernel, initrd=image.initrd, console=console, port=port, memory_mib=memory_mib
        )
        with contextlib.closing(lab.connect()) as connection:
            domain = connection.defineXML(xml)
            try:
                domain.create()
                break
            except libvirt.libvirtError as exc:
                # Another process took the port between our check and QEMU's start.
                if "Could not set up host forwarding rule" not in str(exc) or attempt == 4:
                    raise
                domain.undefine()
    return Guest(lab, name, port, image.key, console)


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

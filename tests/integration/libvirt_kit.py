# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Helpers for the tests of libvirt: run the code of the modules on a real daemon, without a process for each step."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import typing as t
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

import libvirt

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, Target
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.driver import LibvirtDriver
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

Make = t.Callable[..., str]

_Value = t.TypeVar("_Value")


@contextlib.contextmanager
def tiny_vms(lab: t.Any) -> Iterator[Make]:
    """Create tiny VMs, and remove them at the end of the block."""
    made: list[str] = []

    def make(name: str, **options: t.Any) -> str:
        made.append(name)
        lab.define_tiny(name, **options)
        return name

    yield make
    for name in made:
        with contextlib.suppress(libvirt.libvirtError):
            lab.remove(name)


def apply(uri: str, plan: Plan, vm: str | Target, *, dry_run: bool = False, **bounds: t.Any) -> Outcome:
    """Run a plan like the modules, on one VM."""
    with contextlib.closing(LibvirtDriver(uri)) as driver:
        fleet = Fleet(driver, Bounds(**bounds), now=lambda: datetime.now(timezone.utc))
        (done,) = fleet.apply([vm if isinstance(vm, Target) else Target(vm)], plan, dry_run=dry_run)
        return done


def look(uri: str, vm: str, **what: bool) -> Outcome:
    """Read like snapshot_info, on one VM."""
    with contextlib.closing(LibvirtDriver(uri)) as driver:
        (seen,) = Fleet(driver, Bounds(), now=lambda: datetime.now(timezone.utc)).look([Target(vm)], **what)
        assert seen.error is None, seen.error
        return seen


def take(uri: str, vm: str, name: str, **request: t.Any) -> Snapshot:
    done = apply(uri, Present(Request(name=name, **request)), vm)
    assert done.error is None, done.error
    assert done.snapshot is not None
    return done.snapshot


def revert(uri: str, vm: str, name: str, **request: t.Any) -> Outcome:
    done = apply(uri, Reverted(Request(name=name, **request)), vm)
    assert done.error is None, done.error
    return done


def remove(uri: str, vm: str, name: str, **request: t.Any) -> Outcome:
    return apply(uri, Absent(Request(name=name, **request)), vm)


def listed(uri: str, vm: str) -> dict[str, Snapshot]:
    view = look(uri, vm).after
    assert view is not None
    return {one.name: one for one in view.snapshots}


@contextlib.contextmanager
def over_tcp(lab: t.Any) -> Iterator[str]:
    """Make the daemon reachable over TCP during the block, and return its URI as if it were on another host."""
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:

        def carry(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)

        def serve() -> None:
            with contextlib.suppress(OSError):  # the server is shut down at the end
                while True:
                    client = stack.enter_context(server.accept()[0])
                    daemon = stack.enter_context(socket.socket(socket.AF_UNIX))
                    daemon.connect(str(lab.socket))
                    for ends in ((client, daemon), (daemon, client)):
                        threading.Thread(target=carry, args=ends, daemon=True).start()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"qemu+tcp://127.0.0.1:{server.getsockname()[1]}/session"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def domain(lab: t.Any, vm: str) -> libvirt.virDomain:
    """Return the VM on a separate connection, like another user."""
    return lab.connect().lookupByName(vm)


def by_hand(lab: t.Any, vm: str, name: str, flags: int = 0) -> None:
    """Take a snapshot without the collection."""
    domain(lab, vm).snapshotCreateXML(f"<domainsnapshot><name>{name}</name></domainsnapshot>", flags)


def power(lab: t.Any, vm: str) -> str:
    state = domain(lab, vm).state()[0]
    return {libvirt.VIR_DOMAIN_RUNNING: "running", libvirt.VIR_DOMAIN_PAUSED: "paused", libvirt.VIR_DOMAIN_SHUTOFF: "off"}[state]


def image(lab: t.Any, vm: str, target: str = "vda") -> Path:
    """Return the file that the disk of the VM is written to."""
    for disk in ElementTree.fromstring(domain(lab, vm).XMLDesc()).iterfind("devices/disk"):
        source, where = disk.find("source"), disk.find("target")
        if source is not None and where is not None and where.get("dev") == target:
            return Path(source.get("file", ""))
    raise LookupError(target)


def write(lab: t.Any, vm: str, text: str, target: str = "vda") -> None:
    """Write to the disk of a VM that is off."""
    lab.run_as_user("qemu-io", "-c", f"write -P {ord(text)} 0 64k", str(image(lab, vm, target)))


def reads(lab: t.Any, vm: str, text: str, target: str = "vda") -> bool:
    """Return True if the disk of the VM, which must be off or paused, begins with this text."""
    command = ["qemu-io", "-r", "-U", "-c", f"read -P {ord(text)} 0 64k", str(image(lab, vm, target))]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    return shown.returncode == 0 and "failed" not in shown.stdout + shown.stderr


def qemu_pid(lab: t.Any, vm: str) -> int:
    """Return the process of a running VM."""
    word = f"guest={vm},".encode()
    return next(pid for pid in lab.qemu_pids() if word in Path(f"/proc/{pid}/cmdline").read_bytes())


@contextlib.contextmanager
def stopped(lab: t.Any, *vms: str) -> Iterator[None]:
    """Stop the QEMU processes of these VMs during the block, as on hanging storage; then continue them."""
    pids = [qemu_pid(lab, vm) for vm in vms]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def stopped_when(pid: int, reached: Callable[[], bool]) -> Iterator[None]:
    """Run the process in small steps until ``reached`` returns True, then stop it during the block."""

    def step() -> bool:
        os.kill(pid, signal.SIGSTOP)
        if reached():
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    try:
        until(step)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def crawling(pid: int) -> Iterator[None]:
    """Limit the process to a twentieth of the CPU time during the block, so that a snapshot takes longer than the start of a daemon."""
    over = threading.Event()

    def crawl() -> None:
        with contextlib.suppress(ProcessLookupError):
            while not over.is_set():
                os.kill(pid, signal.SIGSTOP)
                over.wait(0.1)
                os.kill(pid, signal.SIGCONT)
                over.wait(0.005)

    thread = threading.Thread(target=crawl)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def is_busy(lab: t.Any, vm: str) -> bool:
    """Return True if libvirt is running a job on the VM."""
    return bool(domain(lab, vm).controlInfo()[0] != libvirt.VIR_DOMAIN_CONTROL_OK)


def files(lab: t.Any, vm: str) -> list[str]:
    return sorted(path.name for path in lab.disk_folder(vm).iterdir())


def until(what: Callable[[], _Value], seconds: float = 60) -> _Value:
    """Wait until ``what`` returns a true value, and return it."""
    end = time.monotonic() + seconds
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)

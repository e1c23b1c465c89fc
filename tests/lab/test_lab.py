# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the lab itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from lab import Lab, LabError
from lab_guest import Guest

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("lab")]

SNAPSHOT = "<domainsnapshot><name>before</name></domainsnapshot>"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as started:
        yield started


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    started = lab.guest("web01")
    started.wait_ssh()
    yield started
    started.remove()


def processes_naming(text: str) -> list[str]:
    """The command lines of all processes that contain `text`."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = cmdline.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in words:
                found.append(words)
    return found


def wait_until(happened: Callable[[], bool], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < deadline, f"did not happen within {timeout:g} s"
        time.sleep(0.1)


def test_a_tiny_domain_takes_a_snapshot_and_comes_back_to_it(lab: Lab) -> None:
    domain = lab.define_tiny("tiny", paused=True)
    snapshot = domain.snapshotCreateXML(SNAPSHOT)
    domain.destroy()
    domain.revertToSnapshot(snapshot)
    assert domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    lab.remove("tiny")
    assert "tiny" not in [one.name() for one in lab.connect().listAllDomains()]
    assert not lab.disk_folder("tiny").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"raw_disks": 1}, "unsupported for storage type raw"),
        ({"pflash": True}, "pflash based firmware"),
        ({"disks": 0}, "require all disks to be selected"),
    ],
)
def test_a_tiny_domain_can_be_one_that_libvirt_refuses_to_snapshot(lab: Lab, options: dict[str, int], reason: str) -> None:
    domain = lab.define_tiny("refused", paused=True, **options)  # type: ignore[arg-type]
    with pytest.raises(libvirt.libvirtError, match=reason):
        domain.snapshotCreateXML(SNAPSHOT)
    lab.remove("refused")


def test_a_transient_domain_is_gone_once_it_is_destroyed(lab: Lab) -> None:
    domain = lab.define_tiny("passing", transient=True)
    assert not domain.isPersistent()
    domain.destroy()
    assert "passing" not in [one.name() for one in lab.connect().listAllDomains()]
    lab.remove("passing")


def test_domains_run_on_while_the_daemon_is_killed_and_started_again(lab: Lab) -> None:
    lab.define_tiny("survivor", running=True)
    before = lab.qemu_pids()
    lab.kill_daemon()
    with pytest.raises(libvirt.libvirtError):
        lab.connect()
    lab.start_daemon()
    assert lab.qemu_pids() == before
    assert lab.connect().lookupByName("survivor").isActive()
    lab.remove("survivor")


def test_processes_share_the_state_of_the_test_driver_while_one_of_them_is_connected(lab: Lab) -> None:
    create = "import sys, libvirt; libvirt.open(sys.argv[1]).lookupByName('test').snapshotCreateXML(sys.argv[2])"
    with lab.keep_test_state() as keeper:
        subprocess.run([sys.executable, "-c", create, lab.test_uri, SNAPSHOT], check=True)
        assert keeper.lookupByName("test").snapshotListNames() == ["before"]
    with lab.keep_test_state() as keeper:
        assert keeper.lookupByName("test").snapshotListNames() == []


def test_a_stopped_lab_leaves_no_process_and_no_folder() -> None:
    lab = Lab()
    with lab:
        lab.define_tiny("a", running=True)
        lab.define_tiny("b", paused=True)
        assert len(lab.qemu_pids()) == 2
    assert processes_naming(str(lab.folder)) == []
    assert not lab.folder.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_interrupted_leaves_no_process_and_no_folder(number: signal.Signals) -> None:
    # Background processes of a shell ignore SIGINT, and so do their children.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from lab import Lab; lab = Lab().start(); lab.define_tiny('a', running=True); print(lab.folder, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as run:
        assert run.stdout is not None
        folder = run.stdout.readline().strip()
        assert len(processes_naming(folder)) >= 3  # the keeper, libvirtd, QEMU
        run.send_signal(number)
        run.wait(timeout=30)
    wait_until(lambda: processes_naming(folder) == [])
    assert not Path(folder).exists()


def test_a_keeper_that_is_ended_leaves_no_process_and_no_folder() -> None:
    lab = Lab().start()
    lab.define_tiny("a", running=True)
    keepers = subprocess.run(["pgrep", "-f", f"lab_keeper.py {lab.folder} "], capture_output=True, text=True, check=True)
    os.kill(int(keepers.stdout.split()[0]), signal.SIGTERM)
    wait_until(lambda: processes_naming(str(lab.folder)) == [])
    assert not lab.folder.exists()


def test_a_lab_that_cannot_start_says_what_libvirtd_said_and_leaves_nothing() -> None:
    lab = Lab()
    lab.log.mkdir()  # libvirtd cannot write its log there
    with pytest.raises(LabError, match=r"ended at its start:\n(.*\n)*.*libvirtd\.log"):
        lab.start()
    assert processes_naming(str(lab.folder)) == []
    assert not lab.folder.exists()


@pytest.mark.guest
def test_a_guest_answers_over_ssh_and_through_its_agent(guest: Guest) -> None:
    result = guest.ssh("hostname; python3 -c 'print(6 * 7)'")
    assert result.stdout.split() == ["web01", "42"]
    assert guest.agent({"execute": "guest-ping"}) == {}


@pytest.mark.slow
@pytest.mark.guest
def test_ansible_reboots_a_guest_through_its_line_in_an_inventory(lab: Lab, guest: Guest, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts"
    inventory.write_text(guest.inventory_line() + "\n")
    before = guest.boot_id()
    command = [str(Path(sys.executable).with_name("ansible")), "-i", str(inventory), "web01"]
    command += ["-m", "ansible.builtin.reboot", "-a", "reboot_timeout=180"]
    home = {"ANSIBLE_HOME": str(lab.folder / "ansible")}  # short enough for the socket of ssh's master
    result = subprocess.run(command, env={**os.environ, **home}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert guest.boot_id() != before


@pytest.mark.guest
def test_a_revert_brings_back_a_running_process_and_a_file(guest: Guest) -> None:
    boot = guest.boot_id()
    guest.ssh("echo before > /root/file; nohup sleep 4321 > /dev/null 2>&1 &")
    with guest.domain() as domain:
        snapshot = domain.snapshotCreateXML(SNAPSHOT)
        guest.ssh("echo after > /root/file; sync; pkill sleep")
        assert guest.ssh("cat /root/file; pgrep -f 'sleep 432[1]'").stdout.split() == ["after"]
        domain.revertToSnapshot(snapshot)
    guest.wait_ssh()
    assert guest.ssh("cat /root/file; pgrep -fc 'sleep 432[1]'").stdout.split() == ["before", "1"]
    assert guest.boot_id() == boot


@pytest.mark.guest
def test_a_guest_without_its_sshd_stays_unreachable(lab: Lab) -> None:
    lost = lab.guest("lost")
    lost.wait_ssh()
    lost.ssh("nohup sh -c 'sleep 1; rm /usr/sbin/sshd; pkill sshd' > /dev/null 2>&1 &")
    wait_until(lambda: not lost.ssh_answers())
    assert lost.agent({"execute": "guest-ping"}) == {}  # the guest is alive
    assert lost.ssh("true").returncode == 255
    lost.remove()


def test_a_lab_with_a_root_folder_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        lab = Lab(tmp_path)
        with pytest.raises(LabError, match=r"no libvirtd in .*build_trixie"):
            lab.start()
        assert not lab.folder.exists()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="needs root, for mount and chroot"):
        Lab(tmp_path)


@pytest.mark.slow
def test_the_newer_lab_reverts_to_an_external_snapshot(new_lab: Lab) -> None:
    assert new_lab.connect().getLibVersion() >= 11_000_000
    domain = new_lab.define_tiny("tiny", paused=True)
    snapshot = domain.snapshotCreateXML(SNAPSHOT, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
    domain.revertToSnapshot(snapshot, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED)  # libvirt 9.0 cannot
    assert domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    assert len(new_lab.qemu_pids()) == 1
    new_lab.remove("tiny")
    assert not new_lab.disk_folder("tiny").exists()


@pytest.mark.slow
def test_the_newer_lab_snapshots_a_domain_with_firmware_variables_in_qcow2(new_lab: Lab) -> None:
    domain = new_lab.define_tiny("flash", paused=True, pflash=True, qcow2_nvram=True)
    domain.revertToSnapshot(domain.snapshotCreateXML(SNAPSHOT))
    assert domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    new_lab.remove("flash")


@pytest.mark.slow
def test_a_stopped_newer_lab_leaves_no_process_no_folder_and_no_mount(new_lab: Lab) -> None:
    assert new_lab.root is not None
    lab = Lab(new_lab.root)
    with lab:
        lab.define_tiny("a", running=True)
        mine = Path("/proc/self/ns/mnt").readlink()
        assert Path(f"/proc/{lab.pid}/ns/mnt").readlink() != mine
        lab.kill_daemon()
        lab.start_daemon()
        assert lab.connect().lookupByName("a").isActive()
    assert processes_naming(str(lab.folder)) == []
    assert not lab.folder.exists()
    assert str(lab.root) not in Path("/proc/self/mounts").read_text()


@pytest.mark.slow
@pytest.mark.guest
def test_a_guest_boots_in_the_newer_lab(new_lab: Lab) -> None:
    guest = new_lab.guest("web01")
    guest.wait_ssh()
    assert guest.ssh("hostname").stdout.split() == ["web01"]
    assert guest.agent({"execute": "guest-ping"}) == {}
    guest.remove()

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private libvirtd for tests and demos: libvirtd in session mode, tiny domains and real Linux guests.

Needs no systemd and no root (root drops to `nobody`), and does not touch the machine's own libvirt. Everything is in one
folder under /tmp; the folder and all processes are removed when the lab stops::

    with Lab() as lab:
        domain = lab.define_tiny("web01", paused=True)   # a real QEMU domain without an operating system, about 0.3 s
        guest = lab.guest("web02")                       # a real Debian; see lab_guest.py
        guest.wait_ssh()

`Lab(root)` runs libvirtd and QEMU from the root folder of another Debian, see build_trixie.sh; the client library is this machine's.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

import libvirt

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from lab_guest import Guest, GuestImage, start_guest  # noqa: E402  the lab is not a package: its files import each other through sys.path
from lab_keeper import qemu_pids  # noqa: E402
from lab_xml import tiny_xml  # noqa: E402

START_TIMEOUT = 60.0
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # a normal user's PATH does not include the folder of libvirtd
PFLASH_IMAGE = Path("/usr/share/seabios/bios-256k.bin")

# Runs the command "$@" in the root folder "$0", with the same process id. The mounts are in a separate namespace and end with the command.
# /tmp has the lab's folder, so paths are the same inside and outside.
IN_ROOT = 'for name in tmp dev proc sys; do mount --rbind "/$name" "$0/$name"; done; exec chroot "$0" "$@"'


class LabError(Exception):
    """An operation of the lab failed; the message has the end of the log."""


class Lab:
    """One private libvirtd and its domains, from `start()` to `stop()` (or as a context manager)."""

    def __init__(self, root: Path | None = None, *, settings: Mapping[str, int] | None = None) -> None:
        """``settings`` are lines of libvirtd.conf. By default the daemon has libvirt's defaults; a test that changes one explains why."""
        self._settings = dict(settings or {})
        if root is not None and os.geteuid() != 0:
            raise LabError("A lab with its own root folder needs root, for mount and chroot")
        self.root = root  # then libvirtd and QEMU see only /tmp, /dev, /proc and /sys of this machine
        # The path of a unix socket is limited to 107 bytes, and libvirt appends up to 90: so directly under /tmp.
        self.folder = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
        self.log = self.folder / "libvirtd.log"
        self.socket = self.folder / "run/libvirt/libvirt-sock"
        self.uri = f"qemu+unix:///session?socket={self.socket}"
        # libvirt's test driver: fast, without QEMU. All processes share its state while a connection is open.
        self.test_uri = f"test+unix:///default?socket={self.socket}"
        # The uid must have a passwd entry, else libvirt 9.0 fails: "Failed to find user record for uid".
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self._keeper: subprocess.Popen[str] | None = None
        self._daemon: int | None = None
        self._image: GuestImage | None = None

    # -- start and stop -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Lab:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> Lab:
        """Start the daemon and wait until it answers; after a failed start everything is removed."""
        # By default libvirt also prints every error to stderr; the exceptions are enough.
        libvirt.registerErrorHandler(lambda *_: None, None)
        try:
            self._write_configuration()
            self._start_keeper()
            self.start_daemon()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the daemon and every QEMU of this lab, and remove its folder. Safe to call twice and after a failed start.

        Happens automatically, within seconds, if this process ends in any way: see lab_keeper.py.
        """
        keeper, self._keeper = self._keeper, None
        self._daemon = None
        if keeper is not None:
            keeper.communicate("stop\n")
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The process id of the running daemon."""
        if self._daemon is None:
            raise LabError("The lab's libvirtd is not running")
        return self._daemon

    def start_daemon(self) -> None:
        """Start libvirtd, also after `kill_daemon`; it reconnects to the running domains."""
        if self._daemon is not None:
            raise LabError("The lab's libvirtd is already running")
        self.socket.unlink(missing_ok=True)  # a killed daemon does not remove it
        self._daemon = self._ask("start")
        self._wait_for("libvirtd's socket", self._socket_answers, START_TIMEOUT)

    def kill_daemon(self) -> None:
        """Kill libvirtd (SIGKILL), like a crash; the domains keep running."""
        self._ask("end SIGKILL")
        self._daemon = None

    def qemu_pids(self) -> list[int]:
        """Return the process ids of every QEMU of this lab, including those that libvirtd starts for its own use."""
        return qemu_pids(self.folder)

    # -- connections ---------------------------------------------------------------------------------------------------

    def connect(self) -> libvirt.virConnect:
        """Open a new connection to the private QEMU driver."""
        return libvirt.open(self.uri)

    @contextlib.contextmanager
    def keep_test_state(self) -> Iterator[libvirt.virConnect]:
        """Keep a connection to `test_uri` open: until the end of the block all processes share one new state of the test driver."""
        keeper = libvirt.open(self.test_uri)
        # libvirtd may not have noticed yet that the previous test has closed its last connection.
        for domain in keeper.listAllDomains():
            for snapshot in domain.listAllSnapshots():
                snapshot.delete()
            if domain.name() != "test":
                persistent = domain.isPersistent()
                if domain.isActive():
                    domain.destroy()
                if persistent:
                    domain.undefine()
        try:
            yield keeper
        finally:
            keeper.close()

    # -- domains -------------------------------------------------------------------------------------------------------

    def define_tiny(
        self,
        name: str,
        *,
        disks: int = 1,
        raw_disks: int = 0,
        running: bool = False,
        paused: bool = False,
        transient: bool = False,
        pflash: bool = False,
        qcow2_nvram: bool = False,
        agent: bool = False,
        memory_mib: int = 32,
        uuid: str | None = None,
        extra_devices: str = "",
    ) -> libvirt.virDomain:
        """Define a domain without an operating system, for tests that need a real QEMU but nothing inside it.

        It is off unless `running` (its BIOS finds no boot device and waits) or `paused` (it has not run an instruction) is
        set; a `transient` one is paused unless `running`. First come `disks` qcow2 disks (vda, ...), then `raw_disks` raw
        ones. `pflash` loads the firmware like UEFI; with `qcow2_nvram` its variables are in a format that libvirt 10.9
        can store internal snapshots in. `agent` adds a guest agent channel without an agent, `extra_devices` are more <devices>.
        """
        folder = self.disk_folder(name)
        self.run_as_user("mkdir", "-p", str(folder))
        images = [(folder / f"{name}-{n}.qcow2", "qcow2") for n in range(disks)]
        images += [(folder / f"{name}-{disks + n}.raw", "raw") for n in range(raw_disks)]
        for path, kind in images:
            self.run_as_user("qemu-img", "create", "-q", "-f", kind, str(path), "16M")
        nvram = folder / f"{name}-nvram.qcow2" if qcow2_nvram else None
        if nvram:
            self.run_as_user("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(PFLASH_IMAGE), str(nvram))
        xml = tiny_xml(
            name,
            images=images,
            memory_mib=memory_mib,
            uuid=uuid,
            loader=PFLASH_IMAGE if pflash else None,
            nvram=nvram,
            agent=agent,
            extra_devices=extra_devices,
        )
        connection = self.connect()
        flags = 0 if running else libvirt.VIR_DOMAIN_START_PAUSED
        if transient:
            return connection.createXML(xml, flags)
        domain = connection.defineXML(xml)
        if running or paused:
            domain.createWithFlags(flags)
        return domain

    def guest(self, name: str, *, memory_mib: int = 256) -> Guest:
        """Start a Linux guest from the cached image (built on the first call, about a minute); call `wait_ssh()` next."""
        if self._image is None:
            self._image = GuestImage.for_lab(self)
        return start_guest(self, self._image, name, memory_mib=memory_mib)

    def remove(self, name: str) -> None:
        """Destroy and undefine the domain `name` with its snapshots and disks. Does nothing if it does not exist."""
        with contextlib.closing(self.connect()) as connection:
            try:
                domain = connection.lookupByName(name)
            except libvirt.libvirtError as exc:
                if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
            else:
                persistent = domain.isPersistent()
                if domain.isActive():
                    _destroy(domain)
                if persistent:
                    domain.undefineFlags(
                        libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                        | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                        | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
                    )
        shutil.rmtree(self.disk_folder(name), ignore_errors=True)  # internal snapshots are inside the disks

    def disk_folder(self, name: str) -> Path:
        """Return the folder of the domain's disks, and of the overlays that snapshots create."""
        return self.folder / "disks" / name

    # -- for lab_guest.py ----------------------------------------------------------------------------------------------

    def as_user(self) -> list[str]:
        """Return the command prefix that runs a command as the daemon's user."""
        if os.geteuid() != 0:
            return []
        return ["setpriv", f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups"]

    def run_as_user(self, *command: str) -> None:
        """Run a command as the daemon's user, so that QEMU can use the files that it creates."""
        words = [*self.as_user(), *command]
        result = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise LabError(f"{' '.join(command)} failed: {result.stderr.strip()}")

    # -- internal ------------------------------------------------------------------------------------------------------

    def _write_configuration(self) -> None:
        for part in ("run", "config/libvirt", "cache", "data", "home", "disks"):
            (self.folder / part).mkdir(parents=True)
        lines = [f'log_outputs = "2:file:{self.log}"', *(f"{name} = {value}" for name, value in self._settings.items())]
        (self.folder / "libvirtd.conf").write_text("\n".join(lines) + "\n")
        # Without stdio_handler libvirtd starts a virtlogd that runs two minutes longer than libvirtd (libvirt 9.0).
        (self.folder / "config/libvirt/qemu.conf").write_text('stdio_handler = "file"\nsecurity_driver = "none"\n')
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _start_keeper(self) -> None:
        if self.root is None:
            libvirtd = shutil.which("libvirtd", path=SYSTEM_PATH)
            if libvirtd is None:
                raise LabError("libvirtd is not installed on this machine; run tests/lab/packages.sh lab")
            around = []
        else:
            libvirtd = "/usr/sbin/libvirtd"
            if not (self.root / libvirtd[1:]).exists():
                raise LabError(f"There is no libvirtd in {self.root}; create the folder with tests/lab/build_trixie.sh")
            around = ["unshare", "--mount", "sh", "-ec", IN_ROOT, str(self.root)]
        files = ["-f", str(self.folder / "libvirtd.conf"), "-p", str(self.folder / "run/libvirtd.pid")]
        command = [*around, *self.as_user(), libvirtd, *files]
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", str(HERE / "lab_keeper.py"), str(self.folder), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            start_new_session=True,  # a Ctrl-C on the terminal must only reach the tests; the lab ends after them
            env={
                "PATH": SYSTEM_PATH,
                "LANG": "C.UTF-8",
                "HOME": str(self.folder / "home"),
                "XDG_RUNTIME_DIR": str(self.folder / "run"),
                "XDG_CONFIG_HOME": str(self.folder / "config"),
                "XDG_CACHE_HOME": str(self.folder / "cache"),
                "XDG_DATA_HOME": str(self.folder / "data"),
            },
        )

    def _ask(self, command: str) -> int:
        if self._keeper is None or self._keeper.stdin is None or self._keeper.stdout is None:
            raise LabError("The lab is not started")
        print(command, file=self._keeper.stdin, flush=True)
        answer = self._keeper.stdout.readline()
        if not answer:
            raise LabError("The lab's keeper process has ended")
        return int(answer)

    def _socket_answers(self) -> bool:
        if not Path(f"/proc/{self.pid}").exists():
            raise LabError(f"libvirtd ended at its start:\n{self._log_tail()}")
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def _wait_for(self, what: str, happened: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not happened():
            if time.monotonic() > deadline:
                raise LabError(f"Timeout after {timeout:g} s while waiting for {what}:\n{self._log_tail()}")
            time.sleep(0.05)

    def _log_tail(self) -> str:
        texts = [path.read_text(errors="replace") for path in (self.folder / "libvirtd.out", self.log) if path.is_file()]
        return "\n".join("".join(texts).splitlines()[-20:])


def _destroy(domain: libvirt.virDomain) -> None:
    try:
        domain.destroy()
    except libvirt.libvirtError as exc:
        # While a new libvirtd 9.0 is still reconnecting to QEMU, destroy kills QEMU and then fails with "domain is not running".
        if exc.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID or domain.isActive():
            raise

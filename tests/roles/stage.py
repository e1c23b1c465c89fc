# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the role's tests play: guests that are SSH servers on loopback, and ansible-playbook as a user would run it.

The ansible-playbook is the one beside the Python that runs pytest: pytest of .venv-2.16 tests ansible-core 2.16.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import typing as t
from pathlib import Path

import asyncssh
from lab_kill import kill_tree

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run of ansible-playbook left behind."""

    rc: int
    output: str

    def recap(self, host: str) -> dict[str, int]:
        """The numbers of ``host`` in PLAY RECAP; empty when it is not there."""
        line = re.search(rf"^{re.escape(host)}\s+: (.*)$", self.output, re.MULTILINE)
        return {key: int(value) for key, value in (pair.split("=") for pair in line[1].split())} if line else {}

    def calls(self, task: str) -> list[str]:
        """The hosts that made the call to the hypervisor that is named ``task``."""
        return re.findall(rf"TASK \[[^\]]*: {task}\] \*+\n(?:(?!TASK|changed|ok).*\n)*(?:changed|ok): \[(\w+) -> ", self.output)

    def said(self, text: str) -> bool:
        """Whether ``text`` is in the output, wherever its lines were broken."""
        return " ".join(text.split()) in " ".join(self.output.split())


class Playing:
    """A run of ansible-playbook that goes on, and the ways it can end."""

    def __init__(self, arguments: list[str], *, cwd: Path, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            arguments,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def said(self) -> str:
        """The output up to now."""
        return "".join(self._lines)

    def result(self, timeout: float = 300, *, meanwhile: t.Callable[[int], None] | None = None) -> Run:
        """What a user would see in the end."""
        if meanwhile:
            threading.Thread(target=meanwhile, args=[self._process.pid], daemon=True).start()
        self._reader.join(timeout)
        if self._reader.is_alive():
            raise AssertionError(f"The play did not end within {timeout:g} seconds:\n{self.kill()}")
        print(self.said())
        return Run(self._process.wait(), self.said())

    def kill(self) -> str:
        """End it as a controller that loses its power does, with all that it has started; return what it had said."""
        kill_tree(self._process.pid)
        self._reader.join()
        self._process.wait()
        return self.said()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._lines.append(line)


class Flag(t.Protocol):
    """A file, or what is like one."""

    def exists(self) -> bool:
        """Whether it is there by now."""


class Guest:
    """One SSH server, its home folder, and the ways to lose it."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.name = name
        self.home = stage.folder / f"home-{name}"
        self.home.mkdir()
        self._log = stage.folder / f"{name}.log"
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(str(self.home / "host_key"))
        key.write_public_key(str(self.home / "host_key.pub"))
        shutil.copy(stage.key.with_suffix(".pub"), self.home / "authorized_keys")
        self.port = 0
        self.extra: dict[str, object] = {}
        self._process: subprocess.Popen[str] | None = None
        self._silent: list[subprocess.Popen[str]] = []
        self._over = threading.Event()
        self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def program(self, name: str, text: str) -> None:
        """Give it a program that stands in for one of a real guest; the text is that of a shell script."""
        path = self.home / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{textwrap.dedent(text)}")
        path.chmod(0o755)

    def start(self) -> None:
        """Listen, on the same port as before; returns when it does."""
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("guest_sshd.py")), str(self.home), str(self.port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.strip():
            raise RuntimeError(f"The SSH server of {self.name} did not start: {self._log.read_text()[-2000:]}")
        self.port = int(line)

    def close(self) -> None:
        """End it for good, also when a thread is about to start it again."""
        self._over.set()
        self.stop()
        while self._silent:
            self._process = self._silent.pop()
            self.stop()

    def stop(self) -> None:
        """End the server and everything that it started."""
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        for end in (self._process.stdin, self._process.stdout):
            if end is not None:
                end.close()
        self._process = None

    def come_back_when(self, flag: Flag) -> threading.Thread:
        """Start again, in a thread, once the server is dead and ``flag`` exists."""

        process = self._process
        assert process is not None

        def watch() -> None:
            process.wait()
            while not flag.exists():
                if self._over.wait(0.1):
                    return
            if not self._over.is_set():
                self.stop()
                self.start()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        return thread

    def begin_anew_when(self, flag: Flag) -> threading.Thread:
        """Start another server, in a thread, once ``flag`` exists; the one that was there falls silent, with its sessions left open.

        That is how the other ends of all sessions see the revert of a VM. Its sshd must have been ended before, by USR1.
        """
        old = self._process
        assert old is not None

        def watch() -> None:
            while not flag.exists():
                if self._over.wait(0.1):
                    return
            os.killpg(old.pid, signal.SIGSTOP)
            self._silent.append(old)
            self.start()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        return thread

    def variables(self) -> dict[str, object]:
        """The host variables with which Ansible reaches it."""
        return {"ansible_host": "127.0.0.1", "ansible_port": self.port, **self.extra}


class Stage:
    """A folder with a playbook in it, an inventory of guests, and a way to run it."""

    def __init__(self) -> None:
        # The path of a mux socket may have 107 bytes: so directly under /tmp, and short.
        self.folder = Path(tempfile.mkdtemp(prefix="sp", dir="/tmp"))
        self.key = self.folder / "id"
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(str(self.key))
        key.write_public_key(str(self.key.with_suffix(".pub")))
        self.key.chmod(0o600)
        self.project = self.folder / "project"
        self.project.mkdir()
        (self.folder / "ansible.cfg").touch()
        self.guests: dict[str, Guest] = {}

    def guest(self, name: str) -> Guest:
        """Start a guest and put it into the inventory."""
        self.guests[name] = Guest(self, name)
        return self.guests[name]

    def write(self, name: str, text: str) -> Path:
        """Write a file of the project; the text may be indented."""
        path = self.project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def play(
        self,
        playbook: str,
        *arguments: str,
        timeout: float = 300,
        env: dict[str, str] | None = None,
        meanwhile: t.Callable[[int], None] | None = None,
    ) -> Run:
        """Run ``playbook`` (YAML) on the guests and return what a user would see.

        ``meanwhile`` is called in a thread with the id of the process, which leads a group of its own.
        """
        return self.start(str(self.write("site.yml", playbook)), *arguments, env=env).result(timeout, meanwhile=meanwhile)

    def start(self, playbook: str, *arguments: str, env: dict[str, str] | None = None) -> Playing:
        """Begin to run ``playbook``, a path or the full name of one in a collection."""
        return Playing(
            [str(PLAYBOOK), "-i", str(self._inventory()), playbook, *arguments],
            cwd=self.folder,
            env={**self._environment(), **(env or {})},
        )

    def close(self) -> None:
        """End the guests (their SSH clients go with them) and remove the folder."""
        for guest in self.guests.values():
            guest.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _inventory(self) -> Path:
        lines = [
            " ".join([name, *(f"{key}={value}" for key, value in guest.variables().items())])
            for name, guest in self.guests.items()
        ]
        common = {
            "ansible_ssh_private_key_file": self.key,
            "ansible_ssh_common_args": "'-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR'",
            "ansible_host_key_checking": "false",
            "ansible_python_interpreter": sys.executable,
        }
        path = self.folder / "hosts.ini"
        path.write_text(
            "\n".join(["[guests]", *lines, "", "[guests:vars]", *(f"{key}={value}" for key, value in common.items())]) + "\n"
        )
        return path

    def _environment(self) -> dict[str, str]:
        keep = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "SAFEPOINT_", "LIBVIRT_"))}
        return {
            **keep,
            "HOME": str(self.folder),
            "ANSIBLE_HOME": str(self.folder / ".ansible"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.folder / "cp"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".ansible/collections"),
            "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_RETRY_FILES_ENABLED": "0",
            "ANSIBLE_DEPRECATION_WARNINGS": "0",
            "PYTHONUNBUFFERED": "1",
        }


def wait_until(happened: t.Callable[[], object]) -> None:
    """Wait for something that takes no longer than two minutes, and look often enough to see what lasts for a few milliseconds."""
    end = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.002)

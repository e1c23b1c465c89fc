# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real Linux guest with an application, and the playbook that changes it under guard."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from lab_kill import kill_tree

from ansible_collections.safepoint.vm.plugins.module_utils._core.label import Label, parse

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclasses.dataclass(frozen=True)
class State:
    """The state of the guest: a file, a process, and the boot id."""

    config: str
    process: str
    """The process's id and start time in ticks since boot: together they are unique."""
    boot: str


@dataclasses.dataclass(frozen=True)
class Run:
    """The result of one run of ansible-playbook."""

    code: int
    shown: str
    seconds: float

    def recap(self, host: str) -> dict[str, int]:
        line = next(line for line in self.shown.splitlines() if line.startswith(f"{host} ") and "unreachable=" in line)
        return {key: int(value) for key, value in (word.split("=") for word in line.split() if "=" in word)}

    def messages(self, host: str) -> list[str]:
        """Return the messages of the host's failed tasks in order. The last one ended its play."""
        start = f"fatal: [{host}]: FAILED! => "
        found = [at + len(start) for at in range(len(self.shown)) if self.shown.startswith(start, at)]
        return [json.JSONDecoder().raw_decode(self.shown, at)[0].get("msg", "") for at in found]


class Machine:
    """The guest, and the methods to change it."""

    def __init__(self, lab: t.Any, name: str, folder: Path) -> None:
        self.lab = lab
        self.name = name
        self.folder = folder
        self.boot()

    def boot(self) -> None:
        """Start a new guest to replace the old one."""
        self.lab.remove(self.name)
        self.guest = self.lab.guest(self.name)
        self.guest.wait_ssh()

    def is_well(self) -> bool:
        """Return True if the next test can use this guest, in the state that the last test left."""
        return bool(
            self.guest.ssh_answers(20) and self.guest.ssh("test -x /usr/sbin/sshd && date > /var/tmp/probe").returncode == 0
        )

    def sh(self, command: str) -> str:
        """Return the output of a shell command in the guest."""
        done = self.guest.ssh(command)
        assert done.returncode == 0, done.stderr
        return str(done.stdout).strip()

    def prepare(self) -> State:
        """Reset the guest to version 1 with a running application."""
        self.sh(
            "kill $(cat /run/app.pid 2>/dev/null) 2>/dev/null; echo version 1 > /etc/app.conf; sync; "
            "setsid sleep 1000000 </dev/null >/dev/null 2>&1 & echo $! > /run/app.pid"
        )
        return self.state()

    def state(self) -> State:
        shown = self.sh(
            "cat /etc/app.conf; cut -d ' ' -f 1,22 /proc/$(cat /run/app.pid)/stat || echo gone; cat /proc/sys/kernel/random/boot_id"
        )
        return State(*shown.splitlines())

    def free_mib(self) -> int:
        """Return the free space on the guest's disk."""
        return int(self.sh("df -m --output=avail / | tail -n 1"))

    @contextlib.contextmanager
    def console(self) -> Iterator[Path]:
        """Return a file with the guest's console output during the block; the console's own file is truncated by a revert."""
        saved = self.folder / "console.log"
        command = ["tail", "-n", "0", "-F", str(self.guest.console)]
        with saved.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL) as tail:
            try:
                yield saved
            finally:
                tail.terminate()

    def change(
        self,
        name: str,
        *options: str,
        others: t.Sequence[Machine] = (),
        keepalive: str = "",
        kill_when: t.Callable[[], bool] | None = None,
        **extra: t.Any,
    ) -> Run:
        """Run the change on this guest and the others; `options` are options of ansible-playbook.

        The controller is killed when ``kill_when`` returns true.
        """
        hosts = {machine.name: machine.guest.inventory_vars() for machine in (self, *others)}
        for variables in hosts.values():
            variables["ansible_ssh_common_args"] += f" {keepalive}"
        (self.folder / "inventory.json").write_text(json.dumps({"guests": {"hosts": hosts}}))
        return self._play(str(HERE / "site.yml"), {"change": name, **extra}, *options, kill_when=kill_when)

    def reconcile(self, **extra: t.Any) -> Run:
        """Run the collection's playbook that cleans up after dead runs, on this guest."""
        connection = {"backend": "libvirt", "uri": self.lab.uri}
        checks = str(HERE / "health.yml")
        return self._play(
            "safepoint.vm.reconcile", {"guarded_change_endpoint": connection, "guarded_change_checks": checks, **extra}
        )

    def _play(self, playbook: str, extra: dict[str, t.Any], *options: str, kill_when: t.Callable[[], bool] | None = None) -> Run:
        variables = {"lab_uri": self.lab.uri, "guarded_change_evidence_dir": str(self.folder / "evidence"), **extra}
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(self.folder / "inventory.json")]
        began = time.monotonic()
        process = subprocess.Popen(
            [*command, playbook, "-e", json.dumps(variables), *options],
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "HOME": str(ROOT / ".cache" / "home"),
                # Each run has its own: a session of the previous run would keep that run's keepalive settings.
                # In the lab's folder: the path of a unix socket is limited to 107 bytes, and the path of the checkout may be long.
                "ANSIBLE_SSH_CONTROL_PATH_DIR": tempfile.mkdtemp(prefix="cp-", dir=self.lab.folder),
                "ANSIBLE_PIPELINING": "1",  # an emulated guest needs a second for each ssh command
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if kill_when:
            while process.poll() is None and not kill_when():
                time.sleep(0.5)
            kill_tree(process.pid)
        try:
            shown, _ = process.communicate(timeout=600)
        finally:
            kill_tree(process.pid)
        print(shown)
        return Run(process.returncode, shown, time.monotonic() - began)

    def evidence(self) -> list[t.Any]:
        """Return the evidence files of failed changes, oldest first."""
        return [json.loads(path.read_text()) for path in sorted((self.folder / "evidence").glob(f"*-{self.name}.json"))]

    def descriptions(self) -> list[str]:
        """Return the descriptions of all snapshots of the guest, read without the collection's driver."""
        with self.guest.domain() as domain:
            texts = [ElementTree.fromstring(one.getXMLDesc()).findtext("description") for one in domain.listAllSnapshots()]
        return [text or "" for text in texts]

    def labels(self) -> list[Label]:
        return [label for label in (parse(text).label for text in self.descriptions()) if label]

    def remove_snapshots(self) -> None:
        with self.guest.domain() as domain:
            for one in domain.listAllSnapshots():
                one.delete()

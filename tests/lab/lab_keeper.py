# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parent process of a lab's libvirtd; only lab.py starts it.

When its stdin closes it kills all its processes and removes the folder, so a killed test run is cleaned up too. It also adopts QEMU,
which libvirt starts as an orphan, and reaps it at once: in destroy and revert libvirt waits until the process is gone, which took 1 to
2 s each time in a container whose PID 1 reaps its children at such intervals.

usage: lab_keeper.py FOLDER COMMAND...   commands on stdin, one a line: `start` (answers the pid), `end SIGNAL` (answers the pid),
`stop`
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Keeper:
    def __init__(self, folder: Path, command: list[str]) -> None:
        self._folder = folder
        self._command = command
        self._daemon = 0
        self._ended: set[int] = set()
        self._has_children = False

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit())  # runs the finally below
        try:
            for line in sys.stdin:
                verb, *words = line.split()
                if verb == "stop":  # explicit, since a forked child of the tests may keep the pipe open
                    break
                pid = self._start() if verb == "start" else self._end(signal.Signals[words[0]])
                print(pid, flush=True)
        finally:
            # The daemon first: it could start another QEMU while these are killed. It may also hang on a stopped QEMU.
            self._end(signal.SIGTERM)
            for pid in qemu_pids(self._folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _poll(lambda: not self._has_children, 20)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> int:
        log = str(self._folder / "libvirtd.out")
        self._has_children = True
        self._daemon = os.posix_spawnp(
            self._command[0],
            self._command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        return self._daemon

    def _end(self, number: signal.Signals) -> int:
        daemon, self._daemon = self._daemon, 0
        for attempt in (number, signal.SIGKILL) if daemon else ():
            if daemon not in self._ended:
                os.kill(daemon, attempt)
                _poll(lambda: daemon in self._ended, 5)
        return daemon

    def _reap(self, *_: object) -> None:
        try:
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self._ended.add(pid)
        except ChildProcessError:
            self._has_children = False


def qemu_pids(folder: Path) -> list[int]:
    """Return the process ids of every QEMU of the lab in `folder`, including those that libvirtd starts for its own use.

    libvirt's pid files (run/libvirt/qemu/run) exist for domains only, but every command line has the path of the lab.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "comm").read_text().startswith("qemu") and os.fsencode(folder) in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def _poll(happened: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.02)


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    Keeper(Path(sys.argv[1]), sys.argv[2:]).serve()

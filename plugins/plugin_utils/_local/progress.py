# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The progress of a module on the terminal while it works.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
import typing as t
from collections.abc import Mapping

from ansible import constants as C
from ansible import context
from ansible.utils.display import Display

from ansible_collections.safepoint.vm.plugins.plugin_utils._local.action import LocalAction, Show

display = Display()

_SHOW_SECONDS = 2.0
# The stdout callbacks that write for people. What others write may be read by a program, and a line of ours among it would break that.
_FOR_PEOPLE = {"awx_display", "debug", "default", "minimal", "unixy", "yaml"}


class ProgressAction(LocalAction):
    """Runs the module, and shows its progress where it runs from the installed collection and people read the terminal."""

    def _progress(self, task_vars: Mapping[str, t.Any]) -> contextlib.AbstractContextManager[Show | None]:
        if self._task.no_log or self._task.check_mode or not _is_for_people():
            return contextlib.nullcontext()
        return _Screen(f"[{task_vars.get('inventory_hostname')}] {self._task.name or self._task.action}")


class _Screen:
    """Shows the newest text in a thread of its own: a terminal that takes nothing must not stop the reading of the pipe.

    The module's process is waited for in the main thread, where the signal of the task's `timeout` and of Ctrl-C ends the wait.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._text = ""
        self._news = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Show:
        self._thread.start()
        return self._show

    def __exit__(self, *_exc: object) -> None:
        self._done.set()
        self._news.set()
        # A process that ends while one of its threads writes to the queue of results leaves it locked for all others.
        self._thread.join()

    def _show(self, text: str) -> None:
        self._text = text
        self._news.set()

    def _work(self) -> None:
        shown = ""
        while not self._done.wait(_SHOW_SECONDS if shown else 0):
            self._news.wait()
            self._news.clear()
            text = self._text
            if text != shown and not self._done.is_set() and _has_reader():
                display.display(f"{self._subject}: {text}")
                shown = text


def _is_for_people() -> bool:
    """Whether what is on stdout is read by people only, as far as the settings tell."""
    name = C.DEFAULT_STDOUT_CALLBACK
    if name == "awx_display":
        # ansible-runner puts it in the place of the one that its user chose.
        name = os.environ.get("ORIGINAL_STDOUT_CALLBACK") or "default"
    return name.rpartition(".")[2] in _FOR_PEOPLE and not context.CLIARGS.get("one_line") and not context.CLIARGS.get("tree")


def _has_reader() -> bool:
    """Return True if Ansible's stdout, which may not be that of this process, has a reader.

    A line that meets a broken pipe ends the thread of ansible-core that receives results, and the play never ends (2.16 to 2.21).
    False if it cannot be known: for a socket, a pipe of another user, or a system without /proc.
    """
    stdout = f"/proc/{os.getppid()}/fd/1"
    try:
        mode = os.stat(stdout).st_mode
        if not stat.S_ISFIFO(mode):
            return not stat.S_ISSOCK(mode)
        pipe = os.open(stdout, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        poll = select.poll()
        poll.register(pipe, 0)
        return not poll.poll(0)  # POLLERR if the other end is closed
    finally:
        os.close(pipe)

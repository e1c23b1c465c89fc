# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a module that works for long says on the terminal meanwhile.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import os
import select
import stat
import tempfile
import threading
import typing as t

from ansible import constants as C
from ansible import context
from ansible.utils.display import Display

from ansible_collections.safepoint.vm.plugins.plugin_utils._local import LocalAction

display = Display()

_LOOK_SECONDS = 0.5
_SHOW_SECONDS = 2.0
# The stdout callbacks that write for people. What others write may be read by a program, and a line of ours among it would break that.
_FOR_PEOPLE = {"awx_display", "debug", "default", "minimal", "unixy", "yaml"}


class ProgressAction(LocalAction):
    """Runs the module as any other, and shows what it writes into its progress file while it works."""

    def _execute_module(self, *args: t.Any, **kwargs: t.Any) -> dict[str, t.Any]:
        if not self._is_shown():
            return super()._execute_module(*args, **kwargs)
        # In Ansible's own folder, which goes with it also when this process is killed. Errors are ignored, since a module that was given up
        # because of the task's `timeout` may still be writing there.
        with tempfile.TemporaryDirectory(prefix="safepoint-", dir=C.DEFAULT_LOCAL_TMP, ignore_cleanup_errors=True) as folder:
            path = os.path.join(folder, "progress")
            host = (kwargs.get("task_vars") or {}).get("inventory_hostname")
            subject = f"[{host}] {self._task.name or self._task.action}"
            kwargs["module_args"] = {**(kwargs.get("module_args") or self._task.args), "progress_file": path}
            # The module stays in this thread, where the signal of the task's `timeout` and of Ctrl-C ends the wait for it.
            done = threading.Event()
            watcher = threading.Thread(target=_watch, args=(path, subject, done), daemon=True)
            watcher.start()
            try:
                result: dict[str, t.Any] = super()._execute_module(*args, **kwargs)
            finally:
                done.set()
                # A process that ends while one of its threads writes to the queue of results leaves it locked for all others.
                watcher.join()
        arguments = (result.get("invocation") or {}).get("module_args")
        if isinstance(arguments, dict):
            arguments.pop("progress_file", None)
        return result

    def _is_shown(self) -> bool:
        """Whether somebody can be shown anything, and may be."""
        return (
            self._connection.transport == "local"
            and not self._task.no_log
            and not self._task.async_val
            and not self._task.check_mode
            and not self._task.args.get("progress_file")
            and _is_for_people()
        )


def _is_for_people() -> bool:
    """Whether what is on stdout is read by people only, as far as the settings tell."""
    name = C.DEFAULT_STDOUT_CALLBACK
    if name == "awx_display":
        # ansible-runner puts it in the place of the one that its user chose.
        name = os.environ.get("ORIGINAL_STDOUT_CALLBACK") or "default"
    return name.rpartition(".")[2] in _FOR_PEOPLE and not context.CLIARGS.get("one_line") and not context.CLIARGS.get("tree")


def _watch(path: str, subject: str, done: threading.Event) -> None:
    """Show what is new in the file, until the module has ended."""
    shown, pause = "", _LOOK_SECONDS
    while not done.wait(pause):
        pause = _LOOK_SECONDS
        try:
            with open(path, encoding="utf-8") as file:
                seen = file.read()
        except (OSError, UnicodeError):
            continue
        if seen and seen != shown and _somebody_reads():
            display.display(f"{subject}: {seen}")
            shown, pause = seen, _SHOW_SECONDS


def _somebody_reads() -> bool:
    """Whether Ansible's stdout, which need not be that of this process, can be written to without a reader missing.

    A line that meets a broken pipe ends the thread of ansible-core that takes in results, and the play waits for ever (2.16 to 2.21).
    Where nobody can tell nothing is shown: a socket, a pipe of another user, a system without /proc.
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
        return not poll.poll(0)  # POLLERR when nobody has the other end open
    finally:
        os.close(pipe)

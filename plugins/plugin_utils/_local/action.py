# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run a module without packing it if its task runs on the controller itself.

Ansible packs all files that the module may need, and the module's process compiles them: 1.0 of the 1.5 seconds of CPU time that one
snapshot on vSphere adds to an empty play (ansible-core 2.19). On the controller, these files are already installed, so a child process
uses them directly. It is a separate process because a C library may crash.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import subprocess
import sys
import syslog
import typing as t
from collections.abc import Callable, Collection, Iterator, Mapping, Set

import ansible
from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.module_utils.common.text.converters import to_text
from ansible.module_utils.errors import UnsupportedError
from ansible.plugins.action.normal import ActionModule as NormalAction
from ansible.utils.display import Display

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.credentials import secrets
from ansible_collections.safepoint.vm.plugins.module_utils._options import OPTIONS

display = Display()

_CHILD = os.path.join(os.path.dirname(__file__), "child.py")
# Passed to the child process, which may not find Ansible on its own path.
_ANSIBLE = os.path.dirname(os.path.dirname(ansible.__file__))
# Maximum delay until a signal is noticed.
_SIGNAL_SECONDS = 0.5
_READ_BYTES = 65536
Result = dict[str, t.Any]
Show = Callable[[str], None]


class LocalAction(NormalAction):
    """Runs the module from the installed collection if it would run on this machine, as this user and with this Python.

    Otherwise, Ansible runs it like every other module.
    """

    def _execute_module(self, *args: t.Any, **kwargs: t.Any) -> Result:
        task_vars = kwargs.get("task_vars") or {}
        if not self._is_here(task_vars):
            return t.cast(Result, super()._execute_module(*args, **kwargs))
        # Not task.action, which may be a redirect from another collection.
        name = (self._task.resolved_action or self._task.action).rpartition(".")[2]
        display.vvv(f"Running {name} of the installed collection with {sys.executable}")
        given = kwargs.get("module_args") or self._task.args
        environment: dict[str, t.Any] = {}
        self._compute_environment_string(environment)
        with _environment({key: str(value) for key, value in environment.items()}):
            # The arguments as a module gets them.
            checked = ArgumentSpecValidator(**OPTIONS[name]).validate(json.loads(json.dumps(given, default=_plain)))
            params = checked.validated_parameters
            spec = OPTIONS[name]["argument_spec"]
            hidden = {str(params[key]) for key in spec if spec[key].get("no_log") and params.get(key)}
            if checked.error_messages:
                msg = checked.errors.msg
                if isinstance(checked.errors[0], UnsupportedError):
                    msg = f"Unsupported parameters for ({self._task.action}) module: {msg}"
                result: Result = {"failed": True, "msg": remove_values(msg, hidden)}
            else:
                hidden |= secrets(params, os.environ)
                self._log(remove_values(params, hidden), task_vars)
                call = {
                    "module": name,
                    "params": params,
                    "check_mode": bool(self._task.check_mode),
                    "diff": bool(self._task.diff),
                    "secrets": sorted(hidden),
                }
                with self._progress(task_vars) as show:
                    result = self._call(call, show)
        if _setting("INJECT_INVOCATION", task_vars, before=True):  # ansible-core 2.21
            result["invocation"] = {"module_args": remove_values(params, hidden)}
        return result

    def _progress(self, task_vars: Mapping[str, t.Any]) -> contextlib.AbstractContextManager[Show | None]:
        """For the time of a call, what shows a text about its progress. Here nothing does."""
        return contextlib.nullcontext()

    def _is_here(self, task_vars: Mapping[str, t.Any]) -> bool:
        if self._connection.transport != "local" or self._connection.become or self._task.async_val:
            return False
        delegated = task_vars.get("ansible_delegated_vars", {}).get(self._task.delegate_to)
        try:
            # For values other than a path, Ansible searches for a Python, which may be another one with other libraries.
            wanted = self._templar.template(C.config.get_config_value("INTERPRETER_PYTHON", variables=delegated or task_vars))
            # A virtual environment has several names for its Python, and several environments may link to the same binary.
            return os.path.dirname(wanted) == os.path.dirname(sys.executable) and os.path.samefile(wanted, sys.executable)
        except (AnsibleError, OSError, TypeError):
            return False

    def _log(self, params: Mapping[str, t.Any], task_vars: Mapping[str, t.Any]) -> None:
        """Write the same syslog entry as a module that Ansible runs."""
        if self._task.no_log or C.config.get_config_value("DEFAULT_NO_TARGET_SYSLOG", variables=task_vars):
            return
        facility = C.config.get_config_value("DEFAULT_SYSLOG_FACILITY", variables=task_vars)
        syslog.openlog(f"ansible-{self._task.action}", 0, getattr(syslog, str(facility), syslog.LOG_USER))
        info = _setting("TARGET_LOG_INFO", task_vars, before=None)  # ansible-core 2.17
        words = [*([str(info)] if info else []), "Invoked with", *(f"{key}={value}" for key, value in params.items())]
        syslog.syslog(syslog.LOG_INFO, " ".join(words))

    def _call(self, call: Mapping[str, t.Any], show: Show | None) -> Result:
        """Run the call in a child process; ``show`` is called with its progress texts."""
        process = subprocess.Popen(
            [sys.executable, _CHILD, _ANSIBLE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=self._loader.get_basedir(),
        )
        answer: Result | None = None

        def take(line: bytes) -> None:
            nonlocal answer
            message = json.loads(line)
            if "progress" not in message:
                answer = message
            elif show is not None:
                show(printable(message["progress"], call["secrets"]))

        # If the task's `timeout` ends this wait, the child process continues, like the process of any module.
        stderr = converse(process, json.dumps({**call, "progress": show is not None}).encode(), take)
        if answer is None:
            said = remove_values(to_text(stderr, errors="replace").strip(), call["secrets"])
            msg = f"The process of {call['module']} ended with {_how(process.returncode)} and without a result. {said[-2000:]}".strip()
            return {"failed": True, "msg": msg}
        result = {**(answer["failure"] or {}), **answer["result"]}
        if answer["failure"] is not None:
            result["failed"] = True
        if answer["warnings"]:
            result["warnings"] = answer["warnings"]
        return result


class _Lines:
    """Divides the output from a pipe into lines."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._begun = bytearray()

    def read(self, pipe: int) -> bool:
        """Read once; return False at the end of the output."""
        data = os.read(pipe, _READ_BYTES)
        self._begun += data
        if b"\n" in data:
            *ended, self._begun = self._begun.split(b"\n")
            for line in ended:
                self._take(bytes(line))
        return bool(data)


def converse(process: subprocess.Popen[bytes], text: bytes, take: Callable[[bytes], None]) -> bytes:
    """Write to a process, pass each line that it writes to ``take``, and return its stderr after its end. An incomplete last line is ignored.

    The wait is divided into short ones. Python runs signal handlers only in the main thread (3.9 to 3.14), and the kernel may deliver a signal to
    another thread, such as the one that shows the progress: in one long wait, a Ctrl-C was not noticed until the module ended.
    """
    lines, stderr = _Lines(take), bytearray()
    left = memoryview(text)

    def write(pipe: int) -> bool:
        nonlocal left
        try:
            left = left[os.write(pipe, left[: select.PIPE_BUF]) :]  # only as much as a write takes without a wait
        except BrokenPipeError:  # it has ended
            return False
        return bool(left)

    def read_stderr(pipe: int) -> bool:
        data = os.read(pipe, _READ_BYTES)
        stderr.extend(data)
        return bool(data)

    pipes = [
        (process.stdin, selectors.EVENT_WRITE, write),
        (process.stdout, selectors.EVENT_READ, lines.read),
        (process.stderr, selectors.EVENT_READ, read_stderr),
    ]
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for pipe, event, go_on in pipes:
            file = stack.enter_context(t.cast("t.IO[bytes]", pipe))
            selector.register(file, event, (file, go_on))
        while selector.get_map():
            for key, _events in selector.select(_SIGNAL_SECONDS):
                file, go_on = key.data
                if not go_on(key.fd):
                    selector.unregister(file)
                    file.close()
    _wait(process)
    return bytes(stderr)


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process, in slices as well."""
    while process.returncode is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_SIGNAL_SECONDS)


def printable(text: str, secrets: Collection[str]) -> str:
    """A text without secrets, which the name of a VM may be like, and without commands for a terminal."""
    return "".join(one if one.isprintable() else "?" for one in remove_values(text, secrets))


def _setting(name: str, task_vars: Mapping[str, t.Any], *, before: t.Any) -> t.Any:
    """Return a setting of Ansible, or ``before`` if this ansible-core does not have it."""
    try:
        return C.config.get_config_value(name, variables=task_vars)
    except AnsibleError:
        return before


def _how(code: int) -> str:
    """Return the exit code or the signal of a process as text."""
    try:
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _plain(value: t.Any) -> t.Any:
    """Convert values that JSON cannot represent: a date that YAML parsed, a set, bytes, and text from a vault (ansible-core 2.16)."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, bytes) or getattr(value, "__ENCRYPTED__", False):
        return to_text(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Set):
        return list(value)
    raise TypeError(f"An option has the type {type(value).__name__}, which is not supported")


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set the variables of the task's `environment` for this process and its children."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The child process that runs a module call on the controller: it reads the call as JSON from stdin and writes messages as JSON to stdout, one per line.

A message is a progress text, if the parent wants these, or the answer, which is the last message. action.py starts this file as a script, with the folder
of the Ansible installation as argument. Ansible is imported only if it is needed.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import traceback
import types


def _make_importable() -> None:
    """Make this collection importable by its full name from the folder of this file, even if another copy is installed."""
    here = os.path.dirname(os.path.abspath(__file__))
    # Python added the folder of the script, with links resolved; its files must not be importable as top-level modules.
    sys.path[:] = [path for path in sys.path if path != os.path.realpath(here)]
    folder = os.path.dirname(os.path.dirname(os.path.dirname(here)))
    name = ""
    for part in ("ansible_collections", "safepoint", "vm"):
        name = f"{name}.{part}".lstrip(".")
        package = types.ModuleType(name)
        package.__path__ = [folder] if part == "vm" else []
        sys.modules[name] = package


def tell(descriptor: int, text: str) -> None:
    """Write a progress message into the pipe, unless that would wait: a parent that reads nothing must not hold up the work.

    A pipe that poll() calls writable takes PIPE_BUF bytes at once (POSIX), so that no signal cuts a message in two.
    """
    message = json.dumps({"progress": text}).encode() + b"\n"
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if len(message) <= select.PIPE_BUF and poll.poll(0):
        with contextlib.suppress(BrokenPipeError):
            os.write(descriptor, message)


def main() -> None:
    """Run one call. Output of libraries goes to stderr."""
    # Nothing was done yet, so end at once. Python's own handler would show a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    answers = os.dup(1)
    os.dup2(2, 1)
    _make_importable()
    # Last in the path: only if this Python does not find Ansible itself.
    sys.path.append(sys.argv[1])
    from ansible_collections.safepoint.vm.plugins.module_utils._engine.progress import ProgressTexts
    from ansible_collections.safepoint.vm.plugins.module_utils._run import Answer, Call, perform
    from ansible_collections.safepoint.vm.plugins.module_utils._waiting.stop import Stop

    given = json.load(sys.stdin)
    progress = ProgressTexts(lambda text: tell(answers, text)).note if given.pop("progress") else None
    call = Call(**given)
    stop = Stop()
    stop.install()
    try:
        answer = perform(call, stop, progress=progress)
    except Exception as exc:
        answer = Answer(failure={"msg": f"{type(exc).__name__}: {exc}", "exception": traceback.format_exc()})
    said: object = {"result": answer.result, "failure": answer.failure, "warnings": answer.warnings}
    # Not json.dump(), which does not use the encoder in C.
    text = json.dumps(said)
    if any(json.dumps(one)[1:-1] in text for one in call.secrets):
        from ansible.module_utils.common.parameters import remove_values

        text = json.dumps(remove_values(said, call.secrets))
    # On a Ctrl-C, Ansible ends the process that reads the answer (ansible-core 2.16 to 2.21).
    with contextlib.suppress(BrokenPipeError), os.fdopen(answers, "w", encoding="ascii") as file:
        file.write(text + "\n")
    # Threads may still wait for an endpoint that does not answer.
    os._exit(0)


if __name__ == "__main__":
    main()

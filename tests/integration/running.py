# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run the modules like a user: with ansible, in a separate process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import typing as t
from collections.abc import Iterator
from pathlib import Path

import ansible

from ansible_collections.safepoint.vm.plugins.module_utils._options import OPTIONS

ROOT = Path(__file__).resolve().parents[2]
ANSIBLE = Path(sys.executable).parent / "ansible"

Module = t.Callable[..., "dict[str, t.Any]"]


def environment(**extra: str) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": str(ROOT / ".cache" / "home"),
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "ANSIBLE_DEPRECATION_WARNINGS": "false",
        **extra,
    }


def run_module(name: str, options: dict[str, t.Any], *flags: str, **env: str) -> tuple[dict[str, t.Any], str]:
    """The result of the module, and the terminal output."""
    command = [str(ANSIBLE), "localhost", "-m", f"safepoint.vm.{name}", "-a", json.dumps(options), *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment(**env), capture_output=True, text=True, timeout=120, check=False)
    shown = done.stdout + done.stderr
    assert "Traceback" not in shown
    start = done.stdout.index("{", done.stdout.index("=> {"))
    return json.JSONDecoder().raw_decode(done.stdout[start:])[0], shown


def parameters(name: str, /, **options: t.Any) -> dict[str, t.Any]:
    """Return the options of a module as checked by Ansible, with defaults; for calls without Ansible."""
    defaults = {option: spec.get("default") for option, spec in OPTIONS[name]["argument_spec"].items()}
    return {**defaults, **options}


@contextlib.contextmanager
def child(name: str, options: dict[str, t.Any], *, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run the child process of _local/action.py with this call during the block."""
    call = {"module": name, "params": parameters(name, **options), "check_mode": False, "diff": False}
    call |= {"secrets": [], "progress": False}
    command = [
        sys.executable,
        str(ROOT / "plugins/plugin_utils/_local/child.py"),
        os.path.dirname(os.path.dirname(ansible.__file__)),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment(**(env or {}))) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(call).encode())
            process.stdin.close()
            process.stdin = None
            yield process
        finally:
            process.kill()

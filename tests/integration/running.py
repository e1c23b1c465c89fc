# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules as a user runs them: by ansible, in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

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
    """What the module returned, and all that was on the terminal."""
    command = [str(ANSIBLE), "localhost", "-m", f"safepoint.vm.{name}", "-a", json.dumps(options), *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment(**env), capture_output=True, text=True, timeout=120, check=False)
    shown = done.stdout + done.stderr
    assert "Traceback" not in shown
    start = done.stdout.index("{", done.stdout.index("=> {"))
    return json.JSONDecoder().raw_decode(done.stdout[start:])[0], shown

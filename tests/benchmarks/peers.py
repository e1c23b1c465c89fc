# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The virtual environment of the peers, .cache/bench-venv: created for the first benchmark, and again when peers.txt changes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = [Path(__file__).with_name("peers.txt"), ROOT / "requirements/constraints.txt"]
VENV = ROOT / ".cache/bench-venv"


def clean_environment() -> dict[str, str]:
    """Return environment variables without those that would influence the measurement, with HOME inside the checkout."""
    bends = ("ANSIBLE_", "PYTHON", "VIRTUAL_ENV", "VMWARE_", "PROXMOX_", "SAFEPOINT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(bends)}
    home = ROOT / ".cache/home"
    home.mkdir(parents=True, exist_ok=True)
    return {**kept, "HOME": str(home), "PIP_CACHE_DIR": str(ROOT / ".cache/pip"), "LC_ALL": "C.UTF-8"}


def make_environment() -> None:
    """Create the environment if it does not exist. A second process waits for the first."""
    wanted = sys.version + hashlib.sha256(b"".join(path.read_bytes() for path in REQUIREMENTS)).hexdigest()
    made_from = VENV / ".made-from"
    environment = clean_environment()
    with (ROOT / ".cache/bench.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made_from.exists() and made_from.read_text() == wanted:
            return
        print(
            "Making .cache/bench-venv with the collections of the peers: a minute or two, 560 MB on the disk",
            file=sys.stderr,
            flush=True,
        )
        shutil.rmtree(VENV, ignore_errors=True)  # pip treats a half-written package of an interrupted run as installed
        pip = [str(VENV / "bin/python"), "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check", "install"]
        for command in ([sys.executable, "-m", "venv", str(VENV)], [*pip, "--requirement", str(REQUIREMENTS[0])]):
            subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=True, timeout=1200)
        made_from.write_text(wanted)


def _collections() -> Path:
    (found,) = VENV.glob("lib/python3.*/site-packages/ansible_collections")
    return found


def release_of(collection: str) -> str:
    """Return the version of an installed collection, by its full name."""
    manifest = _collections() / collection.replace(".", "/") / "MANIFEST.json"
    return str(json.loads(manifest.read_text())["collection_info"]["version"])


def has_module(name: str) -> bool:
    """Return True if this release of the peer has the module of that full name."""
    collection, _dot, module = name.rpartition(".")
    return (_collections() / collection.replace(".", "/") / "plugins/modules" / f"{module}.py").exists()

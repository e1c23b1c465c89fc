# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A module that runs on the controller uses the installed collection, and gives the same results as a packed module."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import typing as t
from pathlib import Path

import pytest
from running import ROOT, environment

# Also with the newest and the oldest ansible-core.
pytestmark = pytest.mark.core_versions

PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
SECRET = "correct-horse-battery-staple"
THE_SAME = "the URI of the others"

# Each task: the module, its options, keywords of the task, and True if it fails.
TASKS: list[tuple[str, dict[str, t.Any], dict[str, t.Any], bool]] = [
    ("snapshot", {"name": "would", "labels": {"change": "CHG0042"}}, {"check_mode": True, "diff": True}, False),
    ("snapshot", {"name": "a", "description": "kernel", "expires": "72h", "labels": {"change": 42}}, {"diff": True}, False),
    ("snapshot", {"name": "{{ item }}", "max_parallel": "2"}, {"loop": ["a", "b"]}, False),
    ("snapshot", {"name": "of-somebody", "quiesce": "prefer"}, {"environment": {"SAFEPOINT_OWNER": "somebody"}}, False),
    ("snapshot_info", {"ownership": "foreign"}, {"environment": {"LIBVIRT_DEFAULT_URI": THE_SAME}}, False),
    ("snapshot_revert", {"name": "a", "discard_newer": True, "foreign": "allow"}, {"diff": True}, False),
    ("snapshot_prune", {"keep_last": 1, "max_age": "30d"}, {"check_mode": True}, False),
    ("snapshot_revert", {"name": "none"}, {}, True),
    ("snapshot", {"vm": SECRET, "name": "a", "label_key": SECRET}, {}, True),
    ("snapshot", {"name": "a", "snapshoot": "b"}, {}, True),
    ("snapshot", {"name": "a", "quiesce": "maybe", "label_key": SECRET}, {}, True),
    ("snapshot_info", {"uri": f"qemu+ssh://root:{SECRET}@kvm01/system"}, {}, True),
]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a copy of the collection as installed: only its files."""
    folder = tmp_path / "collections" / "ansible_collections" / "safepoint" / "vm"
    for name in ("plugins", "meta"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "galaxy.yml", folder)
    return tmp_path / "collections"


@pytest.fixture
def packed(tmp_path: Path) -> str:
    """Return the same Python under another path, so that Ansible packs the module for it."""
    path = tmp_path / "python-of-another-name"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


def play(
    folder: Path, collections: Path, python: str, tasks: list[dict[str, t.Any]], *flags: str
) -> subprocess.CompletedProcess[str]:
    playbook = folder / "play.json"
    playbook.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    env = environment(ANSIBLE_PYTHON_INTERPRETER=python, ANSIBLE_COLLECTIONS_PATH=str(collections))
    command = [str(PLAYBOOK), "-i", "localhost,", "-c", "local", *flags, str(playbook)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)


def results(lab: t.Any, folder: Path, collections: Path, python: str) -> tuple[list[dict[str, t.Any]], str]:
    """Return the results of TASKS, run in order on a new hypervisor, and the terminal output."""
    tasks = []
    for number, (name, options, keywords, _fails) in enumerate(TASKS):
        given = {"backend": "libvirt", "uri": lab.test_uri, "vm": "test", **options}
        if "LIBVIRT_DEFAULT_URI" in keywords.get("environment", {}):
            del given["uri"]
        task = {f"safepoint.vm.{name}": given, "register": f"result_{number}", "ignore_errors": True, **keywords}
        tasks.append(json.loads(json.dumps(task).replace(THE_SAME, lab.test_uri)))
    every = "{{ [" + ", ".join(f"result_{number}" for number in range(len(TASKS))) + "] | to_json }}"
    tasks.append({"ansible.builtin.copy": {"content": every, "dest": str(folder / "results.json"), "mode": "0600"}})
    with lab.keep_test_state():
        done = play(folder, collections, python, tasks, "-vvv")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "results.json").read_text()), done.stdout + done.stderr


def comparable(value: t.Any) -> t.Any:
    """Return the result without values that differ between runs and between the two ways to run a module."""
    if isinstance(value, dict):
        # On ansible-core 2.19 and later, a failure without an exception has the key too, with the text that there is no traceback.
        return {key: comparable(one) for key, one in value.items() if key not in ("exception", "sig", "at", "age_seconds")}
    if isinstance(value, list):
        return [comparable(one) for one in value]
    if isinstance(value, str):
        return re.sub(r"sig=\S+?(?=[\] ])", "SIG", re.sub(r"20\d\d-\d\d-\d\dT\d\d(:|%3A)\d\d(:|%3A)\d\dZ", "TIME", value))
    return value


def test_local_and_packed_module_give_the_same_results(lab: t.Any, tmp_path: Path, installed: Path, packed: str) -> None:
    here, shown = results(lab, tmp_path, installed, sys.executable)
    elsewhere, shown_elsewhere = results(lab, tmp_path, installed, packed)
    for ours, theirs, task in zip(here, elsewhere, TASKS):
        assert comparable(ours) == comparable(theirs), task
    assert [one.get("failed", False) for one in here] == [fails for *_task, fails in TASKS]
    assert here[1]["changed"] and here[1]["vms"][0]["action"] == "created" and here[1]["diff"]
    assert here[3]["warnings"] and here[4]["vms"][0]["snapshots"]
    # Both ways were used; one task was a loop of two.
    assert shown.count("of the installed collection with") == len(TASKS) + 1
    assert "of the installed collection with" not in shown_elsewhere
    assert SECRET not in shown and "Traceback" not in shown


def test_crashed_process_fails_the_task_but_not_the_run(tmp_path: Path, installed: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        options = {
            "backend": "vsphere",
            "hostname": "127.0.0.1",
            "port": mute.getsockname()[1],
            "username": "admin",
            "password": SECRET,
            "vm": "web01",
            "connect_timeout": "120s",
        }
        tasks = [
            {
                "block": [{"safepoint.vm.snapshot_info": options}],
                "rescue": [{"ansible.builtin.debug": {"msg": "RESCUED {{ ansible_failed_result.msg }}"}}],
            }
        ]
        killed: list[int] = []

        def kill_who_connects() -> None:
            connection, _address = mute.accept()
            with connection:
                killed.extend(processes(installed))
                for pid in killed:
                    os.kill(pid, signal.SIGSEGV)

        killer = threading.Thread(target=kill_who_connects, daemon=True)
        killer.start()
        done = play(tmp_path, installed, sys.executable, tasks)
        killer.join(10)
    assert len(killed) == 1
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"RESCUED The process of snapshot_info ended with signal SIGSEGV", done.stdout)


def processes(collections: Path) -> list[int]:
    """Return the processes that run a module of the collection there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if any(word.startswith(str(collections)) and word.endswith("/_local/child.py") for word in words):
            found.append(int(path.parent.name))
    return found

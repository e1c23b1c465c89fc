# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Signals to a real ansible-playbook and to a module that Ansible packed, on a vCenter whose tasks take time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ANSIBLE, ROOT, environment
from server import VCenter

from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

pytestmark = pytest.mark.vcenter

VMS = [f"DC0_C0_RP0_VM{number}" for number in range(6)]
# The duration of a run that waits for its tasks; the promised 5 seconds are far below it, also on a busy machine.
TASK_SECONDS = 40


@pytest.fixture
def slow() -> Iterator[VCenter]:
    with VCenter(vms=len(VMS)) as vcenter:
        vcenter.set(task_time=TASK_SECONDS)
        yield vcenter


@pytest.fixture
def start(slow: VCenter, tmp_path: Path) -> Iterator[t.Callable[[str], Run]]:
    """Start a run, and end it with the test."""
    with contextlib.ExitStack() as stack:

        def begin(python: str) -> Run:
            run = Run(slow, tmp_path, python=python)
            stack.callback(run.end)
            return run

        yield begin


class Run:
    """An `ansible` run that takes snapshots of all VMs, two at a time, in its own process group, as on a terminal."""

    def __init__(self, vcenter: VCenter, folder: Path, *, python: str) -> None:
        self.mark = f"SAFEPOINT_TEST={folder}"
        self.audit = folder / "audit.jsonl"
        reach = {"backend": "vsphere", "hostname": vcenter.hostname, "port": vcenter.port, "ca_path": vcenter.ca_path}
        login = {"username": vcenter.username, "password": vcenter.password}
        options = {**reach, **login, "vms": VMS, "name": "x", "max_parallel": 2, "audit_file": str(self.audit)}
        play = [
            {
                "hosts": "localhost",
                "gather_facts": False,
                "vars": {"ansible_python_interpreter": python},
                "tasks": [{"safepoint.vm.snapshot": options}, {"ansible.builtin.debug": {"msg": "went on"}}],
            }
        ]
        (folder / "play.yml").write_text(json.dumps(play))
        self.output = folder / "output"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(ANSIBLE.with_name("ansible-playbook")), str(folder / "play.yml")],
                cwd=ROOT,
                env={**environment(), "SAFEPOINT_TEST": str(folder)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self) -> None:
        """Kill the remaining processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pid in self.workers(""):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def workers(self, word: str) -> list[int]:
        """Return the processes of this run with the word in their command line."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    if self.mark in (folder / "environ").read_text(errors="replace") and word in (folder / "cmdline").read_text():
                        found.append(int(folder.name))
                except OSError:
                    pass  # it has ended
        return found

    def lines(self, event: str) -> list[dict[str, t.Any]]:
        lines = self.audit.read_text().splitlines() if self.audit.exists() else []
        return [one for one in map(json.loads, lines) if one["event"] == event]


def writes(vcenter: VCenter) -> int:
    methods: dict[str, int] = vcenter.counters()["methods"]
    return methods.get("CreateSnapshotEx_Task", 0)


@pytest.mark.core_versions
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_of_a_play_starts_nothing_more_and_the_audit_is_complete(
    slow: VCenter, start: t.Callable[[str], Run], number: signal.Signals
) -> None:
    run = start(sys.executable)
    Deadline(60).poll("the first writes", lambda: writes(slow) >= 2 or None, first=0.05, longest=0.1)
    assert run.workers("_local/child.py")
    os.killpg(run.process.pid, number)
    told = time.monotonic()
    Deadline(30).poll("the end of the child", lambda: not run.workers("_local/child.py") or None, first=0.05, longest=0.1)
    took = time.monotonic() - told
    assert run.process.wait(30) != 0
    output = run.output.read_text()
    assert "Traceback" not in output and "went on" not in output
    assert took < TASK_SECONDS / 2
    begun = {one["vm"] for one in run.lines("intent")}
    assert len(begun) == writes(slow) == 2 and run.lines("outcome") == []
    results = {one["vm"]: one["error"] for one in run.lines("result")}
    assert results == {vm: "interrupted" if vm in begun else "not_started" for vm in VMS}
    # After a SIGINT, Ansible also sends a SIGTERM, and either may arrive first.
    assert all("SIGINT" in one["msg"] or "SIGTERM" in one["msg"] for one in run.lines("result"))


def test_packed_module_returns_its_rows_after_a_signal(slow: VCenter, start: t.Callable[[str], Run], tmp_path: Path) -> None:
    # Another Python than that of Ansible, so that it packs the module.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    run = start(str(python))
    Deadline(60).poll("the first writes", lambda: writes(slow) >= 2 or None, first=0.05, longest=0.1)
    for pid in run.workers("AnsiballZ_snapshot.py"):
        if Path(f"/proc/{pid}/exe").resolve() == Path(sys.executable).resolve():
            os.kill(pid, signal.SIGTERM)
    told = time.monotonic()
    assert run.process.wait(60) == 2
    assert time.monotonic() - told < TASK_SECONDS / 2
    output = run.output.read_text()
    assert "Traceback" not in output and "went on" not in output
    assert '"error": "interrupted"' in output and '"error": "not_started"' in output
    assert writes(slow) == 2

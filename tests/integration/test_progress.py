# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The progress of long tasks on a terminal, and its cost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import typing as t
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from kit import only
from running import ROOT, environment
from server import VCenter
from vsphere_backend import VsphereBackend

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere import tasks as _tasks
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present

# Also with the newest ansible-core; in `make test-all` with all.
pytestmark = [pytest.mark.vcenter, pytest.mark.newest]

PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
TASK_SECONDS = 6.0
A_LINE = "[web01] Take the snapshots: "
SILENT = ["secret", "asynchronous", "elsewhere"]

FILES = {
    "callback_plugins/json.py": """
        import json
        from ansible.plugins.callback import CallbackBase

        DOCUMENTATION = "{name: json, type: stdout, short_description: one document in the end, description: [x], options: {}}"

        class CallbackModule(CallbackBase):
            CALLBACK_VERSION, CALLBACK_TYPE, CALLBACK_NAME = 2.0, "stdout", "json"

            def v2_playbook_on_stats(self, stats):
                self._display.display(json.dumps({"changed": stats.changed, "failures": stats.failures}))
    """,
    "connection_plugins/elsewhere.py": """
        from ansible.plugins.connection.local import Connection as Local

        DOCUMENTATION = "{name: elsewhere, short_description: not local, description: [x], author: [x], options: {}}"

        class Connection(Local):
            transport = "elsewhere"
    """,
}


class Run:
    """A run of ansible-playbook, with the time of each output line in seconds."""

    def __init__(self, play: Path, hosts: Sequence[str], *, terminal: bool = False, until: str = "", **env: str) -> None:
        """The output goes to a terminal or into a pipe; with ``until``, reading stops after the line that contains it."""
        self.lines: list[tuple[float, str]] = []
        self._until = until
        ours, theirs = os.openpty() if terminal else os.pipe()
        self._began = time.monotonic()
        try:
            self._process = subprocess.Popen(
                [str(PLAYBOOK), "-i", f"{','.join(hosts)},", str(play)],
                cwd=ROOT,
                # Unbuffered: otherwise, all output into a pipe would arrive at the end.
                env=environment(ANSIBLE_ASYNC_DIR=str(play.parent / "async"), ANSIBLE_NOCOLOR="1", PYTHONUNBUFFERED="1", **env),
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=subprocess.STDOUT,
            )
        finally:
            os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, ours: int) -> None:
        with open(ours, encoding="utf-8") as output:
            try:
                for line in output:
                    self.lines.append((time.monotonic() - self._began, line.rstrip("\n")))
                    if self._until and self._until in line:
                        return
            except OSError:
                pass  # EIO: the terminal was closed

    def finish(self) -> Run:
        """Wait for the end of the run. A hanging run is killed, and has no return code of its own."""
        try:
            self._process.wait(240)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        self._reader.join(10)
        return self

    @property
    def rc(self) -> int:
        return self._process.returncode

    @property
    def output(self) -> str:
        return "\n".join(line for _second, line in self.lines)

    def when(self, text: str) -> list[float]:
        """Return the times of the lines with the text, in seconds."""
        return [second for second, line in self.lines if text in line]


def when(host: str, then: object, otherwise: object) -> str:
    return f"{{{{ {then!r} if inventory_hostname == {host!r} else {otherwise!r} }}}}"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[VCenter]:
    with VCenter(vms=0) as vcenter:
        vcenter.set(task_times={"CreateSnapshot*": TASK_SECONDS})
        yield vcenter


@pytest.fixture(scope="module")
def runs(endpoint: VCenter, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Start all runs in parallel, because they mostly wait."""
    login = {
        "backend": "vsphere",
        "hostname": endpoint.hostname,
        "port": endpoint.port,
        "password": endpoint.password,
        "ca_path": endpoint.ca_path,
    }
    common = {
        "delegate_to": "localhost",
        # the option that is missing above; it must reach the module too
        "environment": {"VMWARE_USER": endpoint.username},
    }
    options = {"vms": ["{{ inventory_hostname }}", "{{ inventory_hostname }}-2"], "name": "x"}
    take = {"name": "Take the {{ what }}", "safepoint.vm.snapshot": options, **common}
    revert = {"name": "Go back", "safepoint.vm.snapshot_revert": {"vm": "web01", "name": "x"}, **common}
    wrong = {"name": "Ask for nothing", "safepoint.vm.snapshot": {"vm": "web01"}, "ignore_errors": True, **common}
    silent = {
        **take,
        "no_log": when("secret", True, False),
        "async": when("asynchronous", 60, 0),
        "poll": 1,
        "delegate_to": when("elsewhere", "elsewhere", "localhost"),
        "vars": {"ansible_connection": when("elsewhere", "elsewhere", "local")},
    }
    hosts = {"plain": ["web01"], "silent": SILENT}
    plays = {"plain": [take, revert, wrong], "silent": [silent], "late": [{**take, "timeout": 4}], "json": [take], "gone": [take]}
    settings: dict[str, dict[str, t.Any]] = {
        "plain": {"terminal": True, "ANSIBLE_VERBOSITY": "3", "ANSIBLE_INJECT_INVOCATION": "true"},
        "json": {"ANSIBLE_STDOUT_CALLBACK": "json"},
        "gone": {"until": "TASK ["},
    }
    folder = tmp_path_factory.mktemp("plays")
    for name, text in FILES.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(textwrap.dedent(text))
    started = {}
    for name, tasks in plays.items():
        names = hosts.get(name, [name])
        endpoint.make_vms(*({"name": vm + more, "power": "poweredOn"} for vm in names for more in ("", "-2")))
        play = {"hosts": "all", "gather_facts": False, "module_defaults": {"group/safepoint.vm.all": login}, "tasks": tasks}
        (folder / f"{name}.yml").write_text(json.dumps([{**play, "vars": {"what": "snapshots"}}]))
        started[name] = Run(folder / f"{name}.yml", names, **settings.get(name, {}))
    return {name: run.finish() for name, run in started.items()}


@pytest.mark.core_versions
def test_long_task_shows_its_progress_and_short_task_shows_nothing(runs: dict[str, Run]) -> None:
    run = runs["plain"]
    assert run.rc == 0, run.output
    shown, (ended, *_later) = run.when(A_LINE), run.when("changed: [web01 -> localhost]")
    assert shown and shown[0] < ended - 1
    assert all(later - earlier > 1.5 for earlier, later in zip(shown, shown[1:], strict=False))
    said = [line for _second, line in run.lines if line.startswith(A_LINE)]
    # On a busy machine the first is shown before vCenter tells a percentage above 0, or one at all.
    form = (
        re.escape(A_LINE)
        + r"[01] of 2 VMs done(, web01(-2)? \d+%)+|"
        + re.escape(A_LINE)
        + "0 of 2 VMs done, web01, web01-2 under way"
    )
    assert all(re.fullmatch(form, line) for line in said), said
    percents = [int(percent) for line in said for percent in re.findall(r"(\d+)%", line)[:1]]
    assert percents == sorted(percents) and percents[0] < 100 and percents[-1] > 0
    (began,), (ended,) = run.when("TASK [Go back]"), run.when("TASK [Ask for nothing]")
    # Shown after 2 seconds, which a busy machine may take for it.
    assert ended - began > 2 or not run.when("] Go back: ")


@pytest.mark.core_versions
def test_task_with_progress_is_otherwise_unchanged(runs: dict[str, Run], endpoint: VCenter) -> None:
    run = runs["plain"]
    assert "one of the following is required: name, id, targets" in run.output
    assert '"invocation"' in run.output
    assert [one["name"] for one in endpoint.vm("web01")["snapshots"]] == ["x"]


@pytest.mark.core_versions
@pytest.mark.parametrize("host", SILENT)
def test_no_progress_with_no_log_or_without_a_terminal(runs: dict[str, Run], endpoint: VCenter, host: str) -> None:
    run = runs["silent"]
    assert run.rc == 0, run.output
    assert not run.when(f"[{host}] Take")
    assert [one["name"] for one in endpoint.vm(host)["snapshots"]] == ["x"]


@pytest.mark.core_versions
def test_output_for_programs_is_unchanged(runs: dict[str, Run]) -> None:
    assert json.loads(runs["json"].output) == {"changed": {"json": 1}, "failures": {}}


@pytest.mark.core_versions
def test_task_timeout_does_not_wait_for_the_module(runs: dict[str, Run]) -> None:
    run = runs["late"]
    assert run.rc == 2
    (began,), (ended,) = run.when("TASK ["), run.when("PLAY RECAP")
    assert 3 < ended - began < TASK_SECONDS


@pytest.mark.core_versions
def test_play_does_not_hang_if_its_output_is_not_read(runs: dict[str, Run], endpoint: VCenter) -> None:
    assert "TASK [" in runs["gone"].lines[-1][1]
    assert runs["gone"].rc != -signal.SIGKILL
    assert [one["name"] for one in endpoint.vm("gone")["snapshots"]] == ["x"]


@pytest.fixture
def crowd() -> Iterator[VCenter]:
    with VCenter(vms=100) as vcenter:
        yield vcenter


def test_progress_costs_little_time_and_few_requests(crowd: VCenter, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = VsphereBackend(crowd)
    vms = [f"DC0_C0_RP0_VM{number}" for number in range(100)]
    crowd.set(task_time=2)
    seconds = []
    # Twice if the first run was too slow: other processes use this machine too.
    for plan in (Present(Request(name="x")), Absent(Request(name="x"))):
        began = time.monotonic()
        done = backend.run(plan, *vms, max_parallel=32)
        seconds.append(time.monotonic() - began)
        assert {one.error for one in done} == {None}
        if seconds[-1] <= 1.2 * 8:
            break
    assert min(seconds) <= 1.2 * 8
    # A task of minutes shortened to seconds: the pause grows ten times as fast.
    monkeypatch.setattr(_tasks, "_LATE", 1.0)
    crowd.set(task_time=4)
    crowd.reset_counters()
    backend.run(Present(Request(name="y")), *vms[:16])
    # 0.2, 0.4, 0.8, 1.6 and 2 seconds apart, not 0.2 all the time
    assert crowd.counters()["methods"]["WaitForUpdatesEx"] <= 10
    backend.close()


def test_timeout_error_has_the_progress_that_vcenter_reports(vcenter: t.Any) -> None:
    vcenter.make_vms({"name": "slow01", "power": "poweredOn"})
    before = vcenter.state()["settings"]
    vcenter.set(task_time=10)
    backend = VsphereBackend(vcenter)
    try:
        done = only(backend.run(Present(Request(name="x")), "slow01", timeout=3.0, on_error="stop"))
    finally:
        vcenter.set(**before)
        backend.close()
    assert re.search(r"take snapshot x of slow01 \(task task-\d+, [1-9]\d?% done\)\. The job may still complete", str(done.error))

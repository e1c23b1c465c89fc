# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The progress of a call: its text, when it is reported, and its way through the pipe to the action plugin."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from fake import FakeDriver, Hypervisor

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import BackendFailed
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._engine import jobs
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._engine.progress import Progress, ProgressTexts
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.plugin_utils._local.action import converse, printable
from ansible_collections.safepoint.vm.plugins.plugin_utils._local.child import tell

VMS = ["web01", "web02", "web03"]


@pytest.fixture
def hypervisor(monkeypatch: pytest.MonkeyPatch) -> Hypervisor:
    monkeypatch.setattr(jobs, "_WAIT_SECONDS", 0.05)
    made = Hypervisor()
    for name in VMS:
        made.add(name)
    return made


def run(hypervisor: Hypervisor, told: list[Progress], **bounds: object) -> list[Outcome]:
    settings = Bounds(**{"timeout": 60.0, "max_parallel": 3, **bounds})  # type: ignore[arg-type]
    fleet = Fleet(FakeDriver(hypervisor), settings, progress=told.append)
    return fleet.apply([Target(name) for name in VMS], Present(Request(name="x")), dry_run=False)


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(12, 40, (("web03", 45),)), "12 of 40 VMs done, web03 45%"),
        (Progress(0, 1, (("web03", 45),)), "web03 45%"),
        (Progress(0, 1, (("web03", None),)), "web03 in progress"),
        (Progress(0, 1, ()), "0 of 1 VMs done"),
        (Progress(1, 3, (("a", None), ("b", None))), "1 of 3 VMs done, a, b in progress"),
        (Progress(1, 9, (("a", 0), ("b", None), ("c", 7), ("d", 1), ("e", 2))), "1 of 9 VMs done, a 0%, b, c 7% and 2 more"),
        (Progress(0, 1, (("a", 5),), undoing=True), "0 of 1 new snapshots removed again, a 5%"),
    ],
)
def test_text_of_progress(progress: Progress, text: str) -> None:
    assert str(progress) == text


def test_progress_is_reported_while_jobs_run_and_when_one_has_ended(hypervisor: Hypervisor) -> None:
    go_on = hypervisor.slow[2] = threading.Event()
    hypervisor.percents[2] = 45
    told: list[Progress] = []
    waiting = Progress(2, 3, (("web02", 45),))

    class Watched(list):  # type: ignore[type-arg]
        def append(self, progress: Progress) -> None:
            told.append(progress)
            if told.count(waiting) == 3:
                go_on.set()

    done = run(hypervisor, Watched())
    assert [one.word for one in done] == ["created"] * 3
    assert told[0] == Progress(0, 3, (("web01", None), ("web02", 45), ("web03", None)))
    assert told.count(waiting) >= 3
    assert told[-1] == Progress(3, 3, ())
    counted = [one.done for one in told]
    assert counted == sorted(counted)


def test_failed_vm_is_not_counted_as_done_and_undo_is_reported(hypervisor: Hypervisor) -> None:
    hypervisor.slow[3] = threading.Event()
    threading.Timer(0.3, hypervisor.slow[3].set).start()
    hypervisor.failures[3] = BackendFailed("no space")
    told: list[Progress] = []
    run(hypervisor, told, on_error="undo")
    working = [one for one in told if not one.undoing]
    undoing = [one for one in told if one.undoing]
    assert working[-1] == Progress(2, 3, ())
    assert (undoing[0].done, undoing[0].total) == (0, 2) and len(undoing[0].running) == 2


def test_dry_run_reports_no_progress(hypervisor: Hypervisor) -> None:
    told: list[Progress] = []
    fleet = Fleet(FakeDriver(hypervisor), Bounds(), progress=told.append)
    fleet.apply([Target("web01")], Present(Request(name="x")), dry_run=True)
    assert told == []


@pytest.mark.parametrize("percent", [None, 0, 45])
def test_timeout_error_has_the_progress_of_the_job(hypervisor: Hypervisor, percent: int | None) -> None:
    hypervisor.hangs.add(2)
    if percent is not None:
        hypervisor.percents[2] = percent
    done = run(hypervisor, [], timeout=0.3, on_error="stop")
    how_far = "" if percent is None else f" ({percent}% done)"
    assert f"timeout=0.3 seconds was not enough to take snapshot x of web02{how_far}. The job may still complete" in str(
        done[1].error
    )


def test_quick_work_shows_nothing_and_long_work_shows_each_second_what_has_changed() -> None:
    looks = itertools.count()
    shown: list[str] = []
    # On this clock each look is half a second after the one before.
    texts = ProgressTexts(shown.append, clock=lambda: next(looks) / 2)
    seen = []
    for number in (1, 2, 3, 4, 5, 6, 6, 6, 6, 7):
        texts.note(Progress(number, 40, ()))
        seen.append(shown[-1] if shown else None)
    assert seen == [None] * 3 + [f"{number} of 40 VMs done" for number in (4, 4, 6, 6, 6, 6, 7)]
    assert len(shown) == 3


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_a_parent_that_does_not_read_holds_up_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    for _time in range(2000):
        tell(writer, "x" * 1000)
    tell(writer, "x" * select.PIPE_BUF)
    tell(writer, "late")
    with open(reader, "rb") as file:
        os.close(writer)
        lines = file.read().splitlines()
    assert 0 < len(lines) < 2000 and {json.loads(line)["progress"] for line in lines} == {"x" * 1000}


def test_a_parent_that_has_ended_fails_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    tell(writer, "x")


def test_neither_secrets_nor_commands_for_a_terminal_are_shown() -> None:
    assert printable("web-hunter22\x1b[2J\nok 5%", ["hunter22"]) == "web-********?[2J?ok 5%"


def child(program: str) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", program], bufsize=0, **pipes)


def test_lines_are_read_as_they_come_whatever_their_length() -> None:
    # It answers before it has read all, and says as much on stderr.
    program = """
import sys
for number in range(3):
    first = sys.stdin.buffer.read(300_000)
    sys.stdout.write(f"{number}\\n" + "a" * 300_000 + "\\n")
    sys.stderr.write("b" * 300_000)
sys.stdout.write("not ended")
"""
    lines: list[bytes] = []
    process = child(program)
    stderr = converse(process, b"c" * 900_000, lines.append)
    assert lines == [line for number in range(3) for line in (str(number).encode(), b"a" * 300_000)]
    assert len(stderr) == 900_000 and process.returncode == 0


def test_a_process_that_is_killed_ends_the_conversation() -> None:
    lines: list[bytes] = []
    process = child("import os, signal; print('x', flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    assert converse(process, b"c" * 900_000, lines.append) == b""
    assert lines == [b"x"] and process.returncode == -signal.SIGKILL

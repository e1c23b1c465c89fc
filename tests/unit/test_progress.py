# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The progress of a call: its text, when it is reported, and the progress file."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
from fake import FakeDriver, Hypervisor

from ansible_collections.safepoint.vm.plugins.module_utils import _jobs
from ansible_collections.safepoint.vm.plugins.module_utils._errors import BackendFailed
from ansible_collections.safepoint.vm.plugins.module_utils._fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._outcome import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Request
from ansible_collections.safepoint.vm.plugins.module_utils._plans import Present
from ansible_collections.safepoint.vm.plugins.module_utils._progress import Progress
from ansible_collections.safepoint.vm.plugins.module_utils._progress_file import ProgressFile
from ansible_collections.safepoint.vm.plugins.module_utils._work import Bounds

VMS = ["web01", "web02", "web03"]


@pytest.fixture
def hypervisor(monkeypatch: pytest.MonkeyPatch) -> Hypervisor:
    monkeypatch.setattr(_jobs, "_WAIT_SECONDS", 0.05)
    made = Hypervisor()
    for name in VMS:
        made.add(name)
    return made


def run(hypervisor: Hypervisor, told: list[Progress], **bounds: object) -> list[Outcome]:
    settings = Bounds(**{"timeout": 10.0, "max_parallel": 3, **bounds})  # type: ignore[arg-type]
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


def progress_file(path: Path, *secrets: str) -> ProgressFile:
    """A progress file with a clock that advances half a second with each read."""
    looks = itertools.count()
    return ProgressFile(str(path), secrets, clock=lambda: next(looks) / 2)


def test_short_work_writes_nothing_and_long_work_writes_each_second(tmp_path: Path) -> None:
    file = progress_file(tmp_path / "progress")
    seen = []
    for number in range(1, 9):
        file.note(Progress(number, 40, ()))
        seen.append((tmp_path / "progress").read_text() if (tmp_path / "progress").exists() else None)
    assert seen == [None] * 3 + [f"{number} of 40 VMs done" for number in (4, 4, 6, 6, 8)]
    assert [one.name for one in tmp_path.iterdir()] == ["progress"]


def test_unwritable_progress_file_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in ("nowhere/progress", "folder"):
        file = progress_file(tmp_path / path)
        for _time in range(10):
            file.note(Progress(1, 2, ()))
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_secrets_and_control_characters_are_not_written(tmp_path: Path) -> None:
    file = progress_file(tmp_path / "progress", "hunter22")
    for _time in range(5):
        file.note(Progress(0, 1, (("web-hunter22\x1b[2J\nok", 5),)))
    assert (tmp_path / "progress").read_text() == "web-********?[2J?ok 5%"

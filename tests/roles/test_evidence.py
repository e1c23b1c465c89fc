# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role guarded_change keeps of a guest before it takes it back, and how long it bears with one that is silent."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest
from change import FAIL, GOOD, Change

pytestmark = [pytest.mark.core_versions, pytest.mark.newest]

# No file system has files with names of this length.
LONG = "/no/" + "x" * 300


def test_what_the_guest_says_is_kept_and_not_shown(change: Change) -> None:
    guest = change.stage.guests["web01"]
    guest.program("journalctl", 'echo "$@"; echo s3cr3t of the journal')
    (guest.home / "app.log").write_text("x" * 300_000 + "\nthe last line, s3cr3t\n")
    change.stage.write("change.yml", FAIL)
    run = change.run("-vvv", "--diff", evidence_files=[f"{guest.home}/app.log", "/no/such.log", LONG])
    assert change.was_rolled_back(run)
    assert "s3cr3t" not in run.output
    name = change.labels()[0]["name"]
    kept = {path.name.removeprefix(f"{name}-web01"): path for path in change.evidence.iterdir()}
    log = re.sub("[^A-Za-z0-9._-]+", "_", f"-{guest.home}/app.log")
    assert sorted(kept) == sorted([".json", "-journal", log, "-_no_such.log", "-" + "x" * 120])
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in kept.values())
    journal = kept["-journal"].read_text()
    since = re.search(r"--since=-(\d+)s", journal)
    assert since and 60 <= int(since[1]) <= 120
    assert "s3cr3t of the journal" in journal
    text = kept[log].read_text()
    assert text.startswith("xxxx") and "the last line, s3cr3t" in text
    assert len(text) < 263_000
    assert "No such file" in kept["-_no_such.log"].read_text()
    assert json.loads(kept[".json"].read_text())["files"] == ["journal", f"{guest.home}/app.log", "/no/such.log", LONG]


def test_a_guest_that_is_silent_holds_up_neither_the_change_nor_the_rollback(change: Change) -> None:
    """It hangs with its connections open, as after a kernel panic; the time of the change ends it, sooner than the keepalive would."""
    guest = change.stage.guests["web01"]
    change.stage.write("change.yml", GOOD + "- name: Hang\n  ansible.builtin.shell: kill -STOP $SSHD_PID; sleep 1\n")
    try:
        run = change.run(timeout="8s", reconnect_timeout="3s", evidence_files=["/etc/hostname"])
    finally:
        os.kill(guest.pid, signal.SIGCONT)
    assert run.rc == 2
    assert run.recap("web01")["unreachable"] == 0
    assert run.said("(guarded_change_timeout=8s is over)")
    assert re.search(r"The change failed in Hang: [^(]*(expected time frame|Timed out after)", run.output)
    assert change.labels()[0]["state"] == "rolled_back"
    [kept] = change.evidence.glob("*.json")
    assert json.loads(kept.read_text())["files"] == []


def test_the_time_is_that_of_all_tasks_together(change: Change) -> None:
    change.stage.write("roles/web/tasks/main.yml", "- ansible.builtin.include_tasks: more.yml\n")
    change.stage.write(
        "roles/web/tasks/more.yml",
        "- name: Take {{ item }}\n  ansible.builtin.command: sleep {{ item }}\n  loop: [0.1, 0.2, 60]\n",
    )
    run = change.run(tasks=None, role="web", timeout="10s")
    assert change.was_rolled_back(run)
    assert run.said("(guarded_change_timeout=10s is over)")

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The simulator answers 74 requests like PVE 9.2.11; pve_transcript.txt has the answers of real PVE."""

from __future__ import annotations

import json
import re
import time
import typing as t
from pathlib import Path

import requests
from pve_client import PAUSE, Client, GuestClient
from pve_server import PveServer

ANSWERS = Path(__file__).with_name("pve_transcript.txt")
GUEST = 170
SHOWN = 400
LONGEST = "A" * 40

# Values that differ in each run are left out: task ids, times, digests.
TASK_ID = re.compile(r'UPID:[^"]+')
PASSING = re.compile(r'"?(snaptime|starttime|endtime|pid|pstart|digest)"?: ?"?[0-9a-fA-F]+"?')


class Recorder(GuestClient):
    """Sends requests and writes one line about each."""

    def __init__(self, pve: PveServer) -> None:
        super().__init__(pve, GUEST)
        self.lines: list[str] = []
        self.log_in(pve.username, pve.password)

    def show(self, label: str, method: str, path: str, **values: t.Any) -> None:
        """Write a line about an answer."""
        self.note(label, self.ask(method, path, **values))

    def note(self, label: str, answer: requests.Response) -> None:
        """Write a line about an answer that was already received."""
        try:
            text = json.dumps(answer.json(), sort_keys=True)
        except requests.JSONDecodeError:
            text = answer.text
        text = PASSING.sub(r"\1", TASK_ID.sub("<UPID>", text))[:SHOWN]
        self.lines.append(f"{label} | {answer.status_code} {answer.reason} | {text}")

    def raw(self, label: str, answer: requests.Response) -> None:
        """Write the exact answer."""
        self.lines.append(f"{label} | {answer.status_code} {answer.reason} | {answer.text}")

    def run(self, label: str, method: str, path: str, **values: t.Any) -> None:
        """Write the result of a task, or why none was started."""
        answer = self.ask(method, path, **values)
        if answer.status_code != 200:
            self.note(label, answer)
            return
        upid = answer.json()["data"]
        self.lines.append(f"{label} | task {upid.split(':')[5]} | {self.exit_text(upid)}")

    def list(self, label: str) -> None:
        """Write the list of snapshots, sorted by name, with only the types of values that vary."""
        rows = [
            {key: type(value).__name__ if key in ("snaptime", "digest") else value for key, value in row.items()}
            for row in sorted(self.data("GET", self.snapshots), key=lambda row: str(row["name"]))
        ]
        self.lines.append(f"{label} | {json.dumps(rows, sort_keys=True)}")

    def power(self, label: str) -> None:
        """Write the status of the guest."""
        self.lines.append(f"{label} {self.status()['status']}")


def _names(to: Recorder) -> None:
    to.list("empty")
    to.show("feature", "GET", f"{to.path}/feature", feature="snapshot")
    to.show("status", "GET", f"{to.path}/status/current")
    for name in ["a", "ab", "1a", "a.b", LONGEST, LONGEST + "A", "current", "Current", "pending", "PENDING", ""]:
        to.run(f"name {name!r}", "POST", to.snapshots, snapname=name)
    for name in [LONGEST, "Current", "pending"]:
        to.run(f"del {name!r}", "DELETE", f"{to.snapshots}/{name}")


def _mistakes(to: Recorder) -> None:
    to.run("noname", "POST", to.snapshots)
    to.run("unknown param", "POST", to.snapshots, snapname="u1", foo=1)
    to.run("badbool", "POST", to.snapshots, snapname="u2", vmstate="maybe")
    to.run("dup", "POST", to.snapshots, snapname="ab")
    to.run("del missing", "DELETE", f"{to.snapshots}/nope")
    to.run("rb missing", "POST", f"{to.snapshots}/nope/rollback")
    to.show("cfg missing", "GET", f"{to.snapshots}/nope/config")
    to.show("put missing", "PUT", f"{to.snapshots}/nope/config", description="x")


def _descriptions_and_branches(to: Recorder) -> None:
    to.run("desc", "POST", to.snapshots, snapname="d1", description="line1\nline2 \n")
    to.list("after desc")
    to.show("put", "PUT", f"{to.snapshots}/d1/config", description="new")
    to.list("after put")
    to.show("cfg", "GET", f"{to.snapshots}/d1/config")
    to.run("desc0", "POST", to.snapshots, snapname="d0", description="0")
    to.run("s3", "POST", to.snapshots, snapname="s3")
    to.run("rb d1", "POST", f"{to.snapshots}/d1/rollback")
    to.list("after rb")
    to.run("branch", "POST", to.snapshots, snapname="b1")
    to.run("del d1", "DELETE", f"{to.snapshots}/d1")
    to.list("after del d1")


def _memory_and_power(to: Recorder) -> None:
    to.run("vmstate stopped", "POST", to.snapshots, snapname="vs", vmstate=1)
    to.list("vs")
    to.run("start", "POST", f"{to.path}/status/start")
    to.run("live", "POST", to.snapshots, snapname="live")
    to.run("ram", "POST", to.snapshots, snapname="ram", vmstate=1)
    to.list("ram")
    to.show("ramcfg", "GET", f"{to.snapshots}/ram/config")
    to.run("rb live", "POST", f"{to.snapshots}/live/rollback")
    to.power("st")
    to.run("rb ram", "POST", f"{to.snapshots}/ram/rollback")
    to.power("st")
    to.run("rb live start", "POST", f"{to.snapshots}/live/rollback", start=1)
    to.power("st immediately")
    end = time.monotonic() + 2
    while to.status()["status"] != "running" and time.monotonic() < end:
        time.sleep(PAUSE)
    to.power("st 2s")
    to.run("stop", "POST", f"{to.path}/status/stop")
    to.run("del force", "DELETE", f"{to.snapshots}/live", force=1)


def _wrong_places(to: Recorder) -> None:
    to.show("novm", "GET", "/nodes/pve1/qemu/999/snapshot")
    to.show("nonode", "GET", "/nodes/nope/qemu/100/snapshot")
    to.show("badpath", "GET", f"{to.snapshots}s")
    to.show("badmethod", "PUT", to.snapshots)
    to.show("badvmid", "GET", "/nodes/pve1/qemu/99/snapshot")
    to.show("lxc", "GET", f"/nodes/pve1/lxc/{GUEST}/snapshot")
    to.show("index", "GET", f"{to.snapshots}/nope")


def _who_are_you(to: Recorder, pve: PveServer) -> None:
    csrf = to.session.headers.pop("CSRFPreventionToken")
    to.show("nocsrf", "POST", to.snapshots, snapname="zz")
    to.session.headers["CSRFPreventionToken"] = csrf
    nobody = Client(pve)
    del nobody.session.headers["Authorization"]
    to.raw("noauth", nobody.ask("GET", "/version"))
    to.raw("badpw", nobody.ask("POST", "/access/ticket", username=pve.username, password="bad"))
    to.raw("badtoken", Client(pve, token=("a@pve!x", "1")).ask("GET", "/version"))
    to.show("bad upid", "GET", "/nodes/pve1/tasks/UPID:xx/status")
    to.show("gone upid", "GET", "/nodes/pve1/tasks/UPID:pve1:000000A5:000293AA:6B03D11E:qmsnapshot:100:root@pam:/status")


def _locks(to: Recorder) -> None:
    to.show("lock", "PUT", f"{to.path}/config", lock="backup", skiplock=1)
    to.run("locked create", "POST", to.snapshots, snapname="lk")
    to.run("locked rb", "POST", f"{to.snapshots}/ab/rollback")
    to.run("locked del", "DELETE", f"{to.snapshots}/ab")
    to.show("locked put", "PUT", f"{to.snapshots}/ab/config", description="q")
    to.show("res lock", "GET", f"{to.path}/status/current")
    to.show("unlock", "PUT", f"{to.path}/config", delete="lock", skiplock=1)
    to.run("after unlock", "POST", to.snapshots, snapname="lk")


def test_the_answers_are_those_of_the_real_one(pve: PveServer) -> None:
    disk = {"scsi0": f"local:{GUEST}/vm-{GUEST}-disk-0.qcow2,size=64M"}
    pve.make_guest("diff", vmid=GUEST, node="pve1", status="stopped", memory_mb=64, config=disk)
    pve.second_start_seconds = 0.5
    to = Recorder(pve)
    for part in (_names, _mistakes, _descriptions_and_branches, _memory_and_power, _wrong_places):
        part(to)
    _who_are_you(to, pve)
    _locks(to)
    expected = [line for line in ANSWERS.read_text().splitlines() if not line.startswith("#")]
    assert len(expected) == 74
    assert to.lines == expected

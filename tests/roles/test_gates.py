# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gates of the role guarded_change. What they see of a guest is tested in tests/unit/test_guest_health.py."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from change import FAIL, GOOD, Change

pytestmark = [pytest.mark.core_versions, pytest.mark.newest]

BAD_UNITS = "- name: Break it\n  ansible.builtin.shell: echo broken.service >>failed\n"


@pytest.fixture(autouse=True)
def _systemd(change: Change) -> None:
    """A stand-in for the guest's systemd, whose failed units are in the file `failed` of its home."""
    guest = change.stage.guests["web01"]
    (guest.home / "failed").write_text("old.service\n")
    guest.program(
        "systemctl",
        """
        case "$1" in
        list-units) while read -r unit; do echo "$unit loaded failed failed A unit"; done <"$HOME/failed" ;;
        is-active) shift 2; for unit; do echo active; done ;;
        esac
        """,
    )


@pytest.fixture
def url() -> Iterator[str]:
    """A server that is well."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_guest_that_meets_all_gates_keeps_the_change(change: Change, url: str) -> None:
    change.stage.write("change.yml", GOOD)
    run = change.run(
        gates={
            "failed_units": True,
            "known_failed_units": ["old.*"],
            "services": ["sshd", "nginx"],
            "ports": [change.stage.guests["web01"].port],
            "http": [{"url": url}, {"url": url, "from": "guest", "status": [200, 204]}, {"url": url, "from": "controller"}],
            "commands": ["true"],
        },
    )
    assert run.rc == 0
    assert change.labels() == []
    assert len(re.findall(r"TASK \[.*Gates \| Look from the controller\]", run.output)) == 1


def test_a_gate_that_is_not_met_rolls_back_and_is_looked_at_again(change: Change, url: str) -> None:
    """The simulated VM takes nothing back, so that the guest is as unwell after the rollback, which the last message says."""
    change.stage.write("change.yml", BAD_UNITS)
    run = change.run(
        "-vvv",
        gates={
            "failed_units": True,
            "http": [{"url": "http://s3cr3t-user:s3cr3t-word@127.0.0.2:1/?token=s3cr3t-token"}],
            "commands": ["sh -c 'echo x >>tried; exit 3'"],
            "retries": 1,
            "delay": "0.1s",
        },
    )
    assert run.rc == 2
    assert run.said(
        "The change failed in Gates | Expect the guest to be well: "
        "unit old.service has failed and is not in known_failed_units; "
        "unit broken.service has failed and is not in known_failed_units; "
        "command 'sh -c 'echo x >>tried; exit 3'' exited with status 3, expected 0; "
        "http://127.0.0.2:1/?*** did not answer"
    )
    assert "s3cr3t" not in run.output
    assert not any("s3cr3t" in file.read_text() for file in change.evidence.iterdir())
    assert run.said("(guarded_change_baseline would leave out what had failed before the change)")
    assert run.said("BUT it is not well: Gates | Expect the guest to be well: unit old.service has failed")
    assert (change.stage.guests["web01"].home / "tried").read_text() == "x\n" * 4
    assert change.labels()[0]["state"] == "rolled_back"


def test_a_baseline_leaves_out_what_had_failed_before(change: Change) -> None:
    change.stage.write("change.yml", GOOD)
    change.stage.write("health.yml", "- name: Be well\n  ansible.builtin.command: touch checked\n")
    gates = {"failed_units": True, "commands": ["test -e checked"], "retries": 0}
    run = change.run(gates=gates, checks="health.yml", baseline="warn")
    assert run.said("web01 is not well to begin with: command 'test -e checked' exited with status 1, expected 0")
    assert not run.said("not well to begin with: unit")
    assert not (change.stage.guests["web01"].home / "checked").exists()  # it stands after the gates
    assert run.said("The change failed in Gates | Expect the guest to be well: command 'test -e checked'")
    change.stage.write("change.yml", "- name: Mend it\n  ansible.builtin.command: touch checked\n" + BAD_UNITS)
    change.hypervisor.define("web02")
    run = change.run(gates=gates, baseline="warn", vm="web02")
    assert run.said("The change failed in Gates | Expect the guest to be well: unit broken.service has failed")
    assert not run.said("old.service has failed")


def test_a_baseline_may_refuse_a_guest_that_is_not_well(change: Change) -> None:
    change.stage.write("change.yml", FAIL)
    run = change.run(gates={"commands": ["false"], "retries": 0}, baseline="fail")
    assert run.rc == 2
    assert run.said("Nothing was changed: web01 was not well to begin with: command 'false' exited with status 1")
    change.stage.write("health.yml", "- name: Be well\n  ansible.builtin.fail: {msg: no luck}\n")
    run = change.run(checks="health.yml", baseline="fail")
    assert run.rc == 2
    assert run.said("no luck")
    assert "Take the checkpoints" not in run.output
    assert change.labels() == []


@pytest.mark.parametrize(
    ("gates", "told"),
    [
        ({"budget": "long"}, "guarded_change_gates.budget is 'long', which is no duration"),
        ({"url": "http://x"}, "Supported parameters include: budget, commands, delay, failed_units"),
    ],
)
def test_gates_that_make_no_sense_are_found_before_any_snapshot(change: Change, gates: dict[str, object], told: str) -> None:
    change.stage.write("change.yml", GOOD)
    run = change.run(gates=gates)
    assert run.rc == 2
    assert run.said(told)
    assert change.labels() == []

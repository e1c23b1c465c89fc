# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guarded changes on a real Linux guest: broken, lost, rebooted, successful. The tests check the state of the guest afterwards."""

from __future__ import annotations

import dataclasses
import re
from datetime import datetime, timedelta, timezone

import pytest
from machine import Machine, Run, State

from ansible_collections.safepoint.vm.plugins.module_utils._core.label import Label

pytestmark = [pytest.mark.guest, pytest.mark.xdist_group("e2e")]

DEFAULT_KEEPALIVE = 40
"""Seconds until the guard connection gives up a host that does not answer."""


def assert_expires_in(label: Label, hours: int) -> None:
    assert label.expires
    assert timedelta(hours=hours - 1) < label.expires - datetime.now(timezone.utc) <= timedelta(hours=hours)


def assert_rolled_back(machine: Machine, run: Run, before: State, *, failed_in: str) -> str:
    """Check that the guest was rolled back, and that the play and the label say so. Return the message of the failed play."""
    assert run.code == 2
    assert machine.state() == before
    assert run.recap(machine.name)["unreachable"] == 0
    assert run.recap(machine.name)["failed"] == 1
    message = run.messages(machine.name)[-1]
    assert f"{machine.name} was rolled back to sp-CHG0042-" in message
    assert f"and its checks pass. The change failed in {failed_in}: " in message
    (label,) = machine.labels()
    assert label.fields["state"] == "rolled_back"
    assert label.fields["change"] == "CHG0042"
    assert_expires_in(label, 72)
    return message


def assert_lost_and_rolled_back(machine: Machine, run: Run, before: State, *, lost_in: str) -> None:
    """Check the same, and that the change failed because the guest was lost."""
    message = assert_rolled_back(machine, run, before, failed_in=lost_in)
    # A reason follows, with or without a message from ssh.
    assert re.search(r"(via|over) ssh: \w", message)
    assert "Never reached]" not in run.shown
    clock = machine.sh("date +%s")
    assert abs(int(clock) - datetime.now(timezone.utc).timestamp()) < 30


def test_a_task_that_fails_is_rolled_back_with_its_cause(machine: Machine) -> None:
    before = machine.prepare()
    run = machine.change("fails.yml")
    message = assert_rolled_back(machine, run, before, failed_in="Start the new one")
    assert "does-not-exist" in run.shown
    record = machine.evidence()[-1]
    assert record["failed"]["task"] == "Start the new one"
    assert record["checkpoint"] in message


@pytest.mark.slow
def test_a_handler_that_fails_is_rolled_back_with_its_name(machine: Machine) -> None:
    before = machine.prepare()
    run = machine.change("handler.yml")
    message = assert_rolled_back(machine, run, before, failed_in="Restart the application")
    assert "/opt/app/does-not-exist: No such file or directory" in message


def test_a_check_that_fails_after_a_change_that_worked_rolls_it_back(machine: Machine) -> None:
    before = machine.prepare()
    run = machine.change("unhealthy.yml")
    assert_rolled_back(machine, run, before, failed_in="The configured version is known")
    # Once after the change, where it fails, and once after the rollback.
    assert run.shown.count("TASK [safepoint.vm.guarded_change : The configured version is known]") == 2


@pytest.mark.newest
@pytest.mark.core_versions
def test_a_guest_that_is_lost_comes_back(machine: Machine) -> None:
    before = machine.prepare()
    run = machine.change("lost.yml")
    assert_lost_and_rolled_back(machine, run, before, lost_in="Remove the ssh server and end all its sessions")


def test_a_guest_that_goes_silent_is_given_up_and_comes_back(machine: Machine) -> None:
    before = machine.prepare()
    run = machine.change("network.yml")
    assert_lost_and_rolled_back(machine, run, before, lost_in="Take the network down")
    # No TCP reset comes: without a keepalive this would take for ever. The other options are the same as for the other changes.
    assert DEFAULT_KEEPALIVE - 10 < run.seconds < DEFAULT_KEEPALIVE + 120


@pytest.mark.slow
def test_a_kernel_that_panics_comes_back(machine: Machine) -> None:
    before = machine.prepare()
    assert machine.sh("cat /proc/sys/kernel/panic") == "0", "it would reboot by itself"
    with machine.console() as console:
        # The user's own keepalive is not changed.
        run = machine.change("panic.yml", keepalive="-o ServerAliveInterval=5 -o ServerAliveCountMax=1")
    assert_lost_and_rolled_back(machine, run, before, lost_in="Crash the kernel")
    assert "Kernel panic - not syncing" in console.read_text(errors="replace")


@pytest.mark.slow
def test_a_guest_that_powers_itself_off_runs_again(machine: Machine) -> None:
    before = machine.prepare()
    run = machine.change("poweroff.yml")
    assert_lost_and_rolled_back(machine, run, before, lost_in="Power the guest off")


@pytest.mark.slow
def test_a_disk_that_was_filled_has_its_space_again(machine: Machine) -> None:
    before = machine.prepare()
    space = machine.free_mib()
    assert space > 100
    run = machine.change("disk_full.yml")
    message = assert_rolled_back(machine, run, before, failed_in="Write the new configuration")
    assert "No space left on device" in message
    assert abs(machine.free_mib() - space) <= 1


def test_a_change_that_reboots_on_purpose_succeeds(machine: Machine) -> None:
    before = machine.prepare()
    run = machine.change("reboots.yml")
    assert run.code == 0
    after = machine.state()
    assert after.config == "version 2"
    assert after.boot != before.boot
    assert machine.labels() == []


@pytest.mark.slow
def test_a_success_keeps_the_change_and_the_snapshot_for_as_long_as_asked(machine: Machine) -> None:
    before = machine.prepare()
    run = machine.change("succeeds.yml", guarded_change_keep_after_success="24h")
    assert run.code == 0
    assert run.recap("web01")["failed"] == 0
    assert machine.state() == dataclasses.replace(before, config="version 2")
    (label,) = machine.labels()
    assert label.fields["state"] == "committed"
    assert_expires_in(label, 24)


@pytest.mark.slow
def test_check_mode_says_what_would_happen_and_changes_nothing(machine: Machine) -> None:
    before = machine.prepare()
    run = machine.change("succeeds.yml", "--check", "--diff")
    assert run.code == 0
    assert run.recap("web01")["failed"] == 0
    assert "change=CHG0042" in run.shown and "state=guarding" in run.shown  # the snapshot that would be
    assert "\n-version 1\n+version 2\n" in run.shown
    assert "Skipped in check mode, as is a rollback" in run.shown
    assert machine.state() == before
    assert machine.descriptions() == []


@pytest.mark.slow
def test_in_a_rollout_the_batch_that_fails_is_rolled_back_and_the_one_before_stays(machine: Machine, second: Machine) -> None:
    before, second_before = machine.prepare(), second.prepare()
    machine.sh("touch /run/app.licence")  # which web02 lacks
    run = machine.change("rolls_out.yml", others=[second], at_a_time=1, guarded_change_keep_after_success="24h")

    message = assert_rolled_back(second, run, second_before, failed_in="Read the licence for version 2")
    assert "/run/app.licence: No such file or directory" in message

    assert run.messages("web01") == []
    assert run.recap("web01")["failed"] == run.recap("web01")["unreachable"] == 0
    assert machine.state() == dataclasses.replace(before, config="version 2")
    (label,) = machine.labels()
    assert label.fields["state"] == "committed"


@pytest.mark.slow
def test_a_gate_takes_the_guest_back_and_nothing_outside_of_it(machine: Machine) -> None:
    before = machine.prepare()
    outside = machine.folder / "outside"
    run = machine.change(
        "gated.yml",
        outside=str(outside),
        guarded_change_gates={"commands": ["grep -q version /etc/app.conf"], "ports": [22], "retries": 0},
        guarded_change_evidence_files=["/var/log/app.log"],
    )
    message = assert_rolled_back(machine, run, before, failed_in="Gates | Expect the guest to be well")
    assert "command 'grep -q version /etc/app.conf' exited with status 1, expected 0" in message
    # On the disk, in the memory, and outside the guest.
    assert machine.sh("ls /var/log/app.log /run/note 2>/dev/null | wc -l") == "0"
    assert outside.read_text() == "web01 was upgraded\n"
    (log,) = (machine.folder / "evidence").glob("*-web01-_var_log_app.log")
    assert log.read_text().strip() == "the configuration is nonsense"


@pytest.mark.slow
def test_what_a_controller_that_died_half_way_has_left_is_ended_by_reconcile(machine: Machine) -> None:
    before = machine.prepare()
    machine.change("half_way.yml", kill_when=lambda: machine.guest.ssh("test -e /run/half-way").returncode == 0)
    (left,) = machine.labels()
    assert left.fields["state"] == "guarding"
    assert machine.sh("cat /etc/app.conf") == "version 2"

    alive = machine.reconcile(guarded_change_reconcile_policy="rollback")
    assert alive.code == 0 and "Left alone: its run may be alive" in alive.shown
    policy = {"policy": "rollback", "run": left.fields["run"], "force": True}
    ended = machine.reconcile(**{f"guarded_change_reconcile_{name}": value for name, value in policy.items()})
    assert ended.code == 0 and "Rolled back: web01 was rolled back to sp-CHG0042-" in ended.shown
    assert "and its checks pass" in ended.shown
    assert machine.state() == before
    assert [label.fields["state"] for label in machine.labels()] == ["rolled_back"]
    again = machine.reconcile(guarded_change_reconcile_policy="rollback")
    assert again.code == 0 and again.recap(machine.name)["changed"] == 0 and "Nothing: no change on web01" in again.shown

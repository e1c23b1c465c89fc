# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""safepoint.vm.guarded_ssh: its sessions, retries and keepalive, and hosts that go down on purpose."""

from __future__ import annotations

import time

import pytest
from guarded import KILL, guarded, is_rescued
from stage import Guest, Stage

pytestmark = [pytest.mark.core_versions, pytest.mark.oldest]


def test_retries_of_ssh_come_first(stage: Stage, guest: Guest) -> None:
    guest.stop()
    began = time.monotonic()
    run = guarded(
        stage,
        """
            - name: Try
              ansible.builtin.raw: "true"
              vars: {ansible_ssh_retries: 2}
        """,
        "-vvv",
    )
    assert is_rescued(run)
    assert run.output.count("ssh_retry: attempt") == 2
    assert time.monotonic() - began < 60


def test_wait_for_connection_over_an_outage_succeeds(stage: Stage, guest: Guest) -> None:
    flag = stage.folder / "flag"
    thread = guest.come_back_when(flag)
    run = guarded(
        stage,
        f"""
            - name: Go down
              ansible.builtin.raw: {KILL}
              ignore_errors: true
            - name: Come back a moment later
              connection: local
              ansible.builtin.shell: (sleep 2; touch {flag}) >/dev/null 2>&1 &
            - ansible.builtin.wait_for_connection: {{sleep: 1, timeout: 60}}
            - name: Answer
              ansible.builtin.command: echo "back again"
              register: answer
            - ansible.builtin.debug: {{var: answer.stdout}}
        """,
    )
    thread.join(30)
    assert run.rc == 0
    assert run.recap("web01")["rescued"] == 0
    assert "back again" in run.output


def test_wait_for_connection_that_times_out_is_rescued(stage: Stage, guest: Guest) -> None:
    guest.stop()
    run = guarded(
        stage,
        """
            - name: Wait for it
              ansible.builtin.wait_for_connection: {sleep: 1, timeout: 2}
        """,
    )
    assert is_rescued(run)
    assert run.said("RESCUED Wait for it: timed out waiting for ping module test")


def test_reboot_works(stage: Stage, guest: Guest) -> None:
    flag = stage.write("flag", "")
    thread = guest.come_back_when(flag)
    run = guarded(
        stage,
        f"""
            - name: Reboot it
              ansible.builtin.reboot:
                reboot_command: {KILL}
                boot_time_command: cat {guest.home}/boot_id
                reboot_timeout: 60
                connect_timeout: 2
        """,
    )
    thread.join(30)
    assert run.rc == 0
    assert run.recap("web01")["rescued"] == 0
    assert run.recap("web01")["changed"] == 1


def test_reset_connection_ends_the_guards_own_master(stage: Stage, guest: Guest) -> None:
    run = guarded(
        stage,
        f"""
            - name: Open the connection
              ansible.builtin.raw: "true"
            - name: Look at the masters
              connection: local
              ansible.builtin.command: find {stage.folder}/cp -type s
              register: before
            - ansible.builtin.meta: reset_connection
            - name: Look again
              connection: local
              ansible.builtin.command: find {stage.folder}/cp -type s
              register: after
            - ansible.builtin.debug: {{msg: "MASTERS {{{{ before.stdout_lines | length }}}} {{{{ after.stdout_lines | length }}}}"}}
        """,
    )
    assert run.rc == 0
    assert "MASTERS 1 0" in run.output


@pytest.mark.parametrize("setting", ["default", "control_path option", "argument"])
def test_it_does_not_use_the_master_of_the_ordinary_plugin(stage: Stage, guest: Guest, setting: str) -> None:
    path = f"{stage.folder}/cp/own-%h"
    variables = {
        "default": "",
        "control_path option": f"vars: {{ansible_control_path: '{path.replace('%', '%%')}'}}",
        "argument": f"vars: {{ansible_ssh_args: '-o ControlMaster=auto -o ControlPersist=60s -o ControlPath={path}'}}",
    }[setting]
    (stage.folder / "cp").mkdir()
    run = stage.play(
        f"""
        - hosts: guests
          gather_facts: false
          {variables}
          tasks:
            - ansible.builtin.raw: "true"
            - ansible.builtin.raw: "true"
              connection: safepoint.vm.guarded_ssh
            - connection: local
              ansible.builtin.command: find {stage.folder}/cp -type s
              register: masters
            - ansible.builtin.debug: {{msg: "MASTERS {{{{ masters.stdout_lines | length }}}}"}}
        """
    )
    assert run.rc == 0
    assert "MASTERS 2" in run.output


def test_a_mute_host_is_rescued_in_bounded_time(stage: Stage, guest: Guest) -> None:
    began = time.monotonic()
    run = guarded(
        stage,
        """
            - name: Hang it
              ansible.builtin.raw: kill -STOP $SSHD_PID; sleep 600
        """,
    )
    assert is_rescued(run)
    assert run.said("RESCUED Hang it: Failed to connect to the host via ssh")
    assert 20 < time.monotonic() - began < 75


@pytest.mark.parametrize("variable", ["ansible_ssh_args", "ansible_ssh_common_args", "ansible_ssh_extra_args"])
def test_the_users_own_keepalive_is_kept(stage: Stage, guest: Guest, variable: str) -> None:
    own = "-o UserKnownHostsFile=/dev/null -o ServerAliveInterval=77 -o serveralivecountmax=7"
    run = guarded(
        stage,
        f"""
            - ansible.builtin.raw: "true"
              vars: {{{variable}: "{own}"}}
            - ansible.builtin.raw: "true"
        """,
        "-vvv",
    )
    with_own, without = (line for line in run.output.splitlines() if "SSH: EXEC" in line)
    assert "ServerAliveInterval=77" in with_own
    assert "ServerAliveInterval=10" not in with_own
    assert "ServerAliveCountMax=3" not in with_own
    assert "ServerAliveInterval=10" in without
    assert "ServerAliveCountMax=3" in without

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's entry point main: real modules on libvirt's test driver, guests that are SSH servers."""

from __future__ import annotations

import json
import re

import pytest
from change import FAIL, GOOD, KILL, Change

pytestmark = pytest.mark.core_versions


def test_a_change_that_goes_well_leaves_no_snapshot(change: Change) -> None:
    change.stage.write("change.yml", GOOD)
    change.stage.write("health.yml", "- name: Check it\n  ansible.builtin.command: 'true'\n")
    run = change.run(checks="health.yml")
    assert run.rc == 0
    assert run.said("Take the checkpoints")
    assert run.output.index("Change it") < run.output.index("Check it") < run.output.index("Remove the checkpoints")
    assert change.labels() == []
    assert not change.evidence.exists()


def test_a_change_that_goes_well_keeps_its_snapshot_when_told(change: Change) -> None:
    change.stage.write("change.yml", GOOD)
    run = change.run(keep_after_success="48h", id="CHG 0042/a very long name of it", description="New kernel")
    assert run.rc == 0
    [label] = change.labels()
    assert re.fullmatch(r"sp-CHG-0042-a-very-long-\d{8}T\d{6}Z", label["name"])
    assert len(label["name"]) <= 40
    assert label["state"] == "committed"
    assert label["change"].startswith("CHG%200042/a%20very")
    assert "expires" in label
    assert "lease" not in label


def test_while_it_is_made_the_snapshot_says_so(change: Change) -> None:
    change.stage.write(
        "change.yml",
        """\
        - safepoint.vm.snapshot_info: {backend: libvirt, uri: "{{ guarded_change_endpoint.uri }}", vm: web01}
          connection: local
          register: seen
        - ansible.builtin.debug: {var: "seen.vms[0].snapshots[0].label"}
        """,
    )
    run = change.run()
    assert run.rc == 0
    assert '"state": "guarding"' in run.output
    assert re.search(r'"lease": "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"', run.output)
    assert re.search(r'"run": "[0-9a-f]{12}"', run.output)


def test_a_task_that_fails_is_rolled_back(change: Change) -> None:
    change.stage.write("change.yml", GOOD + FAIL)
    run = change.run(id="CHG0042")
    assert change.was_rolled_back(run)
    assert run.said("The change failed in Break it:")
    assert run.said(": it does not fit")
    [file] = change.evidence.glob("*.json")
    kept = json.loads(file.read_text())
    assert kept["host"] == "web01"
    assert kept["change"] == "CHG0042"
    assert kept["failed"]["task"] == "Break it"
    assert kept["failed"]["action"] == "ansible.builtin.shell"
    assert kept["failed"]["result"]["stdout"] == "it does not fit"
    assert "invocation" not in kept["failed"]["result"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_loop_that_fails_tells_the_cause_of_its_item(change: Change) -> None:
    change.stage.write(
        "change.yml",
        """\
        - name: Install {{ item }}
          ansible.builtin.fail: {msg: "no package {{ item }}"}
          loop: [one]
        """,
    )
    run = change.run()
    assert change.was_rolled_back(run)
    assert run.said("no package one")


@pytest.mark.parametrize("host_variable", [False, True])
def test_a_host_that_is_lost_in_the_change_is_rolled_back(change: Change, host_variable: bool) -> None:
    change.stage.write("change.yml", KILL)
    guest = change.stage.guests["web01"]
    if host_variable:
        guest.extra["ansible_connection"] = "ssh"
    thread = guest.come_back_when(change.stage.write("flag", ""))
    run = change.run()
    thread.join(30)
    assert change.was_rolled_back(run)
    assert run.said("and answers again. The change failed in Kill it: Failed to connect to the host via ssh")


def test_a_host_that_does_not_come_back_is_said_to_be_unwell(change: Change) -> None:
    change.stage.write("change.yml", KILL)
    run = change.run(reconnect_timeout="3s")
    [label] = change.labels()
    assert run.rc == 2
    assert run.recap("web01")["unreachable"] == 0
    assert run.said(f"web01 was rolled back to {label['name']}, BUT it is not well: Connect | Wait for the guest: timed out")
    assert run.said("The change failed in Kill it")
    assert label["state"] == "rolled_back"


def test_a_host_that_lets_nobody_in_anew_is_rolled_back(change: Change) -> None:
    """The session of the change goes on, as sessions do when sshd ends; only a new one would tell."""
    change.stage.write("change.yml", "- name: End sshd\n  ansible.builtin.shell: kill -USR1 $SSHD_PID\n")
    run = change.run(reconnect_timeout="3s")
    assert run.rc == 2
    assert run.said("The change failed in Connect | Wait for the guest: timed out")
    assert change.labels()[0]["state"] == "rolled_back"


def test_a_handler_that_fails_is_rolled_back(change: Change) -> None:
    change.stage.write("change.yml", "- name: Configure\n  ansible.builtin.command: 'true'\n  notify: Restart\n")
    run = change.run(head="handlers: [{name: Restart, ansible.builtin.command: 'false'}]")
    assert change.was_rolled_back(run)
    assert run.said("The change failed in Restart:") or run.said("ansible-core before 2.19 does not say which handler failed")


def test_a_host_that_is_lost_in_a_handler_is_rolled_back(change: Change) -> None:
    change.stage.write("change.yml", "- name: Configure\n  ansible.builtin.command: 'true'\n  notify: Restart\n")
    thread = change.stage.guests["web01"].come_back_when(change.stage.write("flag", ""))
    run = change.run(head="handlers: [{name: Restart, ansible.builtin.shell: kill -KILL $SSHD_PID}]")
    thread.join(30)
    assert change.was_rolled_back(run)


def test_handlers_run_before_the_checks_and_not_after_a_rollback(change: Change) -> None:
    change.stage.write("change.yml", "- name: Configure\n  ansible.builtin.command: 'true'\n  notify: Restart\n")
    handlers = "handlers: [{name: Restart, ansible.builtin.command: 'true'}]"
    change.stage.write("health.yml", "- name: Check it\n  ansible.builtin.command: 'true'\n")
    run = change.run(head=handlers, checks="health.yml")
    assert run.rc == 0
    assert run.output.index("RUNNING HANDLER [Restart]") < run.output.index("Check it")
    change.stage.write("change.yml", "- name: Configure\n  ansible.builtin.command: 'true'\n  notify: Restart\n" + FAIL)
    run = change.run(head=handlers)
    assert change.was_rolled_back(run)
    assert "RUNNING HANDLER [Restart]" not in run.output


def test_checks_that_fail_are_rolled_back_and_run_again(change: Change) -> None:
    change.stage.write("change.yml", GOOD)
    change.stage.write(
        "health.yml", "- name: Be well\n  ansible.builtin.shell: test -e ill_before || { touch ill_before; echo ill; exit 1; }\n"
    )
    run = change.run(checks="health.yml")
    assert change.was_rolled_back(run)
    assert run.said("and its checks pass. The change failed in Be well:")


def test_checks_that_fail_after_the_rollback_too_are_told(change: Change) -> None:
    change.stage.write("change.yml", FAIL)
    change.stage.write("health.yml", "- name: Be well\n  ansible.builtin.shell: echo still ill; exit 1\n")
    run = change.run(checks="health.yml")
    assert run.rc == 2
    assert run.said("BUT it is not well: Be well:")
    assert run.said("still ill. The change failed in Break it:")
    assert change.labels()[0]["state"] == "rolled_back"


def test_of_a_no_log_task_nothing_is_told(change: Change) -> None:
    change.stage.write(
        "change.yml",
        """\
        - name: Set the password
          ansible.builtin.shell: "echo s3cr3t; echo s3cr3t >&2; exit 1"
          no_log: true
        """,
    )
    run = change.run("-vvv")
    assert change.was_rolled_back(run)
    assert run.said("The change failed in Set the password: censored")
    assert "s3cr3t" not in run.output
    [file] = change.evidence.glob("*.json")
    assert "s3cr3t" not in file.read_text()
    assert json.loads(file.read_text())["failed"]["task"] == "Set the password"


@pytest.mark.parametrize(
    ("files", "variables", "told"),
    [
        ({"change.yml": "- no.such.module:\n"}, {}, "change.yml, line 1"),
        ({}, {}, "names the file 'change.yml', which was not found"),
        ({"change.yml": GOOD}, {"checks": "health.yml"}, "names the file 'health.yml', which was not found"),
        ({"change.yml": GOOD}, {"role": "web"}, "Set exactly one of guarded_change_tasks and guarded_change_role"),
        ({"change.yml": GOOD}, {"tasks": None}, "Set exactly one of guarded_change_tasks and guarded_change_role"),
        (
            {"change.yml": GOOD},
            {"chekcs": "health.yml"},
            "unknown variable guarded_change_chekcs; did you mean guarded_change_checks?",
        ),
        ({"change.yml": GOOD}, {"timeout": "1 hour"}, "guarded_change_timeout is '1 hour', which is no duration"),
        (
            {"change.yml": GOOD},
            {"keep_after_rollback": "long"},
            "guarded_change_keep_after_rollback is 'long', which is no duration",
        ),
        (
            {"change.yml": GOOD},
            {"keep_after_success": 3},
            "guarded_change_keep_after_success is '3', which is no duration with a unit",
        ),
        ({"change.yml": GOOD}, {"endpoint": None}, "guarded_change_endpoint"),
        ({"change.yml": GOOD}, {"power": "perhaps"}, "guarded_change_power"),
        ({"change.yml": GOOD}, {"vm": "web99"}, "web99"),
        (
            {"change.yml": GOOD},
            {"endpoint": {"backend": "libvirt", "uri": "test+unix:///default?socket=/nowhere"}},
            "Nothing was changed: ",
        ),
        (
            {"change.yml": "- ansible.builtin.include_tasks: commit.yml\n", "commit.yml": GOOD},
            {},
            "'{{ playbook_dir }}/commit.yml'",
        ),
        ({"change.yml": "- ansible.builtin.import_tasks: commit.yml\n"}, {}, "The option 'tasks' "),
    ],
)
def test_what_is_wrong_is_found_before_any_snapshot(
    change: Change, files: dict[str, str], variables: dict[str, object], told: str
) -> None:
    for name, text in files.items():
        change.stage.write(name, text)
    run = change.run(**variables)  # type: ignore[arg-type]
    assert run.rc == 2
    assert run.said(told)
    assert "Take the checkpoints" not in run.output
    assert change.labels() == []


@pytest.mark.parametrize(
    ("head", "told"), [("strategy: free", "A guarded change needs 'linear'"), ("force_handlers: true", "force_handlers is on")]
)
def test_a_play_that_cannot_be_guarded_is_refused(change: Change, head: str, told: str) -> None:
    change.stage.write("change.yml", GOOD)
    run = change.run(head=head)
    assert run.rc == 2
    assert run.said(told)
    assert change.labels() == []


def test_a_rollback_that_fails_says_so(change: Change) -> None:
    remove = (
        f"import libvirt; [s.delete() for s in libvirt.open('{change.hypervisor.uri}').lookupByName('web01').listAllSnapshots()]"
    )
    change.stage.write(
        "change.yml",
        f"""\
        - name: Somebody removes the snapshot
          connection: local
          ansible.builtin.command: {{argv: ["{{{{ ansible_playbook_python }}}}", -c, "{remove}"]}}
        - name: Break it
          ansible.builtin.fail: {{msg: no luck}}
        """,
    )
    run = change.run()
    assert run.rc == 2
    assert run.said("web01 ACTION REQUIRED: it was not rolled back. The revert to sp-change-")
    assert run.said("run the entry point rollback of safepoint.vm.guarded_change with guarded_change_snapshot_id=sp-change-")
    assert run.said("The change failed in Break it: no luck")


def test_evidence_that_cannot_be_kept_does_not_keep_it_from_the_rollback(change: Change) -> None:
    change.stage.write("change.yml", FAIL)
    change.stage.write("a-file", "")
    run = change.run(evidence_dir="a-file/evidence")
    assert change.was_rolled_back(run)
    assert re.search(r"The evidence could not be kept: \S+/a-file/evidence cannot be written: Not a directory", run.output)


def test_check_mode_writes_nothing(change: Change) -> None:
    change.stage.write(
        "change.yml",
        f"- name: Touch it\n  ansible.builtin.file: {{path: {change.stage.folder}/touched, state: touch, mode: '0600'}}\n",
    )
    change.stage.write("health.yml", FAIL)
    run = change.run("--check", checks="health.yml")
    assert run.rc == 0
    assert run.said("Skipped in check mode, as is a rollback.")
    assert "changed: [web01 -> localhost]" in run.output.split("Take the checkpoints", 1)[1].split("TASK", 1)[0]
    assert "changed: [web01]" in run.output.split("Touch it", 1)[1].split("TASK", 1)[0]
    assert not (change.stage.folder / "touched").exists()
    assert change.labels() == []


def test_check_mode_of_a_change_that_fails_says_that_nothing_was_rolled_back(change: Change) -> None:
    change.stage.write("change.yml", "- name: Break it\n  ansible.builtin.fail: {msg: no luck}\n")
    run = change.run("--check")
    assert run.rc == 2
    assert run.said(
        "The change failed in Break it: no luck. This was check mode: nothing was changed, so nothing was rolled back"
    )
    assert change.labels() == []
    assert not change.evidence.exists()


def test_the_tasks_of_the_change_do_not_inherit_the_connection_to_the_hypervisor(change: Change) -> None:
    change.stage.write("change.yml", "- name: Look\n  safepoint.vm.snapshot_info: {vm: web01}\n  connection: local\n")
    run = change.run()
    assert change.was_rolled_back(run)
    assert run.said("The change failed in Look: missing required arguments: backend")


def test_become_of_the_play_reaches_the_change_and_not_the_controller(change: Change) -> None:
    sudo = change.stage.write(
        "sudo",
        f"""\
        #!/bin/sh
        echo "$@" >>{change.stage.folder}/sudo.log
        while [ "$1" != /bin/sh ]; do shift; done
        exec "$@"
        """,
    )
    sudo.chmod(0o755)
    change.stage.write("change.yml", FAIL)
    run = change.run(head=f"become: true\n              vars: {{ansible_become_exe: {sudo}}}")
    assert change.was_rolled_back(run)
    log = (change.stage.folder / "sudo.log").read_text()
    assert "AnsiballZ_command" in log
    assert "AnsiballZ_snapshot" not in log
    assert "AnsiballZ_copy" not in log


def test_a_role_may_be_the_change(change: Change) -> None:
    change.stage.write("roles/web/tasks/main.yml", FAIL)
    run = change.run(tasks=None, role="web")
    assert change.was_rolled_back(run)
    assert run.said("The change failed in Break it:")


def test_a_role_that_includes_this_one_has_its_own_files_found(change: Change) -> None:
    change.stage.write("change.yml", FAIL)
    change.stage.write("roles/upgrade/tasks/change.yml", GOOD)
    change.stage.write(
        "roles/upgrade/tasks/main.yml",
        f"""\
        - ansible.builtin.include_role: {{name: safepoint.vm.guarded_change}}
          vars:
            guarded_change_endpoint: {{backend: libvirt, uri: "{change.hypervisor.uri}"}}
            guarded_change_tasks: change.yml
        """,
    )
    run = change.stage.play("- {hosts: guests, gather_facts: false, roles: [upgrade]}")
    assert run.rc == 0
    assert change.labels() == []


def test_a_host_that_cannot_be_guarded_is_said_to_be_so(change: Change) -> None:
    change.stage.write("change.yml", FAIL)
    run = change.run("-c", "local")
    assert change.was_rolled_back(run)
    assert run.said("web01 is not guarded against its loss, since its connection is local, not SSH.")


def test_a_connection_by_extra_variable_is_refused(change: Change) -> None:
    change.stage.write("change.yml", GOOD)
    run = change.run("-e", "ansible_connection=ssh")
    assert run.rc == 2
    assert run.said("ansible_connection is an extra variable, which reaches the tasks on the controller too")
    assert change.labels() == []

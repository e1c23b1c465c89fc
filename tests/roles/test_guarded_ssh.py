# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""safepoint.vm.guarded_ssh: what becomes of a host that is lost. A real SSH server is killed under it."""

from __future__ import annotations

import shutil

import pytest
from guarded import KILL, guarded, is_rescued
from stage import Guest, Stage

pytestmark = pytest.mark.core_versions


@pytest.mark.parametrize("module", ["ansible.builtin.raw", "ansible.builtin.shell"])
@pytest.mark.parametrize("pipelining", ["true", "false"])
def test_a_host_lost_in_a_task_is_rescued_with_its_cause(stage: Stage, guest: Guest, module: str, pipelining: str) -> None:
    run = guarded(
        stage,
        f"""
            - name: Kill it
              {module}: {KILL}
              vars: {{ansible_pipelining: {pipelining}}}
        """,
    )
    assert is_rescued(run)
    assert run.said("RESCUED Kill it: Failed to connect to the host via ssh") or run.said(
        "RESCUED Kill it: Data could not be sent to remote host"
    )
    assert "Traceback" not in run.output


def test_the_ordinary_plugin_does_not_rescue_it(stage: Stage, guest: Guest) -> None:
    """The reason for all this; when ansible-core changes it, the plugin can go."""
    run = stage.play(
        f"""
        - hosts: guests
          gather_facts: false
          tasks:
            - block:
                - ansible.builtin.raw: {KILL}
              rescue:
                - ansible.builtin.debug: {{msg: RESCUED}}
        """
    )
    assert run.rc == 4
    assert "RESCUED" not in run.output


def test_without_rescue_a_lost_host_is_failed_and_always_runs(stage: Stage, guest: Guest) -> None:
    run = stage.play(
        f"""
        - hosts: guests
          gather_facts: false
          tasks:
            - connection: safepoint.vm.guarded_ssh
              block:
                - ansible.builtin.raw: {KILL}
              always:
                - ansible.builtin.debug: {{msg: ALWAYS}}
        """
    )
    assert run.rc == 2
    assert "ALWAYS" in run.output
    assert run.recap("web01")["unreachable"] == 0
    assert run.recap("web01")["failed"] == 1


@pytest.mark.parametrize("method", ["sftp", "scp", "piped", "smart"])
def test_a_host_lost_before_a_copy_is_rescued(stage: Stage, guest: Guest, method: str) -> None:
    stage.write("files/some.txt", "text\n")
    guest.stop()
    run = guarded(
        stage,
        f"""
            - name: Copy to it
              ansible.builtin.copy: {{src: some.txt, dest: /nowhere/at/all, mode: "0600"}}
              vars: {{ansible_ssh_transfer_method: {method}}}
        """,
    )
    assert is_rescued(run)
    assert run.said("RESCUED Copy to it: Failed to connect to the host via ssh")


@pytest.mark.parametrize(
    "task", ["copy: {src: /etc/hostname, dest: there, mode: '0600'}", "fetch: {src: /etc/hostname, dest: fetched/}"]
)
def test_a_host_lost_only_during_the_transfer_of_a_file_is_rescued(stage: Stage, guest: Guest, task: str) -> None:
    """The end of this SFTP client is that of the real one when the connection breaks; the commands before and after it find the host."""
    sftp = stage.write("sftp", "#!/bin/sh\necho Connection closed >&2\nexit 255\n")
    sftp.chmod(0o755)
    run = guarded(
        stage,
        f"""
            - name: Transfer
              ansible.builtin.{task}
              vars: {{ansible_sftp_executable: {sftp}, ansible_ssh_transfer_method: sftp}}
        """,
    )
    assert is_rescued(run)
    assert run.said("RESCUED Transfer:")
    assert run.said("Failed to connect to the host via sftp: Connection closed")


def test_fetch_does_not_take_a_lost_host_for_a_missing_file(stage: Stage, guest: Guest) -> None:
    guest.stop()
    run = guarded(
        stage,
        f"""
            - name: Fetch from it
              ansible.builtin.fetch: {{src: /etc/hostname, dest: {stage.folder}/fetched/, fail_on_missing: false}}
        """,
    )
    assert is_rescued(run)
    assert run.said("RESCUED Fetch from it: Failed to connect to the host via ssh")


def test_files_go_both_ways_and_scripts_run(stage: Stage, guest: Guest) -> None:
    stage.write("files/some.txt", "the text\n")
    stage.write("files/script.sh", "#!/bin/sh\ncat $HOME/there.txt\n")
    run = guarded(
        stage,
        f"""
            - ansible.builtin.copy: {{src: some.txt, dest: "{guest.home}/there.txt", mode: "0600"}}
            - ansible.builtin.script: script.sh
            - ansible.builtin.fetch: {{src: "{guest.home}/there.txt", dest: {stage.folder}/back.txt, flat: true}}
        """,
    )
    assert run.recap("web01")["ok"] == 3
    assert (stage.folder / "back.txt").read_text() == "the text\n"


def test_a_host_that_cannot_make_the_temporary_folder_is_rescued(stage: Stage, guest: Guest) -> None:
    """As with a full disk: the action base class, no connection plugin, calls this unreachable."""
    (guest.home / ".ansible").write_text("in the way")
    run = guarded(
        stage,
        """
            - name: Run a module
              ansible.builtin.command: "true"
        """,
    )
    assert is_rescued(run)
    assert run.said("RESCUED Run a module: Failed to create a temporary directory on the host (exit code 1)")


def test_wrong_credentials_are_rescued(stage: Stage, guest: Guest) -> None:
    shutil.copy(guest.home / "host_key.pub", guest.home / "authorized_keys")  # another one than ours
    guest.stop()
    guest.start()
    run = guarded(
        stage,
        """
            - name: Log in
              ansible.builtin.raw: "true"
        """,
    )
    assert is_rescued(run)
    assert run.said("Permission denied")


def test_nested_includes_are_guarded(stage: Stage, guest: Guest) -> None:
    stage.write("outer.yml", "- ansible.builtin.include_tasks: inner.yml\n")
    stage.write("inner.yml", f"- name: Deep inside\n  ansible.builtin.raw: {KILL}\n")
    run = stage.play(
        """
        - hosts: guests
          gather_facts: false
          tasks:
            - block:
                - ansible.builtin.include_tasks:
                    file: outer.yml
                    apply:
                      connection: safepoint.vm.guarded_ssh
              rescue:
                - ansible.builtin.debug:
                    msg: "RESCUED {{ ansible_failed_task.name }}"
        """
    )
    assert is_rescued(run)
    assert "RESCUED Deep inside" in run.output


def test_a_lost_delegate_is_rescued(stage: Stage, guest: Guest) -> None:
    other = stage.guest("db01")
    other.stop()
    run = guarded(
        stage,
        """
            - name: Ask the database
              ansible.builtin.raw: "true"
              delegate_to: db01
        """,
        "--limit",
        "web01",
    )
    assert is_rescued(run)


def test_local_tasks_are_left_alone(stage: Stage, guest: Guest) -> None:
    guest.stop()
    run = guarded(
        stage,
        """
            - name: By keyword
              connection: local
              ansible.builtin.command: echo "local by keyword"
              register: first
            - name: By delegation
              ansible.builtin.command: echo "local by delegation"
              delegate_to: localhost
              register: second
            - ansible.builtin.debug: {msg: "{{ first.stdout }}, {{ second.stdout }}"}
        """,
    )
    assert run.rc == 0
    assert "local by keyword, local by delegation" in run.output


def test_the_loss_in_a_no_log_task_prints_nothing_of_it(stage: Stage, guest: Guest) -> None:
    run = stage.play(
        f"""
        - hosts: guests
          gather_facts: false
          tasks:
            - connection: safepoint.vm.guarded_ssh
              ansible.builtin.raw: "echo s3cr3t >&2; {KILL}"
              no_log: true
        """,
        "-v",
    )
    assert run.rc == 2
    assert "s3cr3t" not in run.output


def test_an_async_task_on_a_lost_host_is_rescued(stage: Stage, guest: Guest) -> None:
    run = guarded(
        stage,
        f"""
            - name: In the background
              ansible.builtin.shell: {KILL}; sleep 60
              async: 30
              poll: 1
        """,
    )
    assert is_rescued(run)


def test_become_works_and_a_loss_behind_it_is_rescued(stage: Stage, guest: Guest) -> None:
    sudo = stage.write(
        "sudo",
        """\
        #!/bin/sh
        # sudo -H -S -n -u root /bin/sh -c COMMAND
        while [ "$1" != /bin/sh ]; do shift; done
        exec "$@"
        """,
    )
    sudo.chmod(0o755)
    run = guarded(
        stage,
        f"""
            - name: As root
              ansible.builtin.command: id -u
              become: true
              vars: {{ansible_become_exe: {sudo}}}
            - name: Kill it as root
              ansible.builtin.shell: {KILL}
              become: true
              vars: {{ansible_become_exe: {sudo}}}
        """,
    )
    assert is_rescued(run)
    assert "RESCUED Kill it as root" in run.output


def test_a_handler_of_a_host_with_the_fact_set_is_guarded(stage: Stage, guest: Guest) -> None:
    """How the role guards handlers, which do not inherit the keyword."""
    run = stage.play(
        f"""
        - hosts: guests
          gather_facts: false
          handlers:
            - name: Break
              ansible.builtin.raw: {KILL}
          tasks:
            - block:
                - ansible.builtin.command: "true"
                  notify: Break
                - ansible.builtin.set_fact: {{ansible_connection: safepoint.vm.guarded_ssh}}
                - ansible.builtin.meta: flush_handlers
              rescue:
                - ansible.builtin.debug: {{msg: RESCUED}}
        """
    )
    assert "RESCUED" in run.output
    assert run.recap("web01")["unreachable"] == 0

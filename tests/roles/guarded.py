# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks in a block with the guard connection and a rescue."""

from __future__ import annotations

from stage import Run, Stage

KILL = "kill -KILL $SSHD_PID"
RESCUE = """
          rescue:
            - name: Rescue
              ansible.builtin.debug:
                msg: "RESCUED {{ ansible_failed_task.name }}: {{ ansible_failed_result.msg }}"
"""


def guarded(stage: Stage, tasks: str, *arguments: str) -> Run:
    """Play ``tasks`` (YAML, indented by 12) under guard."""
    playbook = f"""
    - hosts: guests
      gather_facts: false
      tasks:
        - name: Guarded
          connection: safepoint.vm.guarded_ssh
          block:{tasks}{RESCUE}
    """
    return stage.play(playbook, *arguments)


def is_rescued(run: Run) -> bool:
    """Whether web01 was lost and rescued, as far as the exit code and the recap tell."""
    recap = run.recap("web01")
    return run.rc == 0 and recap["unreachable"] == 0 and recap["failed"] == 0 and recap["rescued"] == 1

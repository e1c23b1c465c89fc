# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change can do to its guest, a guest for each of it, all in one run. The table of pitfalls is in test_pitfalls.py."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from pitfalls import Fleet, last_message
from pve_server import PveServer
from stage import Stage

pytestmark = [pytest.mark.core_versions, pytest.mark.oldest]

NOTIFY = "- name: Configure\n  ansible.builtin.command: 'true'\n  notify: {}\n"
REBOOT = """
- name: Reboot it
  ansible.builtin.reboot:
    reboot_command: kill -KILL $SSHD_PID
    boot_time_command: cat {home}/boot_id
    reboot_timeout: {timeout}
    connect_timeout: 2
"""
NESTED = """
- name: Write a fact
  ansible.builtin.copy: {{content: '"of the change"', dest: {home}/facts.d/stale.fact, mode: "0600"}}
- name: Gather it
  ansible.builtin.setup: {{gather_subset: ["!all", "!min", local], fact_path: {home}/facts.d}}
- name: Undo on the guest what the revert of a VM would
  ansible.builtin.file: {{path: {home}/facts.d/stale.fact, state: absent}}
- name: Register a result
  ansible.builtin.command: echo registered
  register: result_of_the_change
- name: Set a fact
  ansible.builtin.set_fact: {{fact_of_the_change: "{{{{ ansible_local.stale }}}}"}}
- block:
    - name: Try it
      ansible.builtin.shell: echo in vain; exit 3
  rescue:
    - name: Mend it
      ansible.builtin.shell: echo no remedy; exit 4
"""
NAMES_HANDLERS = version("ansible-core") >= "2.19"


def test_each_guest_meets_its_own_fate_and_all_are_told(stage: Stage, pve: PveServer) -> None:
    fleet = Fleet(stage, pve, "rebooted", "stuck", "pending", "broken", "nested")
    home = {name: str(guest.home) for name, guest in stage.guests.items()}
    (stage.guests["nested"].home / "facts.d").mkdir()
    fleet.changes(
        rebooted=REBOOT.format(home=home["rebooted"], timeout=60) + NOTIFY.format("Restart"),
        stuck=REBOOT.format(home=home["stuck"], timeout=3),
        pending=NOTIFY.format("Restart") + "- name: Hang it\n  ansible.builtin.command: sleep 60\n  timeout: 2\n",
        broken=NOTIFY.format("Break"),
        nested=NESTED.format(home=home["nested"]),
    )
    stage.write(
        "health.yml",
        """
        - name: Tell what survives
          ansible.builtin.debug:
            msg: "SURVIVES {{ result_of_the_change.stdout }}, {{ fact_of_the_change }}, {{ (ansible_local | default({})).stale | default('no fact') }}"
          when: result_of_the_change is defined
        """,
    )
    back = fleet.came_back_by_the_revert("stuck") + [stage.guests["rebooted"].come_back_when(stage.write("flag", ""))]
    run = fleet.run(
        checks="health.yml",
        head="handlers: [{name: Restart, ansible.builtin.command: 'true'}, {name: Break, ansible.builtin.command: 'false'}]",
    )
    for thread in back:
        thread.join(30)

    assert run.rc == 2
    assert fleet.states() == {name: "none" if name == "rebooted" else "rolled_back" for name in stage.guests}
    assert run.recap("rebooted")["failed"] == 0
    assert all(run.recap(name)["unreachable"] == 0 for name in stage.guests)
    causes = {
        "stuck": "The change failed in Reboot it: ",
        "pending": "The change failed in Hang it: ",
        "broken": "The change failed in Break: "
        if NAMES_HANDLERS
        else "ansible-core before 2.19 does not say which handler failed",
        # What the task tried first is told on the terminal. The change failed when its own rescue did.
        "nested": "The change failed in Mend it: ",
    }
    for name, cause in causes.items():
        assert fleet.was_rolled_back(run, name)
        told = last_message(run, name)
        assert told.startswith(f"{name} was rolled back to sp-change-")
        assert "and its checks pass. The change failed in " in told
        assert cause in told
    assert last_message(run, "nested").endswith(": no remedy")
    _before, handlers = run.output.split("RUNNING HANDLER [Restart]")
    handlers = handlers.split("TASK", 1)[0]
    assert "changed: [rebooted]" in handlers
    assert "[pending]" not in handlers
    assert run.said("SURVIVES registered, of the change, no fact")

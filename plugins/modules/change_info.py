#!/usr/bin/python

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This is documentation only: what does the work is plugins/action/change_info.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: change_info
short_description: Look at the play and the files of a change before it begins
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Says what only the controller can see of the play, such as the connection plugin of the host, and loads the files of a change as the play would do.
  - ansible-core ends the whole run, without C(rescue), when it comes to an included file that is not valid YAML or names an unknown module.
    This finds it before the change has begun.
  - Fails when the strategy of the play is not C(linear), and when the play or a block around ignores errors.
  - Fails when a file would end the change past C(rescue), with C(meta) C(end_host), C(end_play), C(end_batch), C(end_role) or
    C(clear_host_errors),
    and with C(run_once) or C(any_errors_fatal) when there are other hosts in the batch, since ansible-core would end the change of those.
  - Warns of C(meta) C(flush_handlers) in a file, which runs handlers without the guard.
  - Follows C(import_tasks) and C(import_role), and of C(include_tasks) and C(include_role) those without a condition whose name has no variables in it.
attributes:
  check_mode:
    description: Can run in check mode and return what a real run would, without a write.
    support: full
  diff_mode:
    description: Returns what changed when in diff mode.
    support: N/A
    details: Nothing is changed.
  action:
    description: Has a corresponding action plugin, so that some parts run on the controller.
    support: full
    details: All of it runs on the controller. Nothing is sent to the host.
options:
  tasks:
    description:
      - A task file. A relative name is looked for in the C(tasks) folder of the role that includes the role in which this task stands, then
        beside the playbook, and for a playbook of a collection in the working directory.
    type: str
  checks:
    description:
      - Another task file, looked for in the same way.
    type: str
  role:
    description:
      - The name of a role. Mutually exclusive with O(tasks).
    type: str
seealso:
  - plugin: safepoint.vm.guarded_ssh
    plugin_type: connection
"""

EXAMPLES = r"""
- name: Look at the change before it begins
  safepoint.vm.change_info:
    tasks: upgrade.yml
    checks: health.yml
  register: change

- name: Make the change
  ansible.builtin.include_tasks: "{{ change.tasks }}"
"""

RETURN = r"""
strategy:
  description: The strategy of the play.
  returned: success
  type: str
  sample: linear
controller:
  description: The name of the machine that runs the play.
  returned: success
  type: str
  sample: awx-7d4f.example.com
check_mode:
  description: Whether tasks at this place run in check mode, by C(--check) or by the keyword.
  returned: success
  type: bool
force_handlers:
  description: Whether handlers run on failed hosts too.
  returned: success
  type: bool
  sample: false
handlers:
  description: Whether there are any handlers in the play and the roles that it has loaded so far.
  returned: success
  type: bool
  sample: true
connection:
  description: The connection plugin of this host.
  returned: success
  type: str
  sample: ssh
connection_variable:
  description: Whether a variable (C(ansible_connection)) chose it. A variable beats the keyword C(connection).
  returned: success
  type: bool
  sample: false
connection_extra_variable:
  description: Whether that is an extra variable, which nothing in a play can change.
  returned: success
  type: bool
  sample: false
guardable:
  description: Whether P(safepoint.vm.guarded_ssh#connection) can take its place. It cannot unless it is SSH, or when an extra variable chose it.
  returned: success
  type: bool
  sample: true
tasks:
  description: The absolute path of O(tasks).
  returned: success, when O(tasks) is set
  type: str
  sample: /srv/project/upgrade.yml
checks:
  description: The absolute path of O(checks).
  returned: success, when O(checks) is set
  type: str
  sample: /srv/project/health.yml
role:
  description: The O(role).
  returned: success, when O(role) is set
  type: str
  sample: upgrade
"""

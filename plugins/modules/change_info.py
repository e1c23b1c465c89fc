#!/usr/bin/python

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Documentation only. The code is in plugins/action/change_info.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: change_info
short_description: Check the play and the files of a change before it starts
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Returns properties of the play that only the controller knows, such as the connection plugin of the host, and loads the files of a change as the
    play would.
  - ansible-core ends the whole run, without C(rescue), when an included file is not valid YAML or uses an unknown module. This module finds such
    errors before the change starts.
  - Fails if the strategy of the play is not C(linear), or if the play or a block around the task ignores errors.
  - Fails if a file uses C(meta) with C(end_host), C(end_play), C(end_batch), C(end_role) or C(clear_host_errors), which would end the change without
    C(rescue).
  - Fails if a file uses C(run_once) or C(any_errors_fatal) and there are other hosts in the batch, because ansible-core would end the change of those hosts.
  - Warns if a file uses C(meta) with C(flush_handlers), which runs handlers without the guard.
  - Follows C(import_tasks), C(import_role), and those C(include_tasks) and C(include_role) that have no condition and no variables in the name.
attributes:
  check_mode:
    description: Can run in check mode and return the result of a real run without changing anything.
    support: full
  diff_mode:
    description: Returns the changes in diff mode.
    support: N/A
    details: Nothing is changed.
  action:
    description: Has a corresponding action plugin, so some parts of the module run on the controller.
    support: full
    details: The module runs completely on the controller. Nothing is sent to the host.
options:
  tasks:
    description:
      - A task file. A relative path is searched in the C(tasks) folder of the role that includes the role of this task, then in the folder of the playbook.
        For a playbook of a collection, it is then searched in the working directory.
    type: str
  checks:
    description:
      - A second task file, searched in the same way.
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
- name: Check the change before it starts
  safepoint.vm.change_info:
    tasks: upgrade.yml
    checks: health.yml
  register: change

- name: Run the change
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
  description: V(true) if the task runs in check mode, because of C(--check) or of the keyword C(check_mode).
  returned: success
  type: bool
force_handlers:
  description: V(true) if handlers also run on failed hosts.
  returned: success
  type: bool
  sample: false
handlers:
  description: V(true) if the play, or a role that it has loaded so far, has handlers.
  returned: success
  type: bool
  sample: true
connection:
  description: The connection plugin of this host.
  returned: success
  type: str
  sample: ssh
connection_variable:
  description: V(true) if the connection plugin is set by the variable C(ansible_connection), which overrides the keyword C(connection).
  returned: success
  type: bool
  sample: false
connection_extra_variable:
  description: V(true) if C(ansible_connection) is an extra variable, which a play cannot override.
  returned: success
  type: bool
  sample: false
guardable:
  description: V(true) if P(safepoint.vm.guarded_ssh#connection) can replace the connection plugin. That is SSH that is not set by an extra variable.
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

#!/usr/bin/python

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Documentation only. The code is in plugins/action/role_variables.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: role_variables
short_description: Fail if unknown role variables are set
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Ansible accepts any variable. If the name of a role variable is misspelled, the role uses the default without a message.
  - When used in a task file of a role, this module fails if a variable has the prefix of the role (its name and an underscore) but is not an option of an
    entry point in C(meta/argument_specs.yml) of the role. The message suggests the closest option.
  - The roles of this collection use it as their first task.
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
  also:
    description:
      - Other variables with this prefix to accept, for example facts that the role sets.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Refuse unknown variables
  safepoint.vm.role_variables:
    also: [my_role_result]
"""

RETURN = r"""
msg:
  description: The unknown variables, each with the closest known one.
  returned: failure
  type: str
  sample: unknown variable my_role_tsks; did you mean my_role_tasks?
"""

#!/usr/bin/python

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This is documentation only: what does the work is plugins/action/role_variables.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: role_variables
short_description: Refuse the variables of a role that it does not know
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Ansible accepts any variable. With a misspelled one a role uses its default, without a message.
  - Used in a task file of a role, this fails when a variable has the prefix of the role (its name and an underscore) and is not an option of an entry point
    in the C(meta/argument_specs.yml) of the role. The message names the option that was probably meant.
  - The roles of this collection use it as their first task.
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
  also:
    description:
      - More variables with this prefix that are accepted, for example the facts that the role sets.
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
  description: The unknown variables, each with the one that was probably meant.
  returned: failure
  type: str
  sample: unknown variable my_role_tsks; did you mean my_role_tasks?
"""

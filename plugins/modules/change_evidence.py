#!/usr/bin/python

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This is documentation only: what does the work is plugins/action/change_evidence.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: change_evidence
short_description: Keep on the controller what is known of a change that failed
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Writes a record and some texts into files that only their owner can read, in one go and without a module being sent anywhere, since a rollback waits for it.
  - Set C(no_log) on the task where the texts may hold what the output of the run should not.
attributes:
  check_mode:
    description: Can run in check mode and return what a real run would, without a write.
    support: full
  diff_mode:
    description: Returns what changed when in diff mode.
    support: none
    details: What is written is not for the output of a run.
  action:
    description: Has a corresponding action plugin, so that some parts run on the controller.
    support: full
    details: All of it runs on the controller. Nothing is sent to the host.
options:
  folder:
    description:
      - The folder to write in, beside the playbook where the path is relative. It is made where it is missing, and only its owner may look into it.
    type: path
    required: true
  name:
    description:
      - How the names of all files begin.
    type: str
    required: true
  record:
    description:
      - What is written as JSON, into the file whose name ends with C(.json), with a list C(files) of where the O(texts) are from.
    type: dict
    required: true
  texts:
    description:
      - More to write, each a list of two, where it is from and what it says. Each has a file of its own, which is named after where it is from.
    type: list
    elements: list
    default: []
seealso:
  - module: safepoint.vm.change_info
"""

EXAMPLES = r"""
- name: Keep what failed
  safepoint.vm.change_evidence:
    folder: /srv/evidence
    name: "{{ inventory_hostname }}"
    record:
      task: "{{ ansible_failed_task.name }}"
    texts:
      - [journal, "{{ journal.stdout }}"]
  no_log: true
"""

RETURN = r"""
paths:
  description: The files, with their whole paths.
  returned: success
  type: list
  elements: str
  sample: [/srv/evidence/web01.json, /srv/evidence/web01-journal]
"""

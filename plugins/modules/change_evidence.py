#!/usr/bin/python

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Documentation only. The code is in plugins/action/change_evidence.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: change_evidence
short_description: Write evidence of a failed change to the controller
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Writes a JSON record and text files on the controller. Only their owner can read the files.
  - All files are written by one task, and no module is sent to a host, because the rollback waits for it.
  - Set C(no_log) on the task if the texts may contain data that must not appear in the output of the run.
attributes:
  check_mode:
    description: Can run in check mode and return the result of a real run without changing anything.
    support: full
  diff_mode:
    description: Returns the changes in diff mode.
    support: none
    details: The written data must not appear in the output of a run.
  action:
    description: Has a corresponding action plugin, so some parts of the module run on the controller.
    support: full
    details: The module runs completely on the controller. Nothing is sent to the host.
options:
  folder:
    description:
      - The folder for the files. A relative path is relative to the playbook.
      - If it does not exist, it is created, and only its owner can read it.
    type: path
    required: true
  name:
    description:
      - The common prefix of all file names.
    type: str
    required: true
  record:
    description:
      - The data to write to the C(.json) file. The module adds a list C(files) with the sources of the O(texts).
    type: dict
    required: true
  texts:
    description:
      - Texts to write. Each element is a list of a source and its text. Each text is written to its own file, whose name ends with the source.
    type: list
    elements: list
    default: []
seealso:
  - module: safepoint.vm.change_info
"""

EXAMPLES = r"""
- name: Write the evidence
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
  description: The absolute paths of the files.
  returned: success
  type: list
  elements: str
  sample: [/srv/evidence/web01.json, /srv/evidence/web01-journal]
"""

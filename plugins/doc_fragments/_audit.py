# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # Must be kept in sync with _AUDIT in plugins/module_utils/_options.py
    DOCUMENTATION = r"""
options:
  audit_file:
    description:
      - A file in which the module records each write and its result as lines of JSON, on the machine that runs the module. A killed call leaves a record, too.
      - See R(the audit section of the report guide,ansible_collections.safepoint.vm.docsite.guide_report.audit) for the format and the guarantees.
      - The file is created if it does not exist, readable for its owner only. Its folder must exist.
      - If the file cannot be written, the module fails before the first write. In check mode nothing is recorded.
      - If it is not set, the environment variable E(SAFEPOINT_AUDIT_FILE) of the machine that runs the module is used.
      - M(safepoint.vm.snapshot_info) does not have this option, so use the environment variable instead of C(module_defaults) for the whole group.
    type: path
"""

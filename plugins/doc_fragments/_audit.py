# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # Must be kept in sync with _AUDIT in plugins/module_utils/_options.py
    DOCUMENTATION = r"""
options:
  audit_file:
    description:
      - A file in which the module records each write, on the machine that runs the module.
      - Each write adds one line of JSON before it (C(event) is V(intent)) and one after it (V(outcome)), with the same C(id). The result for each VM adds one
        more line (V(result)). An intent without an outcome is left by a call that was killed or could not see the end of the write.
        P(safepoint.vm.snapshot_report#role) shows these.
      - See R(the audit section of the report guide,ansible_collections.safepoint.vm.docsite.guide_report.audit) for all keys and guarantees.
      - The file is created if it does not exist, readable for its owner only. Its folder must exist.
      - If the file cannot be written, the module fails before the first write, also in check mode. In check mode nothing is recorded.
      - M(safepoint.vm.snapshot_info) does not have this option. To record all calls of a play, set E(SAFEPOINT_AUDIT_FILE) instead of the option
        in C(module_defaults).
      - If it is not set, the environment variable E(SAFEPOINT_AUDIT_FILE) of the machine that runs the module is used.
    type: path
"""

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: Can run in check mode and return the result of a real run without changing anything.
  diff_mode:
    description: Returns the changes in diff mode.
  idempotent:
    description: When run twice in a row without outside changes, the second run reports no change.
  action_group:
    description: Use C(group/safepoint.vm.all) in C(module_defaults) to set the connection once for all modules.
    support: full
    membership:
      - safepoint.vm.all
"""

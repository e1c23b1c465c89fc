# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # Must be kept in sync with _AUDIT in plugins/module_utils/_options.py
    DOCUMENTATION = r"""
options:
  audit_file:
    description:
      - A file to whose end the module writes what it did, on the machine that runs it. It is made when it is not there, readable for its owner only.
        Its folder must be there.
      - Each VM that was acted on, or on which something failed, gives one line of JSON with the keys C(time), C(host), C(user), C(sudo_user), C(job) (in AWX),
        C(module), C(action), C(changed), C(vm), C(vm_id), C(backend), C(endpoint), C(snapshot), C(snapshot_id), C(also_removed), C(change), C(why) (the
        description), C(labels), C(seconds) (how long the call took, over all its VMs), C(error), C(msg) and C(version), which is 1.
      - M(safepoint.vm.snapshot_prune) gives a line for each snapshot that it removed, of which C(why) is what the policy says.
      - Lines of runs at the same time do not mix. Secrets are censored as in results. In check mode nothing is written.
      - That the file cannot be written is a warning, and no failure of what was done.
      - Modules that only look do not have it, so that it cannot stand in C(module_defaults) for the whole group. The environment variable serves them all.
      - When it is not set, the environment variable E(SAFEPOINT_AUDIT_FILE) of the machine that runs the module is used.
    type: path
"""

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # Must be kept in sync with _AUDIT in plugins/module_utils/_options.py
    DOCUMENTATION = r"""
options:
  audit_file:
    description:
      - A file to whose end the module writes what it does, on the machine that runs it. It is made when it is not there, readable for its owner only.
        Its folder must be there.
      - Each write gives two lines of JSON with the same C(id), one before it (C(event) is V(intent)) and one after it (V(outcome)); writes are the
        snapshot that is taken, reverted to or removed, the change of its label, and what is taken back. An intent without an outcome is what a killed
        call leaves, or one that could not see the end; P(safepoint.vm.snapshot_report#role) shows it.
      - At the end of the call each VM that was acted on, or on which something failed, gives one line (C(event) is V(result)), of which C(id) is
        null.
      - All lines have the keys C(version), which is 1, C(event), C(id), C(call) (the same for all lines of one call), C(time), C(host), C(user),
        C(sudo_user), C(job) (in AWX), C(module), C(backend), C(endpoint), C(vm), C(vm_id), C(action), C(snapshot), C(snapshot_id), C(change), C(why)
        (the description) and C(labels).
      - An intent has C(ends_by) too, the time by which the call has ended whatever happens. An outcome has C(seconds), C(error) and C(msg), which are
        null when the hypervisor said that it is done. A result has C(changed), C(also_removed), C(seconds) (how long the call took, over all its
        VMs), C(error) and C(msg).
      - C(action) is V(take), V(revert), V(remove) or V(describe) in intents and outcomes, and as in the result of the module in results.
      - M(safepoint.vm.snapshot_prune) gives a result for each snapshot that it removed, of which C(why) is what the policy says.
      - Lines of runs at the same time do not mix. Secrets are censored as in results. In check mode nothing is written.
      - A file that cannot be written is refused before anything is done (RV(ignore:error) is V(invalid_option)), in check mode too. When it cannot be
        written any more later, for example since its file system is full, no further write is begun, except for taking back what the call has
        created.
      - A line is handed to the kernel at once, so that a process that is killed loses none. It is not synced to disk (that takes 2 ms a line instead
        of 0.15 ms), so a machine that loses its power loses the last lines.
      - Modules that only look do not have it, so that it cannot stand in C(module_defaults) for the whole group. The environment variable serves them
        all.
      - When it is not set, the environment variable E(SAFEPOINT_AUDIT_FILE) of the machine that runs the module is used.
    type: path
"""

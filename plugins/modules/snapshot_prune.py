#!/usr/bin/python

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_prune
short_description: Remove the snapshots of virtual machines that a retention policy does not keep
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Applies a retention policy to the snapshots of one or many virtual machines, removes those that the policy does not keep, and returns the reason
    for each snapshot that is kept or removed.
  - Only snapshots of the O(owner) can be removed. A snapshot is protected and does not count for any rule if it is foreign, on hold, or younger than
    O(min_age), if it guards a change that has not ended, or if its creation time is unknown or in the future.
  - For all others the first matching rule decides. The newest O(min_keep) snapshots are kept. Snapshots that match O(expired) or O(max_age) are removed.
    If there are keep_* options, snapshots that none of them keeps are removed. If more than O(max_count) snapshots are left, the oldest are removed.
  - Each keep_* option is applied separately. A snapshot is kept if at least one of them keeps it. If a period has several snapshots, the newest is kept.
    Periods without a snapshot do not count. If fewer snapshots match than an option allows, the oldest snapshot is kept too.
  - Snapshots whose labels have different values for the key C(policy) are counted separately. So several policies can be used on one VM.
  - Snapshots of several VMs whose labels have the same value for the key C(group) are removed together, or all kept if one of them is kept. Only
    the VMs of the same call are considered.
  - Only the snapshot itself is removed, its children are kept. If the backend cannot remove it without others, it is kept until these are removed as well.
  - When the module runs on the controller for more than two seconds, the terminal shows its progress, at most every two seconds.
    No progress is shown with C(no_log), C(async), or a stdout callback whose output is read by programs.
extends_documentation_fragment:
  - safepoint.vm._connection
  - safepoint.vm._vms
  - safepoint.vm._vms.work
  - safepoint.vm._audit
  - safepoint.vm._attributes
attributes:
  check_mode:
    support: full
    details: Check mode returns the snapshots that a run would remove, with the reasons.
  diff_mode:
    support: full
    details: The diff is a table with one line for each snapshot, its decision and the reason.
  idempotent:
    support: partial
    details: A second run removes nothing, unless O(max_delete_per_run) was reached in the first run or more snapshots have become old enough.
options:
  scope:
    description:
      - The VMs to process.
    type: str
    choices:
      vms: The VMs in O(vm) or O(vms).
      endpoint: All VMs of the endpoint.
    default: vms
  policy:
    description:
      - Select only snapshots whose label has this value for the key C(policy).
    type: str
  change:
    description:
      - Select only snapshots whose label has this value for the key C(change).
    type: str
  name_pattern:
    description:
      - Select only snapshots whose name matches this pattern. C(*) matches any text, C(?) one character and C([...]) one of several characters.
    type: str
  match_labels:
    description:
      - Select only snapshots whose label has these fields, given as a mapping of keys to strings. A key with an empty value must not be in the label.
    type: dict
  keep_last:
    description:
      - Keep this number of newest snapshots.
      - V(0) has no effect, here and in the other options that count snapshots to keep. It is refused if there is no other rule.
    type: int
  keep_hourly:
    description:
      - Keep the newest snapshot of each hour, for this number of hours.
    type: int
  keep_daily:
    description:
      - Keep the newest snapshot of each day, for this number of days.
    type: int
  keep_weekly:
    description:
      - Keep the newest snapshot of each week, for this number of weeks. Weeks begin on Monday (ISO 8601).
    type: int
  keep_monthly:
    description:
      - Keep the newest snapshot of each month, for this number of months.
    type: int
  keep_quarterly:
    description:
      - Keep the newest snapshot of each quarter of a year, for this number of quarters.
    type: int
  keep_yearly:
    description:
      - Keep the newest snapshot of each year, for this number of years.
    type: int
  keep_within:
    description:
      - Keep all snapshots that were taken within this duration before the newest one, for example V(7d). The unit is required.
      - The duration is counted back from the newest snapshot and not from now. So a VM without new snapshots keeps its last ones.
    type: str
  keep_labels:
    description:
      - Keep all snapshots whose label has all of these fields, given as a mapping of keys to strings. A key with an empty value must not be in the label.
      - If this is the only keep_* option and it keeps no snapshot of a VM, that VM fails and none of its snapshots are removed.
    type: dict
  max_age:
    description:
      - Remove snapshots that are older than this duration, for example V(30d). This includes the last snapshot of a VM, unless O(min_keep) keeps it.
      - The unit is required. V(3) is refused because it would mean seconds.
    type: str
  max_count:
    description:
      - The maximum number of snapshots that are left after all other rules.
    type: int
  min_keep:
    description:
      - Keep this number of newest snapshots, even if they have expired or are too old.
    type: int
  min_age:
    description:
      - Keep all snapshots that are younger than this duration, for example V(12h). The unit is required.
    type: str
  expired:
    description:
      - Remove snapshots whose expiry time, O(safepoint.vm.snapshot#module:expires), has passed. This can be the last snapshot of a VM.
    type: bool
    default: false
  max_delete_per_run:
    description:
      - The maximum number of snapshots to remove in one run, over all VMs. The oldest are removed first.
    type: int
  timezone:
    description:
      - The time zone of the periods (hours, days and so on), by its IANA name such as V(Europe/Vienna).
      - Every zone but V(UTC) needs the time zone database on the machine that runs the module, which is in the package tzdata of the system or of Python.
    type: str
    default: UTC
  all:
    description:
      - Remove all snapshots of the O(owner) that are not protected. It cannot be combined with other rules.
    type: bool
    default: false
  confirm:
    description:
      - With O(all=true), the number of VMs in this call. With a wrong number the module fails and removes nothing. The message contains the right number.
    type: int
  on_error:
    description:
      - The action to take on the other VMs when one fails. A removed snapshot cannot be restored.
      - With V(stop), nothing is removed from any VM if the check before the first write refuses one of them.
    type: str
    choices:
      stop: Start no further VMs, and leave the others as they are.
      continue: Continue with the other VMs.
    default: continue
seealso:
  - module: safepoint.vm.snapshot
  - module: safepoint.vm.snapshot_info
"""

EXAMPLES = r"""
- name: Remove all expired snapshots on the host
  safepoint.vm.snapshot_prune:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    scope: endpoint
    expired: true
  delegate_to: localhost

- name: Keep one snapshot for each of 7 days and 4 weeks
  safepoint.vm.snapshot_prune:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    vms: [web01, web02]
    policy: nightly
    keep_daily: 7
    keep_weekly: 4
    timezone: Europe/Vienna
    max_delete_per_run: 50
  delegate_to: localhost

- name: Show the snapshots that a new policy would remove, with the reasons
  safepoint.vm.snapshot_prune:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    scope: endpoint
    max_age: 30d
    min_keep: 1
  check_mode: true
  diff: true
  delegate_to: localhost

- name: Remove all snapshots of the owner from two VMs
  safepoint.vm.snapshot_prune:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    vms: [test01, test02]
    all: true
    confirm: 2
  delegate_to: localhost
"""

RETURN = r"""
vms:
  description: The result for each VM, in the order in which the VMs were given. Also returned when some of them failed.
  returned: when the endpoint was reached
  type: list
  elements: dict
  contains:
    ref:
      description: The VM as given in the task.
      type: str
      returned: always
      sample: web01
    vm:
      description: The VM that was found, or null.
      type: dict
      returned: always
      sample: {name: web01, id: 6695eb01-f6a4-8304-79aa-97f2502e193f, uuid: 6695eb01-f6a4-8304-79aa-97f2502e193f}
    changed:
      description: V(true) if at least one snapshot of the VM was removed, or in check mode would be. This is also the case after a failure.
      type: bool
      returned: always
    action:
      description:
        - One of V(pruned), V(kept) (there is nothing to remove), V(lost_race), V(failed), V(unverified) and V(none).
        - V(lost_race) means that another run has removed the same snapshots at the same time.
      type: str
      returned: always
      sample: pruned
    snapshots:
      description: All snapshots of the VM with the decision on each, parents before their children. Empty if no decision was made.
      type: list
      elements: dict
      returned: always
      contains:
        id:
          description: The ID of the snapshot, unique within the VM.
          type: str
          returned: always
        name:
          description: The name of the snapshot.
          type: str
          returned: always
          sample: nightly-20261101
        created:
          description: The creation time by the hypervisor, ISO 8601 in UTC, or null.
          type: str
          returned: always
          sample: "2026-11-01T02:00:00Z"
        age_seconds:
          description: The age in seconds by the hypervisor's clock, or null.
          type: int
          returned: always
        label:
          description: The label, as a mapping of keys to strings. Null if there is no valid label.
          type: dict
          returned: always
        decision:
          description: V(keep) or V(remove).
          type: str
          returned: always
          sample: remove
        rules:
          description:
            - The rules that decided. Each is the name of an option, or V(foreign), V(out_of_scope), V(held), V(in_flight), V(no_time), V(future), V(blocked)
              (the backend cannot remove it), V(group), V(not_kept) (no keep_* option keeps it), V(no_rule) (no rule matches it) or V(refused).
            - There are several if several keep_* options keep the snapshot.
          type: list
          elements: str
          returned: always
          sample: [not_kept]
        reason:
          description: The reason for the decision, as a sentence.
          type: str
          returned: always
          sample: nightly-20261101 is not kept by any rule
        removed:
          description: V(true) if this call removed the snapshot, or in check mode would. V(false) if another run removed it at the same time.
          type: bool
          returned: always
    warnings:
      description: Warnings.
      type: list
      elements: str
      returned: always
    error:
      description: The error code of the failure on this VM, for example V(locked) or V(backend_failed).
      type: str
      returned: when the VM failed
    msg:
      description: The error message. It says what failed and what to do.
      type: str
      returned: when the VM failed
error:
  description: The error code of the first failure.
  returned: failure
  type: str
  sample: invalid_option
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.safepoint.vm.plugins.module_utils._options import OPTIONS
from ansible_collections.safepoint.vm.plugins.module_utils._run import run


def main() -> None:
    run("snapshot_prune", AnsibleModule(supports_check_mode=True, **OPTIONS["snapshot_prune"]))


if __name__ == "__main__":
    main()

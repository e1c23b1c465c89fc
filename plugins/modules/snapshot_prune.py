#!/usr/bin/python

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_prune
short_description: Remove the snapshots of virtual machines that a policy does not keep
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Judges each snapshot of one or many virtual machines by a policy, removes those that are to go, and says for every single one why it stays or goes.
  - Only snapshots of the O(owner) are candidates. One that is foreign, on hold, guarding a change that has not ended, dated in the future or at no known time,
    or younger than O(min_age) stays whatever the policy says, and counts for nothing.
  - For all others the first of these that fits decides. The newest O(min_keep) stay. What O(expired) or O(max_age) hits goes. With keep_* options, what none of
    them keeps goes. What is left beyond O(max_count) goes, the oldest first.
  - Each keep_* option keeps snapshots for itself, and one that any of them keeps stays. Of a period that has several snapshots the newest stands for it, a
    period without any costs nothing, and while an option has some of its number left it keeps the oldest snapshot too.
  - Snapshots whose label has different texts for the key C(policy) are counted apart, so that several policies can look after one VM.
  - Snapshots of several VMs whose labels have the same text for the key C(group) go together, or stay when one of them stays. The module knows of those VMs
    only that it looks at.
  - Snapshots are removed alone, what stands on them stays. Where the backend cannot remove one without others, it stays until these go as well.
  - While it works on the controller for more than two seconds, the terminal shows how far it is, at most every two seconds.
    Nothing is shown with C(no_log), C(async), or a stdout callback whose output is not meant for people.
extends_documentation_fragment:
  - safepoint.vm._connection
  - safepoint.vm._vms
  - safepoint.vm._vms.work
  - safepoint.vm._audit
  - safepoint.vm._attributes
attributes:
  check_mode:
    support: full
    details: What a run would remove, and why, is what check mode returns.
  diff_mode:
    support: full
    details: The diff is a table with a line for each snapshot, what was decided about it, and why.
  idempotent:
    support: partial
    details: A second run removes nothing, unless O(max_delete_per_run) left something to it or more has become old enough meanwhile.
options:
  scope:
    description:
      - Which VMs are looked at.
    type: str
    choices:
      vms: Those that O(vm) or O(vms) name.
      endpoint: All VMs of the endpoint.
    default: vms
  policy:
    description:
      - Only snapshots whose label has this text for the key C(policy).
    type: str
  change:
    description:
      - Only snapshots whose label has this text for the key C(change).
    type: str
  name:
    description:
      - Only snapshots whose name is like this pattern, in which C(*) stands for anything, C(?) for one character and C([...]) for one of several.
    type: str
  labels:
    description:
      - Only snapshots whose label has these fields, keys to texts. A key with an empty value is one that the label must not have.
    type: dict
  keep_last:
    description:
      - Keep so many of the newest snapshots.
      - V(0) is no rule, here and in the other options that count snapshots to keep. It is refused when there is no other rule.
    type: int
  keep_hourly:
    description:
      - Keep the newest snapshot of each of so many hours.
    type: int
  keep_daily:
    description:
      - Keep the newest snapshot of each of so many days.
    type: int
  keep_weekly:
    description:
      - Keep the newest snapshot of each of so many weeks, as ISO 8601 counts them, from Monday on.
    type: int
  keep_monthly:
    description:
      - Keep the newest snapshot of each of so many months.
    type: int
  keep_quarterly:
    description:
      - Keep the newest snapshot of each of so many quarters of a year.
    type: int
  keep_yearly:
    description:
      - Keep the newest snapshot of each of so many years.
    type: int
  keep_within:
    description:
      - Keep all snapshots that are not older than the newest one by more than this duration, for example V(7d). The unit is required.
      - It is not counted from now, so that a VM which gets no new snapshots keeps its last ones.
    type: str
  keep_labels:
    description:
      - Keep all snapshots whose label has all of these fields, keys to texts. A key with an empty value is one that the label must not have.
      - When this is the only keep_* option and there is a VM of whose snapshots it keeps none, that VM is an error and nothing of it is removed.
    type: dict
  max_age:
    description:
      - Remove snapshots that are older than this duration, for example V(30d), also the last one of a VM unless O(min_keep) keeps it.
      - The unit is required. V(3) is refused, since it would mean seconds.
    type: str
  max_count:
    description:
      - Of what the other rules leave, let no more than so many stay.
    type: int
  min_keep:
    description:
      - Keep so many of the newest snapshots, even when they are expired or too old.
    type: int
  min_age:
    description:
      - Remove nothing that is younger than this duration, for example V(12h). The unit is required.
    type: str
  expired:
    description:
      - Remove snapshots whose own expiry, O(safepoint.vm.snapshot#module:expires), has passed. That may be the last one of a VM.
    type: bool
    default: false
  max_delete_per_run:
    description:
      - Remove no more than so many snapshots in one run, over all VMs, the oldest first.
    type: int
  timezone:
    description:
      - The time zone in which hours, days and so on begin, by its IANA name such as V(Europe/Vienna).
      - Any but V(UTC) needs data about time zones on the machine that runs the module, the package tzdata of the system or of Python.
    type: str
    default: UTC
  all:
    description:
      - Remove all snapshots of the O(owner) that are not protected. No other rule goes with it.
    type: bool
    default: false
  confirm:
    description:
      - With O(all=true), how many VMs this is about. Any other number is an error that tells the right one, and nothing is removed.
    type: int
  on_error:
    description:
      - What to do with the other VMs when one fails. What was removed is gone in either case.
      - With V(stop), nothing is removed from any VM when one of them is refused beforehand.
    type: str
    choices:
      stop: Begin no further ones, and leave the others as they are.
      continue: Go on with the others.
    default: continue
seealso:
  - module: safepoint.vm.snapshot
  - module: safepoint.vm.snapshot_info
"""

EXAMPLES = r"""
- name: Remove what has expired, on the whole host
  safepoint.vm.snapshot_prune:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    scope: endpoint
    expired: true
  delegate_to: localhost

- name: Keep a week of nightly snapshots and a month of weekly ones
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

- name: Show what a new policy would remove, and why
  safepoint.vm.snapshot_prune:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    scope: endpoint
    max_age: 30d
    min_keep: 1
  check_mode: true
  diff: true
  delegate_to: localhost

- name: Remove all snapshots of ours from two VMs
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
  description: What happened to each VM, in the order they were named. Also returned when some of them failed.
  returned: when the endpoint was reached
  type: list
  elements: dict
  contains:
    ref:
      description: The VM as it was named.
      type: str
      returned: always
      sample: web01
    vm:
      description: The VM as it was found, or null.
      type: dict
      returned: always
      sample: {name: web01, id: 6695eb01-f6a4-8304-79aa-97f2502e193f, uuid: 6695eb01-f6a4-8304-79aa-97f2502e193f}
    changed:
      description: Whether snapshots of it were removed, or in check mode would be. When something failed, whether any were.
      type: bool
      returned: always
    action:
      description:
        - One of V(pruned), V(kept) (there is nothing to remove), V(lost_race), V(failed), V(unverified) and V(none).
        - V(lost_race) means that another run has removed at the same time all that this one was about to.
      type: str
      returned: always
      sample: pruned
    snapshots:
      description: All its snapshots and what was decided about each, parents before their children. Empty where nothing was decided.
      type: list
      elements: dict
      returned: always
      contains:
        id:
          description: What tells the snapshot from all others of the VM.
          type: str
          returned: always
        name:
          description: Its name.
          type: str
          returned: always
          sample: nightly-20261101
        created:
          description: When the hypervisor took it, ISO 8601 in UTC, or null.
          type: str
          returned: always
          sample: "2026-11-01T02:00:00Z"
        age_seconds:
          description: How old it is by the hypervisor's clock, or null.
          type: int
          returned: always
        label:
          description: The label, keys to texts. Null where there is none, or none that is valid.
          type: dict
          returned: always
        decision:
          description: V(keep) or V(remove).
          type: str
          returned: always
          sample: remove
        rules:
          description:
            - What decided. The name of an option, or V(foreign), V(out_of_scope), V(held), V(in_flight), V(no_time), V(future), V(blocked) (the backend cannot
              remove it), V(group), V(not_kept) (by none of the keep_* options), V(no_rule) (it is hit by none) or V(refused).
            - Several where several keep_* options keep it.
          type: list
          elements: str
          returned: always
          sample: [not_kept]
        reason:
          description: The same as a sentence.
          type: str
          returned: always
          sample: nightly-20261101 is kept by no rule
        removed:
          description: Whether this call removed it, or in check mode would. It is V(false) for one that another run removed at the same time.
          type: bool
          returned: always
    warnings:
      description: What did not go as one might think.
      type: list
      elements: str
      returned: always
    error:
      description: A code word for what failed on this VM, for example V(locked) or V(backend_failed).
      type: str
      returned: when the VM failed
    msg:
      description: What failed, and what to do about it.
      type: str
      returned: when the VM failed
error:
  description: The code word of the first failure.
  returned: failure
  type: str
  sample: invalid_option
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.safepoint.vm.plugins.module_utils._module import run
from ansible_collections.safepoint.vm.plugins.module_utils._options import OPTIONS


def main() -> None:
    run("snapshot_prune", AnsibleModule(supports_check_mode=True, **OPTIONS["snapshot_prune"]))


if __name__ == "__main__":
    main()

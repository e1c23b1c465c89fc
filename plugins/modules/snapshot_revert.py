#!/usr/bin/python

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_revert
short_description: Revert virtual machines to a snapshot
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Reverts one or many virtual machines to a snapshot. All changes in them since the snapshot are lost.
  - The module fails if the snapshot does not exist.
  - A revert always discards the changes since the snapshot. So the module always reports a change.
  - On libvirt a revert restarts the QEMU process, which breaks all connections into the guest, and restores the complete configuration of the VM.
    If the guest has an agent, the agent sets its clock to the current time.
  - Memory that libvirt saved to disk after the snapshot (managed save) is dropped with a warning because it does not fit the disks of the snapshot.
  - The snapshot is kept and can be used again.
  - When the module runs on the controller for more than two seconds, the terminal shows its progress, at most every two seconds.
    No progress is shown with C(no_log), C(async), or a stdout callback whose output is read by programs.
extends_documentation_fragment:
  - safepoint.vm._connection
  - safepoint.vm._vms
  - safepoint.vm._vms.change
  - safepoint.vm._vms.work
  - safepoint.vm._audit
  - safepoint.vm._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - The diff shows the snapshots, including those that would be lost, and the changes of the VM's configuration (CPUs, memory, disks, networks).
        The configuration is read only in diff mode.
      - The diff does not show changes inside the guest.
  idempotent:
    support: none
    details: A second revert discards the changes since the first one.
options:
  select:
    description:
      - Use the newest matching snapshot, instead of the snapshot in O(name) or O(id).
      - Only snapshots of the O(owner) match, unless O(foreign=allow).
    type: str
    choices:
      newest: The newest snapshot.
      before: The newest snapshot that was taken before O(time).
  match_labels:
    description:
      - With O(select), fields that the label must have, as a mapping of keys to strings. A key with an empty value must not be in the label.
    type: dict
  time:
    description:
      - With O(select=before), an ISO 8601 time, or a duration before now such as V(24h). A duration requires a unit.
    type: str
  power:
    description:
      - The power state of the VM after the revert.
    type: str
    choices:
      as_snapshot: The power state of the snapshot. After a revert to a snapshot without memory the VM is off.
      "on": Running. The VM is started if it is off after the revert.
      "off": Off. The memory in the snapshot is not used. Refused for a transient libvirt VM because the VM would no longer exist.
    default: as_snapshot
  discard_newer:
    description:
      - Also remove the snapshots that were taken on top of this one, newest first, after a successful revert.
      - On storage that can only revert to its newest snapshot (ZFS and volume chains on Proxmox VE), they are removed before the revert. If the revert
        then fails, they are lost.
      - They must belong to the O(owner), unless O(foreign=allow). The module fails if one of them is on hold.
      - If V(false), they are kept. If the backend cannot revert without their removal, the module fails, and the message names them.
    type: bool
    default: false
  on_error:
    description:
      - The action to take on the other VMs when one fails. A revert is never undone.
      - With V(stop), nothing is written to any VM if the check before the first write refuses one of them.
    type: str
    choices:
      stop: Start no further VMs, and leave the others as they are.
      continue: Continue with the other VMs.
    default: stop
seealso:
  - module: safepoint.vm.snapshot
  - module: safepoint.vm.snapshot_info
"""

EXAMPLES = r"""
- name: Revert to the state before the upgrade
  safepoint.vm.snapshot_revert:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    vm: web01
    name: before-upgrade
  delegate_to: localhost

- name: Revert to the last known good snapshot before the incident
  safepoint.vm.snapshot_revert:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    vm: web01
    select: before
    time: "2026-11-23T03:00:00Z"
    match_labels:
      quality: known-good
  delegate_to: localhost

- name: Reset the test machines and start them
  safepoint.vm.snapshot_revert:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    vms: "{{ groups['test'] }}"
    name: known-good
    power: "on"
    discard_newer: true
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
vms:
  description:
    - The result for each VM, in the order in which the VMs were given. Also returned when some of them failed.
    - The keys are those of M(safepoint.vm.snapshot). RV(vms[].action) is V(reverted), V(failed), V(unverified) or V(none).
  returned: when the endpoint was reached
  type: list
  elements: dict
  sample:
    - ref: web01
      vm: {name: web01, id: 6695eb01-f6a4-8304-79aa-97f2502e193f, uuid: 6695eb01-f6a4-8304-79aa-97f2502e193f}
      changed: true
      action: reverted
      snapshot: {id: before-upgrade, name: before-upgrade, current: true}
      warnings: []
  contains:
    action:
      description: The action that was taken.
      type: str
      returned: always
      sample: reverted
    also_removed:
      description: The IDs of the newer snapshots that were removed because of O(discard_newer).
      type: list
      elements: str
      returned: always
error:
  description: The error code of the first failure.
  returned: failure
  type: str
  sample: snapshot_not_found
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.safepoint.vm.plugins.module_utils._options import OPTIONS
from ansible_collections.safepoint.vm.plugins.module_utils._run import run


def main() -> None:
    run("snapshot_revert", AnsibleModule(supports_check_mode=True, **OPTIONS["snapshot_revert"]))


if __name__ == "__main__":
    main()

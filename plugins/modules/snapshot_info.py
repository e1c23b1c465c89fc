#!/usr/bin/python

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_info
short_description: List the snapshots of virtual machines
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Lists all snapshots of one or many virtual machines, of any owner, as flat lists with parents before their children.
  - Shows problems of each VM. On request it also checks the disk images (O(check_images)) and shows how a revert to each snapshot would change
    the configuration of the VM (O(drift)).
  - Changes nothing.
extends_documentation_fragment:
  - safepoint.vm._connection
  - safepoint.vm._vms
  - safepoint.vm._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
    details: Nothing is changed.
  idempotent:
    support: full
options:
  scope:
    description:
      - The VMs to process.
    type: str
    choices:
      vms: The VMs in O(vm) or O(vms).
      endpoint: All VMs of the endpoint.
    default: vms
  name_pattern:
    description:
      - Select only snapshots whose name matches this pattern. C(*) matches any text, C(?) one character and C([...]) one of several characters.
    type: str
  match_labels:
    description:
      - Select only snapshots whose label has these fields, given as a mapping of keys to strings. A key with an empty value must not be in the label.
    type: dict
  older_than:
    description:
      - Select only snapshots that were taken before this ISO 8601 time, or that are older than this duration, for example V(72h). A duration requires a unit.
    type: str
  newer_than:
    description:
      - Select only snapshots that were taken after this ISO 8601 time, or that are younger than this duration.
    type: str
  ownership:
    description:
      - Select snapshots by their owner.
    type: str
    choices:
      any: All snapshots.
      ours: Snapshots of the O(owner), with a valid signature if O(label_key) is set.
      foreign: All other snapshots.
    default: any
  drift:
    description:
      - Read the current configuration of each VM and its configuration in each snapshot, and list the differences.
      - On some backends this needs one request for each snapshot.
    type: bool
    default: false
  check_images:
    description:
      - Compare the snapshots in the disk images with the list of the hypervisor, and report differences. On libvirt only.
      - For a running VM this uses the QEMU monitor, and libvirt then logs the VM as tainted. QEMU must answer within 10 seconds.
        For a VM that is off, the image itself is read. This needs a local connection or an image in a storage pool of libvirt.
    type: bool
    default: false
seealso:
  - module: safepoint.vm.snapshot
  - module: safepoint.vm.snapshot_revert
"""

EXAMPLES = r"""
- name: List the snapshots
  safepoint.vm.snapshot_info:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    vm: web01
  delegate_to: localhost
  register: result

- name: Show the names of the snapshots that belong to the owner
  ansible.builtin.debug:
    msg: "{{ result.vms[0].snapshots | selectattr('ours') | map(attribute='name') }}"

- name: List the snapshots of the owner on the whole host that are older than three days
  safepoint.vm.snapshot_info:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    scope: endpoint
    ownership: ours
    older_than: 3d
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
    power:
      description: The power state, one of V(running), V(paused) and V(off). Null if the VM could not be read.
      type: str
      returned: always
      sample: running
    findings:
      description: The problems of the VM.
      type: list
      elements: dict
      returned: always
      contains:
        code:
          description:
            - The code of the problem, for example V(left_paused), V(left_off), V(guest_crashed), V(migrated_away), V(deep_chain), V(chain_near_limit),
              V(snapshot_lost), V(snapshot_differs), V(orphan), V(shared_image) or V(images_not_checked).
          type: str
          returned: always
        msg:
          description: A description of the problem.
          type: str
          returned: always
        remedy:
          description: The action that solves the problem.
          type: str
          returned: always
    configuration:
      description: The current configuration of the VM. The keys are C(cpus), C(memory_bytes), C(disks), C(networks) and C(next_start). C(next_start) has
        the values that change at the next start, for example C(memory_bytes) or C(disk scsi1). Null stands for something that is removed then.
      type: dict
      returned: when O(drift=true)
      sample: {cpus: 2, memory_bytes: 2147483648, disks: {vda: /var/lib/libvirt/images/web01.qcow2}, networks: {}, next_start: {}}
    snapshots:
      description:
        - The selected snapshots of the VM, each with the keys of RV(safepoint.vm.snapshot#module:vms[].snapshot).
        - Additional keys are C(age_seconds), C(why_not_ours) (the reason why the snapshot is foreign, null if it is not), C(lease) (the state of the lease in
          the label by the clock of the endpoint, V(running), V(over) or V(unreadable), null if there is none), C(obstacles) (the reasons why C(revert)
          or C(remove) is impossible) and C(not_included) (parts of the VM that a revert does not restore).
        - With O(drift=true) also C(configuration), and C(drift), a list of differences with the keys C(what), C(then) and C(now).
        - The parent of a selected snapshot may be missing from the list.
      type: list
      elements: dict
      returned: always
      sample:
        - id: before-upgrade
          name: before-upgrade
          created: "2026-11-23T08:00:00Z"
          parent: null
          description: CHG0042 kernel update
          label: {owner: safepoint, change: CHG0042, expires: "2026-11-26T08:00:00Z"}
          ours: true
          kind: internal
          memory: true
          consistency: memory
          size_bytes: null
          size_unknown: it is stored inside the VM's disk images, and libvirt does not report its share
          current: true
          age_seconds: 3600
          lease: null
          why_not_ours: null
          obstacles: {}
          not_included: []
    changed:
      description: Always V(false).
      type: bool
      returned: always
    warnings:
      description: Warnings.
      type: list
      elements: str
      returned: always
    error:
      description: The error code of the failure on this VM, for example V(vm_not_found).
      type: str
      returned: when the VM failed
    msg:
      description: The error message. It says what failed and what to do.
      type: str
      returned: when the VM failed
now:
  description: The time with which ages and leases were computed, ISO 8601 in UTC. It is read from the clock of the endpoint (Proxmox VE, vSphere), or from that
    of the machine that runs the module (libvirt).
  returned: when the endpoint was reached
  type: str
  sample: "2026-11-23T09:00:00Z"
error:
  description: The error code of the first failure.
  returned: failure
  type: str
  sample: connection_failed
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.safepoint.vm.plugins.module_utils._options import OPTIONS
from ansible_collections.safepoint.vm.plugins.module_utils._run import run


def main() -> None:
    run("snapshot_info", AnsibleModule(supports_check_mode=True, **OPTIONS["snapshot_info"]))


if __name__ == "__main__":
    main()

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
  - Lists all snapshots of one or many virtual machines as flat lists, parents before their children, whoever made them.
  - Shows what a revert to each of them would do to the configuration of the VM, and what is wrong with a VM or its disk images, when that is asked for.
  - Writes nothing.
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
      - Which VMs are looked at.
    type: str
    choices:
      vms: Those that O(vm) or O(vms) name.
      endpoint: All VMs of the endpoint.
    default: vms
  name:
    description:
      - Only snapshots whose name is like this pattern, in which C(*) stands for anything, C(?) for one character and C([...]) for one of several.
    type: str
  labels:
    description:
      - Only snapshots whose label has these fields, keys to texts. A key with an empty value is one that the label must not have.
    type: dict
  older_than:
    description:
      - Only snapshots that were taken before this ISO 8601 time, or longer ago than this duration with its unit, for example V(72h).
    type: str
  newer_than:
    description:
      - Only snapshots that were taken after this ISO 8601 time, or not as long ago as this duration.
    type: str
  ownership:
    description:
      - Whose snapshots are listed.
    type: str
    choices:
      any: All.
      ours: Those of the O(owner), with a valid signature where O(label_key) is set.
      foreign: All others.
    default: any
  drift:
    description:
      - Whether to read what each VM is made of today and was made of when each snapshot was taken, and to list the differences.
      - Costs a request for each snapshot on some backends.
    type: bool
    default: false
  check_images:
    description:
      - Whether to compare the disk images with the hypervisor's list, for snapshots that only one of the two has. On libvirt only.
      - For a VM that is up this goes through QEMU's monitor, after which libvirt notes the VM as tainted in its log. QEMU gets 10 seconds to answer.
        For one that is off the image itself is read, which needs a local connection or an image in a storage pool of libvirt.
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
  register: seen

- name: List what is ours and older than three days, on the whole host
  safepoint.vm.snapshot_info:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    scope: endpoint
    ownership: ours
    older_than: 3d
  delegate_to: localhost

- name: Show those that are ours
  ansible.builtin.debug:
    msg: "{{ seen.vms[0].snapshots | selectattr('ours') | map(attribute='name') }}"
"""

RETURN = r"""
vms:
  description: What was seen of each VM, in the order they were named. Also returned when some of them failed.
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
    power:
      description: One of V(running), V(paused) and V(off). Null when the VM was not seen.
      type: str
      returned: always
      sample: running
    findings:
      description: What is wrong with the VM, each with a code word, what it is, and what to do about it.
      type: list
      elements: dict
      returned: always
      contains:
        code:
          description:
            - A code word, for example V(left_paused), V(left_off), V(guest_crashed), V(migrated_away), V(deep_chain), V(chain_near_limit),
              V(snapshot_lost), V(snapshot_differs), V(orphan), V(shared_image) or V(images_not_checked).
          type: str
          returned: always
        msg:
          description: What it is.
          type: str
          returned: always
        remedy:
          description: What to do about it.
          type: str
          returned: always
    configuration:
      description: What the VM is made of today. The keys are C(cpus), C(memory_bytes), C(disks), C(networks), and C(next_start), which holds what
        will be another one after the next start, for example C(memory_bytes) or C(disk scsi1), null for what will be gone.
      type: dict
      returned: when O(drift=true)
      sample: {cpus: 2, memory_bytes: 2147483648, disks: {vda: /var/lib/libvirt/images/web01.qcow2}, networks: {}, next_start: {}}
    snapshots:
      description:
        - Those of its snapshots that were asked for, each as RV(safepoint.vm.snapshot#module:vms[].snapshot).
        - In addition C(age_seconds), C(why_not_ours) (null for one that is ours), C(lease) (whether the C(lease) of its label is V(running), V(over) or
          V(unreadable) by the clock of the endpoint, null where there is none), C(obstacles) (what cannot be done with it, C(revert) or C(remove),
          and why) and C(not_included) (parts of the VM that a revert to it leaves as they are).
        - With O(drift=true) also C(configuration), and C(drift), a list of C(what) differs, C(then) and C(now).
        - The parent of one may be among those that were not asked for.
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
      description: What did not go as one might think.
      type: list
      elements: str
      returned: always
    error:
      description: A code word for what failed on this VM, for example V(vm_not_found).
      type: str
      returned: when the VM failed
    msg:
      description: What failed, and what to do about it.
      type: str
      returned: when the VM failed
now:
  description: What time it was for the snapshots, ISO 8601 in UTC. By the clock of the endpoint where that is known (Proxmox VE, vSphere), and else by that of
    the machine that runs the module.
  returned: when the endpoint was reached
  type: str
  sample: "2026-11-23T09:00:00Z"
error:
  description: The code word of the first failure.
  returned: failure
  type: str
  sample: connection_failed
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.safepoint.vm.plugins.module_utils._module import run
from ansible_collections.safepoint.vm.plugins.module_utils._options import OPTIONS


def main() -> None:
    run("snapshot_info", AnsibleModule(supports_check_mode=True, **OPTIONS["snapshot_info"]))


if __name__ == "__main__":
    main()

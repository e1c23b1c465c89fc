# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # Must be kept in sync with _VMS, _CHANGE and _WORK in plugins/module_utils/_options.py
    DOCUMENTATION = r"""
options:
  vm:
    description:
      - The name, UUID or ID of a VM. The ID is the UUID on libvirt, the managed object ID on vSphere and the VMID on Proxmox VE. Proxmox VE has no UUIDs.
      - An inventory path on vSphere, or node and VMID on Proxmox VE such as C(pve1/100), can be used as well.
      - The prefixes C(name:), C(uuid:), C(id:) and C(path:) restrict the search to one of these.
      - For several VMs use O(vms).
      - Exactly one of the options that select VMs must be set.
    type: str
  vms:
    description:
      - A list of VMs, each as in O(vm). They are looked up together and processed in parallel.
    type: list
    elements: str
  owner:
    description:
      - The owner of the snapshots. Snapshots whose label names another owner, or that have no valid label, are foreign.
      - If it is not set, the environment variable E(SAFEPOINT_OWNER) is used.
    type: str
    default: safepoint
  label_key:
    description:
      - A secret of at least 16 characters to sign labels. With it, a snapshot whose label is not signed with this key is foreign.
      - It prevents users who may edit descriptions, but may not revert, from forging the label of the owner.
      - The signature covers the VM, the name of the snapshot, all fields of the label and the creation time by the clock of the hypervisor (the field C(at)).
        C(at) is the period in which the call that took the snapshot had to end. After a change of the label it is the exact time. So a signed label that is
        copied to another snapshot, or to a new VM with the ID of a deleted one, is foreign there.
      - It does not prevent users from restoring an older label of the same snapshot, for example one from before its O(ignore:hold).
      - With O(ignore:state=present) and an ID, an unsigned label is signed.
      - If it is not set, the environment variable E(SAFEPOINT_LABEL_KEY) is used.
    type: str
"""

    CHANGE = r"""
options:
  targets:
    description:
      - A list of VMs, each with the ID of its snapshot.
      - It replaces O(vm) or O(vms) and O(name) or O(id).
    type: list
    elements: dict
    suboptions:
      vm:
        description: The VM, as in O(vm).
        type: str
        required: true
      id:
        description: The ID of the snapshot.
        type: str
        required: true
      match_labels:
        description:
          - Fields that the label of the snapshot must have, as a mapping of keys to strings. A key with an empty value must not be in the label.
          - If the label differs, the VM fails with V(label_differs) and is not changed.
        type: dict
  name:
    description:
      - The name of the snapshot.
      - A new name may have up to 80 characters of a-z, A-Z, 0-9 and C(. _ -), and must begin with a letter or a digit.
        On libvirt it must not be a number below 1000000. On Proxmox VE it must have 2 to 40 characters, no dot, and must begin with a letter.
      - If several snapshots of a VM have this name, the module fails and lists their IDs.
    type: str
  id:
    description:
      - The ID of the snapshot, as returned by the modules. Only with a single VM. On libvirt the ID is the name.
      - A snapshot that is selected by its ID may be foreign.
    type: str
  foreign:
    description:
      - The treatment of a snapshot that was selected by its name and that belongs to another owner or to none.
      - With O(ignore:state=present), a foreign snapshot with the same name is always an error.
    type: str
    choices:
      refuse: Fail.
      allow: Treat it as a snapshot of the O(owner).
    default: refuse
"""

    WORK = r"""
options:
  lock_timeout:
    description:
      - The maximum time to wait for a VM that is locked by another operation, within O(timeout). A duration.
    type: str
    default: 60s
  max_parallel:
    description:
      - The maximum number of VMs to process at the same time.
      - On libvirt the limit is 16 because a daemon has 20 workers by default (C(max_workers)) for all its clients.
    type: int
    default: 16
"""

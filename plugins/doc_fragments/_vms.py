# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # Must be kept in sync with _VMS, _CHANGE and _WORK in plugins/module_utils/_options.py
    DOCUMENTATION = r"""
options:
  vm:
    description:
      - The VM, by its name, UUID or id. On libvirt the id is the UUID, on vSphere the managed object id, and on Proxmox VE the vmid, which has no UUIDs.
      - On vSphere an inventory path will do as well, on Proxmox VE the node and the vmid, as C(pve1/100).
      - The prefixes C(name:), C(uuid:), C(id:) and C(path:) say which of them is meant.
      - One VM only. For a list use the option C(vms).
      - Exactly one of the options that name VMs must be set.
    type: str
  vms:
    description:
      - Several VMs, each as in O(vm). One look-up and one wait serve them all.
    type: list
    elements: str
  owner:
    description:
      - Who the snapshots belong to. A snapshot is ours when its label names this owner. Every other one is foreign.
      - When it is not set, the environment variable E(SAFEPOINT_OWNER) is used.
    type: str
    default: safepoint
  label_key:
    description:
      - A secret of at least 16 characters with which labels are signed. A snapshot whose label is not signed with it is foreign then.
      - It keeps people who may edit descriptions, but not revert, from making a snapshot look like one of ours.
      - The signature covers the VM, the name of the snapshot, all fields of the label, and when the snapshot was taken (the field C(at)), by the clock of the
        hypervisor. C(at) is the time in which the call that took it had to end, and the exact time once a label is changed. So a signed text that is moved to
        another snapshot, or to a new VM with the id of a destroyed one, is foreign there.
      - It does not keep an older text of the same snapshot from being put back, for example one from before its O(ignore:hold).
      - With O(ignore:state=present) and an id, an unsigned label is signed.
      - When it is not set, the environment variable E(SAFEPOINT_LABEL_KEY) is used.
    type: str
"""

    CHANGE = r"""
options:
  targets:
    description:
      - Several VMs, each with the id of its own snapshot.
      - Use it instead of O(vm) or O(vms) and O(name) or O(id).
    type: list
    elements: dict
    suboptions:
      vm:
        description: The VM, as in O(vm).
        type: str
        required: true
      id:
        description: The id of its snapshot.
        type: str
        required: true
      labels:
        description:
          - What the label of the snapshot must say for anything to be done, keys to texts. A key with an empty value is one that it must not have.
          - Otherwise the VM fails with V(label_differs), and is left alone.
        type: dict
  name:
    description:
      - The name of the snapshot.
      - A new one may have up to 80 of the letters a-z and A-Z, digits, and C(. _ -), and begins with a letter or a digit.
        On libvirt it must not be a number below 1000000. On Proxmox VE it has 2 to 40 of them, no dot, and begins with a letter.
      - A name that matches several snapshots of a VM is an error that lists their ids.
    type: str
  id:
    description:
      - The id of the snapshot, as results show it. Only with a single VM. On libvirt the id is the name.
      - A snapshot that is named by its id may be a foreign one.
    type: str
  foreign:
    description:
      - Whether a snapshot of another owner, or of none, may be touched when it is found by its name.
      - A foreign snapshot is never taken over by its name with O(ignore:state=present), whatever this says.
    type: str
    choices:
      refuse: It is an error.
      allow: It is treated like one of ours.
    default: refuse
"""

    WORK = r"""
options:
  lock_timeout:
    description:
      - How long to wait for a VM that another operation holds, within O(timeout). A duration.
    type: str
    default: 60s
  max_parallel:
    description:
      - On how many VMs at most to work at the same time.
      - On libvirt it is 16 at most, since a daemon has 20 workers by default (C(max_workers)) for all its clients.
    type: int
    default: 16
"""

#!/usr/bin/python

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot
short_description: Take, label and remove snapshots of virtual machines
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Ensures that a snapshot of one or many virtual machines exists or does not exist.
  - A snapshot is identified by its name within a VM. The same task run twice creates one snapshot.
  - Every snapshot has a label, which is a line in its description. The label contains the owner, the expiry time and the fields of O(labels).
    Snapshots without a label of the O(owner) are foreign and are not changed.
  - After every write the state is read again. The result is the state that was read.
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
  idempotent:
    support: full
options:
  state:
    description:
      - The desired state of the snapshot.
      - With V(present) and O(id) or O(targets), the snapshot must exist. Its description and label are updated.
      - With V(absent), the snapshot is removed. Its children are kept unless O(children=remove).
    type: str
    choices:
      - present
      - absent
    default: present
  children:
    description:
      - With O(state=absent), the treatment of the snapshots that were taken on top of this one.
    type: str
    choices:
      keep: Keep them. Their new parent is the parent of the removed snapshot.
      remove: Remove them as well, the newest first. All of them must belong to the O(owner), unless O(foreign=allow). None of them may be on hold.
    default: keep
  kind:
    description:
      - The storage format of the snapshot on libvirt. Other backends have one kind only and refuse all values but V(auto).
      - Internal and external snapshots of one VM destroy each other and are never mixed. If the VM has snapshots, a new one must be of the same kind.
    type: str
    choices:
      auto: Internal if that is possible and meets all requirements of the task, otherwise external.
      internal: Inside the disk images. All writable disks must be qcow2.
      external: In a new image on top of each disk. The daemon must be able to revert to external snapshots, which needs libvirt 9.9 or later.
    default: auto
  memory:
    description:
      - If V(true), the snapshot must include the memory of the running VM. If that is impossible, the module fails before anything is written.
      - If V(false), the result shows whether memory is included. On libvirt an internal snapshot of a running VM always includes memory,
        and an external one includes it only with V(true).
      - After a revert to a snapshot without memory the VM is off, unless the revert starts it (O(safepoint.vm.snapshot_revert#module:power)).
    type: bool
    default: false
  quiesce:
    description:
      - Flush and freeze the file systems of the guest while the snapshot is taken.
      - A VM that is off needs no quiescing. Its snapshot is consistent.
      - On libvirt only external snapshots without memory can be quiesced, through the guest agent. If an error occurs while the guest is frozen,
        it is thawed from a second connection.
    type: str
    choices:
      never: Do not quiesce.
      prefer: Quiesce if possible. Otherwise the result has a warning, and C(consistency) shows what was obtained.
      require: Quiesce, or fail before anything is written. On Proxmox VE a failure is known only after the snapshot, which is then removed again.
    default: never
  description:
    description:
      - A description for human readers. If it is not set, the description of an existing snapshot is not changed.
    type: str
  expires:
    description:
      - The time after which the snapshot may be pruned, as a duration from its creation such as V(72h) or V(7d), or as an ISO 8601 time.
      - M(safepoint.vm.snapshot_prune) with O(safepoint.vm.snapshot_prune#module:expired=true) removes the snapshot after this time.
      - A duration requires a unit, one of C(s), C(m), C(h), C(d) and C(w). A time that is in the past by the clock of the endpoint is refused.
      - If it is not set, the expiry time of an existing snapshot is not changed.
    type: str
  labels:
    description:
      - Additional fields of the label, as a mapping of keys to strings.
      - The given keys are set, all others are kept. A key with an empty value is removed.
      - The key C(state) is the state of a guarded change (C(guarding), C(committed) or C(rolled_back)). The key C(lease) is an ISO 8601 time.
    type: dict
  hold:
    description:
      - Put the snapshot on hold (V(true)) or release it (V(false)).
      - A snapshot on hold cannot be removed, pruned, or discarded by a revert.
      - If it is not set, the hold of an existing snapshot is not changed.
    type: bool
  hold_by:
    description:
      - The person or team who put the snapshot on hold. It requires a hold and is removed with it.
    type: str
  hold_reason:
    description:
      - The reason for the hold. It requires a hold and is removed with it.
    type: str
  if_exists:
    description:
      - The action to take if a snapshot with this O(name) already exists.
    type: str
    choices:
      keep: Keep it, and update its description and label where they differ.
      fail: Fail.
    default: keep
  on_error:
    description:
      - The action to take on the other VMs when one fails.
      - With V(undo) and V(stop), nothing is written to any VM if the check before the first write refuses one of them.
      - A signal is not a failure of a VM, see O(timeout). After a signal nothing is undone.
    type: str
    choices:
      undo: Start no further VMs, and remove the snapshots that this call has created. With O(state=absent) the same as V(stop).
      stop: Start no further VMs, and leave the others as they are.
      continue: Continue with the other VMs.
    default: undo
seealso:
  - module: safepoint.vm.snapshot_info
  - module: safepoint.vm.snapshot_prune
  - module: safepoint.vm.snapshot_revert
"""

EXAMPLES = r"""
- name: Take a snapshot of two VMs before an upgrade
  safepoint.vm.snapshot:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    vms:
      - web01
      - web02
    name: before-upgrade
    description: CHG0042 kernel update
    expires: 72h
    labels:
      change: CHG0042
  delegate_to: localhost

- name: Put the snapshot on hold until the audit is done
  safepoint.vm.snapshot:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    vm: web01
    name: before-upgrade
    hold: true
    hold_by: ann
    hold_reason: incident 4711
  delegate_to: localhost

- name: Take a quiesced snapshot, or fail
  safepoint.vm.snapshot:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    vm: db01
    name: nightly
    quiesce: require
  delegate_to: localhost

- name: Remove a snapshot
  safepoint.vm.snapshot:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    vm: web02
    name: before-upgrade
    state: absent
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
      description: V(true) if the snapshots of the VM were changed. After a failure, V(true) if a change remains or cannot be ruled out.
      type: bool
      returned: always
    action:
      description:
        - One of V(created), V(updated), V(exists), V(removed), V(absent), V(lost_race), V(failed), V(unverified) and V(none).
        - V(unverified) means that a request was sent to the hypervisor and its outcome could not be determined in time.
        - V(lost_race) means that another run did the same at the same time, and that nothing of this run remains.
      type: str
      returned: always
      sample: created
    snapshot:
      description: The snapshot in its current state, its state before its removal, or in check mode its predicted state. Null if there is none.
      type: dict
      returned: always
      contains:
        id:
          description: The ID of the snapshot, unique within the VM. Null for a snapshot that would be created.
          type: str
          returned: always
          sample: before-upgrade
        name:
          description: The name of the snapshot.
          type: str
          returned: always
          sample: before-upgrade
        created:
          description: The creation time by the hypervisor, ISO 8601 in UTC. Null for a snapshot that would be created.
          type: str
          returned: always
          sample: "2026-11-23T08:00:00Z"
        parent:
          description: The ID of the parent snapshot, or null.
          type: str
          returned: always
        description:
          description: The description without the label.
          type: str
          returned: always
          sample: CHG0042 kernel update
        label:
          description: The label, as a mapping of keys to strings. Null if there is no valid label.
          type: dict
          returned: always
          sample: {owner: safepoint, change: CHG0042, expires: "2026-11-26T08:00:00Z"}
        ours:
          description: V(true) if the label belongs to the O(owner) and, with O(label_key), has the right signature.
          type: bool
          returned: always
        memory:
          description: V(true) if the snapshot includes the memory of the VM.
          type: bool
          returned: always
        consistency:
          description: The consistency of the snapshot, one of V(memory), V(filesystem) (quiesced), V(crash) and V(offline) (the VM was off).
          type: str
          returned: always
          sample: memory
        kind:
          description: On libvirt V(internal) or V(external). Null if the backend has one kind only.
          type: str
          returned: always
          sample: internal
        size_bytes:
          description: The size in bytes. Null if the backend does not report it.
          type: int
          returned: always
        size_unknown:
          description: The reason why the size is not known. Null if it is known.
          type: str
          returned: always
        current:
          description: V(true) if the current state of the VM is based directly on this snapshot.
          type: bool
          returned: always
    also_removed:
      description: The IDs of the snapshots that were removed in addition to the given one.
      type: list
      elements: str
      returned: always
    warnings:
      description: Warnings.
      type: list
      elements: str
      returned: always
    error:
      description: The error code of the failure on this VM, for example V(vm_not_found), V(foreign), V(unsupported) or V(timed_out).
      type: str
      returned: when the VM failed
      sample: snapshot_exists
    msg:
      description: The error message. It says what failed and what to do.
      type: str
      returned: when the VM failed
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
    run("snapshot", AnsibleModule(supports_check_mode=True, **OPTIONS["snapshot"]))


if __name__ == "__main__":
    main()

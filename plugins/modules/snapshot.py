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
  - Ensures that a snapshot of one or many virtual machines is there or is not there.
  - A snapshot is identified by its name within a VM, so that the same task run twice takes one snapshot.
  - Every snapshot carries a label, a line in its description that says whose it is, when it expires and what else was given as O(labels).
    Snapshots without a label of the O(owner) are foreign and are left alone.
  - After every write the state is read again. What is returned is what was seen.
  - While it works on the controller for more than two seconds, the terminal shows how far it is, at most every two seconds.
    Nothing is shown with C(no_log), C(async), or a stdout callback whose output is not meant for people.
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
      - Whether the snapshot is there.
      - With V(present) and O(id) or O(targets) the snapshot must exist, and its description and label are updated.
      - With V(absent) the snapshot is removed, alone unless O(children) says otherwise.
    type: str
    choices:
      - present
      - absent
    default: present
  children:
    description:
      - With O(state=absent), what happens to the snapshots that were taken on top of this one.
    type: str
    choices:
      keep: They stay, and stand on its parent from then on.
      remove: They are removed as well, the newest first. All of them must be ours, or O(foreign=allow), and none may be on hold.
    default: keep
  kind:
    description:
      - How libvirt keeps the snapshot. Other backends have one kind only, and refuse all but V(auto).
      - Internal and external snapshots of one VM destroy each other, and are never mixed. The kind of those there are decides.
    type: str
    choices:
      auto: Internal where that is possible and does all that is required, and else external.
      internal: Inside the disk images. All writable disks must be qcow2.
      external: In a new image on top of each disk. The daemon must be able to go back to such a snapshot, as libvirt can from 9.9 on.
    default: auto
  memory:
    description:
      - Whether the snapshot must hold the memory of the running VM. If that is impossible the module fails before anything is written.
      - If V(false), the result says what was obtained. On libvirt an internal snapshot of a running VM always holds its memory,
        and an external one holds it only when it is asked for.
      - Without its memory a VM comes back switched off, unless the revert is told to switch it on.
    type: bool
    default: false
  quiesce:
    description:
      - Whether the file systems in the guest are to be flushed and held for the moment of the snapshot.
      - A VM that is off is at rest, and so is its snapshot.
      - On libvirt only external snapshots without memory are quiesced, through the guest agent. Should anything go wrong meanwhile,
        the guest is thawed from a second connection.
    type: str
    choices:
      never: They are not.
      prefer: They are where that is possible. Where it is not, the result says so in its warnings and C(consistency).
      require: They are, or the module fails before anything is written. On Proxmox VE that is known only afterwards, and the snapshot is removed again.
    default: never
  description:
    description:
      - A text for people. When it is not set, the description of an existing snapshot stays as it is.
    type: str
  expires:
    description:
      - When the snapshot may be pruned, as a duration from its creation such as V(72h) or V(7d), or as an ISO 8601 time.
      - A duration needs its unit, one of C(s), C(m), C(h), C(d) and C(w). A time that is in the past by the clock of the endpoint is refused.
        M(safepoint.vm.snapshot_prune) with O(safepoint.vm.snapshot_prune#module:expired=true) removes it then.
      - When it is not set, the expiry of an existing snapshot stays as it is.
    type: str
  labels:
    description:
      - Further fields of the label, keys to texts.
      - The keys given here are set, all others stay as they are. A key with an empty value is removed.
      - The key C(state) is the state of a guarded change (C(guarding), C(committed) or C(rolled_back)), C(lease) an ISO 8601 time.
    type: dict
  hold:
    description:
      - Whether the snapshot is on hold. One that is held is neither removed, pruned nor discarded by a revert until it is released with V(false).
      - When it is not set, the hold of an existing snapshot stays as it is.
    type: bool
  hold_by:
    description:
      - Who put it on hold, for whoever meets it there. Goes with a hold, and is removed with it.
    type: str
  hold_reason:
    description:
      - Why it is on hold. Goes with a hold, and is removed with it.
    type: str
  if_exists:
    description:
      - What to do when a snapshot of the O(name) is there already.
    type: str
    choices:
      keep: It is the one that is wanted. Its description and label are updated where they differ.
      fail: It is an error.
    default: keep
  on_error:
    description:
      - What to do with the other VMs when one fails.
      - With V(undo) and V(stop), nothing is written to any VM when one of them is refused beforehand.
      - A signal is no failure of a VM, see O(timeout). After one nothing is undone.
    type: str
    choices:
      undo: Begin no further ones, and remove the snapshots that this call has created. With O(state=absent) the same as V(stop).
      stop: Begin no further ones, and leave the others as they are.
      continue: Go on with the others.
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

- name: Put it on hold until the auditors have seen it
  safepoint.vm.snapshot:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    vm: web01
    name: before-upgrade
    hold: true
    hold_by: ann
    hold_reason: incident 4711
  delegate_to: localhost

- name: Freeze the file systems for the moment of the snapshot, or fail
  safepoint.vm.snapshot:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    vm: db01
    name: nightly
    quiesce: require
  delegate_to: localhost

- name: Remove it
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
      description: Whether the VM's snapshots are changed. When something failed, whether anything is left changed.
      type: bool
      returned: always
    action:
      description:
        - One of V(created), V(updated), V(exists), V(removed), V(absent), V(lost_race), V(failed), V(unverified) and V(none).
        - V(unverified) means that something was sent to the hypervisor, and that it could not be seen in time whether it was done.
        - V(lost_race) means that another run did the same at the same time, and that nothing is left of this one.
      type: str
      returned: always
      sample: created
    snapshot:
      description: The snapshot as it is now, as it was before its removal, or in check mode as it would be. Null where there is none.
      type: dict
      returned: always
      contains:
        id:
          description: What tells the snapshot from all others of the VM. Null for one that would be created.
          type: str
          returned: always
          sample: before-upgrade
        name:
          description: Its name.
          type: str
          returned: always
          sample: before-upgrade
        created:
          description: When the hypervisor took it, ISO 8601 in UTC. Null for one that would be created.
          type: str
          returned: always
          sample: "2026-11-23T08:00:00Z"
        parent:
          description: The id of the snapshot it was taken on, or null.
          type: str
          returned: always
        description:
          description: Its description without the label.
          type: str
          returned: always
          sample: CHG0042 kernel update
        label:
          description: The label, keys to texts. Null where there is none, or none that is valid.
          type: dict
          returned: always
          sample: {owner: safepoint, change: CHG0042, expires: "2026-11-26T08:00:00Z"}
        ours:
          description: Whether the label names the O(owner), and has the right signature where O(label_key) is set.
          type: bool
          returned: always
        memory:
          description: Whether it holds the memory of the VM.
          type: bool
          returned: always
        consistency:
          description: What was obtained, one of V(memory), V(filesystem) (quiesced), V(crash) and V(offline) (the VM was off).
          type: str
          returned: always
          sample: memory
        kind:
          description: On libvirt V(internal) or V(external). Null where the backend has one kind only.
          type: str
          returned: always
          sample: internal
        size_bytes:
          description: Its size in bytes. Null where the backend does not tell.
          type: int
          returned: always
        size_unknown:
          description: Why the size is not known, where it is not.
          type: str
          returned: always
        current:
          description: Whether the present state of the VM descends from it directly.
          type: bool
          returned: always
    also_removed:
      description: The ids of the snapshots that were removed together with the one that was named.
      type: list
      elements: str
      returned: always
    warnings:
      description: What did not go as one might think.
      type: list
      elements: str
      returned: always
    error:
      description: A code word for what failed on this VM, for example V(vm_not_found), V(foreign), V(unsupported) or V(timed_out).
      type: str
      returned: when the VM failed
      sample: snapshot_exists
    msg:
      description: What failed, and what to do about it.
      type: str
      returned: when the VM failed
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
    run("snapshot", AnsibleModule(supports_check_mode=True, **OPTIONS["snapshot"]))


if __name__ == "__main__":
    main()

#!/usr/bin/python

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_revert
short_description: Return virtual machines to a snapshot
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Returns one or many virtual machines to a snapshot. Everything that happened in them since is lost.
  - A snapshot that is not there is a failure, never an ok.
  - A revert always discards what happened since, and so always reports a change.
  - On libvirt a revert restarts the QEMU process, so that all connections into the guest break, and brings back the whole
    configuration of the VM as it was. The guest's clock is set to the present through its agent where it has one.
  - Memory that libvirt saved to disk later than the snapshot (managed save) is dropped with a warning, since it does not fit the disks of then.
  - A snapshot stays when a VM was returned to it, and can be used again.
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
    details:
      - The diff shows the snapshots, those that would be lost among them, and what the revert does to the configuration of the VM (CPUs, memory,
        disks, networks). The configuration is read only when a diff is asked for.
      - What changed inside the guests is not known.
  idempotent:
    support: none
    details: A revert discards what happened since the last one.
options:
  select:
    description:
      - Take the newest snapshot that fits, instead of one with a O(name) or O(id).
      - Only snapshots of the O(owner) fit, unless O(foreign=allow).
    type: str
    choices:
      newest: The newest one.
      before: The newest one that was taken before the O(time).
  labels:
    description:
      - With O(select), fields that the label must have, keys to texts. A key with an empty value is one that it must not have.
    type: dict
  time:
    description:
      - With O(select=before), an ISO 8601 time, or how long ago as a duration with its unit, such as V(24h).
    type: str
  power:
    description:
      - The power state to end in.
    type: str
    choices:
      as_snapshot: As it was when the snapshot was taken. Without its memory in the snapshot a VM comes back switched off.
      "on": Running. A snapshot of a VM that was off is started.
      "off": Off. The memory in the snapshot is not used. Refused for a transient libvirt VM, which would cease to exist.
    default: as_snapshot
  discard_newer:
    description:
      - Also remove the snapshots that were taken on top of this one, newest first, after the revert has worked.
      - On storage that can only go back to its newest snapshot (ZFS and volume chains on Proxmox VE) they are removed first. Should the revert fail then,
        they are gone.
      - They must be ours. Foreign ones among them need O(foreign=allow) as well, and one on hold is an error.
      - If V(false) they stay. Where the backend could not go back without their removal, that is an error that names them.
    type: bool
    default: false
  on_error:
    description:
      - What to do with the other VMs when one fails. A revert is never undone.
      - With V(stop), nothing is written to any VM when one of them is refused beforehand.
    type: str
    choices:
      stop: Begin no further ones, and leave the others as they are.
      continue: Go on with the others.
    default: stop
seealso:
  - module: safepoint.vm.snapshot
  - module: safepoint.vm.snapshot_info
"""

EXAMPLES = r"""
- name: Return to the state before the upgrade
  safepoint.vm.snapshot_revert:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    vm: web01
    name: before-upgrade
  delegate_to: localhost

- name: Return to the last known good state of before the incident
  safepoint.vm.snapshot_revert:
    backend: libvirt
    uri: qemu+ssh://root@kvm01/system
    vm: web01
    select: before
    time: "2026-11-23T03:00:00Z"
    labels:
      quality: known-good
  delegate_to: localhost

- name: Reset the test machines, and be sure that they run
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
    - What happened to each VM, in the order they were named. Also returned when some of them failed.
    - The rows are those of M(safepoint.vm.snapshot). RV(vms[].action) is V(reverted), V(failed), V(unverified) or V(none).
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
      description: What was done.
      type: str
      returned: always
      sample: reverted
    also_removed:
      description: The ids of the newer snapshots that were removed because of O(discard_newer).
      type: list
      elements: str
      returned: always
error:
  description: The code word of the first failure.
  returned: failure
  type: str
  sample: snapshot_not_found
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.safepoint.vm.plugins.module_utils._module import run
from ansible_collections.safepoint.vm.plugins.module_utils._options import OPTIONS


def main() -> None:
    run("snapshot_revert", AnsibleModule(supports_check_mode=True, **OPTIONS["snapshot_revert"]))


if __name__ == "__main__":
    main()

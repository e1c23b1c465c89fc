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
    snapshots:
      description: Its snapshots, each as C(snapshot) in the results of M(safepoint.vm.snapshot).
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
          memory: true
          consistency: memory
          size_bytes: null
          current: true
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
error:
  description: The code word of the first failure.
  returned: failure
  type: str
  sample: connection_failed
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.safepoint.vm.plugins.module_utils._module import CONNECTION_SPEC, INFO_RULES, VMS_SPEC, run


def main():
    module = AnsibleModule(argument_spec={**CONNECTION_SPEC, **VMS_SPEC}, supports_check_mode=True, **INFO_RULES)
    run(module, None)


if __name__ == "__main__":
    main()

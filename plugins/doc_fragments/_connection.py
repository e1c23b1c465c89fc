# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # Must be kept in sync with _CONNECTION in plugins/module_utils/_options.py
    DOCUMENTATION = r"""
options:
  backend:
    description:
      - The API of the hypervisor.
    type: str
    required: true
    choices:
      libvirt: libvirt with QEMU, at the connection URI O(uri).
      proxmox: Proxmox VE 8.4 and later, virtual machines and containers, through any node of the cluster (O(hostname)), with O(token_id) and O(token_secret) or
        O(username) and O(password).
      vsphere: VMware vCenter or ESXi 6.5 and later, through O(hostname), O(username) and O(password).
  uri:
    description:
      - With O(backend=libvirt), the connection URI, for example V(qemu:///system) or V(qemu+ssh://root@kvm01/system).
      - If it is not set, the environment variable E(LIBVIRT_DEFAULT_URI) of the machine that runs the module is used.
      - With C(qemu+ssh) the host key of the server must be known, and the login must work with a key and without a prompt.
      - A password in the URI is refused because libvirt does not use it.
    type: str
  hostname:
    description:
      - With O(backend=vsphere), the vCenter or ESXi host. With O(backend=proxmox), any node of the cluster.
      - A host name or an address only, without scheme, user or port. An IPv6 address may be in brackets.
      - If it is not set, the environment variable E(VMWARE_HOST) or E(PROXMOX_HOST) of the machine that runs the module is used.
    type: str
  port:
    description:
      - The port of O(hostname).
      - If it is not set, the environment variable E(VMWARE_PORT) or E(PROXMOX_PORT) is used, otherwise 443 for vSphere and 8006 for Proxmox VE.
    type: int
  username:
    description:
      - The user to log in as. On Proxmox VE it includes the realm, for example V(root@pam).
      - If it is not set, the environment variable E(VMWARE_USER) or E(PROXMOX_USER) is used.
    type: str
  password:
    description:
      - The password of the user.
      - If it is not set, the environment variable E(VMWARE_PASSWORD) or E(PROXMOX_PASSWORD) is used.
      - The module fails if a name, a label or a description contains the value of this or another secret option, because Ansible removes the value from all
        results, including IDs.
    type: str
  token_id:
    description:
      - With O(backend=proxmox), the API token to use instead of a password, for example V(automation@pve!safepoint).
      - If O(username) is set, the name of the token is enough.
      - If neither it nor O(password) is set, the environment variable E(PROXMOX_TOKEN_ID) is used.
    type: str
  token_secret:
    description:
      - The secret of the API token.
      - If it is not set, the environment variable E(PROXMOX_TOKEN_SECRET) is used.
    type: str
  validate_certs:
    description:
      - If V(true), the certificate of the server must be trusted and must match O(hostname).
      - If it is not set, the environment variable E(VMWARE_VALIDATE_CERTS) or E(PROXMOX_VALIDATE_CERTS) is used, otherwise V(true).
    type: bool
  ca_path:
    description:
      - A file with CA certificates in PEM format to use instead of those of the system. The file must exist on the machine that runs the module.
    type: path
  connect_timeout:
    description:
      - The maximum time to establish the connection.
      - A duration such as V(15s) or V(2m), or a number of seconds.
    type: str
    default: 15s
  timeout:
    description:
      - The maximum run time of the module, for all VMs and requests together, including the login.
      - After this time the module fails and reports the operations that were running. Tasks that the hypervisor has started continue there.
      - The module may need up to 20 more seconds to read the final state and to undo with O(ignore:on_error=undo).
      - On SIGINT or SIGTERM the module starts nothing more, undoes nothing, and ends within five seconds with RV(ignore:error=interrupted). Its results show
        which VMs are done, which were not started (V(not_started)), and which tasks still run at the hypervisor (V(interrupted)). If an operation has several
        steps, such as a revert and a start, the remaining steps are not done.
      - A duration such as V(90s), V(15m) or V(2h), or a number of seconds.
    type: str
    default: 15m
requirements:
  - libvirt-python for libvirt, proxmoxer and requests for Proxmox VE, pyVmomi for vSphere.
  - They are needed on the machine that runs the module. Usually this is the controller, with C(delegate_to=localhost).
"""

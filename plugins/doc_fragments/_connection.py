# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # Must be kept in sync with _CONNECTION in plugins/module_utils/_options.py
    DOCUMENTATION = r"""
options:
  backend:
    description:
      - Which API the VMs are managed through.
    type: str
    required: true
    choices:
      libvirt: libvirt with QEMU, through the connection O(uri).
      proxmox: Proxmox VE 8.4 and later, virtual machines and containers, through any node of the cluster (O(hostname)), with O(token_id) and O(token_secret) or
        O(username) and O(password).
      vsphere: VMware vCenter or ESXi 6.5 and later, through O(hostname), O(username) and O(password).
  uri:
    description:
      - With O(backend=libvirt), the connection URI, for example V(qemu:///system) or V(qemu+ssh://root@kvm01/system).
      - When it is not set, the environment variable E(LIBVIRT_DEFAULT_URI) of the machine that runs the module is used.
      - With C(qemu+ssh) the server's host key must be known and a key must log in without a question. Nothing is ever asked on a terminal.
      - A password in the URI is refused, libvirt does not use it.
    type: str
  hostname:
    description:
      - With O(backend=vsphere), the vCenter or ESXi host. With O(backend=proxmox), any node of the cluster.
      - A name or an address alone, without scheme, user or port. An IPv6 address may be in brackets.
      - When it is not set, the environment variable E(VMWARE_HOST) or E(PROXMOX_HOST) of the machine that runs the module is used.
    type: str
  port:
    description:
      - Its port. When it is not set, the environment variable E(VMWARE_PORT) or E(PROXMOX_PORT) is used, and else 443 for vSphere and 8006 for Proxmox VE.
    type: int
  username:
    description:
      - The user to log in as, for Proxmox VE with its realm, such as V(root@pam).
      - When it is not set, the environment variable E(VMWARE_USER) or E(PROXMOX_USER) is used.
    type: str
  password:
    description:
      - The user's password. When it is not set, the environment variable E(VMWARE_PASSWORD) or E(PROXMOX_PASSWORD) is used.
      - A call is refused when a name, a label or a description in it contains this text or that of another secret option, since Ansible cuts it out of all
        results, ids included.
    type: str
  token_id:
    description:
      - With O(backend=proxmox), the API token to use instead of a password, such as V(automation@pve!safepoint), or its name alone beside O(username).
      - When it is not set, and O(password) is not either, the environment variable E(PROXMOX_TOKEN_ID) is used.
    type: str
  token_secret:
    description:
      - The token's secret. When it is not set, the environment variable E(PROXMOX_TOKEN_SECRET) is used.
    type: str
  validate_certs:
    description:
      - Whether the server's certificate must be one that is trusted, and be made out to O(hostname).
      - When it is not set, the environment variable E(VMWARE_VALIDATE_CERTS) or E(PROXMOX_VALIDATE_CERTS) is used, and else V(true).
    type: bool
  ca_path:
    description:
      - A file of CA certificates in PEM that are trusted instead of the system's. The file must exist on the machine that runs the module.
    type: path
  connect_timeout:
    description:
      - How long the connection may take to come about.
      - A duration such as V(15s), V(2m) or a bare number of seconds.
    type: str
    default: 15s
  timeout:
    description:
      - How long the module may take, the login included, over all VMs and requests.
      - When the time is up the module fails and says what was under way. Work that the hypervisor has begun goes on there.
      - Reading again, and undoing with O(ignore:on_error=undo), may go on for 20 seconds after that.
      - On a SIGINT or SIGTERM the module begins nothing more and undoes nothing, and ends within five seconds with RV(ignore:error=interrupted). Its rows say
        what was done, what was not begun (V(not_started)), and which tasks still run at the hypervisor (V(interrupted)). Of a job of several steps, such as a
        revert and the start after it, those that were not begun are not done then.
      - A duration such as V(90s), V(15m), V(2h) or a bare number of seconds.
    type: str
    default: 15m
requirements:
  - libvirt-python for libvirt, proxmoxer and requests for Proxmox VE, pyVmomi for vSphere.
  - They are needed on the machine that runs the module. Usually that is the controller, by C(delegate_to=localhost).
"""

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The domain XML of the lab: the minimum for a fast start under TCG."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

_AGENT_CHANNEL = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"


def tiny_xml(
    name: str,
    *,
    images: Iterable[tuple[Path, str]],
    memory_mib: int,
    uuid: str | None,
    loader: Path | None,
    nvram: Path | None = None,
    agent: bool,
    extra_devices: str,
) -> str:
    """Return a domain without a kernel; `loader` is a firmware image that is mapped as flash, like UEFI's.

    libvirt also requires an image for the variables: the qcow2 `nvram`, or a raw one that it creates. Its contents are not used here.
    """
    flash = ""
    if loader:
        variables = f"<nvram template={quoteattr(str(loader))}/>"
        if nvram:
            variables = f"<nvram format='qcow2'>{escape(str(nvram))}</nvram>"
        flash = f"<loader readonly='yes' type='pflash'>{escape(str(loader))}</loader>{variables}"
    return f"""
<domain type='qemu'>
  <name>{escape(name)}</name>
  {f"<uuid>{escape(uuid)}</uuid>" if uuid else ""}
  <memory unit='MiB'>{memory_mib}</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type>{flash}</os>
  <features><acpi/></features>
  <devices>
    {_disks(images)}
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    {_AGENT_CHANNEL if agent else ""}
    {extra_devices}
  </devices>
</domain>"""


def guest_xml(name: str, *, disk: Path, kernel: Path, initrd: Path, console: Path, port: int, memory_mib: int) -> str:
    """Return a Linux guest that boots `kernel` directly, with SSH at 127.0.0.1:`port`."""
    # libvirt 9.0 has no port forwarding for slirp, and Debian's build refuses passt: so QEMU's own options are used.
    # restrict=on: no outgoing connections of the guest. addr: a slot that libvirt does not assign itself. romfile=: no PXE ROM.
    network = f"user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"
    return f"""
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{escape(name)}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{escape(str(kernel))}</kernel>
    <initrd>{escape(str(initrd))}</initrd>
    <cmdline>console=ttyS0 quiet guest_name={escape(name)}</cmdline>
  </os>
  <features><acpi/></features>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <devices>
    {_disks([(disk, "qcow2")])}
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <serial type='file'><source path={quoteattr(str(console))}/></serial>
    {_AGENT_CHANNEL}
  </devices>
  <qemu:commandline>
    <qemu:arg value='-netdev'/><qemu:arg value='{network}'/>
    <qemu:arg value='-device'/><qemu:arg value='virtio-net-pci,netdev=n0,addr=0x1c,romfile='/>
  </qemu:commandline>
</domain>"""


def _disks(images: Iterable[tuple[Path, str]]) -> str:
    return "\n    ".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='{kind}'/><source file={quoteattr(str(path))}/>"
        f"<target dev='vd{chr(ord('a') + n)}' bus='virtio'/></disk>"
        for n, (path, kind) in enumerate(images)
    )

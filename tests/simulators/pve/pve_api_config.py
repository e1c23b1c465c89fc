# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""API calls for configurations and for the features of a guest's storage."""

from __future__ import annotations

import re
import typing as t

from pve_api_guests import AUDIT, skips_lock
from pve_errors import Died, bad_parameters
from pve_guests import stored
from pve_routes import Call, routes
from pve_schema import BOOLEAN, EXTRA, SNAPNAME, STRING, Parameter
from pve_storage import STORAGES, storage_of

BOOLEANS = {"acpi", "autostart", "console", "kvm", "numa", "onboot", "protection", "tablet", "template", "unprivileged"}
NUMBERS = {
    "qemu": {"balloon", "cores", "cpuunits", "shares", "sockets", "vcpus"},
    "lxc": {"cores", "cpuunits", "memory", "swap", "tty"},
}
TEXTS = {
    "qemu": {
        *("agent", "args", "bios", "boot", "bootdisk", "cipassword", "ciuser", "cpu", "description", "hookscript", "hotplug"),
        *("lock", "machine", "memory", "name", "nameserver", "ostype", "scsihw", "searchdomain", "smbios1", "sshkeys"),
        *("startup", "tags", "vga", "vmgenid", "vmstatestorage"),
    },
    "lxc": {
        *("arch", "cmode", "description", "features", "hookscript", "hostname", "lock", "nameserver", "ostype"),
        *("searchdomain", "startup", "tags", "timezone"),
    },
}
NUMBERED = {
    "qemu": re.compile(
        r"(efidisk|hostpci|ide|ipconfig|net|numa|parallel|sata|scsi|serial|tpmstate|unused|usb|virtio|virtiofs)\d+$"
    ),
    "lxc": re.compile(r"(rootfs|(dev|mp|net|unused)\d+)$"),
}
# The privileges for changes in general, and for single options.
MODIFY = {
    "qemu": tuple(f"VM.Config.{one}" for one in ("Disk", "CDROM", "CPU", "Memory", "Network", "HWType", "Options", "Cloudinit")),
    "lxc": tuple(f"VM.Config.{one}" for one in ("Disk", "CPU", "Memory", "Network", "Options")),
}
OPTION_RIGHTS = [
    (re.compile(r"(memory|balloon|shares|swap)$"), "VM.Config.Memory"),
    (re.compile(r"(cores|sockets|cpu|vcpus|cpuunits|numa\d*)$"), "VM.Config.CPU"),
    (re.compile(r"(net\d+|nameserver|searchdomain)$"), "VM.Config.Network"),
    (re.compile(r"((scsi|virtio|sata|ide|efidisk|tpmstate|unused|mp)\d+|rootfs)$"), "VM.Config.Disk"),
]


@routes.add(
    "GET",
    "/nodes/{node}/{type}/{vmid}/config",
    privileges=AUDIT,
    parameters={"current": BOOLEAN, "snapshot": Parameter(format="configid", longest=40)},
)
def read_config(call: Call) -> dict[str, t.Any]:
    """Return the present configuration, or that of a snapshot."""
    guest = call.cluster.load(call.place)
    name = call.values.get("snapshot")
    if name:
        return {**guest.snapshot(name).section, "digest": guest.digest()}
    # Without `current`, pending changes are included.
    return {**(guest.config if call.values.get("current") else guest.planned()), "digest": guest.digest()}


def update_parameters(guest_type: str) -> dict[str, Parameter]:
    """The parameters of a change besides the options of a guest."""
    common = {"delete": STRING, "digest": Parameter(longest=40), "revert": STRING}
    return common | {"skiplock": BOOLEAN, "force": BOOLEAN} if guest_type == "qemu" else common


@routes.add("PUT", "/nodes/{node}/qemu/{vmid}/config", parameters=update_parameters("qemu"), privileges=MODIFY["qemu"], open=True)
async def update_vm(call: Call) -> None:
    """Change a VM. Changes that PVE would keep pending until the next start take effect at once."""
    call.type = "qemu"
    await _update(call, skip_lock=skips_lock(call))


@routes.add("PUT", "/nodes/{node}/lxc/{vmid}/config", parameters=update_parameters("lxc"), privileges=MODIFY["lxc"], open=True)
async def update_container(call: Call) -> None:
    """Change a container; locks cannot be skipped."""
    call.type = "lxc"
    await _update(call, skip_lock=False)


async def _update(call: Call, *, skip_lock: bool) -> None:
    own = {"node", "vmid", *update_parameters(call.type)}
    changes = {name: _typed(call.type, name, value) for name, value in call.values.items() if name not in own}
    removed = [name for name in re.split(r"[,;\s]+", call.values.get("delete", "")) if name]
    if not changes and not removed:
        raise Died("no options specified")
    for name in [*changes, *removed]:
        _check_option(call, name)
    async with call.cluster.config(call.place) as guest:
        if call.values.get("digest") not in (None, guest.digest()):
            raise Died("detected modified configuration - file changed by other user? Try again.")
        if not skip_lock:
            guest.check_lock()
        for name in removed:
            guest.config.pop(name, None)
        for name, value in changes.items():
            kept = stored(call.type, value) if name == "description" else value
            if kept is None:
                guest.config.pop(name, None)
            else:
                guest.config[name] = kept


def _typed(guest_type: str, name: str, value: str) -> t.Any:
    """Return the value of an option; Refused for an unknown option."""
    if name in BOOLEANS or name in NUMBERS[guest_type]:
        parameter = Parameter("boolean" if name in BOOLEANS else "integer")
        fault = parameter.fault(value)
        if fault:
            raise bad_parameters({name: fault})
        return int(value)
    if name in TEXTS[guest_type] or NUMBERED[guest_type].match(name):
        return value
    raise bad_parameters({name: EXTRA})


def _check_option(call: Call, name: str) -> None:
    if call.user == "root@pam":
        return
    if name in ("lock", "args", "hookscript") and call.type == "qemu":
        raise Died(f"only root can set '{name}' config")
    needed = next((privilege for pattern, privilege in OPTION_RIGHTS if pattern.match(name)), "VM.Config.Options")
    vmid = call.place.vmid
    call.cluster.access.check(call.user, f"/vms/{vmid}", [needed], call.cluster.pool_of(vmid))


@routes.add(
    "GET",
    "/nodes/{node}/{type}/{vmid}/feature",
    privileges=AUDIT,
    parameters={
        "feature": Parameter(optional=False, choices=("snapshot", "clone", "copy")),
        "snapname": Parameter(format=SNAPNAME.format, longest=SNAPNAME.longest),
    },
)
def feature(call: Call) -> dict[str, t.Any]:
    """Return if the disks support a feature. It does not report that a storage can only revert to the newest snapshot."""
    guest = call.cluster.load(call.place)
    name = call.values.get("snapname")
    section = guest.snapshot(name).section if name else guest.config
    volids = [volid for _, volid in guest.disks(section)]
    able = call.values["feature"] == "copy" or all(call.cluster.volumes.can_snapshot(volid, guest.type) for volid in volids)
    answer: dict[str, t.Any] = {"hasFeature": int(able)}
    if guest.type == "qemu":
        shared = all(volid.startswith("rbd:") for volid in volids)
        answer["nodes"] = list(call.cluster.nodes) if shared else [guest.node]
    return answer


# -- storages --------------------------------------------------------------------------------------------------------------

STORAGE_RIGHTS = ("Datastore.Audit", "Datastore.AllocateSpace")


@routes.add("GET", "/storage", parameters={"type": STRING})
def storages(call: Call) -> list[dict[str, t.Any]]:
    """List the storages of the cluster that the user may see."""
    rows = []
    for name, storage in STORAGES.items():
        if call.allowed(f"/storage/{name}", *STORAGE_RIGHTS):
            rows.append({"storage": name, "type": storage.kind, "content": "images,rootdir", "digest": "0" * 40})
            if storage.kind == "dir" and storage.newest_only:
                rows[-1]["snapshot-as-volume-chain"] = 1
    return rows


@routes.add("GET", "/nodes/{node}/storage/{storage}/status")
def storage_status(call: Call) -> dict[str, t.Any]:
    """Return the status of one storage. The privilege is checked before the storage is looked up."""
    name = call.values["storage"]
    call.cluster.access.check(call.user, f"/storage/{name}", STORAGE_RIGHTS)
    return {"type": storage_of(f"{name}:").kind, "active": 1, "enabled": 1, "content": "images,rootdir"}

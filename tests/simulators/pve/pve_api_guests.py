# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""API calls for guests: lists, status and power."""

from __future__ import annotations

import time
import typing as t

from pve_errors import Died, bad_parameters
from pve_guests import WORDS, Guest
from pve_routes import Call, routes
from pve_schema import BOOLEAN, COUNT, STRING, Parameter
from pve_workers import resume_guest, start_guest, stop_guest, suspend_guest

AUDIT = ("VM.Audit",)
POWER = ("VM.PowerMgmt",)
ROOT_ONLY = "Only root may use this option."


def status_row(guest: Guest) -> dict[str, t.Any]:
    """The fields that the list of a node and the status of a guest share."""
    running = guest.running
    row: dict[str, t.Any] = {
        "vmid": guest.vmid,
        "name": guest.name,
        "status": guest.status,
        "cpu": 0,
        "cpus": int(guest.config.get("cores") or 1),
        "disk": 0,
        "maxdisk": guest.disk_bytes(),
        "maxmem": guest.memory_bytes(),
        "mem": guest.memory_bytes() // 2 if running else 0,
        "netin": 0,
        "netout": 0,
        "uptime": int(time.time() - guest.started) if running else 0,
    }
    if guest.type == "qemu":
        row["memhost"] = row["mem"]
    else:
        row |= {"type": "lxc", "swap": 0, "maxswap": int(guest.config.get("swap") or 0) << 20}
    if running:
        row |= {"pid": 10000 + guest.vmid, "diskread": 0, "diskwrite": 0}
    if guest.is_template:
        row["template"] = 1
    for key in ("lock", "tags"):
        if guest.config.get(key):
            row[key] = guest.config[key]
    return row


def skips_lock(call: Call) -> bool:
    """Return True if `skiplock` was set. Only allowed for root itself, not for a token of root (qemu-server 9.2.6)."""
    if call.values.get("skiplock") and call.user != "root@pam":
        raise bad_parameters({"skiplock": ROOT_ONLY})
    return bool(call.values.get("skiplock"))


def list_parameters(guest_type: str) -> dict[str, Parameter]:
    """The parameters of a node's list."""
    return {"full": BOOLEAN} if guest_type == "qemu" else {}


@routes.add("GET", "/nodes/{node}/{type}", parameters=list_parameters)
def list_guests(call: Call) -> list[dict[str, t.Any]]:
    """List the guests of one kind on one node, with current data."""
    # Only `full` queries each QEMU.
    full = call.type == "qemu" and call.values.get("full")
    return [
        status_row(guest) | ({"qmpstatus": _qmp_status(guest)} if full else {})
        for guest in call.cluster.guests.values()
        if (guest.node, guest.type) == (call.values["node"], call.type) and call.allowed_guest(guest.vmid, *AUDIT)
    ]


def _qmp_status(guest: Guest) -> str:
    """QEMU's own status, which includes paused."""
    return "paused" if guest.paused else guest.status


@routes.add("GET", "/nodes/{node}/{type}/{vmid}/status/current", privileges=AUDIT)
def status_current(call: Call) -> dict[str, t.Any]:
    """The status of a guest."""
    guest = call.cluster.load(call.place)
    row = status_row(guest)
    row["ha"] = {"managed": 1, "state": guest.ha_state} if guest.managed else {"managed": 0}
    if guest.type == "qemu":
        row["qmpstatus"] = _qmp_status(guest)
        if guest.config.get("agent"):
            row["agent"] = 1
        if guest.running:
            row |= {"running-machine": "pc-i440fx-10.0+pve0", "running-qemu": "10.0.2"}
    return row


def start_parameters(guest_type: str) -> dict[str, Parameter]:
    """The parameters of a start."""
    common = {"skiplock": BOOLEAN}
    if guest_type == "lxc":
        return common | {"debug": BOOLEAN}
    texts = ("force-cpu", "machine", "migratedfrom", "migration_network", "migration_type", "nets-host-mtu", "stateuri")
    return common | dict.fromkeys((*texts, "targetstorage"), STRING) | {"timeout": COUNT, "with-conntrack-state": BOOLEAN}


@routes.add("POST", "/nodes/{node}/{type}/{vmid}/status/start", privileges=POWER, parameters=start_parameters)
def start(call: Call) -> str:
    """Start a guest. For a running container the request fails, for a running VM the task fails."""
    skip_lock = skips_lock(call)
    if call.type == "lxc" and call.cluster.load(call.place).running:
        raise Died(f"CT {call.place.vmid} already running")
    return start_guest(call.cluster, call.place, call.user, skip_lock=skip_lock)


def stop_parameters(guest_type: str) -> dict[str, Parameter]:
    """The parameters of a stop."""
    common = {"skiplock": BOOLEAN, "overrule-shutdown": BOOLEAN}
    return common if guest_type == "lxc" else common | {"keepActive": BOOLEAN, "migratedfrom": STRING, "timeout": COUNT}


def shutdown_parameters(guest_type: str) -> dict[str, Parameter]:
    """The parameters of a shutdown."""
    common = {"forceStop": BOOLEAN, "timeout": COUNT}
    return common if guest_type == "lxc" else common | {"keepActive": BOOLEAN, "skiplock": BOOLEAN}


@routes.add("POST", "/nodes/{node}/{type}/{vmid}/status/stop", privileges=POWER, parameters=stop_parameters)
def stop(call: Call) -> str:
    """Stop a guest at once."""
    return _stop(call, "stop")


@routes.add("POST", "/nodes/{node}/{type}/{vmid}/status/shutdown", privileges=POWER, parameters=shutdown_parameters)
def shutdown(call: Call) -> str:
    """Shut a guest down; it always succeeds here."""
    return _stop(call, "shutdown")


@routes.add(
    "POST",
    "/nodes/{node}/qemu/{vmid}/status/suspend",
    privileges=POWER,
    parameters={"skiplock": BOOLEAN, "todisk": BOOLEAN, "statestorage": STRING},
)
def suspend(call: Call) -> str:
    """Pause a VM, or suspend it to disk."""
    call.type = "qemu"
    return suspend_guest(call.cluster, call.place, call.user, to_disk=call.values.get("todisk", False))


@routes.add(
    "POST", "/nodes/{node}/qemu/{vmid}/status/resume", privileges=POWER, parameters={"skiplock": BOOLEAN, "nocheck": BOOLEAN}
)
def resume(call: Call) -> str:
    """Resume a VM."""
    call.type = "qemu"
    return resume_guest(call.cluster, call.place, call.user)


def _stop(call: Call, verb: str) -> str:
    skip_lock = skips_lock(call)
    if call.type == "lxc" and not call.cluster.load(call.place).running:
        raise Died(f"{WORDS[call.type]} {call.place.vmid} not running")
    prefix = "qm" if call.type == "qemu" else "vz"
    return stop_guest(call.cluster, call.place, call.user, prefix + verb, skip_lock=skip_lock)

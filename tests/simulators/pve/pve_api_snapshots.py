# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""API calls for snapshots."""

from __future__ import annotations

import random
import typing as t

from pve_api_guests import AUDIT
from pve_errors import Refused
from pve_guests import stored
from pve_routes import Call, routes
from pve_schema import BOOLEAN, SNAPNAME, STRING, Parameter
from pve_tasks import Task
from pve_workers import Snapshots

BASE = "/nodes/{node}/{type}/{vmid}/snapshot"
SNAPSHOT = ("VM.Snapshot",)
ROLLBACK = ("VM.Snapshot", "VM.Snapshot.Rollback")
READ = ("VM.Snapshot", "VM.Snapshot.Rollback", "VM.Audit")


@routes.add("GET", BASE, privileges=AUDIT)
def list_snapshots(call: Call) -> list[dict[str, t.Any]]:
    """List the snapshots, with one row more for the present state of the guest."""
    guest = call.cluster.load(call.place)
    rows = []
    for name, snapshot in guest.snapshots.items():
        section = snapshot.section
        text = section.get("description")
        # "0" is false in Perl, so this row has no description then.
        row = {"name": name, "snaptime": section.get("snaptime", 0), "description": text if text and text != "0" else ""}
        if guest.type == "qemu":
            row["vmstate"] = int(bool(section.get("vmstate")))
        row |= {key: section[key] for key in ("parent", "snapstate") if section.get(key)}
        rows.append(row)
    # PVE iterates over a Perl hash: the order differs in each answer.
    random.shuffle(rows)
    current = {"name": "current", "digest": guest.digest(), "running": int(guest.running), "description": "You are here!"}
    if guest.config.get("parent"):
        current["parent"] = guest.config["parent"]
    return [*rows, current]


def create_parameters(guest_type: str) -> dict[str, Parameter]:
    """The parameters of a create."""
    common = {"snapname": SNAPNAME, "description": STRING}
    return common | {"vmstate": BOOLEAN} if guest_type == "qemu" else common


@routes.add("POST", BASE, privileges=SNAPSHOT, parameters=create_parameters)
def create(call: Call) -> str:
    """Start the task of a create. The request itself only fails for an invalid name or a missing VM."""
    name = call.values["snapname"]
    reserved = name == "current" or (name.lower() == "pending" if call.type == "qemu" else name == "vzdump")
    if reserved:
        shown = name.lower() if call.type == "qemu" else name
        raise Refused(500, f"unable to use snapshot name '{shown}' (reserved name)\n")
    memory = call.values.get("vmstate", False)
    if call.type == "qemu":
        guest = call.cluster.load(call.place)
        if memory and any(key.startswith("virtiofs") for key in guest.config):
            raise Refused(500, "Cannot live-migrate, snapshot (with RAM), or hibernate a VM with: virtiofs\n")
    work = Snapshots(call.cluster, call.place, name)
    description = call.values.get("description", "")

    async def worker(task: Task) -> None:
        await work.create(task, description=description, memory=memory)

    return call.cluster.fork(_type(call, "snapshot"), call.place, call.user, worker)


@routes.add("GET", BASE + "/{snapname}", hand_on=False)
def index(call: Call) -> list[dict[str, str]]:
    """List the sub-resources of a snapshot, even of one that does not exist."""
    return [{"cmd": "rollback"}, {"cmd": "config"}]


@routes.add("DELETE", BASE + "/{snapname}", privileges=SNAPSHOT, parameters={"force": BOOLEAN})
def delete(call: Call) -> str:
    """Start the task of a delete."""
    work = Snapshots(call.cluster, call.place, call.values["snapname"])
    force = call.values.get("force", False)

    async def worker(task: Task) -> None:
        await work.delete(task, force=force)

    return call.cluster.fork(_type(call, "delsnapshot"), call.place, call.user, worker)


@routes.add("POST", BASE + "/{snapname}/rollback", privileges=ROLLBACK, parameters={"start": BOOLEAN})
def rollback(call: Call) -> str:
    """Start the task of a rollback. start=1 needs the power privilege since PVE 9.2, for a VM only."""
    start = call.values.get("start", False)
    vmid = call.place.vmid
    if start and call.type == "qemu":
        call.cluster.access.check(call.user, f"/vms/{vmid}", ["VM.PowerMgmt"], call.cluster.pool_of(vmid))
    work = Snapshots(call.cluster, call.place, call.values["snapname"])

    async def worker(task: Task) -> None:
        await work.rollback(task, start=start)

    return call.cluster.fork(_type(call, "rollback"), call.place, call.user, worker)


@routes.add("GET", BASE + "/{snapname}/config", privileges=READ)
def read_config(call: Call) -> dict[str, t.Any]:
    """Return the guest's configuration in the snapshot."""
    return dict(call.cluster.load(call.place).snapshot(call.values["snapname"]).section)


@routes.add("PUT", BASE + "/{snapname}/config", privileges=SNAPSHOT, parameters={"description": STRING})
async def update_config(call: Call) -> None:
    """Change the description of a snapshot; without one, nothing is changed or checked."""
    if "description" not in call.values:
        return
    async with call.cluster.config(call.place) as guest:
        guest.check_lock()
        section = guest.snapshot(call.values["snapname"]).section
        text = stored(guest.type, call.values["description"])
        if text is None:
            section.pop("description", None)
        else:
            section["description"] = text


def _type(call: Call, verb: str) -> str:
    return ("qm" if call.type == "qemu" else "vz") + verb

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""API calls for the cluster, its users and its tasks."""

from __future__ import annotations

import re
import typing as t

from pve_errors import Refused, bad_parameters
from pve_guests import Guest
from pve_routes import Call, Rows, routes
from pve_schema import BOOLEAN, COUNT, STRING, VMID, Parameter, parse_upid
from pve_tasks import Task, is_error, status_type

ROWS_PER_NODE = 25


@routes.add("GET", "/version")
def version(call: Call) -> dict[str, str]:
    """The version of Proxmox VE."""
    number = call.cluster.version
    return {"version": number, "release": ".".join(number.split(".")[:2]), "repoid": "0123456789abcdef"}


# -- users -----------------------------------------------------------------------------------------------------------------


@routes.add("GET", "/access/ticket")
def ticket_page(call: Call) -> None:
    """Return nothing; in PVE an HTML form."""


@routes.add(
    "POST",
    "/access/ticket",
    parameters={
        "username": Parameter(optional=False, longest=64),
        "password": Parameter(optional=False),
        "realm": Parameter(longest=32),
        **dict.fromkeys(("otp", "path", "privs", "tfa-challenge"), STRING),
        "new-format": BOOLEAN,
    },
)
def create_ticket(call: Call) -> dict[str, t.Any]:
    """Log in."""
    realm = call.values.get("realm")
    name = call.values["username"]
    return call.cluster.access.log_in(
        f"{name}@{realm}" if realm and not name.endswith(f"@{realm}") else name, call.values["password"]
    )


@routes.add("GET", "/access/permissions", parameters={"path": STRING, "userid": STRING})
def permissions(call: Call) -> dict[str, t.Any]:
    """Return the privileges of oneself, of an own token, or with Sys.Audit of any user."""
    whom = call.values.get("userid", call.user)
    if whom != call.user and whom.partition("!")[0] != call.user:
        call.cluster.access.check(call.user, "/access", ["Sys.Audit"])
    if whom.partition("!")[0] not in call.cluster.access.users:
        raise Refused(500, f"no such user ('{whom}')\n")
    return call.cluster.access.permissions(whom, call.values.get("path"))


# -- nodes and guests ------------------------------------------------------------------------------------------------------


@routes.add("GET", "/nodes")
def nodes(call: Call) -> list[dict[str, t.Any]]:
    """The nodes."""
    return [_node(call, node) for node in call.cluster.nodes]


def _node(call: Call, node: str) -> dict[str, t.Any]:
    offline = node in call.cluster.offline
    row: dict[str, t.Any] = {"id": f"node/{node}", "type": "node", "node": node, "status": "offline" if offline else "online"}
    if not offline and call.allowed(f"/nodes/{node}", "Sys.Audit"):
        row |= {
            "cpu": 0.01,
            "maxcpu": 8,
            "mem": 2 << 30,
            "maxmem": 16 << 30,
            "disk": 4 << 30,
            "maxdisk": 64 << 30,
            "uptime": 86400,
        }
    return row


@routes.add("GET", "/cluster/status")
def cluster_status(call: Call) -> list[dict[str, t.Any]]:
    """The cluster and its members."""
    call.cluster.access.check(call.user, "/", ["Sys.Audit"])
    names = call.cluster.nodes
    head = {"type": "cluster", "id": "cluster", "name": "safepoint", "version": 2, "nodes": len(names), "quorate": 1}
    return [
        head,
        *(
            {
                "type": "node",
                "id": f"node/{name}",
                "name": name,
                "nodeid": number,
                "ip": f"192.0.2.{number}",
                "local": int(number == 1),
                "online": int(name not in call.cluster.offline),
                "level": "",
            }
            for number, name in enumerate(names, 1)
        ),
    ]


@routes.add("GET", "/cluster/resources", parameters={"type": Parameter(choices=("vm", "storage", "node", "sdn"))})
def resources(call: Call) -> list[dict[str, t.Any]]:
    """List all guests and nodes. Names and power are from pvestatd's last broadcast; lock, tags and pool are current."""
    kind = call.values.get("type")
    rows = []
    if kind in (None, "vm"):
        seen = call.cluster.broadcast()
        rows = [_guest(guest, seen) for guest in call.cluster.guests.values() if call.allowed_guest(guest.vmid, "VM.Audit")]
    if kind in (None, "node"):
        rows += [_node(call, node) for node in call.cluster.nodes]
    return rows


def _guest(guest: Guest, seen: dict[int, dict[str, t.Any]]) -> dict[str, t.Any]:
    row: dict[str, t.Any] = {"id": f"{guest.type}/{guest.vmid}", "type": guest.type, "vmid": guest.vmid, "node": guest.node}
    row |= seen.get(guest.vmid, {"status": "unknown"})
    for key in ("lock", "tags"):
        if guest.config.get(key):
            row[key] = guest.config[key]
    if guest.pool:
        row["pool"] = guest.pool
    if guest.managed:
        row["hastate"] = guest.ha_state
    return row


# -- tasks -----------------------------------------------------------------------------------------------------------------


@routes.add("GET", "/cluster/tasks")
def cluster_tasks(call: Call) -> list[dict[str, t.Any]]:
    """List the tasks that each node reported last: all running ones, and finished ones up to 25 in total."""
    audit = call.allowed("/", "Sys.Audit")
    rows = []
    for node in call.cluster.nodes:
        if node in call.cluster.offline:
            continue
        tasks = [task for task in reversed(call.cluster.tasks.values()) if task.node == node]
        running = [task for task in tasks if task.running]
        finished = [task for task in tasks if not task.running][: max(0, ROWS_PER_NODE - len(running))]
        rows += [_summary(task) for task in running + finished if audit or task.belongs_to(call.user)]
    return rows


def _summary(task: Task) -> dict[str, t.Any]:
    row = task.row()
    del row["pstart"]
    if not task.running:
        del row["pid"]
        row |= {"endtime": task.endtime, "status": task.exitstatus, "saved": "1"}
    return row


@routes.add(
    "GET",
    "/nodes/{node}/tasks",
    parameters={
        "source": Parameter(choices=("archive", "active", "all")),
        "vmid": Parameter("integer", format=VMID.format),
        "errors": BOOLEAN,
        **dict.fromkeys(("start", "limit"), COUNT),
        **dict.fromkeys(("since", "until"), Parameter("integer")),
        **dict.fromkeys(("statusfilter", "typefilter", "userfilter"), STRING),
    },
)
def node_tasks(call: Call) -> Rows:
    """List the tasks of a node: running ones first, then the newest first."""
    source = call.values.get("source", "archive")
    audit = call.allowed(f"/nodes/{call.values['node']}", "Sys.Audit")
    tasks = [task for task in reversed(call.cluster.tasks.values()) if task.node == call.values["node"]]
    found = [task for task in tasks if task.running] if source in ("active", "all") else []
    if source != "active":
        found += [task for task in tasks if not task.running]
    rows = []
    for task in found:
        if (audit or task.belongs_to(call.user)) and _passes(call.values, task):
            row = task.row() | {"status": task.exitstatus or "RUNNING"}
            if task.endtime is not None:
                row["endtime"] = task.endtime
            rows.append(row)
    start = call.values.get("start", 0)
    return Rows(rows[start : start + call.values.get("limit", 50)], len(rows))


def _passes(values: dict[str, t.Any], task: Task) -> bool:
    wanted = re.split(r"[,;\s]+", values["statusfilter"]) if values.get("statusfilter") else None
    return (
        values.get("typefilter", task.type) == task.type
        and str(values.get("vmid", task.id)) == task.id
        and values.get("userfilter", "").lower() in task.user.lower()
        and values.get("since", 0) <= task.starttime <= values.get("until", task.starttime)
        and not (values.get("errors") and task.exitstatus is not None and not is_error(task.exitstatus))
        and (wanted is None or status_type(task.exitstatus) in wanted)
    )


def _task(call: Call, privilege: str) -> Task | None:
    """Return the task in the path, if its node has it; Refused for tasks of other users without `privilege`."""
    parts = parse_upid(call.values["upid"])
    node = call.values["node"]
    # A token sees only its own tasks; a user also sees those of the user's tokens.
    if call.user not in (parts["user"], parts["user"].partition("!")[0]):
        call.cluster.access.check(call.user, f"/nodes/{node}", [privilege])
    task = call.cluster.tasks.get(call.values["upid"])
    return task if task is not None and task.node == node else None


def _known_task(call: Call, privilege: str = "Sys.Audit") -> Task:
    task = _task(call, privilege)
    if task is None:
        raise bad_parameters({"upid": "no such task"})
    return task


@routes.add("GET", "/nodes/{node}/tasks/{upid}", hand_on=False)
def task_index(call: Call) -> list[dict[str, str]]:
    """List the sub-resources of a task."""
    return [{"name": "log"}, {"name": "status"}]


@routes.add("DELETE", "/nodes/{node}/tasks/{upid}")
def stop_task(call: Call) -> None:
    """Stop a task."""
    _known_task(call, "Sys.Modify").interrupt()


@routes.add("GET", "/nodes/{node}/tasks/{upid}/status")
def task_status(call: Call) -> dict[str, t.Any]:
    """Return the status of a task."""
    task = _known_task(call)
    if task.running:
        return task.row() | {"status": "running"}
    return task.row() | {"status": "stopped", "exitstatus": task.exitstatus}


@routes.add("GET", "/nodes/{node}/tasks/{upid}/log", parameters={"start": COUNT, "limit": COUNT, "download": BOOLEAN})
def task_log(call: Call) -> Rows:
    """Return the log of a task: 50 lines by default; a limit of 0 means no limit. For a missing file, one line and no error."""
    task = _task(call, "Sys.Audit")
    lines = ["unable to open file - No such file or directory"] if task is None else task.log or ["no content"]
    rows = [{"n": number, "t": line} for number, line in enumerate(lines, 1)]
    start = call.values.get("start", 0)
    limit = call.values.get("limit", 50) or len(rows)
    return Rows(rows[start : start + limit], len(rows))


@routes.add("GET", "/cluster/ha/resources", parameters={"type": Parameter(choices=("ct", "vm"))})
def ha_resources(call: Call) -> list[dict[str, t.Any]]:
    """List the guests that high availability manages."""
    call.cluster.access.check(call.user, "/", ["Sys.Audit"])
    words = {"qemu": "vm", "lxc": "ct"}
    wanted = call.values.get("type")
    return [
        {"sid": f"{words[guest.type]}:{guest.vmid}", "type": words[guest.type], "state": guest.ha_state}
        for guest in call.cluster.guests.values()
        if guest.managed and wanted in (None, words[guest.type])
    ]


@routes.add("GET", "/cluster/replication")
def replication(call: Call) -> list[dict[str, t.Any]]:
    """List the replication jobs of the guests that the user may see."""
    return [
        {"id": f"{guest.vmid}-0", "type": "local", "guest": guest.vmid, "jobnum": 0, "source": guest.node, "target": "elsewhere"}
        for guest in call.cluster.guests.values()
        if guest.replicated and call.allowed_guest(guest.vmid, "VM.Audit")
    ]

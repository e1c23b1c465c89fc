# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Proxmox VE compared with community.proxmox: requests, wall and CPU seconds of the same operations on one simulated cluster.

The cluster runs in a thread of this process, so its CPU time is not included in that of ansible-playbook; its response time is included in
the wall seconds of all tools.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from frame import NONE, Cost, Plays, Requests, Row, Task, Tool, comparison, measure_beside, requests_by_kind
from peers import make_environment, release_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators/pve"))

from pve_server import PveServer

GUESTS = 100
OPERATIONS = ["create", "create again", "revert", "info", "remove"]
# The time of a snapshot of a small stopped VM on PVE 9.2. So a module that first sleeps for a second is slower, as on real PVE.
TASK_SECONDS = 0.4

_OURS = {"backend": "proxmox", "name": "bench"}
OURS = Tool(
    "safepoint.vm",
    {
        "create": Task("safepoint.vm.snapshot", _OURS, every="vms"),
        "create again": Task("safepoint.vm.snapshot", _OURS, every="vms"),
        "revert": Task("safepoint.vm.snapshot_revert", _OURS, every="vms"),
        "info": Task("safepoint.vm.snapshot_info", {"backend": "proxmox"}, every="vms"),
        "remove": Task("safepoint.vm.snapshot", {**_OURS, "state": "absent"}, every="vms"),
    },
)


def _community(state: str) -> Task:
    # With the name instead of the vmid this module reads the cluster's list twice.
    return Task("community.proxmox.proxmox_snap", {"snapname": "bench", "state": state}, each="vmid")


COMMUNITY = Tool(
    "community.proxmox",
    {
        "create": _community("present"),
        "create again": _community("present"),
        "revert": _community("rollback"),
        "remove": _community("absent"),
    },
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument(
        "--task-seconds", type=float, default=TASK_SECONDS, metavar="S", help=f"how long each task of PVE takes ({TASK_SECONDS})"
    )


def run(options: argparse.Namespace) -> None:
    """Run the benchmark and print the tables."""
    make_environment()
    with PveServer() as pve:
        pve.set_task_seconds(options.task_seconds)
        node = pve.nodes[0]
        guests = max(GUESTS, options.peer_vms)
        vmids = [pve.make_guest(f"web{number:03}", node=node, status="stopped") for number in range(guests)]
        empty, rows = _measure_all(pve, vmids, options)
        if pve.errors:
            raise SystemExit(f"The simulator failed:\n{pve.errors}")
    way = f"one host for each VM, {options.peer_forks} at a time" if options.peer_forks else "one play with a loop over the VMs"
    print(f"\n## Proxmox VE beside {COMMUNITY.name} {release_of(COMMUNITY.name)}\n")
    print(
        f"- {guests} stopped VMs on one node of the simulated cluster, whose tasks take {options.task_seconds:g} s. VMs are given by their vmids."
    )
    print(
        f"- One ansible-playbook for each line, the login by a token in PROXMOX_*. Ours: one call for all VMs. The peer, proxmox_snap: {way}."
    )
    print(
        "- Only what stands here was measured: the peer with few VMs, ours with more too. Nothing is scaled, nothing subtracted."
    )
    print(f"- `x ours`: the same figure per VM divided by ours with as many VMs. `{NONE}`: this release has no module for it.\n")
    print(comparison(empty, rows, OURS.name))
    for tool in (OURS, COMMUNITY):
        print(f"\nThe requests of {tool.name} by their kind:\n")
        print(requests_by_kind(rows, tool.name), flush=True)


def _measure_all(pve: PveServer, vmids: Sequence[int], options: argparse.Namespace) -> tuple[Cost, list[Row]]:
    def take_requests() -> Requests:
        counters = pve.counters()
        pve.reset_counters()
        return counters

    def look(operation: str, used: Sequence[str]) -> None:
        # Check the effects: a module that does nothing but returns "ok" would be fast.
        wanted = [] if operation == "remove" else ["bench"]
        for vmid in map(int, used):
            guest = pve.guest(vmid)
            names = [snapshot["name"] for snapshot in guest["snapshots"]]
            if names != wanted:
                raise SystemExit(f"After `{operation}` the VM {vmid} has the snapshots {names}")
            if operation == "create again":
                pve.set_guest(vmid, data="written after the snapshot")
            if operation == "revert" and guest["data"] != guest["snapshots"][0]["data"]:
                raise SystemExit(f"After `{operation}` the disks of the VM {vmid} are not as the snapshot has them")

    user, _, token = pve.token_id.partition("!")
    login = {
        "PROXMOX_HOST": pve.hostname,
        "PROXMOX_PORT": str(pve.port),
        "PROXMOX_USER": user,
        "PROXMOX_TOKEN_ID": token,
        "PROXMOX_TOKEN_SECRET": pve.token_secret,
        "PROXMOX_VALIDATE_CERTS": "true",  # the peer's default is false
        "REQUESTS_CA_BUNDLE": pve.ca_path,  # the peer has no option for it
    }
    plays = Plays(login, take_requests, options.peer_forks)
    plays.empty()  # the first one reads everything from the disk
    empty = plays.empty()
    return empty, measure_beside(plays, OURS, [COMMUNITY], OPERATIONS, list(map(str, vmids)), options.peer_vms, look)

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vSphere compared with community.vmware and vmware.vmware: SOAP requests, wall and CPU seconds of the same operations on one simulator.

The peers take almost a second for each VM, so they are measured with a few VMs, and ours with the same number, 100 and 500.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from frame import NONE, Cost, Plays, Requests, Row, Task, Tool, comparison, measure, measure_beside, requests_by_kind
from peers import make_environment, release_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators/vcsim"))

from server import VCenter

INVENTORY = 500
OPERATIONS = ["create", "create again", "revert", "info", "remove"]
INFO_OF_ALL = "info of all"

OURS = Tool(
    "safepoint.vm",
    {
        "create": Task("safepoint.vm.snapshot", {"backend": "vsphere", "name": "bench"}, every="vms"),
        "create again": Task("safepoint.vm.snapshot", {"backend": "vsphere", "name": "bench"}, every="vms"),
        "revert": Task("safepoint.vm.snapshot_revert", {"backend": "vsphere", "name": "bench"}, every="vms"),
        "info": Task("safepoint.vm.snapshot_info", {"backend": "vsphere"}, every="vms"),
        "remove": Task("safepoint.vm.snapshot", {"backend": "vsphere", "name": "bench", "state": "absent"}, every="vms"),
        INFO_OF_ALL: Task("safepoint.vm.snapshot_info", {"backend": "vsphere", "scope": "endpoint"}),
    },
)
_PLACE = {"datacenter": "DC0", "folder": "/DC0/vm"}
_NAMED = {**_PLACE, "snapshot_name": "bench"}


def _community(state: str) -> Task:
    return Task("community.vmware.vmware_guest_snapshot", {**_NAMED, "state": state}, each="name")


COMMUNITY = Tool(
    "community.vmware",
    {
        "create": _community("present"),
        "create again": _community("present"),
        "revert": _community("revert"),
        "info": Task("community.vmware.vmware_guest_snapshot_info", _PLACE, each="name"),
        "remove": _community("absent"),
        INFO_OF_ALL: Task("community.vmware.vmware_all_snapshots_info", {"datacenter": "DC0"}),
    },
)
VMWARE = Tool(
    "vmware.vmware",
    {
        "create": Task("vmware.vmware.vm_snapshot", _NAMED, each="name"),
        "create again": Task("vmware.vmware.vm_snapshot", _NAMED, each="name"),
        "revert": Task("vmware.vmware.vm_snapshot_revert", _NAMED, each="name"),
        "info": Task("vmware.vmware.vm_snapshot_info", _PLACE, each="name"),
        "remove": Task("vmware.vmware.vm_snapshot", {**_NAMED, "state": "absent"}, each="name"),
    },
)
PEERS = [COMMUNITY, VMWARE]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peer", action="append", choices=names, help="only this peer; may be given again (all)")


def run(options: argparse.Namespace) -> None:
    """Run the benchmark and print two tables."""
    if options.peer_vms > INVENTORY:
        raise SystemExit(f"--peer-vms: the simulated vCenter has {INVENTORY} VMs")
    make_environment()
    peers = [peer for peer in PEERS if not options.peer or peer.name in options.peer]
    with VCenter(vms=INVENTORY) as vcenter:
        empty, rows = _measure_all(vcenter, peers, options)
    releases = ", ".join(f"{peer.name} {release_of(peer.name)}" for peer in peers)
    way = f"one host for each VM, {options.peer_forks} at a time" if options.peer_forks else "one play with a loop over the VMs"
    print(f"\n## vSphere beside {releases}\n")
    print(f"- {INVENTORY} powered-on VMs in the simulated vCenter, whose tasks take no time. VMs are given by their names.")
    print(f"- One ansible-playbook for each line, the login by VMWARE_*. Ours: one call for all VMs. The peers: {way}.")
    print(
        "- Only what stands here was measured: the peers with few VMs, ours with more too. Nothing is scaled, nothing subtracted."
    )
    print(f"- `x ours`: the same figure per VM divided by ours with as many VMs. `{NONE}`: this release has no module for it.\n")
    print(comparison(empty, rows, OURS.name))
    print(f"\nThe requests of {OURS.name} by their SOAP methods:\n")
    print(requests_by_kind(rows, OURS.name))


def _measure_all(vcenter: VCenter, peers: Sequence[Tool], options: argparse.Namespace) -> tuple[Cost, list[Row]]:
    vms = [f"DC0_C0_RP0_VM{number}" for number in range(INVENTORY)]

    def take_requests() -> Requests:
        methods = vcenter.counters()["methods"]
        vcenter.reset_counters()
        return {method: count for method, count in methods.items() if not method.startswith("GET ")}

    def look(operation: str, used: Sequence[str]) -> None:
        # Check the effects: a module that does nothing but returns "ok" would be fast.
        wanted = 0 if operation == "remove" else 1
        for vm in (used[0], used[-1]):
            if len(vcenter.vm(vm)["snapshots"]) != wanted:
                raise SystemExit(f"After `{operation}` the VM {vm} has {vcenter.vm(vm)['snapshots']}")

    login = {
        "VMWARE_HOST": vcenter.hostname,
        "VMWARE_PORT": str(vcenter.port),
        "VMWARE_USER": vcenter.username,
        "VMWARE_PASSWORD": vcenter.password,
        "SSL_CERT_FILE": vcenter.ca_path,  # the peers have no option for it
    }
    plays = Plays(login, take_requests, options.peer_forks)
    plays.empty()  # the first one reads everything from the disk
    empty = plays.empty()
    rows = measure_beside(plays, OURS, peers, OPERATIONS, vms, options.peer_vms, look)
    plays.cost(OURS.tasks["create"], vms)
    for tool in [OURS, *(peer for peer in peers if INFO_OF_ALL in peer.tasks)]:
        rows += measure(plays, tool, [INFO_OF_ALL], vms, look)
    return empty, rows

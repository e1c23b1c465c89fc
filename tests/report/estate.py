# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A made-up estate, as snapshot_info returns it: the same for the same seed."""

from __future__ import annotations

import random
import typing as t
from datetime import datetime, timedelta, timezone

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=timezone.utc)
HOSTILE = "<img src=x onerror=\"document.title='owned'\">&amp;</td></table><script>document.title='owned'</script>"

Data = dict[str, t.Any]

_BACKENDS = {
    "kvm01.example.com": (
        "libvirt",
        "qemu+ssh://root@kvm01.example.com/system",
        "it is stored inside the VM's disk images, and libvirt does not report its share",
    ),
    "vcenter.example.com": ("vsphere", "vcenter.example.com", None),
    "pve1.example.com": ("proxmox", "pve1.example.com", "Proxmox VE does not report it"),
}
_PEOPLE = (
    "before upgrade",
    "test",
    "vor Wartung",
    "do not delete!!",
    "Snapshot 1",
    "Müllers Stand",
    "اختبار",
    "pre-patch 2026-10",
)
_BACKUPS = (
    ("VEEAM BACKUP TEMPORARY SNAPSHOT", "Please do not delete this snapshot. It is being used by Veeam Backup."),
    ("__GX_BACKUP__", ""),
    ("NAKIVO_temp", ""),
    ("Rubrik-4711", ""),
    ("vzdump", ""),
)
_ROLES = ("web", "db", "mail", "ldap", "build", "erp-app", "k8s-worker", "print")


def iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def snapshot(name: str, *, age: timedelta = timedelta(hours=1), **more: t.Any) -> Data:
    """A snapshot of a person, unless ``more`` says otherwise; with a ``label`` it is ours."""
    label = more.pop("label", None)
    return {
        "id": name,
        "name": name,
        "created": iso(NOW - age),
        "parent": None,
        "description": "",
        "label": None if label is None else {"owner": "safepoint", **label},
        "ours": label is not None,
        "kind": None,
        "memory": False,
        "consistency": "crash",
        "size_bytes": None,
        "size_unknown": "it is not told",
        "current": False,
        "age_seconds": int(age.total_seconds()),
        "why_not_ours": None if label is not None else "it has no label of this collection",
        "obstacles": {},
        **more,
    }


def vm(name: str, *snapshots: Data, **more: t.Any) -> Data:
    identity = {"name": name, "id": name, "uuid": None}
    return {
        "ref": name,
        "vm": identity,
        "power": "running",
        "findings": [],
        "snapshots": list(snapshots),
        "changed": False,
        "warnings": [],
        **more,
    }


def endpoint(name: str, *vms: Data, backend: str = "libvirt", **more: t.Any) -> Data:
    answer = {"changed": False, "vms": list(vms), "now": iso(NOW)}
    return {"name": name, "backend": backend, "where": name, "at": iso(NOW), "answer": answer, **more}


def estate(*, vms: int = 500, snapshots: int = 2000, seed: int = 7) -> list[Data]:
    """Three endpoints and one that does not answer. A third of the VMs have no snapshots, and some have a deep chain."""
    chance = random.Random(seed)
    rows: dict[str, list[Data]] = {name: [] for name in _BACKENDS}
    for number in range(vms):
        where = list(_BACKENDS)[number % 3]
        rows[where].append(_vm(number, where, chance))
    everyone = [row for some in rows.values() for row in some]
    with_some = chance.sample(everyone, max(1, len(everyone) * 2 // 3))
    for number in range(snapshots):
        # Every tenth goes to one of five VMs, so that these have long chains.
        row = with_some[chance.randrange(5) if number % 10 == 0 else number % len(with_some)]
        _add(row, chance)
    for row in everyone:
        if row["snapshots"]:
            chance.choice(row["snapshots"][-2:])["current"] = True
    answers = [
        {
            "name": name,
            "backend": backend,
            "where": where,
            "at": iso(NOW),
            "answer": {
                "changed": False,
                "vms": rows[name],
                "now": iso(NOW + timedelta(seconds=150 if backend == "proxmox" else 0)),
            },
        }
        for name, (backend, where, _unknown) in _BACKENDS.items()
    ]
    lost = "esx09.example.com:443 did not answer within connect_timeout=15 seconds; check hostname and port, and that it is up"
    answers.append(
        {
            "name": "esx09.example.com",
            "backend": "vsphere",
            "where": "esx09.example.com",
            "at": iso(NOW),
            "answer": {"error": "connection_failed", "msg": lost},
        }
    )
    return answers


def audit(number: int = 12) -> list[str]:
    """Lines of an audit file, the last of them cut off."""
    import json

    lines = [
        json.dumps(
            {
                "version": 1,
                "time": iso(NOW - timedelta(hours=number - at)),
                "host": "awx-task-0",
                "user": "awx",
                "job": str(4700 + at),
                "module": "safepoint.vm.snapshot",
                "vm": f"web{at:02}.example.com",
                "action": ("created", "removed", "failed")[at % 3],
                "changed": at % 3 < 2,
                "snapshot": "sp-CHG0042-20261125T080000Z",
                "change": "CHG0042",
                "why": HOSTILE if at == 4 else "kernel update",
                "seconds": 1.5 * at,
                "error": "timed_out" if at % 3 == 2 else None,
                "msg": "Gave up waiting for the snapshot after 900 seconds" if at % 3 == 2 else None,
            }
        )
        for at in range(number)
    ]
    return [*lines, lines[0][:40]]


def _vm(number: int, where: str, chance: random.Random) -> Data:
    backend, _where, unknown = _BACKENDS[where]
    name = f"{chance.choice(_ROLES)}{number:03}.prod.example.com"
    if number % 97 == 5:
        name = HOSTILE + str(number)
    if number % 89 == 3:
        name = f"a-very-long-name-that-somebody-generated-{'0123456789abcdef' * 3}-{number}"
    row = vm(name, power=chance.choice(("running", "running", "running", "off", "paused")))
    row["vm"]["id"] = f"vm-{number}"
    row["unknown"] = unknown
    if backend == "vsphere" and number % 40 == 1:
        row["findings"].append(
            {
                "code": "consolidation_needed",
                "msg": f"Disk files of {name} remain from the removal of a snapshot and keep growing",
                "remedy": "consolidate the disks in the vSphere client (Snapshots, Consolidate)",
            }
        )
    if backend == "proxmox" and number % 50 == 2:
        row["findings"].append(
            {
                "code": "unfinished_snapshot",
                "msg": f"The snapshot half of {name} is incomplete (snapstate prepare)",
                "remedy": f"remove it on its node: qm delsnapshot {number} half --force",
            }
        )
    return row


def _taken(chance: random.Random, age: timedelta) -> tuple[str, Data]:
    """Return a name, and what else is given about a snapshot of this age."""
    who = chance.random()
    if who < 0.62:
        return _guarding(chance, age)
    if who < 0.78:
        name, description = chance.choice(_BACKUPS)
        return name, {"description": description}
    if who < 0.82:
        return "nightly", {"why_not_ours": "it belongs to owner 'awx-test'"}
    name = chance.choice(_PEOPLE) if chance.random() < 0.97 else HOSTILE
    return name, {"description": chance.choice(("", "", "please ask Anna <anna@example.com>\nbefore you remove it"))}


def _guarding(chance: random.Random, age: timedelta) -> tuple[str, Data]:
    """The same of a snapshot that guards a change, or did."""
    label = {"change": f"CHG{chance.randrange(10000):04}"}
    name = f"sp-{label['change']}-{iso(NOW - age).replace('-', '').replace(':', '')}"
    fate = chance.random()
    if fate < 0.06:
        label |= {"state": "guarding", "lease": iso(NOW + timedelta(hours=chance.randrange(-30, 3), minutes=30))}
    elif fate < 0.2:
        label |= {"hold": "yes", "hold_reason": "auditors look at it <b>until</b> December"}
    elif fate < 0.95:
        label |= {
            "state": chance.choice(("committed", "rolled_back")),
            "expires": iso(NOW - age + timedelta(days=chance.choice((3, 7, 30)))),
        }
    return name, {"label": label, "description": "kernel update"}


def _add(row: Data, chance: random.Random) -> None:
    there = row["snapshots"]
    number = len(there)
    age = timedelta(minutes=chance.randrange(10, 60 * 24 * 5))
    if chance.random() < 0.12:
        age = timedelta(days=chance.randrange(6, 400))
    name, more = _taken(chance, age)
    one = snapshot(name, age=age, **more)
    one["id"] = f"{row['vm']['id']}-{number}"
    if "awx-test" in (one["why_not_ours"] or ""):
        one["label"] = {"owner": "awx-test"}
    one["consistency"] = chance.choice(("memory", "crash", "filesystem", "offline"))
    one["size_unknown"] = row["unknown"]
    if row["unknown"] is None:
        one["size_bytes"] = int(chance.lognormvariate(21, 2))
    # On the newest mostly, so that there are chains and a few branches.
    if there:
        one["parent"] = (there[-1] if chance.random() < 0.85 else chance.choice(there))["id"]
    there.append(one)

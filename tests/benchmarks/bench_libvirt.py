# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt: the collection compared with the bare API calls in threads, on tiny paused QEMU domains."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / ".ansible" / "collections"), str(ROOT / "tests" / "lab")]

import libvirt  # noqa: E402
from frame import table  # noqa: E402
from lab import Lab  # noqa: E402
from lab_counting import CountingLab  # noqa: E402

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target  # noqa: E402
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.driver import LibvirtDriver  # noqa: E402
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds  # noqa: E402
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet  # noqa: E402
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent  # noqa: E402
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan, Request  # noqa: E402
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present  # noqa: E402
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted  # noqa: E402

XML = "<domainsnapshot><name>bench</name></domainsnapshot>"


def seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def by_hand(uri: str, names: list[str], call: Callable[[libvirt.virDomain], object]) -> float:
    """Run the bare call on every domain, in 16 threads on one connection, which a module would also have to open."""

    def work() -> None:
        connection = libvirt.open(uri)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda name: call(connection.lookupByName(name)), names))
        connection.close()

    return seconds(work)


def by_us(uri: str, names: list[str], plan: Plan) -> float:
    def work() -> None:
        driver = LibvirtDriver(uri)
        fleet = Fleet(driver, Bounds())
        outcomes = fleet.apply([Target(name) for name in names], plan, dry_run=False)
        driver.close()
        failed = [one for one in outcomes if one.error]
        if failed:
            raise SystemExit(f"{failed[0].target.ref}: {failed[0].error}")

    return seconds(work)


def requests_of_a_listing(snapshots: int) -> int:
    """Return the number of requests for a listing of one VM, the connection included."""
    with CountingLab() as lab:
        domain = lab.define_tiny("many", paused=True)
        for number in range(snapshots):
            domain.snapshotCreateXML(f"<domainsnapshot><name>s{number}</name></domainsnapshot>")
        with lab.counted() as asked:
            driver = LibvirtDriver(lab.uri)
            Fleet(driver, Bounds()).look([Target("many")])
            driver.close()
    return asked.total()


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--domains", type=int, default=20, metavar="N", help="how many domains (20)")


def run(options: argparse.Namespace) -> None:
    """Run the benchmark and print a table."""
    with Lab() as lab:
        names = [f"bench{number:03d}" for number in range(options.domains)]
        for name in names:
            lab.define_tiny(name, paused=True)
        # On the first request of this kind, a new daemon probes the QEMU binaries, which takes half a second.
        lab.connect().getCapabilities()
        create = by_hand(lab.uri, names, lambda domain: domain.snapshotCreateXML(XML))
        revert = by_hand(lab.uri, names, lambda domain: domain.revertToSnapshot(domain.snapshotLookupByName("bench")))
        remove = by_hand(lab.uri, names, lambda domain: domain.snapshotLookupByName("bench").delete())
        rows: list[tuple[str, float, float | None]] = [
            ("create", by_us(lab.uri, names, Present(Request(name="bench"))), create),
            ("create again", by_us(lab.uri, names, Present(Request(name="bench"))), None),
            ("revert", by_us(lab.uri, names, Reverted(Request(name="bench"))), revert),
            ("remove", by_us(lab.uri, names, Absent(Request(name="bench"))), remove),
        ]
    print(f"\n## libvirt beside its bare calls, {len(names)} paused VMs\n")
    lines = [
        [name, f"{ours:.2f}", *([f"{bare:.2f}", f"{ours / bare:.2f}"] if bare is not None else ["", ""])]
        for name, ours, bare in rows
    ]
    print(table(["operation", "collection s", "by hand s", "ratio"], lines))
    print(f"\nListing 100 snapshots of one VM: {requests_of_a_listing(100)} requests to libvirtd", flush=True)

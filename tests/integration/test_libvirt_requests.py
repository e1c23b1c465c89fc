# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The number of requests to the daemon, counted from its log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import datetime, timezone

import libvirt
import pytest
from lab_counting import CountingLab

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.driver import LibvirtDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.judge import Judge
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet

pytestmark = pytest.mark.qemu

# remote_procedure in libvirt's remote_protocol.x
OPEN, DOMAIN_XML, SNAPSHOT_XML, VOLUME_DOWNLOAD, DOMAIN_STATE, ALL_STATS = 1, 14, 186, 209, 212, 344


@pytest.fixture(scope="module")
def counting() -> Iterator[CountingLab]:
    with CountingLab() as lab:
        lab.connect().listAllDomains()  # the first connection probes QEMU
        yield lab


def look(lab: CountingLab, *vms: str, **what: bool) -> None:
    """Run snapshot_info, including the connection."""
    with contextlib.closing(LibvirtDriver(lab.uri)) as driver:
        fleet = Fleet(driver, Bounds(), now=lambda: datetime.now(timezone.utc))
        for seen in fleet.look([Target(vm) for vm in vms], **what):
            assert seen.error is None, seen.error


def test_listing_of_a_hundred_snapshots_needs_at_most_120_requests(counting: CountingLab) -> None:
    domain = counting.define_tiny("many", paused=True)
    for number in range(100):
        domain.snapshotCreateXML(f"<domainsnapshot><name>s{number}</name></domainsnapshot>")
    with counting.counted() as asked:
        look(counting, "many")
    assert asked[OPEN] == 1 and asked[SNAPSHOT_XML] == 100  # the log is parsed correctly
    print("requests for a listing of 100 snapshots:", asked.total())
    assert asked.total() <= 120
    assert asked[DOMAIN_XML] == 1  # to check if its disks allow the removal of the snapshots
    with counting.counted() as asked:
        look(counting, "many", drift=True)
    assert asked[DOMAIN_XML] > 1
    counting.remove("many")


def test_state_of_ten_vms_needs_one_request(counting: CountingLab) -> None:
    names = [f"one{number}" for number in range(10)]
    for name in names:
        counting.define_tiny(name)
    with counting.counted() as one:
        look(counting, names[0])
    with counting.counted() as ten:
        look(counting, *names)
    assert (ten[ALL_STATS], ten[DOMAIN_STATE], ten[DOMAIN_XML]) == (1, 0, 0)
    # Each further VM that is off and has no snapshots costs one request, the list of its snapshots.
    assert ten.total() - one.total() == 9
    for name in names:
        counting.remove(name)


def test_vm_that_disappears_is_reported_and_the_others_are_listed(counting: CountingLab) -> None:
    for name in ("stays", "goes"):
        counting.define_tiny(name, paused=True)
    with contextlib.closing(LibvirtDriver(counting.uri)) as driver:
        vms = driver.vms()
        libvirt.open(counting.uri).lookupByName("goes").destroy()
        libvirt.open(counting.uri).lookupByName("goes").undefine()
        states = driver.inspect(vms, ways=True)
    told = {vm.name: getattr(states[vm.id], "code", None) for vm in vms}
    assert told == {"stays": None, "goes": "vm_not_found"}
    counting.remove("stays")


def test_definition_of_a_vm_with_external_snapshots_is_read_once_in_a_listing(counting: CountingLab) -> None:
    counting.define_tiny("outer", running=True).snapshotCreateXML(
        "<domainsnapshot><name>x</name></domainsnapshot>", libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    )
    with counting.counted() as asked:
        look(counting, "outer")
    assert asked[DOMAIN_XML] == asked[SNAPSHOT_XML] == 1
    counting.remove("outer")


def test_many_orphans_need_one_read_of_all_vms(counting: CountingLab) -> None:
    domain = counting.define_tiny("messy")
    for number in range(5):
        handle = domain.snapshotCreateXML(f"<domainsnapshot><name>x{number}</name></domainsnapshot>")
        handle.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    names = [f"beside{number}" for number in range(5)]
    for name in names:
        counting.define_tiny(name)
    with counting.counted() as asked:
        look(counting, "messy", images=True)
    # two reads, and one for each of the six VMs
    assert asked[DOMAIN_XML] == 2 + 6
    for name in [*names, "messy"]:
        counting.remove(name)


def test_image_of_a_vm_on_another_host_is_read_once(counting: CountingLab) -> None:
    xml = counting.define_tiny("remote").XMLDesc()
    pool = counting.connect().storagePoolCreateXML(
        f"<pool type='dir'><name>remote</name><target><path>{counting.disk_folder('remote')}</path></target></pool>"
    )
    judge = Judge(counting.connect(), where=counting.uri, local=False, version=lambda: 9_000_000)
    domain = counting.connect().lookupByName("remote")
    with counting.counted() as asked:
        seen = judge.seen(domain, xml, up=False, crashed=False)
    assert (seen.depth, seen.unsearched, asked[VOLUME_DOWNLOAD]) == (1, None, 1)
    pool.destroy()
    counting.remove("remote")


def test_doubtful_vms_share_one_wait_before_the_second_read(counting: CountingLab) -> None:
    """A second read for each would give twelve."""
    names = [f"doubt{number}" for number in range(12)]
    for name in names:
        domain = counting.define_tiny(name)
        kept = domain.snapshotCreateXML("<domainsnapshot><name>x</name></domainsnapshot>").getXMLDesc()
        domain.snapshotLookupByName("x").delete()
        domain.snapshotCreateXML(kept, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
    with contextlib.closing(LibvirtDriver(counting.uri)) as driver:
        vms = [vm for vm in driver.vms() if vm.name in names]
        for look_at, found_in in (
            (driver.snapshots, lambda found: [one.lost.code for one in found if one.lost]),
            (driver.look_into_images, lambda found: [one.code for one in found]),
        ):
            begun = time.monotonic()
            seen = look_at(vms)
            assert time.monotonic() - begun < 12
            assert [found_in(one) for one in seen.values()] == [["snapshot_lost"]] * 12
    for name in names:
        counting.remove(name)

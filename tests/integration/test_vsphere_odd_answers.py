# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Empty, truncated, malformed or endless answers of a vCenter: an error that names the request, and never a wrong result."""

from __future__ import annotations

import itertools
import resource
import typing as t
from collections.abc import Iterator

import pytest
from running import parameters
from server import VCenter

from ansible_collections.safepoint.vm.plugins.module_utils._run import Answer, Call, perform

pytestmark = pytest.mark.vcenter

VMS = [f"DC0_C0_RP0_VM{number}" for number in range(3)]
KINDS = ["null", "shape", "half"]
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def estate() -> Iterator[VCenter]:
    with VCenter(vms=len(VMS)) as vcenter:
        yield vcenter
        assert vcenter.errors == ""


def call(vcenter: VCenter, module: str, **options: t.Any) -> Answer:
    reach = {"backend": "vsphere", "hostname": vcenter.hostname, "port": vcenter.port, "ca_path": vcenter.ca_path}
    login = {"username": vcenter.username, "password": vcenter.password}
    return perform(Call(module, parameters(module, **{**reach, **login, "timeout": "8s", **options}), False, False, []))


def each_request(vcenter: VCenter, module: str, **options: t.Any) -> int:
    """Return the number of requests of a call."""
    vcenter.outage("null", nth=10_000)
    assert call(vcenter, module, **options).failure is None
    return vcenter.end_outage()


@pytest.mark.parametrize("kind", KINDS)
def test_listing_is_complete_or_an_error_that_names_the_request(estate: VCenter, kind: str) -> None:
    call(estate, "snapshot", vms=VMS, name="listed")
    options = {"scope": "endpoint", "drift": True}
    told = set()
    for number in range(1, each_request(estate, "snapshot_info", **options) + 1):
        estate.outage(kind, nth=number)
        answer = call(estate, "snapshot_info", **options)
        assert estate.end_outage() >= number
        if answer.failure is None:
            rows = answer.result["vms"]
            rows = [row for row in rows if row["ref"] in VMS]
            assert [row["vm"]["name"] for row in rows] == VMS, number
            assert all("listed" in [one["name"] for one in row["snapshots"]] and row["power"] == "running" for row in rows)
        else:
            assert answer.failure["error"] in ("connection_failed", "backend_failed"), number
            assert "object has no attribute" not in answer.failure["msg"]
            told.add(answer.failure["msg"])
    assert any("list the VMs" in one for one in told) or kind == "half"  # a truncated answer is requested again


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("work", ["create", "revert", "remove"])
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_writing_call_reports_the_actual_state(estate: VCenter, kind: str, work: str, step: int) -> None:
    """With a malformed answer to any request: no traceback, and no row that differs from the actual state."""
    vms = [f"odd{next(_numbers)}" for _each in range(2)]
    estate.make_vms(*({"name": vm, "power": "poweredOn"} for vm in vms))
    steps = {
        "create": ("snapshot", {}),
        "remove": ("snapshot", {"state": "absent"}),
        "revert": ("snapshot_revert", {"power": "on"}),
    }
    module, more = steps[work]
    for number in itertools.count(1, step):
        name = f"odd{number}"
        if work != "create":
            assert call(estate, "snapshot", vms=vms, name=name).failure is None
        estate.outage(kind, nth=number)
        answer = call(estate, module, vms=vms, name=name, on_error="continue", **more)
        if estate.end_outage() < number:
            break  # the call has no more requests
        there = {vm for vm in vms if any(one["name"] == name for one in estate.vm(vm)["snapshots"])}
        if answer.failure is not None:
            assert answer.failure["error"] in ("connection_failed", "backend_failed", "unverified"), (number, answer.failure)
            assert "object has no attribute" not in answer.failure["msg"]
        for row in answer.result.get("vms", []):
            vm = row["vm"]["name"] if row["vm"] else row["ref"]
            if row["action"] in ("created", "exists", "reverted"):
                assert vm in there, (number, row)
            if row["action"] in ("removed", "absent"):
                assert vm not in there, (number, row)
            if row["action"] == "failed":
                assert (vm in there) == (work != "create") or row["changed"], (number, row)
    assert number > 6


def test_listing_with_a_missing_page_is_an_error(estate: VCenter) -> None:
    estate.set(page_objects=2)
    estate.outage("null", method="ContinueRetrievePropertiesEx")
    answer = call(estate, "snapshot_info", scope="endpoint")
    estate.set(page_objects=0)
    assert estate.end_outage() == 1
    assert answer.failure and answer.failure["error"] == "connection_failed"
    assert "answered the request to list the VMs with no objects at all" in answer.failure["msg"]


def test_endless_answer_is_refused_while_it_is_read(estate: VCenter) -> None:
    small, large = 4 * 1024**2, 256 * 1024**2
    limits = {"RetrievePropertiesEx": large, "CreateContainerView": small, "RetrieveServiceContent": small}
    for method, limit in limits.items():
        estate.outage("huge", method=method)
        answer = call(estate, "snapshot_info", scope="endpoint", timeout="60s", connect_timeout="60s")
        estate.end_outage()
        assert answer.failure and answer.failure["error"] == "connection_failed"
        assert f"more than {limit} bytes" in answer.failure["msg"]
    # In kB. The answer itself is held once while it is read in pieces, and once as a whole.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 1024**2

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role snapshot_report, and the playbook that runs it."""

from __future__ import annotations

import json
import re
import stat
import typing as t
from collections.abc import Iterator

import pytest
from hypervisor import Endpoint, Hypervisor, ProxmoxHypervisor, VsphereHypervisor
from pve_server import PveServer
from server import VCenter
from stage import Run, Stage

pytestmark = [pytest.mark.core_versions, pytest.mark.newest]

SECRET = "never-to-be-seen-4711"
LOST = {"name": "lost", "backend": "libvirt", "uri": "qemu+unix:///system?socket=/nowhere", "label_key": SECRET}
# What ansible-core would take for a template, and a browser for a script.
HOSTILE = "{{ 6 * 7 }}<script>alert(1)</script>"


def report(stage: Stage, *arguments: str, **variables: t.Any) -> Run:
    """Play the role on localhost; ``variables`` without their prefix."""
    given = {f"snapshot_report_{key}": value for key, value in variables.items()}
    stage.write("vars.json", json.dumps(given))
    return stage.play(
        """
        - hosts: localhost
          connection: local
          gather_facts: false
          vars_files: [vars.json]
          tasks:
            - ansible.builtin.include_role: {name: safepoint.vm.snapshot_report}
        """,
        *arguments,
    )


def test_each_endpoint_is_asked_once_and_what_was_seen_is_written_down(stage: Stage, hypervisor: Hypervisor) -> None:
    hypervisor.define("web01")
    hypervisor.take("web01", "guard", "[safepoint v=1 owner=safepoint change=CHG0042 state=guarding lease=2020-01-01T00:00:00Z]")
    hypervisor.take("web01", "mine", "<![CDATA[" + HOSTILE + "]]>")
    hypervisor.take("web01", "VEEAM BACKUP TEMPORARY SNAPSHOT")
    audit = stage.write(
        "audit.jsonl", '{"vm": "web01", "action": "created", "user": "anna", "time": "2026-11-25T08:00:00Z"}\nhalf a li'
    )
    files = {kind: stage.folder / f"out.{end}" for kind, end in (("html", "html"), ("json", "json"), ("metrics", "prom"))}
    options = {
        "endpoints": [{"name": "kvm01", **hypervisor.connection}, LOST],
        "audit_file": str(audit),
        **{kind: str(path) for kind, path in files.items()},
    }
    would = report(stage, "--check", **options)
    assert would.rc == 0 and not any(path.exists() for path in files.values())
    run = report(stage, "-v", **options)
    assert run.rc == 0 and run.recap("localhost")["failed"] == 0
    assert SECRET not in run.output
    assert len(re.findall(r"TASK \[.*Ask \| List the snapshots", run.output)) == 2
    assert run.said("Endpoints reached: 1 of 2. Snapshots: 3. Critical: 2, warnings: 0. Not reached: lost: ")
    for path in files.values():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert SECRET not in path.read_text()
    assert not list(stage.folder.glob("*.new"))

    seen = json.loads(files["json"].read_text())
    assert (seen["format"], seen["version"]) == ("safepoint.vm.snapshot_report", 1)
    kvm01, lost = seen["endpoints"]
    assert kvm01["seen"] and abs(kvm01["clock_ahead_seconds"]) < 60 and kvm01["totals"]["snapshots"] == 3
    assert not lost["seen"] and "/nowhere" in lost["reason"] and lost["where"] == "qemu+unix:///system"
    [web01] = [vm for vm in seen["vms"] if vm["name"] == "web01"]
    assert [one["class"] for one in web01["snapshots"]] == ["ours", "person", "backup"] and web01["chain"] == 3
    assert web01["snapshots"][1]["description"] == HOSTILE
    assert [item["code"] for item in seen["attention"] if item["severity"] == "critical"] == ["not_seen", "change_not_ended"]
    assert [one["user"] for one in seen["audit"]["entries"]] == ["anna"] and seen["audit"]["unreadable"] == 1

    page = files["html"].read_text()
    assert "{{ 6 * 7 }}&lt;script&gt;alert(1)&lt;/script&gt;" in page and "<script>alert" not in page
    assert "anna" in page and "Not reached" in page
    assert 'safepoint_endpoint_up{endpoint="lost",backend="libvirt"} 0' in files["metrics"].read_text()


def test_what_cannot_be_a_report_fails_and_says_why(stage: Stage, hypervisor: Hypervisor) -> None:
    kvm01 = {"name": "kvm01", **hypervisor.connection}
    path = stage.folder / "out.json"
    cases: list[tuple[dict[str, t.Any], str]] = [
        ({"endpoints": [LOST], "json": str(path)}, "Endpoints reached: 0 of 1."),
        ({"endpoints": [kvm01, LOST], "require_all": True}, "Not reached: lost"),
        ({"endpoints": [kvm01, kvm01]}, "each with a unique name"),
        ({"endpoints": [kvm01], "htlm": "x"}, "unknown variable snapshot_report_htlm; did you mean snapshot_report_html?"),
        ({"endpoints": [kvm01], "metrics": "/x/metrics.txt"}, "ends with .prom; add this suffix"),
        ({"endpoints": [kvm01], "max_age": "yesterday"}, "max_age='yesterday' is not a duration"),
        (
            {"endpoints": [kvm01], "backup_patterns": [{"product": "ours", "name": "["}]},
            "the pattern of ours, is no regular expression",
        ),
    ]
    tasks = [
        {
            "block": [
                {
                    "ansible.builtin.include_role": {"name": "safepoint.vm.snapshot_report"},
                    "vars": {f"snapshot_report_{key}": value for key, value in options.items()},
                }
            ],
            "rescue": [{"ansible.builtin.debug": {"msg": f"CASE {number} {{{{ ansible_failed_result.msg }}}} END"}}],
        }
        for number, (options, _words) in enumerate(cases)
    ]
    run = stage.play(json.dumps([{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}]))
    for number, (_options, words) in enumerate(cases):
        said = re.search(rf"CASE {number} (.*?) END", run.output, re.DOTALL)
        assert said and words in " ".join(said[1].split()), words
    # It was written all the same.
    assert json.loads(path.read_text())["endpoints"][0]["seen"] is False


@pytest.fixture(params=["libvirt", "proxmox", pytest.param("vsphere", marks=pytest.mark.vcenter)])
def endpoint(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    if request.param == "libvirt":
        yield request.getfixturevalue("hypervisor")
    elif request.param == "proxmox":
        with PveServer() as pve:
            yield ProxmoxHypervisor(pve)
            assert pve.errors == ""
    else:
        with VCenter(vms=0) as vcenter:
            yield VsphereHypervisor(vcenter)
            assert vcenter.counters()["methods"]["Login"] == 2  # for the snapshot, and for the report


def test_the_playbook_needs_nothing_but_a_connection(stage: Stage, endpoint: Endpoint) -> None:
    endpoint.define("web01")
    endpoint.define("web02")
    take = {"vm": "web01", "name": "before", "labels": {"change": "CHG0042"}, "expires": "72h", **endpoint.connection}
    first = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [{"safepoint.vm.snapshot": take}]}
    text = json.dumps(json.dumps(endpoint.connection))
    env = {"PWD": str(stage.folder)}  # a shell sets it, and a process that changes its folder does not
    run = stage.play(
        json.dumps([first, {"import_playbook": "safepoint.vm.report"}]), "-e", f"snapshot_report_endpoint={text}", env=env
    )
    assert run.rc == 0 and run.said("Endpoints reached: 1 of 1. Snapshots: 1. Critical: 0, warnings: 0.")
    page = (stage.folder / "snapshots.html").read_text()
    assert "<bdi>before</bdi>" in page and "without a snapshot" in page and "No action is required." in page
    # vCenter tells the sizes of files.
    assert ("size unknown" in page) == (endpoint.connection["backend"] != "vsphere")
    secret = getattr(endpoint, "secret", "none here")
    assert secret not in page and secret not in run.output

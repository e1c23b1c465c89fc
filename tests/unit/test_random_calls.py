# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Random module calls, from the options of a task to the result, on a hypervisor in memory.

The options are generated from the real argument specs and checked by Ansible's own validator, as for a module. Then the real call runs. No option
may cause a traceback, and each write must have a row in the result and a line in the audit file.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from fake import FakeDriver, Hypervisor
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Create
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.connect import read_connection
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.credentials import secrets
from ansible_collections.safepoint.vm.plugins.module_utils._options import OPTIONS
from ansible_collections.safepoint.vm.plugins.module_utils._run import Answer, Call, perform

VMS = ["web01", "web02", "db01"]
OURS = "[safepoint v=1 owner=safepoint]"
SNAPSHOTS = {
    "nightly": OURS,
    "held": "[safepoint v=1 owner=safepoint hold=yes]",
    "old": f"{OURS[:-1]} expires=2020-01-01T00:00:00Z]",
    "mine": "by hand",
}
FOLDER = "{folder}"
"""Placeholder in a path for the folder of the call."""

TEXTS = [
    "", " ", "web01", "web02", "db01", "id:vm-1", "name:web01", "foo:bar", "nightly", "held", "mine", "snap-0", "['web01']", "a" * 300, "ä", "\0",
    "\ud800", "\u2028", "{{ x }}", "0", "3", "-1", "1h", "7d", "0s", "99999999999d", "2020-01-01", "2999-01-01T00:00:00Z", "2026-13-01",
    "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "safepoint", "[safepoint v=1 owner=x]", "*", "[", "UTC", "Europe/Vienna", "../x",
    "0123456789abcdef", "vc", "https://u:p@vc", "[::1]", "root@pam", "a!b", "test:///default",
]  # fmt: skip
PATHS = ["", "{folder}/audit", "{folder}", "{folder}/none/audit", "/dev/full", "/\0", "/\ud800", "$HOME/x\n"]
# No infinite values: they cause a traceback in Ansible's own validator, for any module (2.19).
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.floats(-1e9, 1e9), st.sampled_from(TEXTS), st.text(max_size=8)
)
JUNK = st.recursive(
    SCALARS, lambda one: st.lists(one, max_size=3) | st.dictionaries(st.sampled_from(TEXTS), one, max_size=3), max_leaves=4
)
# Waits are short.
FIXED = ("timeout", "lock_timeout", "connect_timeout")


def fitting(option: str, spec: t.Mapping[str, t.Any]) -> st.SearchStrategy[t.Any]:
    """Return values of the option's type."""
    if option in FIXED:
        return st.sampled_from(["2s", "1", 1, "0", "", "x", None])
    if "choices" in spec:
        return st.sampled_from(spec["choices"])
    if spec["type"] == "path":
        return st.sampled_from(PATHS)
    if spec["type"] == "bool":
        return st.booleans()
    if spec["type"] == "int":
        return st.integers(-2, 5) | st.sampled_from([10**20, "7", 443])
    if spec["type"] == "list" and "options" in spec:
        return st.lists(mapping(spec["options"]), max_size=3)
    if spec["type"] == "list":
        return st.lists(st.sampled_from([*VMS, *TEXTS]), max_size=3) | st.sampled_from(["web01,web02", "web01, db01"])
    if spec["type"] == "dict":
        keys = st.sampled_from(["change", "policy", "state", "lease", "expires", "group", "A", "", "x" * 50])
        return st.dictionaries(keys, st.sampled_from([None, 1, True, *TEXTS]), max_size=3)
    return st.sampled_from(TEXTS) | st.text(max_size=12)


def mapping(options: t.Mapping[str, t.Any]) -> st.SearchStrategy[dict[str, t.Any]]:
    values = {option: st.one_of(*[fitting(option, spec)] * 8, st.none(), JUNK) for option, spec in options.items()}
    some = st.lists(st.sampled_from(sorted(values)), unique=True, max_size=3)
    return some.flatmap(lambda chosen: st.fixed_dictionaries({option: values[option] for option in chosen}))


# Plausible values, so that many calls reach a write.
BASES: dict[str, list[dict[str, t.Any]]] = {
    "snapshot": [
        {"vms": ["web01", "web02"], "name": "new"},
        {"vm": "db01", "name": "nightly", "state": "absent"},
        {"vm": "web01", "name": "nightly", "labels": {"change": "1"}, "hold": True, "hold_by": "ann"},
        {"vm": "web01", "name": "old", "state": "absent", "children": "remove", "foreign": "allow"},
    ],
    "snapshot_info": [{"vm": "web01"}, {"scope": "endpoint"}],
    "snapshot_revert": [{"vm": "web02", "name": "mine", "foreign": "allow", "discard_newer": True}, {"vms": VMS, "select": "newest"}],
    "snapshot_prune": [{"scope": "endpoint", "expired": True}, {"vm": "web01", "keep_last": 1}, {"vms": VMS, "all": True, "confirm": 9}],
}  # fmt: skip
ENDPOINTS = [
    {"backend": "libvirt", "uri": "test:///default"},
    {"backend": "vsphere", "hostname": "vc", "username": "u", "password": "s3cret-of-the-tests"},
    {"backend": "proxmox", "hostname": "pve1", "token_id": "root@pam!a", "token_secret": "s3cret-of-the-tests"},
]


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, t.Any], bool, bool]:
    """Return the name of a module, its options, check mode and diff."""
    module = draw(st.sampled_from(sorted(OPTIONS)))
    sound = {**draw(st.sampled_from(ENDPOINTS)), **draw(st.sampled_from(BASES[module])), "lock_timeout": "1s", "timeout": "5s"}
    if module == "snapshot_info":
        del sound["lock_timeout"]
    else:
        sound["audit_file"] = "{folder}/audit"
    kind = draw(st.sampled_from(["sound", "one is odd", "some are odd"]))
    if kind != "some are odd":
        option = draw(st.sampled_from(sorted(sound)))
        odd = {option: draw(st.sampled_from([None, "", []]) | JUNK)} if kind == "one is odd" else {}
        return module, {**sound, **odd}, draw(st.booleans()), draw(st.booleans())
    odd = draw(mapping(OPTIONS[module]["argument_spec"]))
    if draw(st.integers(0, 9)) == 0:
        odd[draw(st.sampled_from(["nmae", "", "vm\0"]))] = draw(JUNK)
    return module, {**sound, **odd}, draw(st.booleans()), draw(st.booleans())


def place(value: t.Any, folder: str) -> t.Any:
    return value.replace(FOLDER, folder) if isinstance(value, str) else value


def hypervisor() -> Hypervisor:
    made = Hypervisor()
    driver = FakeDriver(made)
    for name in VMS:
        vm = made.add(name, power="off" if name == "db01" else "running")
        for snapshot, description in SNAPSHOTS.items():
            driver._create(made.machines[vm.id], Create(vm, snapshot, description, memory=False))
    return made


def state(seen: Hypervisor) -> dict[str, t.Any]:
    """Return all that a call can change of each VM. A revert to the current snapshot counts: it changes the data written since."""
    return {
        id_: (machine.vm.name, machine.power, machine.current, dict(machine.snapshots)) for id_, machine in seen.machines.items()
    }


def check_call(module: str, options: dict[str, t.Any], check_mode: bool, diff: bool, folder: Path) -> str:
    """Run the call and check that its result matches the actual changes; return how far it got."""
    options = {option: place(value, str(folder)) for option, value in options.items()}
    try:
        given = json.loads(json.dumps(options))
    except ValueError:
        return "no JSON"
    checked = ArgumentSpecValidator(**OPTIONS[module]).validate(given)
    if checked.error_messages:
        return "refused by Ansible"
    params = checked.validated_parameters
    spec = OPTIONS[module]["argument_spec"]
    hidden = {str(params[key]) for key in spec if spec[key].get("no_log") and params.get(key)} | secrets(params, {})
    endpoint = hypervisor()
    before = state(endpoint)

    def connect(params: t.Mapping[str, t.Any], *, environ: t.Mapping[str, str], seconds: float) -> FakeDriver:
        read_connection(params, {})
        return FakeDriver(endpoint)

    answer = perform(Call(module, params, check_mode, diff, hidden), connect=connect)
    json.dumps([answer.result, answer.failure, answer.warnings])
    after = state(endpoint)
    changed = {after[id_][0] for id_ in after if after[id_] != before[id_]}
    rows = {row["vm"]["name"]: row for row in answer.result.get("vms", []) if row["vm"]}
    assert not (check_mode and endpoint.actions)
    assert not (module == "snapshot_info" and endpoint.actions)
    assert changed <= {name for name, row in rows.items() if row["changed"]}
    if endpoint.actions and params.get("audit_file"):
        check_audit(params["audit_file"], answer, len(endpoint.actions))
    return "refused by us" if answer.failure and "vms" not in answer.result else "wrote" if endpoint.actions else "looked"


def check_audit(audit_file: str, answer: Answer, writes: int) -> None:
    """Check that each write has an intent and an outcome and each change has a result. If no line can be written, nothing else is."""
    assert Path(audit_file).is_file()
    lines = [json.loads(line) for line in Path(audit_file).read_text().splitlines()]
    assert {row["vm"]["name"] for row in answer.result["vms"] if row["changed"]} <= {
        line["vm"] for line in lines if line["event"] == "result"
    }
    for event_of_a_write in ("intent", "outcome"):
        assert sum(line["event"] == event_of_a_write for line in lines) == writes


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SAFEPOINT_", "VMWARE_", "PROXMOX_", "LIBVIRT_")):
            monkeypatch.delenv(name)


LIMITS: dict[str, t.Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def run(call: tuple[str, dict[str, t.Any], bool, bool]) -> str:
    folder, here = Path(tempfile.mkdtemp(prefix="sp")), Path.cwd()
    # The path of the audit file may be relative or contain ~ or $HOME.
    os.chdir(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(folder))
            return check_call(*call, folder)
    finally:
        os.chdir(here)
        shutil.rmtree(folder)


@pytest.mark.parametrize("module", sorted(OPTIONS))
def test_each_option_alone_may_be_anything(module: str) -> None:
    for base in BASES[module][:2]:
        sound = {**ENDPOINTS[0], **base}
        for option in OPTIONS[module]["argument_spec"]:
            for value in (None, "", " ", [], [None], {}, 0, -1, "\0", "\ud800", ["\0"], "[safepoint]", "x" * 5000):
                run((module, {**sound, option: value}, False, True))


@given(calls())
@settings(max_examples=300, **LIMITS)
def test_random_calls_never_raise_and_every_write_has_a_row(call: tuple[str, dict[str, t.Any], bool, bool]) -> None:
    event(run(call))


@pytest.mark.slow
@pytest.mark.timeout(7200)  # 1632 calls took 900 seconds at a load of 40 on two cores
@given(calls())
@settings(max_examples=10_000, **LIMITS)
def test_ten_thousand_calls(call: tuple[str, dict[str, t.Any], bool, bool]) -> None:
    event(run(call))

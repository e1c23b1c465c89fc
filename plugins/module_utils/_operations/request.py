# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Parse the options of a call into the values of the core. Invalid or contradictory options are refused here.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import re
from datetime import timedelta

from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import parse_duration, parse_expiry, parse_moment
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._core.filter import Filter
from ansible_collections.safepoint.vm.plugins.module_utils._core.label import check_description, check_labels
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._core.owner import Owner
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.params import Params

# A call ends at most this many seconds after its timeout, even if the endpoint does not answer. _engine/phases.py divides them.
GRACE_SECONDS = 20.0
# With one signed label, a shorter key can be guessed.
_SHORTEST_KEY = 16
_LIST = re.compile(r"\[\s*(?:(['\"]).*\1\s*)?\]", re.DOTALL)


def read_targets(params: Params) -> list[Target] | None:
    """Return the VMs of the call, or None for all VMs of the endpoint."""
    if params.get("scope") == "endpoint":
        named = next((option for option in ("vm", "vms") if params.get(option) is not None), None)
        if named:
            raise InvalidOption(f"scope=endpoint selects all VMs, but {named} is set too; remove one of them")
        return None
    for option in ("vms", "targets"):
        if params.get(option) is not None and not params[option]:
            raise InvalidOption(f"{option} is empty; set at least one VM")
    targets = _named_targets(params)
    if params.get("id") is not None and len(targets) > 1:
        raise InvalidOption(
            f"id={params['id']!r} is a snapshot of one VM, but vms has {len(targets)} VMs; use targets, a list of vm and id"
        )
    seen = [target.ref for target in targets]
    for ref in seen:
        if seen.count(ref) > 1:
            raise InvalidOption(f"VM {ref!r} is listed {seen.count(ref)} times; list it once")
    return targets


def _named_targets(params: Params) -> list[Target]:
    if params.get("targets"):
        for one in params["targets"]:
            _check_ref("targets: vm", one["vm"])
            if one["id"] is None or not one["id"].strip():
                raise InvalidOption("targets: id is empty; set it to the id of the snapshot")
        return [Target(one["vm"], one["id"], _expected(one["match_labels"])) for one in params["targets"]]
    if params.get("vms") is not None:
        option, refs = "vms", params["vms"]
    elif params.get("vm") is not None:
        option, refs = "vm", [params["vm"]]
    else:
        also = ", or targets" if "targets" in params else ", or set scope to endpoint" if "scope" in params else ""
        raise InvalidOption(f"no VM is set; set vm or vms{also}")
    for ref in refs:
        _check_ref(option, ref)
    return [Target(ref, params.get("id")) for ref in refs]


def _check_ref(option: str, ref: str | None) -> None:
    """Refuse a value that cannot be the name of a VM."""
    if ref is None or not ref.strip():
        raise InvalidOption(f"{option} has an empty entry; use the name, UUID or id of each VM")
    # Ansible converts a list to a string if the option is a string.
    if _LIST.fullmatch(ref):
        raise InvalidOption(f"{option}={ref} is a list, but must be one VM; write vms: {ref}")
    if ref != ref.strip():
        raise InvalidOption(
            f"{option}: {ref!r} begins or ends with a space; write {ref.strip()!r}, and a list as vms: [web01, web02]"
        )


def _check_snapshot(params: Params) -> None:
    """Refuse options that do not name a snapshot, or that contradict each other."""
    for option in ("name", "id"):
        value = params.get(option)
        if value is not None and not value.strip():
            raise InvalidOption(f"{option} is empty; set it to the {option} of the snapshot")
    pattern = params.get("name_pattern")
    if pattern is not None and not pattern.strip():
        raise InvalidOption(
            "name_pattern is empty, and matches no snapshot; set a pattern such as nightly-*, or remove the option"
        )
    # Prune has neither name nor id.
    if "targets" in params and all(params.get(option) is None for option in ("name", "id", "targets", "select")):
        select = ", or select" if "select" in params else ""
        raise InvalidOption(f"no snapshot is set; set name or id, or targets with an id for each VM{select}")
    if params.get("if_exists") == "fail" and not params.get("name"):
        raise InvalidOption("if_exists=fail can only be used with name; with id, an existing snapshot is updated")
    if params.get("select") == "before" and params["time"] is None:
        raise InvalidOption("select=before requires time; write for example time: 24h")


def read_request(params: Params) -> Request:
    """Parse the options of the modules that change snapshots. Options that a module does not have keep their defaults."""
    _check_snapshot(params)
    _check_selection(params)
    if params.get("state") == "absent":
        _check_absent(params)
    if params.get("children") == "remove" and params["state"] != "absent":
        raise InvalidOption("children=remove can only be used with state=absent; remove children")
    for option in ("hold_by", "hold_reason"):
        if params.get(option) and params.get("hold") is False:
            raise InvalidOption(f"{option} is set, but hold=false releases the snapshot; remove one of them")
    expires, description = params.get("expires"), params.get("description")
    match_labels = check_labels(params.get("match_labels") or {}, option="match_labels")
    kind = params.get("kind")
    return Request(
        name=params.get("name"),
        owner=params["owner"],
        foreign_allowed=params.get("foreign") == "allow",
        label_key=params["label_key"],
        longest=timedelta(seconds=longest(params)),
        kind=None if kind == "auto" else kind,
        memory=bool(params.get("memory")),
        quiesce=params.get("quiesce") or "never",
        description=None if description is None else check_description(description),
        expires=None if expires is None else parse_expiry(expires),
        hold=params.get("hold"),
        hold_by=params.get("hold_by"),
        hold_reason=params.get("hold_reason"),
        labels=check_labels(params.get("labels") or {}),
        fail_if_exists=params.get("if_exists") == "fail",
        children=params.get("children") or "keep",
        select=params.get("select") is not None,
        matching=Filter(
            labels=match_labels, older_than=parse_moment(params["time"], option="time") if params.get("time") else None
        ),
        power=params.get("power") or "as_snapshot",
        discard_newer=bool(params.get("discard_newer")),
    )


def _check_selection(params: Params) -> None:
    """Refuse options of snapshot_revert that select a snapshot, and contradict each other."""
    select = params.get("select")
    for option in ("match_labels", "time"):
        if "select" in params and params[option] is not None and select is None:
            raise InvalidOption(f"{option} can only be used with select, not with name or id; remove {option}")
    if select == "newest" and params["time"] is not None:
        raise InvalidOption(f"time={params['time']!r} can only be used with select=before, not with select=newest; remove time")


def _check_absent(params: Params) -> None:
    """Refuse options that have no effect with state=absent."""
    without_effect = {
        "labels": bool(params.get("labels")),
        "quiesce": params["quiesce"] != "never",
        "kind": params["kind"] != "auto",
        "memory": params["memory"],
        "if_exists": params["if_exists"] == "fail",
        **{option: params[option] is not None for option in ("description", "expires", "hold", "hold_by", "hold_reason")},
    }
    for option, given in without_effect.items():
        if given:
            raise InvalidOption(
                f"{option} can only be used with state=present, and has no effect with state=absent; remove {option}"
            )


def read_owner(params: Params) -> Owner:
    if not params["owner"]:
        raise InvalidOption("owner is empty; remove the option to use the default, safepoint")
    key = params["label_key"]
    if key is not None and len(key) < _SHORTEST_KEY:
        raise InvalidOption(
            f"label_key is shorter than {_SHORTEST_KEY} characters; create a longer one, for example with openssl rand -hex 32"
        )
    return Owner(params["owner"], key)


def read_filter(params: Params) -> Filter:
    """Parse the filter options of snapshot_info."""
    limits = {option: parse_moment(params[option], option=option) for option in ("older_than", "newer_than") if params[option]}
    return Filter(
        name=params["name_pattern"],
        labels=_expected(params["match_labels"]),
        **limits,
    )


def _expected(labels: Params | None) -> dict[str, str]:
    """Return the required label fields as strings; a field with an empty value must be missing."""
    return {key: "" if value is None else str(value) for key, value in (labels or {}).items()}


def read_seconds(params: Params, option: str) -> float:
    seconds = parse_duration(params[option], option=option)
    if seconds <= 0 and option != "lock_timeout":
        raise InvalidOption(f"{option}={params[option]!r} must be greater than zero; write for example 15s")
    return seconds


def longest(params: Params) -> float:
    """Return the maximum duration of a call with these options in seconds, even if the endpoint does not answer."""
    return read_seconds(params, "timeout") + GRACE_SECONDS


def at_least_one(params: Params, option: str) -> int:
    number: int = params[option]
    if number < 1:
        raise InvalidOption(f"{option}={number} must be greater than zero; use 1 or more")
    return number

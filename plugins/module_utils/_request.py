# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options of a call -> values of the core. Options that contradict each other or cannot be used are refused here, with a sentence.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import re
from datetime import timedelta

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import parse_duration, parse_expiry, parse_moment
from ansible_collections.safepoint.vm.plugins.module_utils._errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._filter import Filter
from ansible_collections.safepoint.vm.plugins.module_utils._label import check_description, check_labels
from ansible_collections.safepoint.vm.plugins.module_utils._model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._owner import Owner
from ansible_collections.safepoint.vm.plugins.module_utils._params import Params
from ansible_collections.safepoint.vm.plugins.module_utils._phases import GRACE_SECONDS
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Request

# Shorter ones can be guessed, given one signed label.
_SHORTEST_KEY = 16
_LIST = re.compile(r"\[\s*(?:(['\"]).*\1\s*)?\]", re.DOTALL)


def read_targets(params: Params) -> list[Target] | None:
    """The VMs that are meant, or None for all of the endpoint."""
    if params.get("scope") == "endpoint":
        named = next((option for option in ("vm", "vms") if params.get(option) is not None), None)
        if named:
            raise InvalidOption(f"scope=endpoint means all VMs, and {named} names some; leave one of them out")
        return None
    for option in ("vms", "targets"):
        if params.get(option) is not None and not params[option]:
            raise InvalidOption(f"{option} is empty; name at least one VM")
    targets = _named_targets(params)
    if params.get("id") is not None and len(targets) > 1:
        raise InvalidOption(
            f"id={params['id']!r} names the snapshot of one VM, and vms names {len(targets)}; use targets, a list of vm and id"
        )
    seen = [target.ref for target in targets]
    for ref in seen:
        if seen.count(ref) > 1:
            raise InvalidOption(f"VM {ref!r} is named {seen.count(ref)} times; name it once")
    return targets


def _named_targets(params: Params) -> list[Target]:
    if params.get("targets"):
        for one in params["targets"]:
            _check_ref("targets: vm", one["vm"])
            if one["id"] is None or not one["id"].strip():
                raise InvalidOption("targets: id is empty; name the snapshot")
        return [Target(one["vm"], one["id"], _expected(one["labels"])) for one in params["targets"]]
    if params.get("vms") is not None:
        option, refs = "vms", params["vms"]
    elif params.get("vm") is not None:
        option, refs = "vm", [params["vm"]]
    else:
        also = ", or targets" if "targets" in params else ", or set scope to endpoint" if "scope" in params else ""
        raise InvalidOption(f"no VM is named; set vm or vms{also}")
    for ref in refs:
        _check_ref(option, ref)
    return [Target(ref, params.get("id")) for ref in refs]


def _check_ref(option: str, ref: str | None) -> None:
    """Refuse what cannot be the name of a VM."""
    if ref is None or not ref.strip():
        raise InvalidOption(f"{option}: the name of a VM is empty; name each VM by its name, UUID or id")
    # Ansible turns a list into a text where an option takes one text.
    if _LIST.fullmatch(ref):
        raise InvalidOption(f"{option}={ref} is a list, and one VM is expected; write vms: {ref}")
    if ref != ref.strip():
        raise InvalidOption(
            f"{option}: {ref!r} begins or ends with a blank; write {ref.strip()!r}, in vms as vms: [web01, web02]"
        )


def _check_snapshot(params: Params) -> None:
    """Refuse options that name no snapshot, or none that can be."""
    for option in ("name", "id"):
        value = params.get(option)
        if value is not None and not value.strip():
            raise InvalidOption(f"{option} is empty; name the snapshot")
    # Not for prune, where a name is only a filter.
    if "targets" in params and all(params.get(option) is None for option in ("name", "id", "targets", "select")):
        select = ", or select" if "select" in params else ""
        raise InvalidOption(f"no snapshot is named; set name or id, or targets with an id for each VM{select}")
    if params.get("if_exists") == "fail" and not params.get("name"):
        raise InvalidOption("if_exists=fail goes with name; a snapshot named by its id is there to be updated")
    if params.get("select") == "before" and params["time"] is None:
        raise InvalidOption("select=before needs time; write for example time: 24h")


def read_request(params: Params) -> Request:
    """The options of the changing modules; those a module does not have keep their defaults."""
    _check_snapshot(params)
    expires = params.get("expires")
    description = params.get("description")
    labels = check_labels(params.get("labels") or {})
    select = params.get("select")
    for option in ("labels", "time"):
        if "select" in params and params[option] is not None and select is None:
            raise InvalidOption(f"{option} goes with select; a snapshot named by name or id needs no more")
    if select == "newest" and params["time"] is not None:
        raise InvalidOption(f"time={params['time']!r} goes with select=before; select=newest takes the newest there is")
    if params.get("state") == "absent":
        meant = {
            "labels": labels,
            "quiesce": params["quiesce"] != "never",
            "kind": params["kind"] != "auto",
            "memory": params["memory"],
        }
        meant["if_exists"] = params["if_exists"] == "fail"
        meant.update(
            {option: params[option] is not None for option in ("description", "expires", "hold", "hold_by", "hold_reason")}
        )
        for option, given in meant.items():
            if given:
                raise InvalidOption(f"{option} goes with state=present, and with state=absent would choose nothing; leave it out")
    if params.get("children") == "remove" and params["state"] != "absent":
        raise InvalidOption("children=remove goes with state=absent; leave it out")
    for option in ("hold_by", "hold_reason"):
        if params.get(option) and params.get("hold") is False:
            raise InvalidOption(f"{option} is given and hold=false releases the snapshot; leave one of them out")
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
        labels={} if select else labels,
        fail_if_exists=params.get("if_exists") == "fail",
        children=params.get("children") or "keep",
        select=select is not None,
        matching=Filter(labels=labels, older_than=parse_moment(params["time"], option="time") if params.get("time") else None),
        power=params.get("power") or "as_snapshot",
        discard_newer=bool(params.get("discard_newer")),
    )


def read_owner(params: Params) -> Owner:
    if not params["owner"]:
        raise InvalidOption("owner is empty; leave it out for the default, safepoint")
    key = params["label_key"]
    if key is not None and len(key) < _SHORTEST_KEY:
        raise InvalidOption(
            f"label_key is shorter than {_SHORTEST_KEY} characters; make a longer one, for example with openssl rand -hex 32"
        )
    return Owner(params["owner"], key)


def read_filter(params: Params) -> Filter:
    """Which snapshots the listing is to show."""
    limits = {option: parse_moment(params[option], option=option) for option in ("older_than", "newer_than") if params[option]}
    return Filter(
        name=params["name"],
        labels=_expected(params["labels"]),
        **limits,
    )


def _expected(labels: Params | None) -> dict[str, str]:
    """What a label is to say, as texts; empty is a field that it must not have."""
    return {key: "" if value is None else str(value) for key, value in (labels or {}).items()}


def read_seconds(params: Params, option: str) -> float:
    seconds = parse_duration(params[option], option=option)
    if seconds <= 0 and option != "lock_timeout":
        raise InvalidOption(f"{option}={params[option]!r} must be greater than zero; write for example 15s")
    return seconds


def longest(params: Params) -> float:
    """After how many seconds a call with these options has ended, whatever the other side does."""
    return read_seconds(params, "timeout") + GRACE_SECONDS


def at_least_one(params: Params, option: str) -> int:
    number: int = params[option]
    if number < 1:
        raise InvalidOption(f"{option}={number} must be greater than zero; use 1 or more")
    return number

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Create the plan of snapshot_prune from its options.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import typing as t
from collections.abc import Mapping
from datetime import timedelta

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import parse_age
from ansible_collections.safepoint.vm.plugins.module_utils._errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._filter import Filter
from ansible_collections.safepoint.vm.plugins.module_utils._label import check_labels
from ansible_collections.safepoint.vm.plugins.module_utils._options import KEEP_COUNTS
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Request
from ansible_collections.safepoint.vm.plugins.module_utils._prune import Pruned
from ansible_collections.safepoint.vm.plugins.module_utils._retention import POLICY_LABEL, Policy, time_zone


def pruned(request: Request, params: Mapping[str, t.Any]) -> Pruned:
    """Create the plan from the options.

    :raises InvalidOption: an option is invalid.
    """
    counts = {option: params[option] for option in KEEP_COUNTS if params[option] is not None}
    for option, number in counts.items():
        if number < 0:
            raise InvalidOption(f"{option}={number} must not be negative; use 1 or more, or remove the option")
    for option, instead in (
        ("max_count", "set all=true to remove all snapshots"),
        ("max_delete_per_run", "use check mode to see what would be removed"),
    ):
        if params[option] is not None and params[option] < 1:
            raise InvalidOption(f"{option}={params[option]} must be greater than zero; use 1 or more, or {instead}")
    if params["confirm"] is not None and not params["all"]:
        raise InvalidOption("confirm can only be used with all=true, which removes every own snapshot; remove confirm")
    policy = Policy(
        **counts,
        keep_within=_span(params, "keep_within"),
        keep_labels=_texts(params, "keep_labels"),
        max_age=_span(params, "max_age"),
        max_count=params["max_count"] or 0,
        min_age=_span(params, "min_age"),
        expired=params["expired"],
        max_delete=params["max_delete_per_run"] or 0,
        everything=params["all"],
    )
    zero = next((option for option, number in counts.items() if not number), None)
    if zero is not None and not policy.has_rules:
        raise InvalidOption(f"{zero}=0 keeps nothing; use 1 or more")
    return Pruned(request, policy, scope=_scope(params), tz=time_zone(params["timezone"]), confirm=params["confirm"])


def _scope(params: Mapping[str, t.Any]) -> Filter:
    labels = _texts(params, "labels")
    for option, key in (("policy", POLICY_LABEL), ("change", "change")):
        value = params[option]
        if value is None:
            continue
        if not value:
            raise InvalidOption(f"{option} is empty; set a value, or remove the option")
        if labels.get(key, value) != value:
            raise InvalidOption(f"{option}={value!r} contradicts labels, which sets {key}={labels[key]!r}; remove one of them")
        labels[key] = value
    return Filter(name=params["name"], labels=labels)


def _texts(params: Mapping[str, t.Any], option: str) -> dict[str, str]:
    return check_labels(params[option] or {}, option=option)


def _span(params: Mapping[str, t.Any], option: str) -> timedelta | None:
    if params[option] is None:
        return None
    age = parse_age(params[option], option=option)
    if not age:
        raise InvalidOption(
            f"{option}={params[option]} must be greater than zero; write for example 12h or 30d, or remove the option"
        )
    return age

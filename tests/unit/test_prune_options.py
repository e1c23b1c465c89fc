# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options of snapshot_prune: contradictory ones are refused, valid ones become a plan."""

from __future__ import annotations

import typing as t

import pytest
from fake import FakeDriver, Hypervisor

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.prune import pruned
from ansible_collections.safepoint.vm.plugins.module_utils._options import OPTIONS


def plan(**options: t.Any) -> None:
    """Parse the options like the module."""
    params = {option: spec.get("default") for option, spec in OPTIONS["snapshot_prune"]["argument_spec"].items()}
    pruned(Request(), {**params, **options}).check(FakeDriver(Hypervisor()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["no rule", "keep_last"]),
        ({"min_keep": 3, "min_age": "1h", "max_delete_per_run": 5}, ["no rule"]),
        ({"keep_last": 0, "min_keep": 3, "min_age": "1h"}, ["keep_last=0 keeps nothing; use 1 or more"]),
        ({"keep_daily": 0}, ["keep_daily=0 keeps nothing"]),
        ({"keep_last": -1}, ["keep_last=-1"]),
        ({"min_keep": -1, "expired": True}, ["min_keep=-1"]),
        ({"max_count": 0}, ["max_count=0", "all=true"]),
        ({"max_delete_per_run": 0, "expired": True}, ["max_delete_per_run=0", "check mode"]),
        ({"max_age": "0"}, ["max_age", "30d"]),
        ({"max_age": "3"}, ["max_age=3 has no unit; write 3h for hours or 3d for days"]),
        ({"min_age": "1.5", "expired": True}, ["min_age=1.5 has no unit; write 1.5h"]),
        ({"keep_within": " 7 "}, ["keep_within=7 has no unit; write 7h"]),
        ({"max_age": "soon"}, ["max_age", "soon", "72h"]),
        ({"keep_within": "-1d"}, ["keep_within", "-1d"]),
        ({"keep_daily": 7, "timezone": "Vienna"}, ["timezone", "Vienna", "Europe/Vienna"]),
        ({"keep_daily": 7, "confirm": 1}, ["confirm", "all=true"]),
        ({"all": True, "keep_daily": 7, "confirm": 1}, ["all=true"]),
        ({"keep_labels": {"Quality": "x"}}, ["keep_labels", "Quality"]),
        ({"expired": True, "match_labels": {"a b": "x"}}, ["match_labels", "a b"]),
        ({"expired": True, "policy": "a", "match_labels": {"policy": "b"}}, ["policy", "match_labels"]),
        ({"expired": True, "change": ""}, ["change", "empty"]),
    ],
)
def test_invalid_prune_options_are_refused(options: dict[str, t.Any], words: list[str]) -> None:
    with pytest.raises(InvalidOption) as refused:
        plan(**options)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {"expired": True},
        {"keep_last": 0, "keep_daily": 7, "min_keep": 0},
        {"keep_last": 3, "keep_labels": {}, "match_labels": {"quality": ""}},
        {"keep_within": "7d", "min_age": "0.5h", "timezone": "Europe/Vienna"},
        {"all": True, "confirm": 3, "name_pattern": "x*"},
        {"policy": "a", "match_labels": {"policy": "a"}, "max_count": 3, "min_keep": 3},
    ],
)
def test_valid_prune_options_are_accepted(options: dict[str, t.Any]) -> None:
    plan(**options)

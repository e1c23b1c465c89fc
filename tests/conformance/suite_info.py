# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Conformance: the listing, its filters, and the drift of the configuration."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from kit import Backend, only

from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.results import outcome_diff
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted


class Info:
    """Reading without changes."""

    def test_each_snapshot_is_listed_with_age_and_size_or_the_reason_without(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.take(vm, "sa")
        (shown,) = backend.info(vm)["snapshots"]
        assert 0 <= shown["age_seconds"] < 300
        assert (shown["size_bytes"] is None) == bool(shown["size_unknown"])
        assert shown["ours"] and shown["why_not_ours"] is None
        assert "drift" not in shown

    def test_lease_is_listed_as_running_over_or_unreadable(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        backend.take(vm, "sa", labels={"lease": "2001-01-01T00:00:00Z"})
        backend.take(vm, "sb", labels={"lease": "2101-01-01T00:00:00Z"})
        backend.take(vm, "sc")
        backend.by_hand(vm, "sd", "[safepoint v=1 owner=safepoint lease=tomorrow]")
        shown = {one["name"]: one["lease"] for one in backend.info(vm)["snapshots"]}
        assert shown == {"sa": "over", "sb": "running", "sc": None, "sd": "unreadable"}

    def test_listing_can_be_filtered(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        backend.take(vm, "nightly-1", labels={"stage": "test", "change": "1"})
        backend.take(vm, "nightly-2", labels={"stage": "test"})
        backend.by_hand(vm, "Nightly-3", "by a person")

        def listed(**wanted: object) -> list[str]:
            return [one["name"] for one in backend.info(vm, **wanted)["snapshots"]]  # type: ignore[arg-type]

        assert listed(name="nightly-*") == ["nightly-1", "nightly-2"]
        assert listed(name="?ightly-[13]") == ["nightly-1", "Nightly-3"]
        assert listed(labels={"stage": "test"}) == ["nightly-1", "nightly-2"]
        assert listed(labels={"stage": "test", "change": ""}) == ["nightly-2"]
        assert listed(labels={"owner": "safepoint", "change": "1"}) == ["nightly-1"]
        assert listed(ownership="ours") == ["nightly-1", "nightly-2"]
        assert listed(ownership="foreign") == ["Nightly-3"]
        assert listed(older_than=timedelta(hours=1)) == []
        assert listed(newer_than=timedelta(hours=1)) == ["nightly-1", "nightly-2", "Nightly-3"]
        assert listed(older_than=datetime.now(timezone.utc) + timedelta(hours=1), ownership="foreign") == ["Nightly-3"]

    def test_nothing_has_drifted_right_after_a_snapshot(self, backend: Backend) -> None:
        for power in ("off", backend.up, "running"):
            vm = backend.vm(power=power)
            backend.take(vm, "sa")
            seen = backend.info(vm, drift=True)
            (shown,) = seen["snapshots"]
            assert shown["drift"] == []
            assert shown["configuration"] == seen["configuration"]
            assert shown["configuration"]["cpus"] == 1 and shown["configuration"]["memory_bytes"] > 0

    def test_predicted_drift_is_what_the_revert_changes(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        backend.take(vm, "sa")
        before = backend.info(vm, drift=True)["configuration"]["memory_bytes"]
        backend.grow(vm)
        backend.take(vm, "sb")
        first, second = backend.info(vm, drift=True)["snapshots"]
        assert first["drift"] == [{"what": "memory_bytes", "then": before, "now": 2 * before}]
        assert second["drift"] == []
        plan = Reverted(Request(name="sa", discard_newer=True))
        would = only(backend.run(plan, vm, dry_run=True, drift=True))
        assert backend.info(vm, drift=True)["configuration"]["memory_bytes"] == 2 * before
        does = only(backend.run(plan, vm, drift=True))
        assert does.error is None, does.error
        shown = outcome_diff(does)
        assert outcome_diff(would) == shown
        assert f"memory_bytes: {2 * before}\n" in shown["before"] and f"memory_bytes: {before}\n" in shown["after"]
        assert "\n  sb " in shown["before"] and "\n  sb " not in shown["after"]
        assert backend.info(vm, drift=True)["snapshots"][0]["drift"] == []

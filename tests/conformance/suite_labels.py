# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Conformance: labels and ownership."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta, timezone

import pytest
from kit import Backend, bare, code, only, pruning

from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import parse_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._core.label import Label
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target, Vm
from ansible_collections.safepoint.vm.plugins.module_utils._core.owner import Owner, exactly, within
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.results import tree
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

KEY = "a key of some length"


class Labels:
    """Descriptions, labels, signatures, and foreign snapshots."""

    # label

    def test_different_label_or_description_is_changed_once(self, backend: Backend) -> None:
        vm = backend.vm()
        before = backend.take(vm, "one", description="first", labels={"change": "1", "stage": "x"})
        backend.take(vm, "child")
        request = Request(
            name="one",
            description="zweite\nZeile & <b>",
            expires=timedelta(days=7),
            labels={"change": "zwölf %]", "stage": ""},
            hold=True,
        )
        would = only(backend.run(Present(request), vm, dry_run=True))
        assert backend.list(vm)[0] == dataclasses.replace(before, current=False)
        does = only(backend.run(Present(request), vm))
        assert (would.word, would.changed) == (does.word, does.changed) == ("updated", True)
        assert tree(would.after) == tree(does.after)
        again = only(backend.run(Present(request), vm))
        assert (again.word, again.changed) == ("exists", False)
        seen = {one.name: one for one in backend.list(vm)}
        one = seen["one"]
        assert one.text == "zweite\nZeile & <b>"
        assert one.label and one.label.fields["change"] == "zwölf %]"
        assert "stage" not in one.label.fields
        assert one.created and one.label.expires
        assert abs(one.created + timedelta(days=7) - one.label.expires) <= timedelta(minutes=1)
        assert seen["child"].parent == one.id and seen["child"].current and not one.current

    def test_expiry_in_the_past_is_refused_before_any_write(self, backend: Backend) -> None:
        vm, now = backend.vm(power="off"), datetime.now(timezone.utc)
        backend.take(vm, "there", description="as it was")
        for name in ("new", "there"):
            past = Request(name=name, description="new text", expires=now - timedelta(seconds=1))
            for dry_run in (True, False):
                with pytest.raises(InvalidOption, match=r"^expires=.*Z is in the past"):
                    backend.run(Present(past), vm, dry_run=dry_run)
        assert [(one.name, one.text) for one in backend.list(vm)] == [("there", "as it was")]
        # An expiry counted from the creation of an old snapshot is not refused: the snapshot has then expired.
        assert only(backend.run(Present(Request(name="there", expires=timedelta(hours=1))), vm, later=timedelta(days=1))).changed

    def test_unexpected_label_prevents_all_changes(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        one = backend.take(vm, "one", labels={"claim": "a"})

        def target(**labels: str) -> Target:
            return Target(vm, one.id, labels)

        for plan in (Present(Request(labels={"claim": "b"})), Reverted(Request()), Absent(Request())):
            refused = only(backend.run(plan, target(claim="", stage="")))
            assert (code(refused), refused.changed) == ("label_differs", False)
            assert "it has claim=a" in str(refused.error)
        assert backend.list(vm) == [one]
        assert only(backend.run(Present(Request(labels={"claim": "b"})), target(claim="a", stage=""))).word == "updated"
        assert code(only(backend.run(Absent(Request()), target(claim="a")))) == "label_differs"
        assert only(backend.run(Absent(Request()), target(claim="b"))).word == "removed"

    def test_options_that_are_not_set_keep_their_values(self, backend: Backend) -> None:
        vm = backend.vm()
        first = backend.take(
            vm, "one", description="text", expires=timedelta(days=7), labels={"a": "1"}, hold=True, hold_reason="audit"
        )
        assert bare(only(backend.run(Present(Request(name="one")), vm)).snapshot) == first

    def test_text_around_the_label_is_kept(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.by_hand(vm, "edited", "seen by Ann\n  [safepoint v=1 owner=safepoint change=7] \nand by Ben")
        done = only(backend.run(Present(Request(name="edited", labels={"stage": "two"})), vm))
        assert done.word == "updated"
        one = backend.list(vm)[0]
        assert one.text == "seen by Ann\nand by Ben"
        assert one.label and dict(one.label.fields) == {"change": "7", "stage": "two"}

    def test_snapshot_on_hold_is_not_removed_until_it_is_released(self, backend: Backend) -> None:
        vm = backend.vm()
        backend.take(vm, "kept", hold=True, hold_reason="incident 4711")
        refused = only(backend.run(Absent(Request(name="kept")), vm))
        assert code(refused) == "held" and "incident 4711" in str(refused.error)
        assert backend.names(vm) == ["kept"]
        assert only(backend.run(Present(Request(name="kept", hold=False)), vm)).word == "updated"
        assert only(backend.run(Absent(Request(name="kept")), vm)).word == "removed"

    def test_hold_reason_without_hold_is_refused(self, backend: Backend) -> None:
        vm = backend.vm()
        refused = only(backend.run(Present(Request(name="kept", hold_reason="audit")), vm))
        assert code(refused) == "invalid_option"
        assert "hold=true" in str(refused.error)
        assert backend.names(vm) == []

    def test_invalid_label_is_not_overwritten(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        backend.by_hand(vm, "odd", "[safepoint v=1 owner=safepoint]\n[safepoint v=1 owner=safepoint]")
        odd = backend.list(vm)[0]
        for dry_run in (True, False):
            refused = only(backend.run(Present(Request(labels={"a": "1"})), Target(vm, odd.id), dry_run=dry_run))
            assert (code(refused), refused.changed) == ("foreign", False)
            assert "more than one label line" in str(refused.error)
        assert backend.list(vm) == [odd]
        replaced = only(backend.run(Present(Request(labels={"a": "1"}, description="repaired")), Target(vm, odd.id)))
        assert replaced.word == "updated"
        assert backend.list(vm)[0].text == "repaired"
        assert backend.info(vm)["snapshots"][0]["ours"]

    def test_long_and_unusual_labels_survive_a_round_trip(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        labels = {"long": "x" * 4096, "strange": "\u00fc \u4e2d\u6587 \U0001f600 <&>\"'] [safepoint \n\t %41"}
        made = backend.take(vm, "one", labels=labels, description="\u00fc\u4e2d\U0001f600 <&>")
        assert made.label and {key: made.label.fields[key] for key in labels} == labels
        assert made.text == "\u00fc\u4e2d\U0001f600 <&>"
        assert only(backend.run(Present(Request(name="one", labels=labels)), vm)).word == "exists"

    # signed

    def test_signed_label_is_ours_only_with_its_key(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        backend.take(vm, "signed", label_key=KEY, labels={"change": "7"})
        assert only(backend.run(Present(Request(name="signed", label_key=KEY)), vm)).word == "exists"
        for other in ("another key, long enough", KEY + "x"):
            refused = only(backend.run(Absent(Request(name="signed", label_key=other)), vm))
            assert (code(refused), refused.changed) == ("foreign", False)
            assert "sign" in str(refused.error)
        changed = only(backend.run(Present(Request(name="signed", label_key=KEY, labels={"change": "8"})), vm))
        assert changed.word == "updated"
        assert only(backend.run(Absent(Request(name="signed", label_key=KEY)), vm)).word == "removed"

    def test_unsigned_label_is_foreign_with_a_key_and_can_be_signed_by_id(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        plain = backend.take(vm, "plain")
        refused = only(backend.run(Absent(Request(name="plain", label_key=KEY)), vm))
        assert code(refused) == "foreign" and "label_key" in str(refused.error)
        assert only(backend.run(Present(Request(label_key=KEY)), Target(vm, plain.id))).word == "updated"
        assert only(backend.run(Present(Request(name="plain", label_key=KEY)), vm)).word == "exists"

    @pytest.mark.parametrize("forgery", ["copied from another VM", "copied from another snapshot", "edited"])
    def test_forged_label_is_foreign(self, backend: Backend, forgery: str) -> None:
        vm, other = backend.vm(power="off"), backend.vm(power="off")
        real = backend.take(
            other if "VM" in forgery else vm, "fake" if "VM" in forgery else "real", label_key=KEY, labels={"a": "1"}
        )
        line = real.description.replace("a=1", "a=2") if forgery == "edited" else real.description
        if forgery == "edited":
            assert only(backend.run(Absent(Request(name="real", label_key=KEY)), vm)).word == "removed"
        name = "real" if forgery == "edited" else "fake"
        backend.by_hand(vm, name, line)
        for plan in (Absent(Request(name=name, label_key=KEY)), Reverted(Request(name=name, label_key=KEY))):
            done = only(backend.run(plan, vm))
            assert (code(done), done.changed) == ("foreign", False)
        shown = [one for one in backend.info(vm, key=KEY)["snapshots"] if one["name"] == name]
        assert shown[0]["ours"] is False and "sign" in shown[0]["why_not_ours"]

    @pytest.mark.parametrize("ago", [timedelta(hours=1), timedelta(hours=-1)])
    def test_signed_label_copied_to_a_snapshot_of_another_time_is_foreign(self, backend: Backend, ago: timedelta) -> None:
        """A renamed snapshot, or a new VM with the number of a deleted one: VM, name and fields match."""
        vm = backend.vm(power="off")
        moment = datetime.now(timezone.utc) - ago
        driver = backend.open()
        found = driver.find([vm])[vm]
        driver.close()
        assert isinstance(found, Vm)
        for number, at in enumerate((within(moment, timedelta(minutes=15)), exactly(moment), "always", "")):
            name = f"moved{number}"
            label = Owner(key=KEY).sign(found, name, Label("safepoint", {"change": "7"}), at=at)
            backend.by_hand(vm, name, f"[safepoint v=1 owner=safepoint change=7 at={at} sig={label.fields['sig']}]")
            before = backend.list(vm)
            for plan in (Absent, Reverted, Present):
                done = only(backend.run(plan(Request(name=name, label_key=KEY)), vm))
                assert (code(done), done.changed) == ("foreign", False)
                assert "label_key" in str(done.error)
            swept = only(backend.run(pruning(everything=True, confirm=1, key=KEY), vm))
            assert (swept.word, swept.changed) == ("kept", False)
            assert backend.list(vm) == before
            shown = [one for one in backend.info(vm, key=KEY)["snapshots"] if one["name"] == name]
            assert shown[0]["ours"] is False and "another creation time" in shown[0]["why_not_ours"]
            backend.remove(vm, name, foreign_allowed=True)

    def test_changed_label_is_signed_for_the_creation_time(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        made = backend.take(vm, "signed", label_key=KEY)
        assert made.label and made.created
        begin, _slash, length = made.label.fields["at"].partition("/")
        assert timedelta(0) <= made.created - parse_time(begin, option="at") <= timedelta(minutes=1) and length == "930s"
        changed = only(backend.run(Present(Request(name="signed", label_key=KEY, labels={"change": "8"})), vm))
        assert (changed.word, changed.error) == ("updated", None)
        label = backend.list(vm)[0].label
        assert label and parse_time(label.fields["at"], option="at") == made.created
        assert only(backend.run(Present(Request(name="signed", label_key=KEY)), vm)).word == "exists"
        # A user removes it and copies its text to another snapshot with the same name.
        text = backend.list(vm)[0].description
        assert backend.remove(vm, "signed", label_key=KEY).changed
        Deadline(10).poll("the next second", lambda: datetime.now(timezone.utc) > made.created + timedelta(seconds=2) or None)
        backend.by_hand(vm, "signed", text)
        refused = only(backend.run(Absent(Request(name="signed", label_key=KEY)), vm))
        assert (code(refused), refused.changed) == ("foreign", False)

    @pytest.mark.parametrize("ahead", [timedelta(hours=-1), timedelta(hours=1)])
    def test_new_snapshot_is_ours_even_if_the_clocks_differ(self, backend: Backend, ahead: timedelta) -> None:
        vm = backend.vm(power="off")
        done = only(backend.run(Present(Request(name="signed", label_key=KEY)), vm, later=ahead))
        assert (done.word, done.error) == ("created", None)
        assert only(backend.run(Present(Request(name="signed", label_key=KEY)), vm)).word == "exists"
        assert only(backend.run(Absent(Request(name="signed", label_key=KEY)), vm)).word == "removed"

    def test_signed_label_is_not_changed_without_its_key(self, backend: Backend) -> None:
        vm = backend.vm(power="off")
        before = backend.take(vm, "signed", label_key=KEY)
        refused = only(backend.run(Present(Request(name="signed", labels={"change": "9"})), vm))
        assert (code(refused), refused.changed) == ("foreign", False)
        assert "label_key" in str(refused.error)
        assert backend.list(vm) == [before]

    # foreign

    @pytest.mark.parametrize(
        "description",
        [
            "",
            "before the holidays",
            "[safepoint v=1 owner=somebody-else]",
            "[safepoint v=1 owner=safepoint",
            "[safepoint v=1 owner=safepoint]\n[safepoint v=1 owner=safepoint]",
        ],
    )
    def test_foreign_snapshot_is_not_changed(self, backend: Backend, description: str) -> None:
        vm = backend.vm(power="off")
        backend.by_hand(vm, "theirs", description)
        before = backend.list(vm)
        for plan in (Present(Request(name="theirs")), Absent(Request(name="theirs")), Reverted(Request(name="theirs"))):
            done = only(backend.run(plan, vm))
            assert (code(done), done.changed) == ("foreign", False)
            assert "theirs" in str(done.error)
        assert only(backend.run(Present(Request(name="theirs", foreign_allowed=True)), vm)).changed is False
        assert backend.list(vm) == before
        assert backend.revert(vm, "theirs", foreign_allowed=True).error is None
        by_id = Target(vm, before[0].id)
        assert only(backend.run(Absent(Request()), by_id)).word == "removed"
        assert backend.names(vm) == []

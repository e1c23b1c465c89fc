# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._core.label import (
    Label,
    check_description,
    check_labels,
    parse,
    render,
    replace,
)

# The characters that XML 1.0 and a line of text can contain.
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"))
PROSE = st.lists(TEXT.filter(lambda line: not line.lstrip().startswith("[safepoint")), max_size=4).map("\n".join)
LABELS = st.builds(
    Label,
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1),
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,39}", fullmatch=True).filter(lambda key: key not in ("v", "owner")),
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1),
    ),
)


@given(LABELS, PROSE)
def test_label_and_text_survive_a_round_trip(label: Label, text: str) -> None:
    seen = parse(render(label, text=text))
    assert (seen.text, seen.problem) == (text, None)
    assert seen.label and seen.label.as_dict() == label.as_dict()


@given(LABELS)
def test_label_is_one_line_of_ascii(label: Label) -> None:
    assert label.line().isascii() and label.line().isprintable()


@given(LABELS, LABELS, PROSE, PROSE)
def test_label_is_replaced_in_place(old: Label, new: Label, above: str, below: str) -> None:
    description = f"{above}\n{old.line()}\n{below}"
    seen = parse(replace(description, new))
    assert seen.text == f"{above}\n{below}"
    assert seen.label and seen.label.as_dict() == new.as_dict()


@given(st.text())
def test_parser_accepts_any_description(description: str) -> None:
    seen = parse(description)
    assert seen.label is not None or seen.text == description


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[safepoint v=1 owner=x", "end in ]"),
        ("[safepoint v=2 owner=x]", "version 1"),
        ("[safepoint owner=x]", "version 1"),
        ("[safepoint v=1]", "no owner"),
        ("[safepoint v=1 owner=]", "no owner"),
        ("[safepoint v=1 owner=x owner=y]", "invalid word"),
        ("[safepoint v=1 owner=x stray]", "invalid word"),
        ("[safepoint v=1 owner=%ff]", "invalid word"),
        ("[safepoint v=1 owner=x]\n[safepoint v=1 owner=x]", "more than one"),
    ],
)
def test_invalid_label_line_gives_no_label_and_a_reason(line: str, problem: str) -> None:
    seen = parse(line)
    assert seen.label is None
    assert seen.text == line
    assert problem in str(seen.problem)


def test_similar_text_is_no_label() -> None:
    assert parse("[safepointless]\nsee [safepoint v=1 owner=x]").problem is None


def test_label_has_the_documented_format() -> None:
    label = Label("awx-prod", {"change": "CHG0042", "expires": "2026-11-26T08:00:00Z", "state": "guarding"})
    assert render(label, text="CHG0042 kernel update") == (
        "CHG0042 kernel update\n[safepoint v=1 owner=awx-prod change=CHG0042 expires=2026-11-26T08:00:00Z state=guarding]"
    )
    assert label.expires == datetime(2026, 11, 26, 8, tzinfo=timezone.utc)


@pytest.mark.parametrize("key", ["v", "owner", "expires", "hold", "hold_reason", "sig", "Big", "", "a b", "x" * 41, 7])
def test_invalid_label_key_is_refused_by_name(key: object) -> None:
    with pytest.raises(InvalidOption, match="labels"):
        check_labels({key: "x"})  # type: ignore[dict-item]


@pytest.mark.parametrize("labels", [{"state": "done"}, {"lease": "soon"}, {"x": ["a"]}, {"x": {"a": 1}}])
def test_invalid_label_value_is_refused_by_name(labels: dict[str, object]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(labels))):
        check_labels(labels)


def test_label_values_become_text_and_empty_values_stay_empty() -> None:
    assert check_labels({"n": 7, "gone": None, "also": "", "lease": "2026-11-23T10:15:00+01:00"}) == {
        "n": "7",
        "gone": "",
        "also": "",
        "lease": "2026-11-23T09:15:00Z",
    }


@pytest.mark.parametrize("text", ["a\x00b", "bell\x07", "[safepoint v=1 owner=x]", "a\n  [safepoint", "\ud800", "lone\rreturn"])
def test_description_that_cannot_be_stored_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="description"):
        check_description(text)


def test_line_ends_of_a_description_become_line_feeds() -> None:
    assert check_description("a\r\nb\tc\n") == "a\nb\tc\n"

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page in a real browser, without a network."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import estate
import pytest
from browser import Browser
from estate import HOSTILE, NOW, endpoint, iso, snapshot, vm
from reporting import page, report

from ansible_collections.safepoint.vm.plugins.plugin_utils._report import page as page_of_report

STYLE = Path(page_of_report.__file__).with_name("templates").joinpath("page.css").read_text(encoding="utf-8")
TITLE = "Snapshots, 2026-11-25T12:00:00Z"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 500 VMs with 2,000 snapshots."""
    path = tmp_path_factory.mktemp("page") / "snapshots.html"
    path.write_text(page(report(estate.estate(), audit=estate.audit())), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


@pytest.mark.browser
def test_a_large_page_is_small_quick_and_asks_for_nothing(large: Path) -> None:
    assert large.stat().st_size < 2_000_000
    with Browser() as fresh:
        fresh.call("Performance.enable")
        waited = fresh.show(large)
        # What the page costs the browser since it was started, not what else this machine does meanwhile.
        measured = {one["name"]: one["value"] for one in fresh.call("Performance.getMetrics")["metrics"]}
        print(f"{large.stat().st_size} bytes, {waited:.2f} s to wait for it, {measured['ThreadTime']:.2f} s of the page's thread")
        assert measured["ThreadTime"] < 2
        assert fresh.requests == [large.as_uri()]
        assert fresh.complaints == []
        assert fresh.run("document.title") == TITLE


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_screen_and_follows_its_colours(
    browser: Browser, large: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    browser.show(large, width=width, height=844, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") == width
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(17, 21, 26)" if dark else "rgb(244, 246, 248)")
    # For people: PICTURES=folder keeps what was seen.
    browser.picture(Path(os.environ.get("PICTURES", tmp_path)) / f"report-{width}-{'dark' if dark else 'light'}.png")


@pytest.mark.browser
def test_html_in_a_name_is_text_and_nothing_but_the_own_script_runs(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    finding = {"code": HOSTILE, "msg": HOSTILE, "remedy": HOSTILE}
    one = snapshot(
        HOSTILE, label={"change": HOSTILE, "state": HOSTILE, "hold": "yes", "hold_reason": HOSTILE}, description=HOSTILE
    )
    one |= {"size_unknown": HOSTILE, "consistency": HOSTILE, "obstacles": {HOSTILE: HOSTILE}}
    other = {**snapshot("x"), "label": {"owner": HOSTILE}, "created": HOSTILE}
    answers = [
        endpoint(HOSTILE, vm(HOSTILE, one, other, findings=[finding], power=HOSTILE, error=HOSTILE, msg=HOSTILE), backend=HOSTILE)
    ]
    answers.append({"name": "lost", "backend": "libvirt", "answer": {"msg": HOSTILE}})
    line = '{"user": "%(x)s", "vm": "%(x)s", "action": "%(x)s", "error": "%(x)s", "time": "%(x)s", "seconds": "%(x)s"}'
    text = page(report(answers, audit=[line % {"x": HOSTILE.replace('"', '\\"')}]))
    path.write_text(text, encoding="utf-8")
    browser.requests.clear()
    browser.complaints.clear()
    browser.show(path)
    assert browser.run("document.title") == TITLE
    assert browser.run("document.querySelectorAll('img').length + document.scripts.length") == 1
    assert HOSTILE in browser.run("document.querySelector('#vms bdi').textContent")
    assert browser.requests == [path.as_uri()] and browser.complaints == []
    # And were a name to get through: the policy on the page stops it.
    path.write_text(
        text.replace("<main>", f"<main>{HOSTILE}<style>body{{color:red}}</style><img src=https://example.com/x>"),
        encoding="utf-8",
    )
    browser.show(path)
    assert browser.run("document.title") == TITLE
    assert len([one for one in browser.complaints if "Content Security Policy" in one]) >= 3
    assert "https://example.com/x" in browser.stopped


@pytest.mark.browser
def test_it_can_be_searched_and_sorted(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "few.html"
    rows = [
        vm("alpha", snapshot("a1"), snapshot("a2", age=estate.timedelta(days=9))),
        vm("beta", snapshot("b1", label={"state": "guarding", "change": "CHG7"})),
        vm("gamma", *[snapshot(f"g{number}") for number in range(3)]),
        vm("quiet"),
    ]
    path.write_text(page(report([endpoint("kvm01", *rows)])), encoding="utf-8")
    browser.show(path)
    names = "[...document.querySelectorAll('#vms tbody:not([hidden]) th > bdi')].map(one => one.textContent)"
    assert browser.run(names) == ["beta", "alpha", "gamma"]

    def search(words: str) -> list[str]:
        found: list[str] = browser.run(f"q.value = {words!r}, q.dispatchEvent(new Event('input')), {names}")
        return found

    assert search("chg7") == ["beta"] and browser.run("found.textContent") == "1 VMs found"
    assert search("A2 old") == ["alpha"]
    assert search("") == ["beta", "alpha", "gamma"]
    assert browser.run(f"s.value = 'warning', s.dispatchEvent(new Event('change')), {names}") == ["alpha"]
    browser.run("s.value = '', s.dispatchEvent(new Event('change'))")
    click = "document.querySelectorAll('#vms thead button')[3].click()"
    assert browser.run(f"{click}, {names}") == ["beta", "alpha", "gamma"]
    assert browser.run(f"{click}, {names}") == ["gamma", "alpha", "beta"]
    assert browser.run("document.querySelector('#vms [aria-sort]').getAttribute('aria-sort')") == "descending"
    # A link opens what it leads to.
    opened = "new Promise(done => setTimeout(() => done(document.querySelector(location.hash + ' details').open), 100))"
    assert browser.run(f"document.querySelectorAll('.todos a')[1].click(), {opened}") is True


@pytest.mark.browser
def test_it_is_read_without_a_script_and_printed_with_all_that_is_folded(browser: Browser, large: Path) -> None:
    browser.show(large, script=False)
    tree = browser.call("DOM.getDocument", depth=1)["root"]["nodeId"]
    hidden = browser.call("DOM.querySelectorAll", nodeId=tree, selector="[hidden]")["nodeIds"]
    assert len(hidden) == 1  # the controls, which would do nothing
    browser.show(large)
    browser.call("Emulation.setEmulatedMedia", media="print")
    folded = (
        "[...document.querySelectorAll('details:not([open]) .t')].slice(0, 5).map(one => one.getBoundingClientRect().height > 20)"
    )
    assert browser.run(folded) == [True] * 5


def test_a_screen_reader_finds_its_way() -> None:
    text = page(report(estate.estate(vms=40, snapshots=80), audit=estate.audit()))
    assert '<html lang="en">' in text
    for table in re.findall(r"<table.*?</table>", text, re.DOTALL):
        heads, rows = table.split("</thead>")
        columns = len(re.findall(r'<th scope="col"', heads))
        assert columns == len(re.findall(r"<th", heads)) - len(re.findall(r"<thead", heads))
        for row in re.findall(r"<tr(?: class=\"s\"| data-s=\"\w+\")?>.*?</tr>", rows, re.DOTALL):
            assert len(re.findall(r"<t[dh]\b", row)) == columns and row.count('<th scope="row">') == 1
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:href="#|aria-labelledby="|for=")([^"]+)"', text):
        assert target in ids
    levels = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1 and set(levels[1:]) == {2}


def test_every_state_is_a_word_and_not_a_colour_alone() -> None:
    guard = snapshot("g", label={"state": "guarding", "lease": iso(NOW - estate.timedelta(hours=1))})
    rows = [vm("v", guard, snapshot("old", age=estate.timedelta(days=9))), vm("w", snapshot("e", label={"expires": iso(NOW)}))]
    text = page(report([endpoint("e", *rows)]))
    for word in ("Critical", "Warning", "9 days, old", "overdue", "expired", "person or other tool", "ours", "✓ Reached"):
        assert word in text


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_the_contrast_is_enough_for_weak_eyes(dark: bool) -> None:
    colours: dict[str, str] = {}
    for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[: 2 if dark else 1]:
        colours |= dict(re.findall(r"--([\w-]+): (#\w+);", block))
    pairs = [(text, ground, 4.5) for text in ("text", "muted", "link") for ground in ("bg", "card")]
    pairs += [(name, f"{name}-bg", 4.5) for name in ("critical", "warning", "info", "ok")]
    pairs += [(name, "card", 4.5) for name in ("critical", "warning", "ok")]
    pairs += [(name, "card", 3.0) for name in ("ours", "other_owner", "backup", "person")]  # signs, not texts
    for text, ground, least in pairs:
        light, dim = sorted((_luminance(colours[text]), _luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dim + 0.05) >= least, (text, ground)

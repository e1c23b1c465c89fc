# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The metrics, read as strictly as Prometheus' own promtool does."""

from __future__ import annotations

import re

import estate
import pytest
from reporting import metrics, report

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\n"])*)"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{((?:{_LABEL},?)*)\}})? (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")

Series = tuple[str, tuple[tuple[str, str], ...]]


def parse(text: str) -> dict[Series, float]:
    """All samples. Fails where promtool would: no HELP or TYPE, a metric in two places, a series twice, a name that says another unit."""
    assert text.endswith("\n") and "\r" not in text
    found: dict[Series, float] = {}
    helped: set[str] = set()
    typed: set[str] = set()
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            name, words = line[7:].split(" ", 1)
            assert name not in helped and re.fullmatch(_NAME, name) and words.strip() == words
            assert re.fullmatch(r"(?:[^\\]|\\[\\n])*", words)
            helped.add(name)
            continue
        if line.startswith("# TYPE "):
            name, kind = line[7:].split(" ")
            # HELP stands right before it, and so all samples of a metric stand together.
            assert kind == "gauge" and name in helped and name not in typed
            typed.add(name)
            last = name
            continue
        sample = _SAMPLE.fullmatch(line)
        assert sample, line
        labels = tuple(re.findall(_LABEL, sample[2] or ""))
        assert sample[1] == last and len(labels) == len({key for key, _value in labels})
        assert not last.endswith(("_total", "_count", "_sum", "_bucket", "_info"))  # these mean something that a gauge is not
        assert (sample[1], labels) not in found
        found[sample[1], labels] = float(sample[4] if sample.lastindex == 4 else sample[sample.lastindex or 0])
    assert helped == typed
    return found


def value(found: dict[Series, float], name: str, **labels: str) -> float:
    [one] = [number for (metric, pairs), number in found.items() if metric == name and dict(pairs) == labels]
    return one


def test_the_metrics_of_an_estate_pass_the_strict_reader_and_agree_with_the_report() -> None:
    data = report(estate.estate())
    found = parse(metrics(data))
    by_class = [number for (name, _pairs), number in found.items() if name == "safepoint_snapshots"]
    assert sum(by_class) == data["totals"]["snapshots"] == 2000 and len(by_class) == 3 * 4
    assert value(found, "safepoint_report_timestamp_seconds") == estate.NOW.timestamp()
    assert value(found, "safepoint_attention", severity="critical") == data["totals"]["attention"]["critical"]
    assert value(found, "safepoint_endpoint_clock_ahead_seconds", endpoint="pve1.example.com", backend="proxmox") == 150
    lost = {pairs: name for (name, pairs), _number in found.items() if ("endpoint", "esx09.example.com") in pairs}
    assert list(lost.values()) == ["safepoint_endpoint_up"]
    sizes = sum(number for (name, _pairs), number in found.items() if name == "safepoint_snapshots_size_bytes")
    assert sizes == data["totals"]["size_bytes"]


def test_a_name_with_anything_in_it_stays_a_label() -> None:
    name = 'a"b\\c\nd} 1\re\ud800ü'
    found = parse(metrics(report([estate.endpoint(name)])))
    assert ("safepoint_endpoint_up", (("endpoint", 'a\\"b\\\\c\\nd} 1 e?ü'), ("backend", "libvirt"))) in found


@pytest.mark.parametrize("bad", ['x{a="b\nc"} 1\n', 'x{a="b"c"} 1\n', "x 1\n", "# TYPE x gauge\nx 1\n"])
def test_the_strict_reader_is_strict(bad: str) -> None:
    with pytest.raises((AssertionError, UnboundLocalError)):
        parse(bad)

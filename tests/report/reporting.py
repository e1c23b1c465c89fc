# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filters, as a template calls them."""

from __future__ import annotations

import typing as t

import estate

from ansible_collections.safepoint.vm.plugins.filter import snapshot_report, snapshot_report_html, snapshot_report_metrics

Data = dict[str, t.Any]


def report(answers: list[Data], **options: t.Any) -> Data:
    made: Data = snapshot_report.FilterModule().filters()["snapshot_report"](
        answers, **{"now": estate.iso(estate.NOW), **options}
    )
    return made


def page(data: Data) -> str:
    text: str = snapshot_report_html.FilterModule().filters()["snapshot_report_html"](data)
    return text


def metrics(data: Data) -> str:
    text: str = snapshot_report_metrics.FilterModule().filters()["snapshot_report_metrics"](data)
    return text

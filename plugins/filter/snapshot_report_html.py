# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: snapshot_report_html
short_description: Render a snapshot report as an HTML page
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Renders the report as one HTML page that needs no network and no other file. HTML in names is escaped.
  - The page shows problems that need action first. It can be searched, sorted by columns and printed, and uses the light or dark theme of the browser.
  - The filter reads no clock and no file. The same report gives the same page.
options:
  _input:
    description: The report, as returned by P(safepoint.vm.snapshot_report#filter).
    type: dict
    required: true
seealso:
  - plugin: safepoint.vm.snapshot_report
    plugin_type: filter
  - plugin: safepoint.vm.snapshot_report_metrics
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Write the report as an HTML page
  ansible.builtin.copy:
    content: "{{ report | safepoint.vm.snapshot_report_html }}"
    dest: /srv/www/snapshots.html
    mode: "0644"
"""

RETURN = r"""
_value:
  description: The page.
  type: str
"""

import typing as t
from collections.abc import Mapping

from ansible.errors import AnsibleFilterError

from ansible_collections.safepoint.vm.plugins.plugin_utils._report.model import Report
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.page import page


def snapshot_report_html(report: Mapping[str, t.Any]) -> str:
    """Return the report as an HTML page.

    :raises AnsibleFilterError: the input is not a report of this version.
    """
    try:
        return page(Report.from_data(report))
    except ValueError as exc:
        raise AnsibleFilterError(f"snapshot_report_html: {exc}") from exc


class FilterModule:
    """The snapshot_report_html filter."""

    def filters(self) -> dict[str, t.Any]:
        return {"snapshot_report_html": snapshot_report_html}

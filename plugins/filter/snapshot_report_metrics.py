# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: snapshot_report_metrics
short_description: Render a snapshot report as Prometheus metrics
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Renders the report as metrics in the Prometheus text format, for the textfile collector of node_exporter.
  - All names begin with C(safepoint_). There are no metrics for single VMs. An endpoint that was not reached has only C(safepoint_endpoint_up 0).
  - The filter reads no clock and no file. The same report gives the same text.
options:
  _input:
    description: The report, as returned by P(safepoint.vm.snapshot_report#filter).
    type: dict
    required: true
seealso:
  - plugin: safepoint.vm.snapshot_report
    plugin_type: filter
  - plugin: safepoint.vm.snapshot_report_html
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Write the report as Prometheus metrics
  ansible.builtin.copy:
    content: "{{ report | safepoint.vm.snapshot_report_metrics }}"
    dest: /srv/www/snapshots.prom
    mode: "0644"
"""

RETURN = r"""
_value:
  description: The metrics.
  type: str
"""

import typing as t
from collections.abc import Mapping

from ansible.errors import AnsibleFilterError

from ansible_collections.safepoint.vm.plugins.plugin_utils._report.metrics import metrics
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.model import Report


def snapshot_report_metrics(report: Mapping[str, t.Any]) -> str:
    """Return the report in the Prometheus text format.

    :raises AnsibleFilterError: the input is not a report of this version.
    """
    try:
        return metrics(Report.from_data(report))
    except ValueError as exc:
        raise AnsibleFilterError(f"snapshot_report_metrics: {exc}") from exc


class FilterModule:
    """The snapshot_report_metrics filter."""

    def filters(self) -> dict[str, t.Any]:
        return {"snapshot_report_metrics": snapshot_report_metrics}

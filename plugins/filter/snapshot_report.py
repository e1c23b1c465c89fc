# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: snapshot_report
short_description: Build a report of the snapshots of several endpoints
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Combines the results of M(safepoint.vm.snapshot_info) for several endpoints. The report shows the owners of the snapshots, snapshots that are too old,
    and problems that need action. The role P(safepoint.vm.snapshot_report#role) uses this filter.
  - The filter reads no clock and no file. The same input gives the same report.
options:
  _input:
    description: The endpoints, in the order in which they are shown.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The name of the endpoint. It must be unique.
        type: str
        required: true
      backend:
        description: The backend of the endpoint.
        type: str
        required: true
      where:
        description: The host or URI of the endpoint. User, password and options in it are not shown.
        type: str
      at:
        description: The time of the query by the clock of the controller, in ISO 8601. The default is O(now).
        type: str
      answer:
        description: The result of M(safepoint.vm.snapshot_info). Without RV(ignore:vms) in it, the endpoint counts as not reached.
        type: dict
  now:
    description: The time of the report, in ISO 8601.
    type: str
    required: true
  max_age:
    description: The age from which on a snapshot is too old. A duration with a unit, for example V(72h) or V(7d).
    type: str
    default: 72h
  max_chain:
    description: The maximum length of a snapshot chain.
    type: int
    default: 3
  backup_patterns:
    description:
      - Additional backup products, each with the keys C(product) and C(name), C(description) or both. C(name) and C(description) are regular expressions
        that are searched in the name and the description of foreign snapshots, ignoring case.
    type: list
    elements: dict
    default: []
  audit:
    description: Lines of an audit file (O(safepoint.vm.snapshot#module:audit_file)), the oldest first.
    type: list
    elements: str
    default: []
seealso:
  - plugin: safepoint.vm.snapshot_report_html
    plugin_type: filter
  - plugin: safepoint.vm.snapshot_report_metrics
    plugin_type: filter
"""

EXAMPLES = r"""
- name: List the snapshots
  safepoint.vm.snapshot_info:
    backend: libvirt
    uri: qemu:///system
    scope: endpoint
  register: result

- name: Show the problems that need action
  ansible.builtin.debug:
    msg: "{{ ([{'name': 'kvm01', 'backend': 'libvirt', 'answer': result}] | safepoint.vm.snapshot_report(now=now(utc=true).isoformat())).attention }}"
"""

RETURN = r"""
_value:
  description: The report.
  type: dict
  contains:
    format:
      description: Always V(safepoint.vm.snapshot_report).
      type: str
    version:
      description: The version of the format, which is 1. It increases when a key is removed or changes its meaning, and not when a key is added.
      type: int
    time:
      description: The time of the report.
      type: str
      sample: "2026-11-23T09:00:00Z"
    limits:
      description: The limits for old snapshots (C(age_seconds)) and long chains (C(chain)).
      type: dict
    totals:
      description:
        - The totals over all endpoints that were reached, C(vms), C(vms_with_snapshots), C(vms_over_chain), C(longest_chain), C(findings) (by code),
          C(snapshots), C(over_age), C(oldest_seconds), C(size_bytes) (of snapshots with a known size; null if there are none), C(size_unknown), C(held),
          C(expired), C(guarding) and C(lease_over).
        - C(classes) has the totals from C(snapshots) on for each class, V(ours), V(other_owner), V(backup) and V(person). C(attention) has the number of
          problems by severity.
      type: dict
    backends:
      description: The totals for each backend.
      type: dict
    endpoints:
      description: The endpoints, each with C(name), C(backend), C(where), C(seen) (false if it was not reached), C(error) and C(reason) if it was not reached,
        C(now), C(clock_ahead_seconds) and C(totals).
      type: list
      elements: dict
    attention:
      description:
        - The problems that need action, the most urgent first, each with C(severity) (V(critical), V(warning) or V(info)), C(code), C(endpoint), C(backend),
          C(vm), C(vm_id), C(snapshots) (their IDs and names), C(age_seconds), C(what) (a description of the problem) and C(remedy) (the action that solves it).
      type: list
      elements: dict
    vms:
      description:
        - All VMs, those with problems first, each with C(endpoint), C(backend), C(name), C(id), C(uuid), C(power), C(severity), C(error), C(msg),
          C(findings), C(chain) (the length of its snapshot chain), C(oldest_seconds), C(size_bytes) and C(snapshots).
        - A snapshot has the keys of M(safepoint.vm.snapshot_info), and C(class) (the class of its owner), C(product) (the backup product, if known), C(held),
          C(expires), C(expired), C(state) and C(lease) (V(running), V(over) or V(none) while it guards a change, otherwise null).
      type: list
      elements: dict
    audit:
      description:
        - The C(entries) of the audit, the newest first, and the number of C(unreadable) lines.
        - Entries are the results of VMs and the intents without an outcome. Intents without an outcome are also in RV(_value.attention), as V(write_under_way)
          until the call must have ended, then as V(write_without_outcome) until another call has written to the same VM without an error.
      type: dict
"""

import typing as t
from collections.abc import Mapping, Sequence

from ansible.errors import AnsibleFilterError

from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import parse_age, parse_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.build import build
from ansible_collections.safepoint.vm.plugins.plugin_utils._report.model import Limits


def snapshot_report(
    answers: Sequence[Mapping[str, t.Any]],
    *,
    now: str,
    max_age: str = "72h",
    max_chain: int = 3,
    backup_patterns: Sequence[Mapping[str, t.Any]] = (),
    audit: Sequence[str] = (),
) -> dict[str, t.Any]:
    """Return the report as data.

    :raises AnsibleFilterError: an argument is invalid.
    """
    try:
        limits = Limits(parse_age(str(max_age), option="max_age").total_seconds(), int(max_chain))
        moment = parse_time(str(now), option="now")
        return build(answers, now=moment, limits=limits, backup_patterns=backup_patterns, audit=audit).as_data()
    except (InvalidOption, ValueError) as exc:
        raise AnsibleFilterError(f"snapshot_report: {exc}") from exc


class FilterModule:
    """The snapshot_report filter."""

    def filters(self) -> dict[str, t.Any]:
        return {"snapshot_report": snapshot_report}

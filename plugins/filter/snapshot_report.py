# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: snapshot_report
short_description: Make a report of the snapshots of several endpoints
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Puts together what M(safepoint.vm.snapshot_info) returned for several endpoints, and says whose the snapshots are, which are too old, and what a person has
    to see to. The role P(safepoint.vm.snapshot_report#role) uses it.
  - Reads no clock and no file. The same input gives the same report.
options:
  _input:
    description: The endpoints, in the order in which they are shown.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What the endpoint is called. No two have the same name.
        type: str
        required: true
      backend:
        description: Its backend.
        type: str
        required: true
      where:
        description: Its host or URI. User, password and options in it are left out.
        type: str
      at:
        description: The time at which it was asked, by the clock of who asked. ISO 8601. Without it O(now) is taken.
        type: str
      answer:
        description: What M(safepoint.vm.snapshot_info) returned. Without RV(ignore:vms) in it the endpoint was not seen.
        type: dict
  now:
    description: The time of the report. ISO 8601.
    type: str
    required: true
  max_age:
    description: From which age on a snapshot is old. A duration with a unit, for example V(72h) or V(7d).
    type: str
    default: 72h
  max_chain:
    description: How many snapshots a VM may run on.
    type: int
    default: 3
  backup_patterns:
    description:
      - Backup products besides those that are known, each with the keys C(product) and C(name), C(description) or both. These are regular expressions that are
        searched for in the name and the description of a foreign snapshot, upper and lower case alike.
    type: list
    elements: dict
    default: []
  audit:
    description: Lines of a file that O(safepoint.vm.snapshot#module:audit_file) names, the oldest first.
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
  register: seen

- name: Show what a person has to see to
  ansible.builtin.debug:
    msg: "{{ ([{'name': 'kvm01', 'backend': 'libvirt', 'answer': seen}] | safepoint.vm.snapshot_report(now=now(utc=true).isoformat())).attention }}"
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
      description: Always 1. A key that goes, or that means something else, makes it 2; one that is added does not.
      type: int
    time:
      description: The time of the report.
      type: str
      sample: "2026-11-23T09:00:00Z"
    limits:
      description: What counts as old (C(age_seconds)) and as long (C(chain)).
      type: dict
    totals:
      description:
        - The counts over all endpoints that were seen, C(vms), C(vms_with_snapshots), C(vms_over_chain), C(longest_chain), C(findings) (by code), C(snapshots),
          C(over_age), C(oldest_seconds), C(size_bytes) (of those whose size is known; null when none is), C(size_unknown), C(held), C(expired), C(guarding)
          and C(lease_over).
        - C(classes) has those from C(snapshots) on for V(ours), V(other_owner), V(backup) and V(person); C(attention) counts what a person has to see to by its
          severity.
      type: dict
    backends:
      description: The same for each backend.
      type: dict
    endpoints:
      description: Each with C(name), C(backend), C(where), C(seen), C(error) and C(reason) when it was not seen, C(now), C(clock_ahead_seconds) and C(totals).
      type: list
      elements: dict
    attention:
      description:
        - What a person has to see to, the most urgent first, each with C(severity) (V(act), V(look) or V(note)), C(code), C(endpoint), C(backend), C(vm),
          C(vm_id), C(snapshots) (their ids and names), C(age_seconds), C(what) it is and C(remedy), what to do about it.
      type: list
      elements: dict
    vms:
      description:
        - All VMs, those that need a person first, each with C(endpoint), C(backend), C(name), C(id), C(uuid), C(power), C(severity), C(error), C(msg),
          C(findings), C(chain) (how many snapshots it runs on), C(oldest_seconds), C(size_bytes) and C(snapshots).
        - A snapshot is as M(safepoint.vm.snapshot_info) returns it, and has C(class) (whose it is), C(product) (which one, where that is known), C(held),
          C(expires), C(expired), C(state) and C(lease) (V(running), V(over) or V(none) while it guards a change, else null).
      type: list
      elements: dict
    audit:
      description:
        - The C(entries) of the audit, the newest first, and how many lines of it were C(unreadable).
        - Entries are the results of VMs and the intents that have no outcome. The latter are in RV(_value.attention) as well, as V(write_under_way) until the
          call must have ended, and then as V(write_without_outcome), until another call has written to the same VM without an error.
      type: dict
"""

import typing as t
from collections.abc import Mapping, Sequence

from ansible.errors import AnsibleFilterError

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import parse_age, parse_time
from ansible_collections.safepoint.vm.plugins.module_utils._errors import InvalidOption
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
    """The report on ``answers``, as data."""
    try:
        limits = Limits(parse_age(str(max_age), option="max_age").total_seconds(), int(max_chain))
        moment = parse_time(str(now), option="now")
        return build(answers, now=moment, limits=limits, backup_patterns=backup_patterns, audit=audit).as_data()
    except (InvalidOption, ValueError) as exc:
        raise AnsibleFilterError(f"snapshot_report: {exc}") from exc


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Any]:
        return {"snapshot_report": snapshot_report}

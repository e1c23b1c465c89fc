# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Select snapshots by name pattern, labels and age. Pure: no I/O, no clock.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from datetime import datetime, timedelta

from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import format_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot


@dataclasses.dataclass(frozen=True)
class Filter:
    """Conditions that a snapshot must all meet. None or an empty value is no condition."""

    name: str | None = None
    """A shell pattern with ``*``, ``?`` and ``[...]``; case-sensitive."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Fields that the label must have with these values; a field with an empty value must be missing."""
    older_than: timedelta | datetime | None = None
    """Taken before this time, or longer ago than this duration."""
    newer_than: timedelta | datetime | None = None

    def lets_through(self, snapshot: Snapshot, now: datetime) -> bool:
        """Return True if the snapshot meets all conditions. A snapshot of unknown age meets no condition on age."""
        if self.name is not None and not fnmatch.fnmatchcase(snapshot.name, self.name):
            return False
        fields = snapshot.label.as_dict() if snapshot.label else {}
        if any(fields.get(key, "") != value for key, value in self.labels.items()):
            return False
        if self.older_than is not None and (snapshot.created is None or snapshot.created >= _moment(self.older_than, now)):
            return False
        return self.newer_than is None or (snapshot.created is not None and snapshot.created > _moment(self.newer_than, now))

    def words(self) -> str:
        """Return the filter as the end of a sentence that begins with 'snapshot'."""
        said = []
        if self.name is not None:
            said.append(f"named like {self.name!r}")
        if self.labels:
            said.append("labelled " + ", ".join(f"{key}={value}" for key, value in sorted(self.labels.items())))
        for word, limit in (("before", self.older_than), ("after", self.newer_than)):
            if isinstance(limit, datetime):
                said.append(f"taken {word} {format_time(limit)}")
            elif limit is not None:
                said.append(f"{'older' if word == 'before' else 'newer'} than {limit}")
        return " and ".join(said) or "at all"


def _moment(limit: timedelta | datetime, now: datetime) -> datetime:
    return now - limit if isinstance(limit, timedelta) else limit

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which snapshots are meant, where they are not named one by one. Pure: no I/O, no clock.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from datetime import datetime, timedelta

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import format_time
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot


@dataclasses.dataclass(frozen=True)
class Filter:
    """What a snapshot must be like. Whatever is None or empty lets all through."""

    name: str | None = None
    """A pattern as the shell knows it: ``*``, ``?`` and ``[...]``; upper and lower case differ."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Fields that the label must have; an empty value is one that it must not have."""
    older_than: timedelta | datetime | None = None
    """Taken before that moment, or longer ago than that."""
    newer_than: timedelta | datetime | None = None

    def lets_through(self, snapshot: Snapshot, now: datetime) -> bool:
        """Whether the snapshot is one of those that are meant. One of unknown age is neither older nor newer than anything."""
        if self.name is not None and not fnmatch.fnmatchcase(snapshot.name, self.name):
            return False
        fields = snapshot.label.as_dict() if snapshot.label else {}
        if any(fields.get(key, "") != value for key, value in self.labels.items()):
            return False
        if self.older_than is not None and (snapshot.created is None or snapshot.created >= _moment(self.older_than, now)):
            return False
        return self.newer_than is None or (snapshot.created is not None and snapshot.created > _moment(self.newer_than, now))

    def words(self) -> str:
        """The filter as the end of a sentence that begins with 'snapshot'."""
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

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The errors that users see: one class and one code word for each.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

__all__ = [
    "BackendFailed",
    "ConnectionFailed",
    "ExistsDiffers",
    "Foreign",
    "Held",
    "Interrupted",
    "InvalidOption",
    "LibraryMissing",
    "Locked",
    "LostRace",
    "NewerSnapshots",
    "NotReached",
    "NotStarted",
    "PermissionDenied",
    "SafepointError",
    "SnapshotAmbiguous",
    "SnapshotExists",
    "SnapshotNotFound",
    "TimedOut",
    "Undone",
    "Unsupported",
    "Unverified",
    "VmAmbiguous",
    "VmNotFound",
]


class SafepointError(Exception):
    """The message says what failed, on which object, and what to do about it. ``code`` is for programs."""

    code = "failed"


class InvalidOption(SafepointError):
    """The value of an option is invalid; the message names the option, the value and the fix."""

    code = "invalid_option"


class LibraryMissing(SafepointError):
    """A Python library that the backend needs is not installed."""

    code = "library_missing"

    def __init__(self, library: str, details: str) -> None:
        """``details`` is the traceback of the import, for debug output only."""
        super().__init__(f"The Python library {library} is missing")
        self.library = library
        self.details = details


class ConnectionFailed(SafepointError):
    """The endpoint was not reached, did not answer in time, or the connection broke."""

    code = "connection_failed"


class NotReached(ConnectionFailed):
    """There was no connection, so no request was sent and nothing was done."""


class PermissionDenied(SafepointError):
    """The endpoint refused the request or the login."""

    code = "permission_denied"


class VmNotFound(SafepointError):
    """No VM has this name, UUID or id; the message lists similar names."""

    code = "vm_not_found"


class VmAmbiguous(SafepointError):
    """Several VMs match; the message lists them all."""

    code = "vm_ambiguous"


class SnapshotNotFound(SafepointError):
    """The VM has no such snapshot; the message lists its snapshots."""

    code = "snapshot_not_found"


class SnapshotAmbiguous(SafepointError):
    """Several snapshots have this name; the message lists their ids."""

    code = "snapshot_ambiguous"


class SnapshotExists(SafepointError):
    """A snapshot with this name already exists."""

    code = "snapshot_exists"


class ExistsDiffers(SafepointError):
    """A snapshot with this name exists, but does not have the requested properties."""

    code = "exists_differs"


class Foreign(SafepointError):
    """The snapshot belongs to another owner, or to none."""

    code = "foreign"


class Held(SafepointError):
    """The snapshot is on hold."""

    code = "held"


class NewerSnapshots(SafepointError):
    """The revert would destroy newer snapshots."""

    code = "newer_snapshots"


class Unsupported(SafepointError):
    """The backend or this VM does not support the request; nothing was written."""

    code = "unsupported"


class Locked(SafepointError):
    """Another operation has locked the VM."""

    code = "locked"


class LostRace(SafepointError):
    """Another run took the same snapshot first; the one that this run took must be removed."""

    code = "lost_race"


class LabelDiffers(SafepointError):
    """The label of the snapshot does not have the required values; nothing was done."""

    code = "label_differs"


class TimedOut(SafepointError):
    """The time is up; the operation may still be running at the hypervisor."""

    code = "timed_out"


class Interrupted(TimedOut):
    """A signal stopped the module; the operation may still be running at the hypervisor."""

    code = "interrupted"


class NotStarted(SafepointError):
    """Nothing was done on this VM, because another VM failed first or a signal stopped the module."""

    code = "not_started"


class Undone(SafepointError):
    """The new snapshot of this VM was removed again, because another VM failed."""

    code = "undone"


class BackendFailed(SafepointError):
    """The hypervisor reported a failure; the message has its text."""

    code = "backend_failed"


class Unverified(SafepointError):
    """A write was sent, but its result was not confirmed: the hypervisor shows another state, or could not be read afterwards."""

    code = "unverified"

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The failures that users meet: one class, one code word and one sentence each.

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
    """What failed, on what, and what to do about it, in one sentence. ``code`` is for programs."""

    code = "failed"


class InvalidOption(SafepointError):
    """An option's value cannot be used; names the option, the value and the fix."""

    code = "invalid_option"


class LibraryMissing(SafepointError):
    """A Python library that the backend needs is not there."""

    code = "library_missing"

    def __init__(self, library: str, details: str) -> None:
        """``details`` is the traceback of the import, for the debug output only."""
        super().__init__(f"The Python library {library} is missing")
        self.library = library
        self.details = details


class ConnectionFailed(SafepointError):
    """The endpoint was not reached, did not answer in time, or the connection broke."""

    code = "connection_failed"


class NotReached(ConnectionFailed):
    """There was no connection over which anything could have been asked, so that nothing was done."""


class PermissionDenied(SafepointError):
    """The endpoint answered, and refused."""

    code = "permission_denied"


class VmNotFound(SafepointError):
    """No VM has that name, UUID or id; lists near misses."""

    code = "vm_not_found"


class VmAmbiguous(SafepointError):
    """Several VMs match; lists them all."""

    code = "vm_ambiguous"


class SnapshotNotFound(SafepointError):
    """The VM has no such snapshot; lists those it has."""

    code = "snapshot_not_found"


class SnapshotAmbiguous(SafepointError):
    """Several snapshots have that name; lists their ids."""

    code = "snapshot_ambiguous"


class SnapshotExists(SafepointError):
    """A snapshot of that name is there already."""

    code = "snapshot_exists"


class ExistsDiffers(SafepointError):
    """A snapshot of that name is there, and is not what was asked for."""

    code = "exists_differs"


class Foreign(SafepointError):
    """The snapshot was not made by this owner."""

    code = "foreign"


class Held(SafepointError):
    """The snapshot is on hold."""

    code = "held"


class NewerSnapshots(SafepointError):
    """The revert would have to destroy snapshots taken later."""

    code = "newer_snapshots"


class Unsupported(SafepointError):
    """The backend or this VM cannot do what was asked; nothing was written."""

    code = "unsupported"


class Locked(SafepointError):
    """Somebody else's operation holds the VM."""

    code = "locked"


class LostRace(SafepointError):
    """Another run did the same at the same time, and was first; what this one did has to be taken back."""

    code = "lost_race"


class LabelDiffers(SafepointError):
    """The label does not say what it has to say for anything to be done."""

    code = "label_differs"


class TimedOut(SafepointError):
    """The time is up; the operation may still be going on at the hypervisor."""

    code = "timed_out"


class Interrupted(TimedOut):
    """The module was told to stop by a signal; the operation may still be going on at the hypervisor."""

    code = "interrupted"


class NotStarted(SafepointError):
    """Nothing was done on this VM because another one failed first, or the module was told to stop."""

    code = "not_started"


class Undone(SafepointError):
    """What was done on this VM was taken back because another one failed."""

    code = "undone"


class BackendFailed(SafepointError):
    """The hypervisor tried and failed; carries its own text."""

    code = "backend_failed"


class Unverified(SafepointError):
    """A write was sent, and the state that it should have led to was not seen: the hypervisor shows another one, or could not be read any more."""

    code = "unverified"

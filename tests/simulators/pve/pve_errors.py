# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The failures of requests and tasks."""

from __future__ import annotations

import collections.abc
import typing as t


class Died(Exception):
    """`die` in Proxmox VE: the exit text of a task, or the answer 500 of a request. The text is exactly PVE's."""


class Killed(Exception):
    """The worker was killed: nothing is cleaned up, and its log is incomplete."""


class Refused(Exception):
    """An error answer. `bare`: without a body, as the errors of the web server itself."""

    def __init__(self, status: int, message: str, *, errors: dict[str, str] | None = None, bare: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.errors = errors
        self.bare = bare

    def body(self) -> dict[str, t.Any] | None:
        """Return the body; the message comes first, as in real PVE's answer to a refused login."""
        if self.bare:
            return None
        answer: dict[str, t.Any] = {"message": self.message, "data": None}
        if self.errors is not None:
            answer["errors"] = self.errors
        return answer


def bad_parameters(errors: dict[str, str]) -> Refused:
    """400: the errors by parameter name."""
    return Refused(400, "Parameter verification failed.\n", errors=errors)


def forbidden(path: str, privileges: collections.abc.Sequence[str]) -> Refused:
    """403: one of `privileges` is needed on `path`."""
    return Refused(403, f"Permission check failed ({path}, {'|'.join(privileges)})\n")

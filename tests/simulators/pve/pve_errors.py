# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a request or a task ends badly."""

from __future__ import annotations

import collections.abc
import typing as t


class Died(Exception):
    """What is `die` in Proxmox VE: the exit text of a task, or an answer 500 of a request. The text is the vendor's, to the letter."""


class Killed(Exception):
    """The worker is gone: nothing is cleaned up, and its log ends in the middle."""


class Refused(Exception):
    """An answer that is an error. `bare`: without a body, as those have that the web server gives by itself."""

    def __init__(self, status: int, message: str, *, errors: dict[str, str] | None = None, bare: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.errors = errors
        self.bare = bare

    def body(self) -> dict[str, t.Any] | None:
        """The body to send; the message stands first, as the real server has it for a refused login."""
        if self.bare:
            return None
        answer: dict[str, t.Any] = {"message": self.message, "data": None}
        if self.errors is not None:
            answer["errors"] = self.errors
        return answer


def bad_parameters(errors: dict[str, str]) -> Refused:
    """400: what is wrong, by the parameter's name."""
    return Refused(400, "Parameter verification failed.\n", errors=errors)


def forbidden(path: str, privileges: collections.abc.Sequence[str]) -> Refused:
    """403: one of `privileges` would have been needed on `path`."""
    return Refused(403, f"Permission check failed ({path}, {'|'.join(privileges)})\n")

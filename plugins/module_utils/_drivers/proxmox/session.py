# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The login to Proxmox VE, with retries of reads and translation of HTTP errors.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import email.utils
import threading
import time
import typing as t
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta, timezone

from ansible_collections.safepoint.vm.plugins.module_utils._core import errors
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.http import PARALLEL, Http, Lost, ResourceException
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

__all__ = [
    "NODE_REFUSED",
    "PARALLEL",
    "Lost",
    "Refused",
    "Row",
    "Session",
    "Tries",
    "is_lost",
    "is_slow",
    "mapping",
    "may_pass",
    "pauses",
    "rows",
    "upid",
]

Row = Mapping[str, t.Any]
_T = t.TypeVar("_T")

# AnyEvent::HTTP's codes for a request that a node could not forward. 595: no connection. The others: a timeout, a broken answer and similar; the
# request may have arrived.
NODE_REFUSED = 595
_NODE_LOST = (596, 597, 599)
# Sent by a proxy.
_PROXY_LOST = (502, 503, 504)
# How long a forwarded request is repeated for a node that does not answer: a restart of its services takes some seconds. A longer time would delay all
# other guests if one node is down.
_NODE_SECONDS = 10.0
# Pause between retries of a request; it doubles each time.
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 3.0


class Refused(Exception):
    """PVE's error answer. Internal to this backend."""

    def __init__(self, status: int, text: str) -> None:
        """``text`` is PVE's own text, in one line."""
        super().__init__(text)
        self.status = status
        self.text = text


class Tries:
    """The retries of one request: their time limit, and the pauses between them."""

    def __init__(self, silent: Collection[int], node_seconds: float | None = None) -> None:
        """Retries after a status in ``silent``, which means that a node does not answer, are limited to _NODE_SECONDS, or to ``node_seconds``."""
        self._silent = silent
        self._node_seconds = _NODE_SECONDS if node_seconds is None else node_seconds
        self._node: Deadline | None = None
        self._pause = _FIRST_PAUSE_SECONDS

    def left(self, error: Exception, left: float) -> float:
        """Return the seconds for retries after this error; ``left`` are the remaining seconds of the request."""
        if not (isinstance(error, Refused) and error.status in self._silent):
            return left
        self._node = self._node or Deadline(self._node_seconds)
        return min(left, self._node.left())

    def sleep(self, left: float) -> None:
        """Sleep for the next pause, at most for the ``left`` seconds."""
        time.sleep(min(self._pause, left))
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)


class Session:
    """A login to any node of the cluster, renewed when its ticket has expired. Thread-safe."""

    def __init__(
        self,
        *,
        hostname: str,
        port: int,
        user: str,
        password: str | None = None,
        token: tuple[str, str] | None = None,
        validate_certs: bool = True,
        ca_path: str | None = None,
    ) -> None:
        """Log in. A ``token`` is its name and secret, and needs no login request.

        :raises LibraryMissing: proxmoxer or requests is not installed.
        :raises ConnectionFailed: no answer, or the certificate is not trusted.
        :raises PermissionDenied: the login was refused.
        """
        self._http = Http(hostname=hostname, port=port, validate_certs=validate_certs, ca_path=ca_path, seconds=self._seconds)
        self._http.session.hooks["response"].append(self._read_clock)
        self.where = self._http.where
        self.user = user if token is None else f"{user}!{token[0]}"
        self.ahead = timedelta(0)
        self.deadline: Deadline | None = None
        """Reads are repeated until then; None: reads are not repeated."""
        self._lock = threading.Lock()
        self._password = password
        self._logins = 0
        if token is not None:
            self._http.use_token(user, *token)
        else:
            self._log_in()

    # -- login ---------------------------------------------------------------------------------------------------------

    def _log_in(self) -> None:
        answer = self._http.fetch_ticket(self.user, self._password or "")
        if answer.status_code == 401:
            raise self._not_let_in()
        if answer.status_code in _PROXY_LOST:
            raise Lost(
                f"{self.where} answered the login with {answer.status_code} {answer.reason}; check that Proxmox VE is running there"
            )
        try:
            data = mapping(answer.json()["data"] if answer.status_code == 200 else None)
            ticket, token = str(data["ticket"]), str(data["CSRFPreventionToken"])
            second = data.get("NeedTFA")
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise self._http.no_pve("log in") from exc
        if second:
            raise errors.PermissionDenied(f"{self.user!r} needs a second factor to log in at {self.where}; use an API token")
        self._http.use_ticket(ticket, token)
        self._logins += 1

    def _not_let_in(self) -> errors.PermissionDenied:
        what = "password" if self._password is not None else "token_id and token_secret"
        return errors.PermissionDenied(
            f"{self.where} refused the login of {self.user!r}; check username (with its realm) and {what}"
        )

    def _read_clock(self, answer: t.Any, **_more: t.Any) -> None:
        """Read the server's clock: the ages of snapshots are calculated with the clock that their times come from."""
        said = answer.headers.get("Date")
        if said:
            try:
                self.ahead = email.utils.parsedate_to_datetime(said) - datetime.now(timezone.utc)
            except (TypeError, ValueError, OverflowError):
                pass  # an invalid date, from a proxy

    # -- requests ------------------------------------------------------------------------------------------------------

    def read(self, path: str, reader: Callable[[t.Any], _T], /, *, node_seconds: float | None = None, **values: t.Any) -> _T:
        """Return the result of ``reader`` for the ``data`` of a GET, which is repeated until the deadline while there is no answer.

        A request to a node that cannot be reached is repeated for _NODE_SECONDS, or for ``node_seconds``.

        :raises Refused: PVE's own error.
        :raises ConnectionFailed: no answer, or not in the format that ``reader`` expects.
        :raises PermissionDenied: the login is invalid or has expired.
        """
        tries = Tries((NODE_REFUSED, *_NODE_LOST), node_seconds)
        while True:
            try:
                return self._shaped("GET", path, reader, self._logged_in("get", path, values))
            except (Refused, errors.ConnectionFailed) as exc:
                left = tries.left(exc, self.deadline.left() if self.deadline is not None else 0.0)
                if not may_pass(exc) or left <= 0:
                    raise
            tries.sleep(left)

    def write(self, method: str, path: str, reader: Callable[[t.Any], _T], /, **values: t.Any) -> _T:
        """Return the result of ``reader`` for the ``data`` of a write, which is sent once.

        :raises Refused: PVE's own error.
        :raises NotReached: nothing was sent.
        :raises Lost: it may have been done.
        :raises PermissionDenied: the login is invalid or has expired.
        """
        data = self._logged_in(method, path, values)
        try:
            return self._shaped(method.upper(), path, reader, data)
        except errors.ConnectionFailed as exc:
            raise Lost(str(exc)) from exc

    def _shaped(self, method: str, path: str, reader: Callable[[t.Any], _T], data: t.Any) -> _T:
        try:
            return reader(data)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, IndexError) as exc:
            raise errors.ConnectionFailed(
                f"The answer of {self.where} to {method} {path} does not have the format of Proxmox VE ({type(exc).__name__}: {str(exc)[:100]}) "
                "and was ignored; check hostname and port, and any proxy in between"
            ) from exc

    def _seconds(self) -> float | None:
        return self.deadline.left() if self.deadline is not None else None

    def _logged_in(self, method: str, path: str, values: Mapping[str, t.Any]) -> t.Any:
        logins = self._logins
        try:
            return self._once(method, path, values)
        except Refused as exc:
            if exc.status != 401:
                raise
            if self._password is None:
                raise self._not_let_in() from exc
        # A ticket is valid for two hours, or until the cluster changes its keys. The request was refused and has changed nothing.
        with self._lock:
            if self._logins == logins:
                try:
                    self._log_in()
                except Lost as exc:
                    raise errors.NotReached(str(exc)) from exc
        try:
            return self._once(method, path, values)
        except Refused as exc:
            if exc.status == 401:
                raise self._not_let_in() from exc
            raise

    def _once(self, method: str, path: str, values: Mapping[str, t.Any]) -> t.Any:
        what = f"{method.upper()} {path}"
        try:
            return getattr(self._http.api(path), method)(**values)
        except ValueError as exc:
            made = self._http.no_pve(what)
            raise made if method == "get" else Lost(str(made)) from exc
        except ResourceException as exc:
            if exc.status_code == 404:  # PVE itself never answers 404 (9.2)
                raise self._http.no_pve(what) from exc
            raise Refused(exc.status_code, _text(exc)) from exc

    def close(self) -> None:
        """Close the connections; PVE has no logout for a ticket (9.2)."""
        self._http.close()


def is_lost(error: BaseException) -> bool:
    """Return True if the request may have been executed although its answer is missing."""
    if isinstance(error, Refused):
        return error.status in (*_PROXY_LOST, *_NODE_LOST)
    return isinstance(error, Lost)


def is_slow(error: BaseException) -> bool:
    """Return True if the answer was lost by a timeout, ours or a proxy's: the work may begin later."""
    if isinstance(error, Refused):
        return error.status in (504, *_NODE_LOST)
    return isinstance(error, Lost) and error.slow


def may_pass(error: BaseException) -> bool:
    """Return True if a retry may succeed."""
    if isinstance(error, Refused):
        return error.status == NODE_REFUSED or is_lost(error)
    return isinstance(error, (Lost, errors.NotReached))


def rows(data: t.Any) -> list[Row]:
    """Return the data if it is a list of objects.

    :raises TypeError: it is not.
    """
    if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
        raise TypeError(f"expected a list of objects, got {_short(data)}")
    return data


def mapping(data: t.Any) -> Row:
    """Return the data if it is an object.

    :raises TypeError: it is not.
    """
    if not isinstance(data, dict):
        raise TypeError(f"expected an object, got {_short(data)}")
    return data


def upid(data: t.Any) -> str:
    """Return the data if it is the id of a task.

    :raises ValueError: it is not.
    """
    if not isinstance(data, str) or not data.startswith("UPID:") or len(data.split(":")) != 9:
        raise ValueError(f"expected the id of a task, got {_short(data)}")
    int(data.split(":")[4], 16)
    return data


def _short(data: t.Any) -> str:
    return "null" if data is None else type(data).__name__


def _text(error: t.Any) -> str:
    """Return PVE's error text in one line, with the invalid options."""
    found = error.errors or {}
    # The message exists since PVE 8.4; before that, or without a body, there is only the reason.
    said = str(found.get("message") or error.content)
    wrong = found["errors"] if isinstance(found.get("errors"), dict) else {}
    said = " ".join(said.split()) or f"HTTP status {error.status_code}"
    details = [f"{name}: {' '.join(str(why).split())}" for name, why in wrong.items() if isinstance(why, str)]
    return said + "".join(f" ({one})" for one in details)


def pauses(longest: float) -> t.Iterator[float]:
    """Yield the seconds to sleep between polls: a tenth of the elapsed time, so long tasks are polled rarely."""
    began = time.monotonic()
    while True:
        yield min(longest, max(0.1, (time.monotonic() - began) / 10))

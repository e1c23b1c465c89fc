# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""proxmoxer: the only import of it, the login, and one request.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import email.utils
import re
import threading
import time
import traceback
import typing as t
from datetime import datetime, timedelta, timezone

from ansible_collections.safepoint.vm.plugins.module_utils import _errors

try:
    import requests

    MISSING: tuple[str, str] | None = None
    try:
        # Without requests its import would end the whole process (proxmoxer 2.3).
        from proxmoxer import AuthenticationError, ProxmoxAPI, ResourceException
    except ImportError:
        AuthenticationError = ProxmoxAPI = ResourceException = None
        MISSING = ("proxmoxer", traceback.format_exc())
except ImportError:
    requests = None  # type: ignore[assignment]
    AuthenticationError = ProxmoxAPI = ResourceException = None
    MISSING = ("requests", traceback.format_exc())

__all__ = ["MISSING", "PARALLEL", "Refused", "Session", "is_lost", "pauses"]

# To connect, and to answer. A node forwards what is for another one and waits 30 s for it (pve-http-server 6.0); proxmoxer's own 5 s are
# less than the 10 s that PVE waits for a lock.
_TIMES = (10.0, 45.0)
# Requests at the same time; urllib3 would close what exceeds its ten.
PARALLEL = 16
# AnyEvent::HTTP's codes, from the node that we speak to about one that it forwards to, for what may have arrived there: no answer in time, a
# broken one, and others. With 595 there was no connection.
_LOST = (596, 597, 599)


class Refused(Exception):
    """PVE answered with an error. Never leaves the driver."""

    def __init__(self, status: int, text: str) -> None:
        """``text`` is PVE's own, in one line."""
        super().__init__(text)
        self.status = status
        self.text = text


class Session:
    """One login at any node of the cluster, made again when its ticket has ended. Any thread may ask."""

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
        """Log in; with a ``token``, its name and secret, nothing is sent for that.

        :raises LibraryMissing: proxmoxer or requests is not installed.
        :raises ConnectionFailed: nothing answered, or not with a certificate that is trusted.
        :raises PermissionDenied: the login was refused.
        """
        if MISSING:
            raise _errors.LibraryMissing(*MISSING)
        self.where = f"{hostname}:{port}"
        self.user = user if token is None else f"{user}!{token[0]}"
        self.ahead = timedelta(0)
        self._lock = threading.Lock()
        self._password = password
        self._logins = 0
        self._options: dict[str, t.Any] = {
            "host": hostname,
            "port": port,
            "user": user,
            # proxmoxer hands it to every single request, so that REQUESTS_CA_BUNDLE stands in for True only.
            "verify_ssl": ca_path or validate_certs,
            "timeout": _TIMES,
        }
        if token is None:
            self._options["password"] = password
        else:
            self._options.update(token_name=token[0], token_value=token[1])
        self._api = self._log_in()

    def _log_in(self) -> t.Any:
        try:
            api = ProxmoxAPI(**self._options)
        except AuthenticationError as exc:
            # proxmoxer says so whatever the status was, and PVE refuses with 401.
            if re.search(r"code: (?!401$)\d+$", str(exc)):
                raise self._no_pve("log in") from exc
            raise self._not_let_in() from exc
        except (KeyError, TypeError, ValueError) as exc:  # requests' own for what is no JSON is a ValueError too
            raise self._no_pve("log in") from exc
        except OSError as exc:
            raise self.unreached("log in", exc) from exc
        session = api._store["session"]
        session.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=PARALLEL))
        session.hooks["response"].append(self._read_clock)
        self._logins += 1
        return api

    def _not_let_in(self) -> _errors.PermissionDenied:
        what = "password" if self._password is not None else "token_id and token_secret"
        return _errors.PermissionDenied(
            f"{self.where} refused the login of {self.user!r}; check username (with its realm) and {what}"
        )

    def _read_clock(self, answer: t.Any, **_more: t.Any) -> None:
        """Ages are counted by the clock that the snapshots have their times from."""
        said = answer.headers.get("Date")
        if said:
            try:
                self.ahead = email.utils.parsedate_to_datetime(said) - datetime.now(timezone.utc)
            except (TypeError, ValueError):
                pass  # a proxy's own idea of a date

    def ask(self, method: str, path: str, /, **values: t.Any) -> t.Any:
        """The ``data`` of the answer to one request. A read whose answer was lost is sent again, a write never.

        :raises Refused: PVE's own error.
        :raises ConnectionFailed: no answer came, so that a write may have been done.
        :raises PermissionDenied: the login is not, or no longer, good for anything.
        """
        try:
            return self._logged_in(method, path, values)
        except (Refused, _errors.ConnectionFailed) as exc:
            if method != "get" or not is_lost(exc):
                raise
        return self._logged_in(method, path, values)

    def _logged_in(self, method: str, path: str, values: dict[str, t.Any]) -> t.Any:
        logins = self._logins
        try:
            return self._once(method, path, values)
        except Refused as exc:
            if exc.status != 401:
                raise
            if self._password is None:
                raise self._not_let_in() from exc
        # A ticket lives for two hours, or until the cluster changes its keys.
        with self._lock:
            if self._logins == logins:
                self._api = self._log_in()
        try:
            return self._once(method, path, values)
        except Refused as exc:
            if exc.status == 401:
                raise self._not_let_in() from exc
            raise

    def _once(self, method: str, path: str, values: dict[str, t.Any]) -> t.Any:
        try:
            data = getattr(self._api(path), method)(**values)
        except ResourceException as exc:
            if exc.status_code == 404:  # PVE has none (9.2)
                raise self._no_pve(f"{method} {path}") from exc
            raise Refused(exc.status_code, _text(exc)) from exc
        except AuthenticationError as exc:
            raise Refused(401, "the ticket could not be renewed") from exc  # proxmoxer tries that each hour
        except ValueError as exc:
            if isinstance(exc, OSError):  # one of requests' own
                raise self.unreached(f"{method} {path}", exc) from exc
            # Its text would show the header, with the secret in it.
            raise _errors.InvalidOption(
                "token_id, token_secret or password has a character that no header can have, such as the line break at the end of a file; take it away"
            ) from None
        except OSError as exc:  # requests' own are such, and a file of certificates that is none
            raise self.unreached(f"{method} {path}", exc) from exc
        except (AttributeError, KeyError, TypeError) as exc:
            raise self._no_pve(f"{method} {path}") from exc  # JSON without what PVE puts into it
        if isinstance(data, dict) and set(data) == {"errors"} and isinstance(data["errors"], bytes):
            raise self._no_pve(f"{method} {path}")  # how proxmoxer gives back what is no JSON
        return data

    def _no_pve(self, what: str) -> _errors.ConnectionFailed:
        return _errors.ConnectionFailed(
            f"What answered at {self.where} on the way to {what} is no Proxmox VE, or none that works; check hostname and port"
        )

    def unreached(self, what: str, error: Exception) -> _errors.ConnectionFailed:
        """Why nothing came back, in words of ours."""
        said = str(error)
        ca_path = self._options["verify_ssl"]
        if isinstance(ca_path, str) and (not isinstance(error, requests.exceptions.RequestException) or "NO_CERTIFICATE" in said):
            return _errors.ConnectionFailed(f"ca_path={ca_path!r} is no file of certificates in PEM format: {said}")
        if "WRONG_VERSION_NUMBER" in said or "record layer failure" in said:
            return self._no_pve(what)
        if isinstance(error, requests.exceptions.SSLError):
            inner = str(getattr(error.args[0], "reason", error.args[0])) if error.args else said
            return _errors.ConnectionFailed(
                f"The certificate of {self.where} is not trusted: {inner}; set ca_path to the CA that signed it (on a node: /etc/pve/pve-root-ca.pem), and "
                "hostname to a name in it (validate_certs=false would trust anybody)"
            )
        made = _errors.ConnectionFailed
        if "NameResolutionError" in said or "Name or service not known" in said:
            why, made = "its name is not known", _errors.NotReached
        elif isinstance(error, requests.exceptions.Timeout):
            why = "it did not answer in time"
        elif "refused" in said:
            why, made = "the connection was refused", _errors.NotReached
        else:
            why = f"the connection broke ({type(error).__name__})"
        return made(f"No Proxmox VE answered at {self.where} on the way to {what}: {why}; check hostname and port")

    def close(self) -> None:
        """Close the connections; a ticket has no log-out (PVE 9.2)."""
        self._api._store["session"].close()


def is_lost(error: Exception) -> bool:
    """Whether what was asked for may have been done, although no answer came."""
    if isinstance(error, Refused):
        return error.status in _LOST
    return isinstance(error, _errors.ConnectionFailed) and not isinstance(error, _errors.NotReached)


def _text(error: t.Any) -> str:
    """What PVE says, in one line, with the options that it finds wrong."""
    said = " ".join(str(error.content or "").split()) or f"HTTP status {error.status_code}"
    wrong = error.errors if isinstance(error.errors, dict) else {}
    details = [f"{name}: {' '.join(str(why).split())}" for name, why in wrong.items() if isinstance(why, str)]
    return said + "".join(f" ({one})" for one in details)


def pauses(longest: float) -> t.Iterator[float]:
    """Seconds to sleep between polls: a tenth of what has passed, so that what takes long is asked for rarely."""
    began = time.monotonic()
    while True:
        yield min(longest, max(0.1, (time.monotonic() - began) / 10))

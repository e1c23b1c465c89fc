# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One HTTPS request to Proxmox VE: the only import of requests.

Not over proxmoxer: its login follows a redirect of POST access/ticket, to plain HTTP too, and sends the password there (proxmoxer 2.3).

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
import traceback
import typing as t
import urllib.parse
from collections.abc import Callable, Mapping

from ansible_collections.safepoint.vm.plugins.module_utils import _errors

try:
    import requests
    import urllib3

    MISSING: tuple[str, str] | None = None
except ImportError:
    requests = urllib3 = None  # type: ignore[assignment]
    MISSING = ("requests", traceback.format_exc())

__all__ = ["MISSING", "PARALLEL", "Answer", "Http", "Lost"]

# To connect, and to answer. A node forwards what is for another one and waits 30 s for it (pve-http-server 6.0), and PVE waits 10 s for a lock.
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 45.0
# A request that begins when the time is up gets this long.
_LEAST_SECONDS = 0.3
# Requests at the same time; urllib3 would close what exceeds its ten.
PARALLEL = 16
# No list of guests or tasks is nearly as long: 1025 guests are 244 kB (pve-manager 9.2).
_LARGEST_BYTES = 256 * 1000 * 1000
_CHUNK_BYTES = 64 * 1024


class Lost(_errors.ConnectionFailed):
    """A request was sent, or may have been, and no answer came that says what became of it."""

    def __init__(self, text: str, *, slow: bool = False) -> None:
        """``slow``: nobody waited for the answer any longer, so that the work may yet begin."""
        super().__init__(text)
        self.slow = slow


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer as it came, complete."""

    status: int
    reason: str
    body: bytes
    date: str | None

    def json(self) -> t.Any:
        """Its body as data.

        :raises ValueError: it is no JSON, or nested deeper than anything that PVE sends.
        """
        try:
            return json.loads(self.body)
        except RecursionError as exc:
            raise ValueError("nested too deeply") from exc


class Http:
    """The connections to one endpoint. Any thread may send."""

    def __init__(self, *, hostname: str, port: int, validate_certs: bool, ca_path: str | None) -> None:
        """Nothing is sent yet.

        :raises LibraryMissing: requests is not installed.
        """
        if MISSING:
            raise _errors.LibraryMissing(*MISSING)
        # hostname and ca_path are as _server.py read them: an IPv6 address is in brackets, and the file has certificates.
        self.where = f"{hostname}:{port}"
        # Given with each request, so that REQUESTS_CA_BUNDLE stands in for True only.
        self._verify: str | bool = ca_path or validate_certs
        if not self._verify:
            # Each request would write a warning to stderr, of what was asked for.
            urllib3.disable_warnings()
        self._session = requests.Session()
        self._session.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=PARALLEL))

    def send(
        self, method: str, path: str, values: Mapping[str, t.Any], headers: Mapping[str, str], *, seconds: float | None = None
    ) -> Answer:
        """One request and its whole answer, within ``seconds``. A redirect is not followed.

        :raises NotReached: nothing was sent.
        :raises Lost: no whole answer came.
        :raises ConnectionFailed: sending it again is of no use.
        """
        what = f"{method.upper()} {path}"
        seconds = max(_LEAST_SECONDS, _ANSWER_SECONDS if seconds is None else min(seconds, _ANSWER_SECONDS))
        end = time.monotonic() + seconds
        in_body = method in ("post", "put")
        try:
            with self._session.request(
                method,
                f"https://{self.where}/api2/json/{path}",
                params=None if in_body else dict(values),
                data=dict(values) if in_body else None,
                headers=dict(headers),
                # What is no login of ours, such as one of ~/.netrc, is not used.
                auth=lambda request: request,
                verify=self._verify,
                timeout=(min(_CONNECT_SECONDS, seconds), seconds),
                allow_redirects=False,
                stream=True,
            ) as answer:
                if 300 <= answer.status_code < 400:
                    raise self._redirected(what, str(answer.headers.get("Location") or "nowhere"))
                body = self._read(answer, what, end)
                return Answer(answer.status_code, str(answer.reason or ""), body, answer.headers.get("Date"))
        except requests.exceptions.InvalidURL as exc:
            raise _errors.InvalidOption(
                f"hostname={self.where!r} is no name of a host: {exc}; write a name or an address"
            ) from exc
        except ValueError as exc:
            if isinstance(exc, OSError) and not isinstance(exc, requests.exceptions.InvalidHeader):
                raise self._failed(what, exc) from exc
            # Its text would show the header, with the secret in it.
            raise _errors.InvalidOption(
                "token_id, token_secret or password has a character that no header can have, such as the line break at the end of a file; take it away"
            ) from None
        except OSError as exc:  # requests' own are such
            raise self._failed(what, exc) from exc

    def _read(self, answer: t.Any, what: str, end: float) -> bytes:
        body = bytearray()
        for chunk in answer.iter_content(_CHUNK_BYTES):
            body += chunk
            if len(body) > _LARGEST_BYTES:
                raise _errors.ConnectionFailed(
                    f"The answer of {self.where} to {what} is longer than {_LARGEST_BYTES // 1000**2} MB and was not read further; check hostname and port"
                )
            if time.monotonic() > end:
                raise Lost(f"{self.where} did not answer {what} in time; check that it is not overloaded", slow=True)
        return bytes(body)

    def _redirected(self, what: str, location: str) -> _errors.ConnectionFailed:
        parts = urllib.parse.urlsplit(location)
        # Without a user, a password or a query, which may be secrets.
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else parts.path
        return _errors.ConnectionFailed(
            f"{self.where} answered {what} with a redirect to {shown}, which was not followed, since it could send the login elsewhere; "
            "set hostname and port to where Proxmox VE itself answers"
        )

    def _failed(self, what: str, error: Exception) -> _errors.ConnectionFailed:
        """Why no answer came, in words of ours."""
        said = str(error)
        if isinstance(error, requests.exceptions.SSLError):
            return self._no_tls(what, error)
        inner = getattr(error.args[0], "reason", None) if error.args else None
        made: Callable[[str], _errors.ConnectionFailed] = Lost
        if type(inner).__name__ in ("NewConnectionError", "ConnectTimeoutError", "NameResolutionError"):
            made = _errors.NotReached
        if isinstance(error, requests.exceptions.ProxyError):
            why, made = "the proxy of HTTPS_PROXY did not let it through", _errors.NotReached
        elif "NameResolutionError" in said or "Name or service not known" in said:
            why = "its name is not known"
        elif isinstance(error, requests.exceptions.Timeout) or "Read timed out" in said:
            why = "it did not answer in time"
            made = made if made is _errors.NotReached else functools.partial(Lost, slow=True)
        elif made is _errors.NotReached:
            why = "the connection was refused" if "refused" in said else "there is no connection to it"
        else:
            why = f"the connection broke ({type(error).__name__})"
        return made(f"No Proxmox VE answered at {self.where} on the way to {what}: {why}; check hostname and port")

    def _no_tls(self, what: str, error: Exception) -> _errors.ConnectionFailed:
        """Nothing is sent before the handshake is over."""
        inner = str(getattr(error.args[0], "reason", error.args[0])) if error.args else str(error)
        if "WRONG_VERSION_NUMBER" in inner or "record layer failure" in inner:
            return self.no_pve(what)
        if "CERTIFICATE_VERIFY_FAILED" in inner or "doesn't match" in inner:
            return _errors.ConnectionFailed(
                f"The certificate of {self.where} is not trusted: {inner}; set ca_path to the CA that signed it (on a node: /etc/pve/pve-root-ca.pem), and "
                "hostname to a name in it (validate_certs=false would trust any server)"
            )
        if "PROTOCOL" in inner:
            return _errors.ConnectionFailed(
                f"{self.where} speaks no version of TLS that is allowed here ({inner}); allow TLS 1.2 or 1.3 there, and check hostname and port"
            )
        return _errors.NotReached(
            f"{self.where} ended the TLS handshake on the way to {what} ({inner}); check hostname and port, and that it is up"
        )

    def no_pve(self, what: str) -> _errors.ConnectionFailed:
        """The error about an answer that no Proxmox VE gives."""
        return _errors.ConnectionFailed(
            f"What answered at {self.where} on the way to {what} is no Proxmox VE, or none that works; check hostname and port"
        )

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""proxmoxer, and how it may speak to Proxmox VE: the only import of it and of requests.

Paths, verbs, tokens and its session are proxmoxer's. The login is ours, since its own follows a redirect of POST access/ticket, to plain HTTP too, and sends
the password there, and so is how an answer is read, since it reads without an end and takes what is no JSON for data (proxmoxer 2.3).

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import functools
import http.cookiejar
import json
import socket
import ssl
import threading
import time
import traceback
import typing as t
import urllib.parse
import warnings
from collections.abc import Callable

from ansible_collections.safepoint.vm.plugins.module_utils import _errors

try:
    import requests
    import urllib3
    from requests.adapters import HTTPAdapter
    from urllib3.util.ssl_ import create_urllib3_context

    MISSING: tuple[str, str] | None = None
    try:
        # It switches off urllib3's warnings for the whole process; without requests its import would end that (2.3).
        with warnings.catch_warnings():
            from proxmoxer import ProxmoxResource, ResourceException
            from proxmoxer.backends.https import ProxmoxHTTPApiTokenAuth, ProxmoxHTTPAuthBase, ProxmoxHttpSession
    except ImportError:
        ProxmoxResource, ResourceException = None, Exception
        ProxmoxHTTPApiTokenAuth = ProxmoxHTTPAuthBase = ProxmoxHttpSession = object
        MISSING = ("proxmoxer", traceback.format_exc())
except ImportError:
    requests = urllib3 = create_urllib3_context = ProxmoxResource = None  # type: ignore[assignment]
    ResourceException = Exception
    HTTPAdapter = ProxmoxHTTPApiTokenAuth = ProxmoxHTTPAuthBase = ProxmoxHttpSession = object  # type: ignore[assignment,misc]
    MISSING = ("requests", traceback.format_exc())

__all__ = ["MISSING", "PARALLEL", "Answer", "Http", "Lost", "ResourceException"]

# To connect, and to answer. A node forwards what is for another one and waits 30 s for it (pve-http-server 6.0), and PVE waits 10 s for a lock; proxmoxer's
# own 5 s are less than both.
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
        """``slow``: the answer was no longer waited for, so that the work may yet begin."""
        super().__init__(text)
        self.slow = slow


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer as it came, complete, with the names by which proxmoxer reads it."""

    status_code: int
    reason: str
    body: bytes

    @property
    def content(self) -> str:
        """Read for proxmoxer's log alone, for which it is formatted each time (2.3): no ticket, and no second copy of the body."""
        return f"{len(self.body)} bytes"

    def json(self) -> t.Any:
        """Its body as data.

        :raises ValueError: it is no JSON, or nested deeper than anything that PVE sends.
        """
        try:
            return json.loads(self.body)
        except RecursionError as exc:
            raise ValueError("nested too deeply") from exc


class _Serializer:
    """How proxmoxer's resources read an answer."""

    def loads(self, answer: Answer) -> t.Any:
        """The data of an answer.

        :raises ValueError: it is none of PVE's.
        """
        found = answer.json()
        if not isinstance(found, dict) or "data" not in found:
            raise ValueError("no data")
        return found["data"]

    def loads_errors(self, answer: Answer) -> dict[str, t.Any] | None:
        """The message, and the errors by the names of options, of an answer that is an error."""
        try:
            found = answer.json()
        except ValueError:
            return None  # of a proxy, or of a 401
        return {key: found[key] for key in ("message", "errors") if key in found} if isinstance(found, dict) else None


class _Ticket(ProxmoxHTTPAuthBase):  # type: ignore[misc]
    """A login by a ticket. A new one is fetched when PVE refuses it, and not each hour, as proxmoxer's own would."""

    def __init__(self, ticket: str, token: str, **options: t.Any) -> None:
        super().__init__(**options)
        self._ticket = ticket
        self._token = token

    def get_cookies(self) -> t.Any:
        return requests.cookies.cookiejar_from_dict({"PVEAuthCookie": self._ticket})

    def get_tokens(self) -> tuple[str, str]:
        return self._ticket, self._token

    def __call__(self, request: t.Any) -> t.Any:
        if request.method != "GET":
            request.headers["CSRFPreventionToken"] = self._token
        return request


# When the request of this thread has to have its answer.
_request = threading.local()


class _Socket(ssl.SSLSocket):
    """All that is received for one request has one end; a timeout of requests begins again with each byte."""

    def do_handshake(self, block: bool = False) -> None:
        self._hurry()
        super().do_handshake(block)

    def recv_into(self, *args: t.Any, **options: t.Any) -> int:
        self._hurry()
        return super().recv_into(*args, **options)

    def _hurry(self) -> None:
        end: float | None = getattr(_request, "end", None)
        if end is not None:
            left = end - time.monotonic()
            if left <= 0:
                raise socket.timeout("The read operation timed out")
            set_to = self.gettimeout()
            self.settimeout(left if set_to is None else min(left, set_to))


class _Adapter(HTTPAdapter):
    """Connections over such sockets."""

    def __init__(self, *, verify: bool) -> None:
        self._context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED if verify else ssl.CERT_NONE)
        self._context.sslsocket_class = _Socket
        super().__init__(pool_maxsize=PARALLEL)

    def init_poolmanager(self, *args: t.Any, **options: t.Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **options)

    def proxy_manager_for(self, proxy: str, **options: t.Any) -> t.Any:
        return super().proxy_manager_for(proxy, ssl_context=self._context, **options)


class _Session(ProxmoxHttpSession):  # type: ignore[misc]
    """proxmoxer's session, which follows no redirect, and reads an answer whole, within its time and size."""

    def __init__(self, where: str, *, verify: str | bool, seconds: Callable[[], float | None]) -> None:
        """``seconds``: how long the next request may take."""
        super().__init__()
        self._where = where
        self.base = f"https://{where}/api2/json"
        self._seconds = seconds
        # With a cookie of its own in the session proxmoxer would not send the one of its login.
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self.mount("https://", _Adapter(verify=bool(verify)))

    def get_redirect_target(self, answer: t.Any) -> None:
        """None: requests would read the whole body of a redirect, although it is not to follow it (2.34)."""

    def request(self, method: str, url: str, *, data: t.Any = None, params: t.Any = None, auth: t.Any = None) -> Answer:
        """One request and its whole answer.

        :raises NotReached: nothing was sent.
        :raises Lost: no whole answer came.
        :raises ConnectionFailed: sending it again is of no use.
        """
        what = f"{method} {url[len(self.base) + 1 :]}"
        left = self._seconds()
        seconds = max(_LEAST_SECONDS, _ANSWER_SECONDS if left is None else min(left, _ANSWER_SECONDS))
        _request.end = end = time.monotonic() + seconds
        try:
            with super().request(
                method,
                url,
                data=data,
                params=params,
                auth=auth,
                timeout=(min(_CONNECT_SECONDS, seconds), seconds),
                allow_redirects=False,
                stream=True,
            ) as answer:
                if 300 <= answer.status_code < 400:
                    raise self._redirected(what, str(answer.headers.get("Location") or "nowhere"))
                if answer.status_code < 200:  # proxmoxer would return nothing
                    raise Lost(str(_no_pve(self._where, what)))
                return Answer(answer.status_code, str(answer.reason or ""), self._read(answer, what, end))
        except requests.exceptions.InvalidURL as exc:
            raise _no_host(self._where, exc) from exc
        except ValueError as exc:
            if isinstance(exc, OSError) and not isinstance(exc, requests.exceptions.InvalidHeader):
                raise self._failed(what, exc) from exc
            # Its text would show the header, with the secret in it.
            raise _errors.InvalidOption(
                "token_id, token_secret or password has a character that no header can have, such as the line break at the end of a file; take it away"
            ) from None
        except OSError as exc:  # requests' own are such
            raise self._failed(what, exc) from exc
        finally:
            _request.end = None

    def _read(self, answer: t.Any, what: str, end: float) -> bytes:
        body = bytearray()
        for chunk in answer.iter_content(_CHUNK_BYTES):
            body += chunk
            if len(body) > _LARGEST_BYTES:
                raise _errors.ConnectionFailed(
                    f"The answer of {self._where} to {what} is longer than {_LARGEST_BYTES // 1000**2} MB and was not read further; check hostname and port"
                )
            if time.monotonic() > end:
                raise Lost(f"{self._where} did not answer {what} in time; check that it is not overloaded", slow=True)
        return bytes(body)

    def _redirected(self, what: str, location: str) -> _errors.ConnectionFailed:
        try:
            parts = urllib.parse.urlsplit(location)
            # Without a user, a password or a query, which may be secrets.
            shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else parts.path
        except ValueError:
            shown = "what is no URL"
        return _errors.ConnectionFailed(
            f"{self._where} answered {what} with a redirect to {shown}, which was not followed, since it could send the login elsewhere; "
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
        return made(f"No Proxmox VE answered at {self._where} on the way to {what}: {why}; check hostname and port")

    def _no_tls(self, what: str, error: Exception) -> _errors.ConnectionFailed:
        """Nothing is sent before the handshake is over."""
        inner = str(getattr(error.args[0], "reason", error.args[0])) if error.args else str(error)
        if "WRONG_VERSION_NUMBER" in inner or "record layer failure" in inner:
            return _no_pve(self._where, what)
        if "CERTIFICATE_VERIFY_FAILED" in inner or "doesn't match" in inner:
            return _errors.ConnectionFailed(
                f"The certificate of {self._where} is not trusted: {inner}; set ca_path to the CA that signed it (on a node: /etc/pve/pve-root-ca.pem), and "
                "hostname to a name in it (validate_certs=false would trust any server)"
            )
        if "PROTOCOL" in inner:
            return _errors.ConnectionFailed(
                f"{self._where} speaks no version of TLS that is allowed here ({inner}); allow TLS 1.2 or 1.3 there, and check hostname and port"
            )
        return _errors.NotReached(
            f"{self._where} ended the TLS handshake on the way to {what} ({inner}); check hostname and port, and that it is up"
        )


class Http:
    """The connections to one endpoint, and the login there. Any thread may ask."""

    def __init__(
        self, *, hostname: str, port: int, validate_certs: bool, ca_path: str | None, seconds: Callable[[], float | None]
    ) -> None:
        """Nothing is sent yet. ``seconds``: how long the next request may take.

        :raises LibraryMissing: proxmoxer or requests is not installed.
        :raises InvalidOption: hostname is no name.
        """
        if MISSING:
            raise _errors.LibraryMissing(*MISSING)
        # hostname and ca_path are as _server.py read them: an IPv6 address is in brackets, and the file has certificates.
        self.where = f"{hostname}:{port}"
        # Given with each request, so that REQUESTS_CA_BUNDLE stands in for True only.
        verify: str | bool = ca_path or validate_certs
        if not verify:
            # Each request would write a warning to stderr, of what was asked for.
            urllib3.disable_warnings()
        self._options = {"verify_ssl": verify}
        # Before the login too, so that none of ~/.netrc is used.
        self._nobody = ProxmoxHTTPAuthBase(**self._options)
        self.session = _Session(self.where, verify=verify, seconds=seconds)
        self.session.auth = self._nobody
        try:
            self.api = ProxmoxResource(base_url=self.session.base, session=self.session, serializer=_Serializer())
            self.api("version")  # it splits the URL, and nothing more
        except ValueError as exc:
            raise _no_host(self.where, exc) from exc

    def fetch_ticket(self, username: str, password: str) -> Answer:
        """What PVE says to a login. Not by a resource of proxmoxer's, which would hand the password to its log."""
        url = f"{self.session.base}/access/ticket"
        return self.session.request("POST", url, data={"username": username, "password": password}, auth=self._nobody)

    def use_ticket(self, ticket: str, token: str) -> None:
        """Send these with all that follows."""
        self.session.auth = _Ticket(ticket, token, **self._options)

    def use_token(self, user: str, name: str, secret: str) -> None:
        """Send this API token with all that follows."""
        self.session.auth = ProxmoxHTTPApiTokenAuth(user, name, secret, **self._options)

    def no_pve(self, what: str) -> _errors.ConnectionFailed:
        """The error about an answer that no Proxmox VE gives."""
        return _no_pve(self.where, what)

    def close(self) -> None:
        """Close the connections."""
        self.session.close()


def _no_pve(where: str, what: str) -> _errors.ConnectionFailed:
    return _errors.ConnectionFailed(
        f"What answered at {where} on the way to {what} is no Proxmox VE, or none that works; check hostname and port"
    )


def _no_host(where: str, error: Exception) -> _errors.InvalidOption:
    return _errors.InvalidOption(f"hostname={where!r} is no name of a host: {error}; write a name or an address")

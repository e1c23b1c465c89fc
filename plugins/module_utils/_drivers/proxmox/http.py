# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""HTTPS requests to Proxmox VE: the only import of proxmoxer and requests.

proxmoxer provides paths, methods, tokens and the session. The login is our own: proxmoxer follows a redirect of POST access/ticket, even to plain
HTTP, and sends the password there. So is the reading of answers: proxmoxer reads without limit and accepts bodies that are not JSON (proxmoxer 2.3).

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

from ansible_collections.safepoint.vm.plugins.module_utils._core import errors

try:
    import requests
    import urllib3
    from requests.adapters import HTTPAdapter
    from urllib3.util.ssl_ import create_urllib3_context

    MISSING: tuple[str, str] | None = None
    try:
        # The import disables urllib3's warnings for the whole process, and without requests would end the process (2.3).
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

# Time limits to connect and for an answer. A node that forwards a request waits 30 s for the other node (pve-http-server 6.0), and PVE waits 10 s for a
# lock; proxmoxer's default of 5 s is less than both.
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 45.0
# The least time for a request, also after the deadline.
_LEAST_SECONDS = 0.3
# Parallel requests; without this pool size urllib3 keeps ten connections and closes the others.
PARALLEL = 16
# Far more than any list of guests or tasks: 1025 guests take 244 kB (pve-manager 9.2).
_LARGEST_BYTES = 256 * 1000 * 1000
_CHUNK_BYTES = 64 * 1024


class Lost(errors.ConnectionFailed):
    """A request was or may have been sent, and its answer was lost, so its effect is unknown."""

    def __init__(self, text: str, *, slow: bool = False) -> None:
        """``slow`` is true after a timeout: PVE may still begin the work later."""
        super().__init__(text)
        self.slow = slow


@dataclasses.dataclass(frozen=True)
class Answer:
    """A complete answer, with the attributes that proxmoxer reads."""

    status_code: int
    reason: str
    body: bytes

    @property
    def content(self) -> str:
        """proxmoxer formats this for its log each time (2.3), so it has no ticket and is no second copy of the body."""
        return f"{len(self.body)} bytes"

    def json(self) -> t.Any:
        """Return the body as data.

        :raises ValueError: it is not JSON, or nested too deeply.
        """
        try:
            return json.loads(self.body)
        except RecursionError as exc:
            raise ValueError("nested too deeply") from exc


class _Serializer:
    """Reads answers for proxmoxer's resources."""

    def loads(self, answer: Answer) -> t.Any:
        """Return the data of an answer.

        :raises ValueError: it is not an answer of PVE.
        """
        found = answer.json()
        if not isinstance(found, dict) or "data" not in found:
            raise ValueError("no data")
        return found["data"]

    def loads_errors(self, answer: Answer) -> dict[str, t.Any] | None:
        """Return ``message``, and ``errors`` by the names of options, of an error answer; None if it is not JSON."""
        try:
            found = answer.json()
        except ValueError:
            return None  # from a proxy, or a 401
        return {key: found[key] for key in ("message", "errors") if key in found} if isinstance(found, dict) else None


class _Ticket(ProxmoxHTTPAuthBase):  # type: ignore[misc]
    """Ticket authentication. Unlike proxmoxer's own it is not renewed each hour; Session fetches a new ticket when PVE refuses this one."""

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


# ``end``: the monotonic time at which the request of this thread times out.
_request = threading.local()


class _Socket(ssl.SSLSocket):
    """Limits the total time of one request; the timeout of requests starts again with each byte."""

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
    """Makes connections with _Socket."""

    def __init__(self, *, verify: bool) -> None:
        self._context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED if verify else ssl.CERT_NONE)
        self._context.sslsocket_class = _Socket
        super().__init__(pool_maxsize=PARALLEL)

    def init_poolmanager(self, *args: t.Any, **options: t.Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **options)

    def proxy_manager_for(self, proxy: str, **options: t.Any) -> t.Any:
        return super().proxy_manager_for(proxy, ssl_context=self._context, **options)


class _Session(ProxmoxHttpSession):  # type: ignore[misc]
    """proxmoxer's session, without redirects, and with limits for time and size of an answer."""

    def __init__(self, where: str, *, verify: str | bool, seconds: Callable[[], float | None]) -> None:
        """``seconds`` returns the time limit for the next request."""
        super().__init__()
        self._where = where
        self.base = f"https://{where}/api2/json"
        self._seconds = seconds
        # If the session had a cookie, proxmoxer would not send the one of the login.
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self.mount("https://", _Adapter(verify=bool(verify)))

    def get_redirect_target(self, answer: t.Any) -> None:
        """Return None: requests would read the whole body of a redirect even with allow_redirects=False (2.34)."""

    def request(self, method: str, url: str, *, data: t.Any = None, params: t.Any = None, auth: t.Any = None) -> Answer:
        """Send one request and return its complete answer.

        :raises NotReached: nothing was sent.
        :raises Lost: no complete answer was received.
        :raises ConnectionFailed: a retry would fail as well.
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
            # The text of the exception would show the header with the secret.
            raise errors.InvalidOption(
                "token_id, token_secret or password has a character that is invalid in an HTTP header, such as the line break at the end of a file; remove it"
            ) from None
        except OSError as exc:  # the base class of the exceptions of requests
            raise self._failed(what, exc) from exc
        finally:
            _request.end = None

    def _read(self, answer: t.Any, what: str, end: float) -> bytes:
        body = bytearray()
        for chunk in answer.iter_content(_CHUNK_BYTES):
            body += chunk
            if len(body) > _LARGEST_BYTES:
                raise errors.ConnectionFailed(
                    f"The answer of {self._where} to {what} is larger than the limit of {_LARGEST_BYTES // 1000**2} MB; check hostname and port"
                )
            if time.monotonic() > end:
                raise Lost(f"{self._where} did not answer {what} in time; check its load", slow=True)
        return bytes(body)

    def _redirected(self, what: str, location: str) -> errors.ConnectionFailed:
        try:
            parts = urllib.parse.urlsplit(location)
            # Without user, password and query, which may be secrets.
            shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else parts.path
        except ValueError:
            shown = "an invalid URL"
        return errors.ConnectionFailed(
            f"{self._where} answered {what} with a redirect to {shown}, which was not followed, because it could send the login to another server; "
            "set hostname and port to the address of Proxmox VE itself"
        )

    def _failed(self, what: str, error: Exception) -> errors.ConnectionFailed:
        """Return the error for a request without an answer."""
        said = str(error)
        if isinstance(error, requests.exceptions.SSLError):
            return self._no_tls(what, error)
        inner = getattr(error.args[0], "reason", None) if error.args else None
        made: Callable[[str], errors.ConnectionFailed] = Lost
        if type(inner).__name__ in ("NewConnectionError", "ConnectTimeoutError", "NameResolutionError"):
            made = errors.NotReached
        if isinstance(error, requests.exceptions.ProxyError):
            why, made = "the proxy in HTTPS_PROXY refused the connection", errors.NotReached
        elif "NameResolutionError" in said or "Name or service not known" in said:
            why = "its name could not be resolved"
        elif isinstance(error, requests.exceptions.Timeout) or "Read timed out" in said:
            why = "it did not answer in time"
            made = made if made is errors.NotReached else functools.partial(Lost, slow=True)
        elif made is errors.NotReached:
            why = "the connection was refused" if "refused" in said else "it could not be connected to"
        else:
            why = f"the connection broke ({type(error).__name__})"
        return made(f"No Proxmox VE answered at {self._where} to {what}: {why}; check hostname and port")

    def _no_tls(self, what: str, error: Exception) -> errors.ConnectionFailed:
        """Return the error for a failed TLS handshake. Nothing was sent then."""
        inner = str(getattr(error.args[0], "reason", error.args[0])) if error.args else str(error)
        if "WRONG_VERSION_NUMBER" in inner or "record layer failure" in inner:
            return _no_pve(self._where, what)
        if "CERTIFICATE_VERIFY_FAILED" in inner or "doesn't match" in inner:
            return errors.ConnectionFailed(
                f"The certificate of {self._where} is not trusted: {inner}; set ca_path to the CA that signed it (on a node: /etc/pve/pve-root-ca.pem), and "
                "hostname to a name in it (validate_certs=false would trust any server)"
            )
        if "PROTOCOL" in inner:
            return errors.ConnectionFailed(
                f"{self._where} and this machine have no TLS version in common ({inner}); allow TLS 1.2 or 1.3 there, and check hostname and port"
            )
        return errors.NotReached(
            f"{self._where} ended the TLS handshake before {what} ({inner}); check hostname and port, and that it is up"
        )


class Http:
    """The connections to one endpoint, with their login. Thread-safe."""

    def __init__(
        self, *, hostname: str, port: int, validate_certs: bool, ca_path: str | None, seconds: Callable[[], float | None]
    ) -> None:
        """Sends nothing yet. ``seconds`` returns the time limit for the next request.

        :raises LibraryMissing: proxmoxer or requests is not installed.
        :raises InvalidOption: hostname is not a valid host name.
        """
        if MISSING:
            raise errors.LibraryMissing(*MISSING)
        # _drivers/server.py has checked hostname and ca_path: an IPv6 address is in brackets, and the file has certificates.
        self.where = f"{hostname}:{port}"
        # Passed with each request, so REQUESTS_CA_BUNDLE can replace True only.
        verify: str | bool = ca_path or validate_certs
        if not verify:
            # Each request would write a warning to stderr, although validate_certs=false was set on purpose.
            urllib3.disable_warnings()
        self._options = {"verify_ssl": verify}
        # Set before the login, so that ~/.netrc is not used.
        self._nobody = ProxmoxHTTPAuthBase(**self._options)
        self.session = _Session(self.where, verify=verify, seconds=seconds)
        self.session.auth = self._nobody
        try:
            self.api = ProxmoxResource(base_url=self.session.base, session=self.session, serializer=_Serializer())
            self.api("version")  # only parses the URL
        except ValueError as exc:
            raise _no_host(self.where, exc) from exc

    def fetch_ticket(self, username: str, password: str) -> Answer:
        """Return PVE's answer to a login. Not through a resource of proxmoxer, which would log the password."""
        url = f"{self.session.base}/access/ticket"
        return self.session.request("POST", url, data={"username": username, "password": password}, auth=self._nobody)

    def use_ticket(self, ticket: str, token: str) -> None:
        """Use this ticket and CSRF token for all further requests."""
        self.session.auth = _Ticket(ticket, token, **self._options)

    def use_token(self, user: str, name: str, secret: str) -> None:
        """Use this API token for all further requests."""
        self.session.auth = ProxmoxHTTPApiTokenAuth(user, name, secret, **self._options)

    def no_pve(self, what: str) -> errors.ConnectionFailed:
        """Return the error for an answer that is not from Proxmox VE."""
        return _no_pve(self.where, what)

    def close(self) -> None:
        """Close all connections."""
        self.session.close()


def _no_pve(where: str, what: str) -> errors.ConnectionFailed:
    return errors.ConnectionFailed(
        f"The server at {where} answered {what}, but is not a working Proxmox VE; check hostname and port"
    )


def _no_host(where: str, error: Exception) -> errors.InvalidOption:
    return errors.InvalidOption(f"hostname={where!r} is not a valid host name: {error}; use a name or an address")

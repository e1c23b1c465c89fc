# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only import of pyVmomi: the login, and translation of its faults.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import sys
import threading
import time
import traceback
import typing as t
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from xml.parsers.expat import ExpatError

from ansible_collections.safepoint.vm.plugins.module_utils._core import errors
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

try:
    import pyVmomi as pyvmomi
    from pyVmomi import SoapStubAdapter, vim, vmodl

    PYVMOMI_IMPORT_ERROR = None
except Exception:  # pyVmomi 9.1 raises a plain Exception on Python 3.9, which needs 8.0
    pyvmomi = SoapStubAdapter = vim = vmodl = None
    PYVMOMI_IMPORT_ERROR = traceback.format_exc()

__all__ = [
    "LARGEST_ANSWER",
    "PYVMOMI_IMPORT_ERROR",
    "UNANSWERED",
    "UNREADABLE",
    "BadAnswer",
    "NotSent",
    "Session",
    "expect",
    "pyvmomi",
    "typed",
    "vim",
    "vmodl",
]

# 6.5. Servers support all older versions, so no version request is needed; servers before 6.5 have been out of support since 2020.
_VERSION = "vim.version.version11"
# Number of pooled connections, and how long an idle one is kept; proxies close theirs later.
_POOL = 32
_IDLE_SECONDS = 30
# Timeout for an answer; more than the longest request takes (tasks.py), so it detects connections that were silently cut. And the
# timeout of a request at or after the deadline.
_SILENCE_SECONDS = 60.0
_LATE_SECONDS = 2.0
# Pauses between retries of a request without an answer.
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0

# In bytes, so that no answer can exhaust the memory. An answer with 500 VMs and their devices has 3 MB.
LARGEST_ANSWER = 256 * 1024**2
# For answers that pyVmomi reads itself, in pieces: logins, views and tasks of some kB. For 100 MB it takes minutes (9.1).
_LARGEST_SMALL_ANSWER = 4 * 1024**2
_PIECE = 1024**2

_T = t.TypeVar("_T")

# No answer of vCenter to a request that was or may have been sent: a broken or silent connection, a proxy's 502, a page that is not SOAP.
UNANSWERED = (OSError, http.client.HTTPException, ExpatError)


# Raised by pyVmomi and by our own parser for an answer of the wrong format.
UNREADABLE = (AttributeError, KeyError, RecursionError, TypeError, ValueError)


class BadAnswer(Exception):
    """An answer that does not fit the request: without a value, of the wrong format, incomplete or too large. A retry would not help."""


class _Response(http.client.HTTPResponse):
    """An HTTP answer with a size limit."""

    _read_so_far = 0

    def read(self, amt: int | None = None) -> bytes:
        if amt is None:
            return b"".join(iter(lambda: self._read(_PIECE, LARGEST_ANSWER), b""))
        return self._read(amt, _LARGEST_SMALL_ANSWER)

    def _read(self, amount: int, most: int) -> bytes:
        piece = super().read(amount)
        self._read_so_far += len(piece)
        if self._read_so_far > most:
            raise BadAnswer(f"more than {most} bytes")
        return piece

    def getheader(self, name: str, default: t.Any = None) -> t.Any:
        # pyVmomi would decompress the answer without a limit, although it did not request compression.
        return default if name.lower() == "content-encoding" else super().getheader(name, default)


class NotSent(OSError):
    """There was no connection, and nothing was sent. Its __cause__ is the reason."""


def _make_stub(limit: Callable[[], float], **settings: t.Any) -> t.Any:
    """Return pyVmomi's stub with a timeout for each request: ``limit`` returns the seconds when the request starts."""

    class Stub(SoapStubAdapter):  # type: ignore[misc, valid-type, unused-ignore]
        def GetConnection(self) -> t.Any:  # the name that pyVmomi calls
            seconds = limit()
            self.schemeArgs["timeout"] = seconds
            try:
                # A new connection is opened here (pyVmomi 8.0 and 9.1).
                connection = super().GetConnection()
            except Exception as exc:
                raise NotSent(str(exc)) from exc
            if connection.sock is not None:
                connection.sock.settimeout(seconds)
            connection.response_class = _Response
            return connection

    return Stub(**settings)


class Session:
    """A login, renewed when the server has ended the session. Thread-safe.

    After the login, reads are repeated until ``deadline`` while there is no answer; the first login itself fails at once.
    """

    def __init__(
        self, *, hostname: str, port: int, username: str, password: str, validate_certs: bool, ca_path: str | None
    ) -> None:
        """Log in. Three requests; blocks while the peer does not answer.

        :raises LibraryMissing: pyVmomi is not installed.
        :raises ConnectionFailed: no answer, an answer that is not from vCenter, or a certificate that is not trusted.
        :raises PermissionDenied: the login was refused.
        """
        if PYVMOMI_IMPORT_ERROR:
            raise errors.LibraryMissing("pyvmomi" if sys.version_info >= (3, 10) else "pyvmomi<9", PYVMOMI_IMPORT_ERROR)
        self.where = f"{hostname}:{port}"
        self._username, self._password = username, password
        self._lock = threading.Lock()
        self._logins = 0
        self._closed = False
        self.deadline = Deadline(_SILENCE_SECONDS)
        # _drivers/server.py has checked ca_path.
        context = ssl.create_default_context(cafile=ca_path) if validate_certs else ssl._create_unverified_context()
        self.stub = _make_stub(
            self._silence,
            host=hostname,
            port=port,
            path="/sdk",
            version=_VERSION,
            sslContext=context,
            poolSize=_POOL,
            connectionPoolTimeout=_IDLE_SECONDS,
            acceptCompressedResponses=False,
        )
        instance = vim.ServiceInstance("ServiceInstance", self.stub)
        try:
            self.content = expect(instance.RetrieveContent(), vim.ServiceInstanceContent, "content of the service")
            self._login()
            # The ages of snapshots are calculated with the server's clock, which their times come from.
            self.ahead: timedelta = expect(instance.CurrentTime(), datetime, "time") - datetime.now(timezone.utc)
        except errors.SafepointError:
            raise
        except Exception as exc:
            raise typed(exc, "log in", where=self.where) from exc

    def _login(self) -> None:
        try:
            self.content.sessionManager.Login(self._username, self._password, None)
        except vim.fault.InvalidLogin as exc:
            raise errors.PermissionDenied(
                f"{self.where} refused the login of {self._username!r}; check username (with its domain) and password"
            ) from exc
        self._logins += 1

    def raw(self, method: Callable[[], _T]) -> _T:
        """Return the result of ``method``; if the session has ended, log in again and repeat it once. Raises what ``method`` raises."""
        logins = self._logins
        try:
            return method()
        except vim.fault.NotAuthenticated:
            self.renew(logins)
        return method()

    def call(self, what: str, method: Callable[[], _T]) -> _T:
        """Return the result of ``method``, a read, which is repeated until the deadline while there is no answer.

        :raises SafepointError: the failure, with the server's text.
        """
        tries = 0
        while True:
            try:
                return self.raw(method)
            except Exception as exc:
                if not isinstance(exc, UNANSWERED) or not self.pause(tries):
                    raise typed(exc, what, where=self.where) from exc
            tries += 1

    def pause(self, tries: int) -> bool:
        """Wait before the next retry; return False if the deadline leaves no time for one."""
        seconds = self.pause_seconds(tries)
        if seconds is None:
            return False
        time.sleep(seconds)
        return True

    def pause_seconds(self, tries: int, deadline: Deadline | None = None) -> float | None:
        """Return the pause before the next retry, or None if the deadline leaves no time for one."""
        seconds = min(_FIRST_PAUSE_SECONDS * 2 ** min(tries, 10), _LONGEST_PAUSE_SECONDS)
        return None if self._closed or (deadline or self.deadline).left() <= seconds else seconds

    def _silence(self) -> float:
        """Return the timeout of a request that starts now."""
        return min(_SILENCE_SECONDS, self.deadline.left() + _LATE_SECONDS)

    @property
    def logins(self) -> int:
        """Number of logins so far. Views and filters belong to a session and end with it."""
        return self._logins

    def renew(self, logins: int) -> None:
        """Log in again, unless another thread has done so: ``logins`` is the number of logins that the caller has seen."""
        with self._lock:
            if self._closed:
                raise errors.ConnectionFailed(f"The session at {self.where} was closed by this module")
            if self._logins == logins:
                self._login()

    def close(self) -> None:
        """Log out. Requests that are still running do not log in again."""
        with self._lock:
            self._closed = True
        try:
            self.content.sessionManager.Logout()
        except Exception:
            pass
        self.stub.DropConnections()


def expect(value: t.Any, kind: t.Any, what: str) -> t.Any:
    """Return the value if it has that type of the API.

    :raises BadAnswer: it is not.
    """
    if not isinstance(value, kind):
        raise BadAnswer(f"no {what}")
    return value


def is_slow(error: BaseException) -> bool:
    """Return True if the answer was lost by a timeout, ours or a proxy's: the work may begin later."""
    # For an answer that is not SOAP, pyVmomi puts the HTTP status into the text (8.0 and 9.1).
    return isinstance(error, socket.timeout) or (isinstance(error, http.client.HTTPException) and str(error).startswith("504"))


def typed(error: BaseException, what: str, *, where: str) -> errors.SafepointError:
    """Translate a fault of the server or a connection error; ``what`` is the operation, as an infinitive."""
    if isinstance(error, errors.SafepointError):
        return error
    failed = errors.ConnectionFailed
    if isinstance(error, NotSent) and error.__cause__ is not None:
        error, failed = error.__cause__, errors.NotReached
    if isinstance(error, ssl.SSLCertVerificationError):
        return failed(
            f"The certificate of {where} is not trusted: {error.verify_message}; set ca_path to the CA that signed it, and hostname to a name in it "
            "(validate_certs=false would trust any server)"
        )
    if isinstance(error, UNANSWERED):
        return failed(f"No vCenter or ESXi at {where} answered the request to {what}: {_words(error)}; check hostname and port")
    if not isinstance(error, vmodl.MethodFault):
        # All other exceptions come from reading an answer.
        said = str(error) if isinstance(error, BadAnswer) else f"data that could not be read ({type(error).__name__}: {error})"
        return failed(f"{where} answered the request to {what} with {said}; check any proxy in between, and its own log")
    return _fault(error, what)


def _fault(fault: t.Any, what: str) -> errors.SafepointError:
    said = f"vSphere failed to {what}: {_words(fault)}"
    # NotAuthenticated is a subclass of NoPermission.
    if isinstance(fault, vim.fault.NoPermission) and not isinstance(fault, vim.fault.NotAuthenticated):
        on = getattr(fault.object, "_moId", "it")
        return errors.PermissionDenied(f"{said}; the privilege {fault.privilegeId} on {on} is missing")
    for kinds, made, advice in _table():
        if isinstance(fault, kinds):
            return made(said + advice)
    return errors.BackendFailed(said)


def _table() -> list[tuple[t.Any, type[errors.SafepointError], str]]:
    """Return fault types, error and remedy. The first match is used, so subclasses come before their parents."""
    faults = vim.fault
    return [
        (faults.NotAuthenticated, errors.ConnectionFailed, "; the session has ended, try again"),
        (faults.TaskInProgress, errors.Locked, "; another task runs on the VM, try again when it has ended"),
        (
            (faults.ConcurrentAccess, faults.FileLocked, faults.SnapshotLocked),
            errors.Locked,
            "; another process holds it, try again later",
        ),
        (faults.RestrictedVersion, errors.Unsupported, "; the licence of this host does not allow changes by the API"),
        (faults.TooManySnapshotLevels, errors.Unsupported, "; remove older snapshots first"),
        (faults.NoDiskSpace, errors.BackendFailed, "; free space on the datastore first"),
        (faults.InvalidName, errors.InvalidOption, "; choose another name"),
        ((faults.ApplicationQuiesceFault, faults.FilesystemQuiesceFault), errors.Unsupported, f"; {QUIESCE_ADVICE}"),
        (faults.MemorySnapshotOnIndependentDisk, errors.Unsupported, "; leave memory out, or make its disks dependent"),
        (
            (faults.InvalidState, faults.QuestionPending),
            errors.Unsupported,
            "; check the VM's state, and if it waits for an answer to a question",
        ),
        ((vmodl.fault.NotSupported, vmodl.fault.MethodNotFound), errors.Unsupported, ""),
        (faults.SnapshotFault, errors.Unsupported, ""),
    ]


QUIESCE_ADVICE = "check VMware Tools in the guest, or set quiesce=never"


def _words(error: t.Any) -> str:
    """Return the server's text in one line, or the name of the fault if it has no text."""
    if isinstance(error, socket.gaierror):
        return "its name could not be resolved"
    if isinstance(error, ExpatError):
        return "the answer is not SOAP"
    said = getattr(error, "localizedMessage", None) or getattr(error, "msg", None) or str(error)
    name = type(error).__name__.rpartition(".")[2]
    said = " ".join(str(said).split())
    details = [
        " ".join(one.text.split()) if getattr(one, "text", None) else "" for one in getattr(error, "faultMessage", None) or []
    ]
    more = "".join(f" ({one})" for one in details if one)
    return (name if not said or said.startswith("(") or re.fullmatch(r"[\w.]+", said) else f"{said} ({name})") + more

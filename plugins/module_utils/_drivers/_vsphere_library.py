# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""pyVmomi: the only import of it, the login, and its faults as errors of ours.

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

from ansible_collections.safepoint.vm.plugins.module_utils import _errors
from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline

try:
    import pyVmomi as pyvmomi
    from pyVmomi import SoapStubAdapter, vim, vmodl

    PYVMOMI_IMPORT_ERROR = None
except Exception:  # pyVmomi 9.1 raises a bare one on Python 3.9, for which there is 8.0
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

# 6.5. A server speaks every older version, so that nothing has to be asked first; older servers are out of support since 2020.
_VERSION = "vim.version.version11"
# A new connection for a request that finds none free; this many are kept, and none longer than proxies keep theirs.
_POOL = 32
_IDLE_SECONDS = 30
# More than the longest request keeps us waiting (_vsphere_tasks.py): a connection that was cut without a word is given up then,
# and so much after the time is up.
_SILENCE_SECONDS = 60.0
_LATE_SECONDS = 2.0
# Between two tries of a request that got no answer.
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0

# In bytes. One of 500 VMs has 3 MB with their devices; nothing that we ask for comes near, and no answer may fill the memory.
LARGEST_ANSWER = 256 * 1024**2
# Of those that pyVmomi reads itself, piece by piece: logins, views and tasks of some kB. It takes minutes for 100 MB (9.1).
_LARGEST_SMALL_ANSWER = 4 * 1024**2
_PIECE = 1024**2

_T = t.TypeVar("_T")

# A request that was sent, or was about to be, and got no answer of vCenter: a cut or silent connection, a proxy's 502, a page that is no SOAP.
UNANSWERED = (OSError, http.client.HTTPException, ExpatError)


# What pyVmomi and our own reading raise on an answer of a wrong shape.
UNREADABLE = (AttributeError, KeyError, RecursionError, TypeError, ValueError)


class BadAnswer(Exception):
    """An answer that is none of this request: without a value, of a wrong shape, only a part, or too large. To ask again would bring the same."""


class _Response(http.client.HTTPResponse):
    """An answer of which no more is read than it may have."""

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
        # pyVmomi would unpack without a limit what it has not asked to be packed.
        return default if name.lower() == "content-encoding" else super().getheader(name, default)


class NotSent(OSError):
    """There was no connection, so that nothing was sent. Its cause says why."""


def _make_stub(limit: Callable[[], float], **settings: t.Any) -> t.Any:
    """pyVmomi's stub, whose requests wait for an answer no longer than ``limit`` says when they begin."""

    class Stub(SoapStubAdapter):  # type: ignore[misc, valid-type, unused-ignore]
        def GetConnection(self) -> t.Any:  # the name that pyVmomi calls
            seconds = limit()
            self.schemeArgs["timeout"] = seconds
            try:
                # A new one is connected here (pyVmomi 8.0 and 9.1).
                connection = super().GetConnection()
            except Exception as exc:
                raise NotSent(str(exc)) from exc
            if connection.sock is not None:
                connection.sock.settimeout(seconds)
            connection.response_class = _Response
            return connection

    return Stub(**settings)


class Session:
    """One login, made again when the server has ended it. Any thread may call.

    Once logged in, what reads is repeated until ``deadline`` while nothing answers; only the first login fails at once.
    """

    def __init__(
        self, *, hostname: str, port: int, username: str, password: str, validate_certs: bool, ca_path: str | None
    ) -> None:
        """Log in. Three requests; blocks for as long as the peer is mute.

        :raises LibraryMissing: pyVmomi is not installed.
        :raises ConnectionFailed: nothing answered, or something that is no vCenter, or with a certificate that is not trusted.
        :raises PermissionDenied: the login was refused.
        """
        if PYVMOMI_IMPORT_ERROR:
            raise _errors.LibraryMissing("pyvmomi" if sys.version_info >= (3, 10) else "pyvmomi<9", PYVMOMI_IMPORT_ERROR)
        self.where = f"{hostname}:{port}"
        self._username, self._password = username, password
        self._lock = threading.Lock()
        self._logins = 0
        self._closed = False
        self.deadline = Deadline(_SILENCE_SECONDS)
        # _server.py has read ca_path.
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
            # Ages are counted by the clock that the snapshots have their times from.
            self.ahead: timedelta = expect(instance.CurrentTime(), datetime, "time") - datetime.now(timezone.utc)
        except _errors.SafepointError:
            raise
        except Exception as exc:
            raise typed(exc, "log in", where=self.where) from exc

    def _login(self) -> None:
        try:
            self.content.sessionManager.Login(self._username, self._password, None)
        except vim.fault.InvalidLogin as exc:
            raise _errors.PermissionDenied(
                f"{self.where} refused the login of {self._username!r}; check username (with its domain) and password"
            ) from exc
        self._logins += 1

    def raw(self, method: Callable[[], _T]) -> _T:
        """Return what ``method`` returns; log in once more where the session has ended meanwhile. Raises what it raises."""
        logins = self._logins
        try:
            return method()
        except vim.fault.NotAuthenticated:
            self.renew(logins)
        return method()

    def call(self, what: str, method: Callable[[], _T]) -> _T:
        """What ``method`` returns, which only reads, repeated until the deadline while nothing answers.

        :raises SafepointError: what failed, in the server's words.
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
        """Wait before what got no answer so often is tried again; False where there is no time for that."""
        seconds = self.pause_seconds(tries)
        if seconds is None:
            return False
        time.sleep(seconds)
        return True

    def pause_seconds(self, tries: int, deadline: Deadline | None = None) -> float | None:
        """For how long to leave the server alone after so many tries, or None where there is no time for another one before the deadline."""
        seconds = min(_FIRST_PAUSE_SECONDS * 2 ** min(tries, 10), _LONGEST_PAUSE_SECONDS)
        return None if self._closed or (deadline or self.deadline).left() <= seconds else seconds

    def _silence(self) -> float:
        """For how long a request that begins now waits for an answer."""
        return min(_SILENCE_SECONDS, self.deadline.left() + _LATE_SECONDS)

    @property
    def logins(self) -> int:
        """How often we have logged in. What a session holds (views, filters) goes with it."""
        return self._logins

    def renew(self, logins: int) -> None:
        """Log in again, unless somebody else has done so since there were so many ``logins``."""
        with self._lock:
            if self._closed:
                raise _errors.ConnectionFailed(f"We have logged out of {self.where}")
            if self._logins == logins:
                self._login()

    def close(self) -> None:
        """Log out, for good: whatever is still under way does not log in again."""
        with self._lock:
            self._closed = True
        try:
            self.content.sessionManager.Logout()
        except Exception:
            pass
        self.stub.DropConnections()


def expect(value: t.Any, kind: t.Any, what: str) -> t.Any:
    """The value of an answer, which must be of that kind of the API.

    :raises BadAnswer: it is not.
    """
    if not isinstance(value, kind):
        raise BadAnswer(f"no {what}")
    return value


def is_slow(error: BaseException) -> bool:
    """Whether an answer is lost because a proxy or we gave up waiting for it, so that the work may begin only later."""
    # pyVmomi puts the status of an answer that is no SOAP into the text (8.0 and 9.1).
    return isinstance(error, socket.timeout) or (isinstance(error, http.client.HTTPException) and str(error).startswith("504"))


def typed(error: BaseException, what: str, *, where: str) -> _errors.SafepointError:
    """A fault of the server, or what kept us from reaching it, as one of ours."""
    if isinstance(error, _errors.SafepointError):
        return error
    failed = _errors.ConnectionFailed
    if isinstance(error, NotSent) and error.__cause__ is not None:
        error, failed = error.__cause__, _errors.NotReached
    if isinstance(error, ssl.SSLCertVerificationError):
        return failed(
            f"The certificate of {where} is not trusted: {error.verify_message}; set ca_path to the CA that signed it, and hostname to a name in it "
            "(validate_certs=false would trust anybody)"
        )
    if isinstance(error, UNANSWERED):
        return failed(f"No vCenter or ESXi answered at {where} on the way to {what}: {_words(error)}; check hostname and port")
    if not isinstance(error, vmodl.MethodFault):
        # What is read of an answer is all that can fail here.
        said = str(error) if isinstance(error, BadAnswer) else f"what could not be read ({type(error).__name__}: {error})"
        return failed(
            f"{where}, asked to {what}, answered with {said}; see what stands between it and this machine, and its own log"
        )
    return _fault(error, what)


def _fault(fault: t.Any, what: str) -> _errors.SafepointError:
    said = f"vSphere failed to {what}: {_words(fault)}"
    # The one is a kind of the other.
    if isinstance(fault, vim.fault.NoPermission) and not isinstance(fault, vim.fault.NotAuthenticated):
        on = getattr(fault.object, "_moId", "it")
        return _errors.PermissionDenied(f"{said}; the privilege {fault.privilegeId} on {on} is missing")
    for kinds, made, advice in _table():
        if isinstance(fault, kinds):
            return made(said + advice)
    return _errors.BackendFailed(said)


def _table() -> list[tuple[t.Any, type[_errors.SafepointError], str]]:
    """By the fault: which error it is, and what to do. The first that fits; the special ones stand before their parents."""
    faults = vim.fault
    return [
        (faults.NotAuthenticated, _errors.ConnectionFailed, "; the session has ended, try again"),
        (faults.TaskInProgress, _errors.Locked, "; another task works on the VM, try again when it has ended"),
        (
            (faults.ConcurrentAccess, faults.FileLocked, faults.SnapshotLocked),
            _errors.Locked,
            "; something else holds it, try again later",
        ),
        (faults.RestrictedVersion, _errors.Unsupported, "; the licence of this host does not allow changes by the API"),
        (faults.TooManySnapshotLevels, _errors.Unsupported, "; remove older snapshots first"),
        (faults.NoDiskSpace, _errors.BackendFailed, "; free space on the datastore first"),
        (faults.InvalidName, _errors.InvalidOption, "; choose another name"),
        ((faults.ApplicationQuiesceFault, faults.FilesystemQuiesceFault), _errors.Unsupported, f"; {QUIESCE_ADVICE}"),
        (faults.MemorySnapshotOnIndependentDisk, _errors.Unsupported, "; leave memory out, or make its disks dependent"),
        (
            (faults.InvalidState, faults.QuestionPending),
            _errors.Unsupported,
            "; look at the VM's state, and for a question that it asks",
        ),
        ((vmodl.fault.NotSupported, vmodl.fault.MethodNotFound), _errors.Unsupported, ""),
        (faults.SnapshotFault, _errors.Unsupported, ""),
    ]


QUIESCE_ADVICE = "look at VMware Tools in the guest, or set quiesce=never"


def _words(error: t.Any) -> str:
    """What the server says, in one line; the name of the fault where it says nothing."""
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, ExpatError):
        return "what came back is no SOAP"
    said = getattr(error, "localizedMessage", None) or getattr(error, "msg", None) or str(error)
    name = type(error).__name__.rpartition(".")[2]
    said = " ".join(str(said).split())
    details = [
        " ".join(one.text.split()) if getattr(one, "text", None) else "" for one in getattr(error, "faultMessage", None) or []
    ]
    more = "".join(f" ({one})" for one in details if one)
    return (name if not said or said.startswith("(") or re.fullmatch(r"[\w.]+", said) else f"{said} ({name})") + more

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's Python library: the only import of it, what it needs before it can be used, and its errors.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import re
import threading
import traceback
import typing as t

from ansible_collections.safepoint.vm.plugins.module_utils import _errors

try:
    import libvirt
    import libvirt_qemu

    LIBVIRT_IMPORT_ERROR = None
except ImportError:
    libvirt = libvirt_qemu = None
    LIBVIRT_IMPORT_ERROR = traceback.format_exc()

__all__ = [
    "CHECK",
    "LIBVIRT_IMPORT_ERROR",
    "clean",
    "connect",
    "is_local",
    "libvirt",
    "libvirt_qemu",
    "typed",
]

CHECK = "check that the host is up, that libvirtd runs there, and that this URI opens with virsh -c"

# A peer that says nothing to this many questions, so many seconds apart, is gone.
_KEEPALIVE_SECONDS = 5
_KEEPALIVE_COUNT = 3

# By number, since the library may be missing: virErrorNumber in libvirt's virterror.h.
_KINDS = {
    3: "Unsupported",  # NO_SUPPORT
    29: "PermissionDenied",  # OPERATION_DENIED
    42: "VmNotFound",  # NO_DOMAIN
    45: "PermissionDenied",  # AUTH_FAILED
    67: "Unsupported",  # CONFIG_UNSUPPORTED
    68: "Locked",  # OPERATION_TIMEOUT
    72: "SnapshotNotFound",  # NO_DOMAIN_SNAPSHOT
    74: "Unsupported",  # ARGUMENT_UNSUPPORTED
    83: "Locked",  # BLOCK_COPY_ACTIVE
    84: "Unsupported",  # OPERATION_UNSUPPORTED
    88: "PermissionDenied",  # ACCESS_DENIED
}
_ADVICE = {
    29: "; connect with a user that may write, for example qemu+ssh://root@HOST/system",
    68: "; another operation holds the VM: try again when it has ended",
    83: "; a block job works on a disk of the VM: virsh blockjob shows it, try again when it has ended",
}

_loop_started = threading.Lock()


def connect(uri: str) -> t.Any:
    """A new connection that notices when its peer is gone. Blocks for as long as the peer is mute, and raises the library's own error."""
    # Without a handler the library prints every error to stderr, where Ansible takes it for a module's output.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    _run_event_loop()
    connection = libvirt.open(_without_prompts(uri))
    try:
        connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
    except libvirt.libvirtError:
        pass  # libvirt's test driver has no peer to keep alive
    return connection


def typed(error: t.Any, what: str, *, where: str, broken: bool) -> _errors.SafepointError:
    """The library's error as one of ours, with libvirt's own words; ``broken`` says that the connection is gone."""
    code = error.get_error_code()
    if broken or error.get_error_domain() == libvirt.VIR_FROM_RPC:
        # Seen with 9.0: a daemon that dies while it takes a snapshot leaves the VM paused for good.
        return _errors.ConnectionFailed(
            f"The connection to libvirt at {where} broke on the way to {what}: {clean(error)}; "
            "look at the VM before the next try, it may be left paused (virsh resume)"
        )
    made: type[_errors.SafepointError] = getattr(_errors, _KINDS.get(code, "BackendFailed"))
    return made(f"libvirt failed to {what}: {clean(error)}{_ADVICE.get(code, '')}")


def block_job_runs(error: t.Any, what: str) -> _errors.Locked:
    """What libvirt refused with a code that does not tell, because of a block job."""
    return _errors.Locked(f"libvirt failed to {what}: {clean(error)}{_ADVICE[83]}")


def clean(error: t.Any) -> str:
    """libvirt's own text, in one line."""
    return " ".join(str(error).split())


def is_local(uri: str) -> bool:
    """Whether the daemon runs on this machine, so that its images are files here."""
    return re.match(r"\w+(\+unix)?:///", uri) is not None


def _without_prompts(uri: str) -> str:
    """The ``uri`` with which ssh asks nothing: a module has no terminal, and a prompt would wait for ever."""
    if not re.match(r"[^:]*\+ssh://", uri) or "no_tty=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}no_tty=1"


def _run_event_loop() -> None:
    """Once a process: the loop that answers and sends keepalives, in a daemon thread."""
    if not _loop_started.acquire(blocking=False):
        return
    libvirt.virEventRegisterDefaultImpl()

    def loop() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=loop, name="libvirt events", daemon=True).start()

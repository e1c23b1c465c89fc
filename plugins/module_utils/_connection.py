# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Connection options -> driver.

Options that were not given come from the environment names that the ecosystem already uses. They are resolved here, per backend, and not
by the argument spec, which cannot see ``backend`` and would send one vendor's credentials to the other.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import glob
import os
import re
import signal
import typing as t
from collections.abc import Mapping

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt import CHECK, LibvirtDriver, public_uri, uri_password
from ansible_collections.safepoint.vm.plugins.module_utils._errors import ConnectionFailed, InvalidOption, TimedOut
from ansible_collections.safepoint.vm.plugins.module_utils._threads import in_time

if t.TYPE_CHECKING:
    from ansible_collections.safepoint.vm.plugins.module_utils._driver import SnapshotDriver


def secrets(options: Mapping[str, t.Any], environ: Mapping[str, str]) -> set[str]:
    """Values among the options and their fallbacks that must never be shown."""
    password = uri_password(_uri(options, environ))
    return {password} if password else set()


def open_driver(options: Mapping[str, t.Any], *, environ: Mapping[str, str], seconds: float) -> SnapshotDriver:
    """Connect to the endpoint that ``options`` name, within ``seconds``.

    :raises InvalidOption: an option that the backend needs is given nowhere.
    :raises LibraryMissing: the backend's Python library is not there.
    :raises ConnectionFailed: no connection in time, or none at all.
    """
    uri = _uri(options, environ)
    if uri_password(uri):
        raise InvalidOption(
            "uri has a password in it, which libvirt does not use; remove it and let ssh keys or auth.conf answer"
        )
    if not uri:
        raise InvalidOption("uri is not set; write for example uri: qemu+ssh://root@kvm01/system, or set LIBVIRT_DEFAULT_URI")
    try:
        return in_time("the connection", lambda: LibvirtDriver(uri), Deadline(seconds))
    except TimedOut:
        _end_ssh()
        raise ConnectionFailed(
            f"libvirt at {public_uri(uri)} did not answer within connect_timeout={seconds:g} seconds; {CHECK}"
        ) from None


def _end_ssh() -> None:
    """End the ssh that libvirt started for a connection that never came about: it outlives this process (libvirt 9.0)."""
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                process = re.match(r"(\d+) \(ssh\) \S (\d+) ", file.read())
            if process and int(process.group(2)) == os.getpid():
                os.kill(int(process.group(1)), signal.SIGTERM)
        except OSError:
            continue  # it ended meanwhile, or is none of ours


def _uri(options: Mapping[str, t.Any], environ: Mapping[str, str]) -> str:
    return options.get("uri") or environ.get("LIBVIRT_DEFAULT_URI") or ""

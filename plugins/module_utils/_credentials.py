# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the endpoint is and who logs in, from the options and from the environment names that the ecosystem already uses.

They are resolved here, per backend, and not by the argument spec, which cannot see ``backend`` and would send one vendor's credentials to
the other.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import re
import typing as t
from collections.abc import Mapping

Options = Mapping[str, t.Any]

# By the backend: its own options, each with the environment variable that stands in for it. AWX's built-in credentials set these.
VARIABLES: Mapping[str, Mapping[str, str | None]] = {
    "libvirt": {"uri": "LIBVIRT_DEFAULT_URI"},
    "vsphere": {
        "hostname": "VMWARE_HOST",
        "port": "VMWARE_PORT",
        "username": "VMWARE_USER",
        "password": "VMWARE_PASSWORD",
        "validate_certs": "VMWARE_VALIDATE_CERTS",
        "ca_path": None,
    },
    "proxmox": {
        "hostname": "PROXMOX_HOST",
        "port": "PROXMOX_PORT",
        "username": "PROXMOX_USER",
        "password": "PROXMOX_PASSWORD",
        "token_id": "PROXMOX_TOKEN_ID",
        "token_secret": "PROXMOX_TOKEN_SECRET",
        "validate_certs": "PROXMOX_VALIDATE_CERTS",
        "ca_path": None,
    },
}


def secrets(options: Options, environ: Mapping[str, str]) -> set[str]:
    """Values among the options and their fallbacks that must never be shown."""
    resolved = resolved_options(options, environ)
    found = {
        resolved.get("password"),
        resolved.get("token_secret"),
        uri_password(options.get("uri") or resolved.get("uri") or ""),
        # A URL is refused as a hostname. Its password is not shown for that.
        uri_password(options.get("hostname") or resolved.get("hostname") or ""),
    }
    return {one for one in found if one}


def address(options: Options, environ: Mapping[str, str]) -> str | None:
    """Where the endpoint is, for people: a host or a URI. May hold what ``secrets()`` returns."""
    resolved = resolved_options(options, environ)
    return resolved.get("hostname") or resolved.get("uri")


def resolved_options(options: Options, environ: Mapping[str, str]) -> Options:
    """The backend's own options, those that are not set from the environment."""
    found = {}
    overruled = _overruled(options)
    for name, variable in VARIABLES.get(options["backend"], {}).items():
        value = options.get(name)
        if value is None and variable and name not in overruled:
            # In AWX a field that was left empty is an empty variable.
            value = environ.get(variable) or None
        found[name] = value
    return found


def _overruled(options: Options) -> set[str]:
    """What belongs to another way to log in than the one that the options have chosen; no variable may choose that after all."""
    if options.get("token_id") or options.get("token_secret"):
        # The short name of a token needs its user.
        return {"password", "username"} if "!" in (options.get("token_id") or "") else {"password"}
    return {"token_id", "token_secret"} if options.get("password") else set()


_USERINFO = re.compile(r"\A([^:/?#]+://[^@?#]*?):([^@?#]*)@")


def public_uri(uri: str) -> str:
    """``uri`` as it may be shown: without a password in it."""
    return _USERINFO.sub(r"\1:***@", uri)


def uri_password(uri: str) -> str | None:
    """The password in ``uri``, which libvirt does not use there."""
    found = _USERINFO.match(uri)
    return found.group(2) if found else None

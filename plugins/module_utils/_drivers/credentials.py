# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Address and credentials of the endpoint, from the options or from the environment variables that other tools for the vendor use.

They are resolved here, per backend, and not by the argument spec: it cannot see ``backend`` and would send the credentials of one vendor to
another.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import re
import typing as t
from collections.abc import Mapping

Options = Mapping[str, t.Any]

# Backend -> its own options, each with the environment variable that is the fallback. The built-in credential types of AWX set these variables.
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
    """Return the values of the options and their fallbacks that must never be shown."""
    resolved = resolved_options(options, environ)
    found = {
        resolved.get("password"),
        resolved.get("token_secret"),
        uri_password(options.get("uri") or resolved.get("uri") or ""),
        # A URL is not a valid hostname, but the error message must not show its password.
        uri_password(options.get("hostname") or resolved.get("hostname") or ""),
    }
    return {one for one in found if one}


def address(options: Options, environ: Mapping[str, str]) -> str | None:
    """Return the host or URI of the endpoint, for display. It may contain values of ``secrets()``."""
    resolved = resolved_options(options, environ)
    return resolved.get("hostname") or resolved.get("uri")


def resolved_options(options: Options, environ: Mapping[str, str]) -> Options:
    """Return the options of the backend; those that are not set are read from the environment."""
    found = {}
    overruled = _overruled(options)
    for name, variable in VARIABLES.get(options["backend"], {}).items():
        value = options.get(name)
        if value is None and variable and name not in overruled:
            # AWX sets an empty variable for a credential field that was left empty.
            value = environ.get(variable) or None
        found[name] = value
    return found


def _overruled(options: Options) -> set[str]:
    """Return the options of the login method that was not chosen. Environment variables must not select that method."""
    if options.get("token_id") or options.get("token_secret"):
        # A token name without a user needs username.
        return {"password", "username"} if "!" in (options.get("token_id") or "") else {"password"}
    return {"token_id", "token_secret"} if options.get("password") else set()


_USERINFO = re.compile(r"\A([^:/?#]+://[^@?#]*?):([^@?#]*)@")


def public_uri(uri: str) -> str:
    """Return ``uri`` with its password masked."""
    return _USERINFO.sub(r"\1:***@", uri)


def uri_password(uri: str) -> str | None:
    """Return the password in ``uri``, which libvirt ignores."""
    found = _USERINFO.match(uri)
    return found.group(2) if found else None

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The server of an endpoint: its name or address, its port, and how its certificate is verified.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import ssl
import typing as t
from collections.abc import Mapping

from ansible_collections.safepoint.vm.plugins.module_utils._credentials import Options
from ansible_collections.safepoint.vm.plugins.module_utils._errors import InvalidOption


@dataclasses.dataclass(frozen=True)
class Server:
    """A server as it is connected to and shown."""

    hostname: str
    """An IPv6 address is in brackets, which pyVmomi 9.0 and proxmoxer 2.2 both accept."""
    port: int
    validate_certs: bool
    ca_path: str | None

    @property
    def where(self) -> str:
        """The server as messages call it."""
        return f"{self.hostname}:{self.port}"


def read_server(options: Options, variables: Mapping[str, str | None], *, default_port: int) -> Server:
    """The server that the options name. ``variables`` are the environment variables that they may come from.

    :raises InvalidOption: names the option, the value and the fix.
    """
    validate_certs = _read_validate_certs(options["validate_certs"], variables)
    ca_path = options["ca_path"]
    if ca_path is not None:
        if not validate_certs:
            raise InvalidOption(
                f"ca_path={ca_path!r} says whom to trust, and validate_certs=false trusts anybody; leave one of them out"
            )
        _check_ca_path(ca_path)
    return Server(
        _read_hostname(options["hostname"]), _read_port(options["port"], variables, default_port), validate_certs, ca_path
    )


def _read_hostname(text: str) -> str:
    # A user and a password in it are not shown.
    shown = text.rpartition("@")[2]
    if any(char.isspace() or not char.isprintable() for char in text):
        raise InvalidOption(
            f"hostname={shown!r} contains a blank, a line break or a control character; write the name or address alone"
        )
    if any(char in text for char in "/@?#\\"):
        raise InvalidOption(
            f"hostname={shown!r} must be a name or an address only, without https://, user, port or path; write for example vcenter.example.com, and "
            "use port for the port"
        )
    in_brackets = text.startswith("[") and text.endswith("]")
    if in_brackets or text.count(":") > 1:
        address = text[1:-1] if in_brackets else text
        try:
            return f"[{ipaddress.IPv6Address(address).compressed}]"
        except ValueError:
            raise InvalidOption(
                f"hostname={shown!r} is not an IPv6 address; write for example 2001:db8::1 or [2001:db8::1], and use port for the port"
            ) from None
    if ":" in text:
        raise InvalidOption(f"hostname={shown!r} must be without a port; use port for the port")
    try:
        text.encode("idna")
    except UnicodeError:
        raise InvalidOption(
            f"hostname={shown[:80]!r} is not a host name; its parts have 1 to 63 characters, for example vcenter.example.com"
        ) from None
    return text


def _read_port(value: t.Any, variables: Mapping[str, str | None], default: int) -> int:
    if value is None:
        return default
    try:
        port = int(value)
    except ValueError:
        raise InvalidOption(f"{variables['port']}={value!r} is not a number; write for example {default}") from None
    if not 0 < port < 65536:
        raise InvalidOption(f"port={port} is not a port; use 1 to 65535, for example {default}")
    return port


def _read_validate_certs(value: t.Any, variables: Mapping[str, str | None]) -> bool:
    if value is None:
        return True
    if isinstance(value, bool):
        return value
    from ansible.module_utils.parsing.convert_bool import boolean

    try:
        return t.cast("bool", boolean(value))
    except TypeError:
        raise InvalidOption(f"{variables['validate_certs']}={value!r} is not a boolean; write true or false") from None


def _check_ca_path(path: str) -> None:
    if not path:
        raise InvalidOption(
            "ca_path is empty; name a file of CA certificates in PEM format, or leave it out for those of the system"
        )
    if not os.path.isfile(path):
        raise InvalidOption(
            f"ca_path={path!r} is not a file on the machine that runs the module; name a file of CA certificates in PEM format"
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except OSError as exc:  # ssl.SSLError too, for a file without a certificate
        raise InvalidOption(
            f"ca_path={path!r} cannot be used ({exc.strerror or exc}); name a file of CA certificates in PEM format"
        ) from exc

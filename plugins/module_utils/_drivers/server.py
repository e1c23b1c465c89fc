# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The server of an endpoint: host name or address, port, and verification of its certificate.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import ssl
import typing as t
from collections.abc import Mapping

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.credentials import Options


@dataclasses.dataclass(frozen=True)
class Server:
    """A server to connect to."""

    hostname: str
    """An IPv6 address is in brackets; pyVmomi 9.0 and proxmoxer 2.2 accept them."""
    port: int
    validate_certs: bool
    ca_path: str | None

    @property
    def where(self) -> str:
        """Host and port for messages."""
        return f"{self.hostname}:{self.port}"


def read_server(options: Options, variables: Mapping[str, str | None], *, default_port: int) -> Server:
    """Parse the server options. ``variables`` are their environment variables, for messages.

    :raises InvalidOption: names the option, the value and the fix.
    """
    validate_certs = _read_validate_certs(options["validate_certs"], variables)
    ca_path = options["ca_path"]
    if ca_path is not None:
        if not validate_certs:
            raise InvalidOption(
                f"ca_path={ca_path!r} has no effect with validate_certs=false, which disables the verification of the certificate; remove one of them"
            )
        _check_ca_path(ca_path)
    return Server(
        _read_hostname(options["hostname"]), _read_port(options["port"], variables, default_port), validate_certs, ca_path
    )


def _read_hostname(text: str) -> str:
    # Do not show a user and a password in the value.
    shown = text.rpartition("@")[2]
    if any(char.isspace() or not char.isprintable() for char in text):
        raise InvalidOption(
            f"hostname={shown!r} contains a space, a line break or a control character; write only the name or address"
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
        raise InvalidOption(f"hostname={shown!r} must not contain a port; use port for the port")
    try:
        text.encode("idna")
    except UnicodeError:
        raise InvalidOption(
            f"hostname={shown[:80]!r} is not a valid host name; each part must have 1 to 63 characters, for example vcenter.example.com"
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
        raise InvalidOption(f"port={port} is not a valid port; use 1 to 65535, for example {default}")
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
            "ca_path is empty; set a file of CA certificates in PEM format, or remove the option to use those of the system"
        )
    if not os.path.isfile(path):
        raise InvalidOption(
            f"ca_path={path!r} is not a file on the machine that runs the module; set a file of CA certificates in PEM format"
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except OSError as exc:  # ssl.SSLError too, for a file without a certificate
        raise InvalidOption(
            f"ca_path={path!r} cannot be read ({exc.strerror or exc}); set a file of CA certificates in PEM format"
        ) from exc

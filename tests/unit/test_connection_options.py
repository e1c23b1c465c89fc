# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Connection options: invalid values are refused before a connection is opened."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.connect import read_connection
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.credentials import VARIABLES, secrets
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.server import Server, read_server
from ansible_collections.safepoint.vm.plugins.module_utils._options import OPTIONS

NONE: dict[str, t.Any] = dict.fromkeys(OPTIONS["snapshot_info"]["argument_spec"])
LOGINS = {
    "vsphere": {"username": "u@vsphere.local", "password": "s3cret-of-the-tests"},
    "proxmox": {"username": "root@pam", "password": "s3cret-of-the-tests"},
}
backends = pytest.mark.parametrize("backend", sorted(LOGINS))


def server(hostname: str, **options: t.Any) -> Server:
    return read_server({**NONE, "hostname": hostname, **options}, VARIABLES["vsphere"], default_port=443)


@backends
@pytest.mark.parametrize(
    ("hostname", "words"),
    [
        ("https://vc", ["hostname='https://vc'", "without https://, user, port or path", "use port"]),
        ("https://vc:443", ["without https://"]),
        ("vc:443", ["hostname='vc:443'", "must not contain a port", "use port"]),
        ("vc/sdk", ["without https://, user, port or path"]),
        ("[::1]:443", ["is not an IPv6 address", "use port"]),
        ("[vc]", ["is not an IPv6 address"]),
        ("1:2:3", ["is not an IPv6 address"]),
        ("vc\n", ["hostname='vc\\n'", "line break"]),
        ("vc\r\nHost: other", ["line break"]),
        (" vc", ["space"]),
        ("vc\x1b[2J", ["control character"]),
        ("vc..example.com", ["is not a valid host name"]),
        ("x" * 64, ["is not a valid host name"]),
        ("", ["hostname is not set"]),
    ],
)
def test_invalid_hostname_is_refused_with_the_fix(backend: str, hostname: str, words: list[str]) -> None:
    with pytest.raises(InvalidOption) as refused:
        read_connection({**NONE, "backend": backend, "hostname": hostname, **LOGINS[backend]}, {})
    for word in words:
        assert word in str(refused.value)


@backends
def test_password_in_a_hostname_is_not_shown(backend: str) -> None:
    options = {**NONE, "backend": backend, "hostname": "https://root:hidden@vc", **LOGINS[backend]}
    with pytest.raises(InvalidOption) as refused:
        read_connection(options, {})
    assert "hidden" not in str(refused.value)
    assert "hidden" in secrets(options, {})


@pytest.mark.parametrize(
    ("hostname", "shown"),
    [
        ("vc.example.com", "vc.example.com:443"),
        ("192.0.2.1", "192.0.2.1:443"),
        ("2001:db8::1", "[2001:db8::1]:443"),
        ("[2001:DB8:0::1]", "[2001:db8::1]:443"),
        ("::1", "[::1]:443"),
        ("fe80::1%eth0", "[fe80::1%eth0]:443"),
        ("bücher.example", "bücher.example:443"),
        ("my_host", "my_host:443"),
    ],
)
def test_server_is_shown_with_its_port(hostname: str, shown: str) -> None:
    assert server(hostname).where == shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 0}, ["port=0", "1 to 65535"]),
        ({"port": 70000}, ["port=70000"]),
        ({"port": "https"}, ["VMWARE_PORT='https' is not a number"]),
        ({"validate_certs": "perhaps"}, ["VMWARE_VALIDATE_CERTS='perhaps' is not a boolean"]),
        ({"ca_path": ""}, ["ca_path is empty"]),
        ({"ca_path": "/nowhere/ca.pem"}, ["ca_path='/nowhere/ca.pem' is not a file", "PEM"]),
        ({"ca_path": "/"}, ["ca_path='/' is not a file"]),
        ({"ca_path": __file__}, ["ca_path", "cannot be read", "PEM"]),
        ({"ca_path": __file__, "validate_certs": False}, ["ca_path", "validate_certs=false"]),
    ],
)
def test_other_invalid_server_options_are_refused_with_the_fix(options: dict[str, t.Any], words: list[str]) -> None:
    with pytest.raises(InvalidOption) as refused:
        server("vc", **options)
    for word in words:
        assert word in str(refused.value)


def test_empty_ca_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    with pytest.raises(InvalidOption, match="cannot be read"):
        server("vc", ca_path=str(tmp_path / "empty.pem"))

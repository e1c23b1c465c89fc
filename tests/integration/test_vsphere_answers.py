# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Answers that do not come from vCenter, but from a proxy, a load balancer or another web server."""

from __future__ import annotations

import gzip
import http.client
import http.server
import threading
import typing as t
from collections.abc import Iterator

import pytest
from pyVmomi import SoapStubAdapter, vim, vmodl

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere import lazy
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.lazy import LazyStub
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.session import BadAnswer, typed

ENVELOPE = '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>{}</s:Body></s:Envelope>'


class Answer(http.server.BaseHTTPRequestHandler):
    status, body = 200, ""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = self.body.encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: t.Any) -> None:
        """Write nothing to the terminal."""


@pytest.fixture(scope="module")
def ask() -> Iterator[t.Callable[[], t.Any]]:
    """Send a request to a server that always answers as set in Answer."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # For pyVmomi, a negative port means no TLS.
        stub = SoapStubAdapter(host="127.0.0.1", port=-server.server_port, path="/sdk", version="vim.version.version11")
        collector = vmodl.query.PropertyCollector("propertyCollector", LazyStub(stub))
        kind = vmodl.query.PropertyCollector.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])
        one = vmodl.query.PropertyCollector.ObjectSpec(obj=vim.VirtualMachine("vm-1", stub))
        spec = vmodl.query.PropertyCollector.FilterSpec(objectSet=[one], propSet=[kind])
        yield lambda: collector.RetrievePropertiesEx([spec], vmodl.query.PropertyCollector.RetrieveOptions())
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, "<html><body>Maintenance</body></html>", "not SOAP"),
        (200, "Maintenance & more", "not XML"),
        (200, "", "not XML"),
        (500, "<html><body>Oops</body></html>", ""),
        (500, ENVELOPE.format(""), "without a fault"),
        (502, "", "502"),
    ],
)
def test_foreign_answer_is_a_connection_error(
    ask: t.Callable[[], t.Any], monkeypatch: pytest.MonkeyPatch, status: int, body: str, words: str
) -> None:
    monkeypatch.setattr(Answer, "status", status)
    monkeypatch.setattr(Answer, "body", body)
    with pytest.raises(Exception) as raised:
        ask()
    error = typed(raised.value, "list the VMs", where="vcenter:443")
    assert error.code == "connection_failed" and "vcenter:443" in str(error) and words in str(error)


def test_compressed_answer_is_unpacked_only_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "LARGEST_ANSWER", 1000)
    assert lazy._unpacked(gzip.compress(bytes(1000))) == bytes(1000)
    with pytest.raises(BadAnswer, match="more than 1000 bytes"):
        lazy._unpacked(gzip.compress(bytes(1001)))
    for broken in (gzip.compress(bytes(1000))[:-12], b"no gzip"):
        with pytest.raises(http.client.HTTPException):
            lazy._unpacked(broken)


def test_answer_without_a_value_is_none(ask: t.Callable[[], t.Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answer, "status", 200)
    monkeypatch.setattr(Answer, "body", ENVELOPE.format('<RetrievePropertiesExResponse xmlns="urn:vim25"/>'))
    assert ask() is None

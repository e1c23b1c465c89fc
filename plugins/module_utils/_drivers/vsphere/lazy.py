# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Answers of the PropertyCollector, converted to Python values only on access.

pyVmomi 9.1 creates an object for every element. The PropertyCollector can only return the devices of a VM as a whole, although only the modes of
disks are needed: with 500 VMs pyVmomi took more CPU time for them than for the rest of the call.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import functools
import http.client
import io
import typing as t
import zlib
from collections.abc import Callable
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.session import LARGEST_ANSWER, BadAnswer, pyvmomi

_NS = "{urn:vim25}"
_PROP_SET = _NS + "propSet"
_XSI_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"
_NUMBERS = {"byte": int, "short": int, "int": int, "long": int, "float": float, "double": float}


class LazyStub:
    """Replaces pyVmomi's stub of a managed object. Answers are objects of this file; faults are pyVmomi's."""

    def __init__(self, stub: t.Any) -> None:
        self._stub = stub

    def InvokeMethod(self, mo: t.Any, info: t.Any, args: t.Any) -> t.Any:  # the name that pyVmomi calls
        stub = self._stub
        headers = {
            "Cookie": stub.cookie,
            "SOAPAction": stub.versionId,
            "Content-Type": "text/xml; charset=utf-8",
            "Accept-Encoding": "gzip",
        }
        connection = stub.GetConnection()
        try:
            connection.request("POST", stub.path, stub.SerializeRequest(mo, info, args), headers)
            answer = connection.getresponse()
            body = answer.read()
        except BaseException:
            connection.close()
            # The other pooled connections are most likely broken too.
            stub.DropConnections()
            raise
        stub.ReturnConnection(connection)
        if answer.status not in (200, 500):
            raise http.client.HTTPException(f"{answer.status} {answer.reason}")
        if answer.headers.get("Content-Encoding", "").lower() == "gzip":
            body = _unpacked(body)
        if answer.status == 500 or b"missingSet>" in body or b"MethodFault" in body:
            # Faults have many formats and are rare: leave them to pyVmomi.
            read = pyvmomi.SoapAdapter.SoapResponseDeserializer(stub).Deserialize(io.BytesIO(body), info.result)
            if answer.status == 500:
                raise read if isinstance(read, BaseException) else http.client.HTTPException("status 500 without a fault")
            return read
        try:
            envelope = ElementTree.fromstring(body)
        except ElementTree.ParseError as exc:
            raise http.client.HTTPException(f"an answer that is not XML: {exc}") from exc
        if not envelope.tag.endswith("}Envelope"):
            raise http.client.HTTPException(f"an answer that is not SOAP, but <{envelope.tag}>")
        found = envelope.find(f".//{_NS}returnval")
        return None if found is None else Lazy(found, info.result, stub)


def _unpacked(body: bytes) -> bytes:
    packed = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = packed.decompress(body, LARGEST_ANSWER)
    except zlib.error as exc:
        raise http.client.HTTPException(f"an answer that cannot be decompressed: {exc}") from exc
    if packed.unconsumed_tail:
        raise BadAnswer(f"more than {LARGEST_ANSWER} bytes")
    if not packed.eof:
        raise http.client.HTTPException("a compressed answer that is truncated")
    return plain


class Lazy:
    """A data object of the API whose attributes are read from its XML on access."""

    __slots__ = ("_element", "_kind", "_stub")

    def __init__(self, element: ElementTree.Element, kind: t.Any, stub: t.Any) -> None:
        self._element = element
        self._kind = kind
        self._stub = stub

    @property  # type: ignore[misc]
    def __class__(self) -> t.Any:
        """The type in the API, for isinstance()."""
        return self._kind

    def __getattr__(self, name: str) -> t.Any:
        tag, kind, many = _declared(self._kind, name)
        if many:
            return [_value(one, kind, self._stub) for one in self._element if one.tag == tag]
        found = self._element.find(tag)
        return None if found is None else _value(found, kind, self._stub)

    def properties(self) -> dict[str, t.Any]:
        """For an ObjectContent: the properties by path. Like ``propSet``, without an object for each of the thousands of entries."""
        return {
            name.text or "": _value(value, object, self._stub)
            for name, value in (one for one in self._element if one.tag == _PROP_SET)
        }


def _value(element: ElementTree.Element, kind: t.Any, stub: t.Any) -> t.Any:
    """Return the value of an element with the declared type ``kind``."""
    attributes = element.attrib
    if "type" in attributes:
        return _type(attributes["type"])(element.text, stub)
    # Servers send it with or without a prefix.
    said = attributes.get(_XSI_TYPE, "").rpartition(":")[2]
    if said.startswith("ArrayOf"):
        name = said[len("ArrayOf") :]
        item = str if name in ("String", "ManagedObjectReference") else _type(name)
        return [_value(one, item, stub) for one in element]
    data_object, read = _shape(kind, said)
    return Lazy(element, data_object, stub) if data_object else read(element.text or "")


# The functions below are cached: one answer has thousands of objects of the same type.


@functools.cache
def _declared(kind: t.Any, name: str) -> tuple[str, t.Any, bool]:
    """Return tag and type of an attribute's elements, and True if it is a list.

    :raises AttributeError: the type has no such attribute.
    """
    declared = kind._GetPropertyInfo(name).type
    many = issubclass(declared, list)
    return _NS + name, declared.Item if many else declared, many


@functools.cache
def _shape(kind: t.Any, said: str) -> tuple[t.Any, Callable[[str], t.Any]]:
    """Return the type of a data object, or None and the function that reads the text of a simple value; ``said`` is the element's xsi:type."""
    if said in _NUMBERS:
        return None, _NUMBERS[said]
    if said == "boolean" or kind is bool:
        return None, ("true", "1").__contains__
    if said == "dateTime" or kind is pyvmomi.VmomiSupport.datetime:
        return None, pyvmomi.Iso8601.ParseISO8601
    if said and said != "string":
        kind = _type(said)
    if issubclass(kind, pyvmomi.VmomiSupport.DataObject):
        return kind, str
    return None, kind if issubclass(kind, (int, float)) else str


@functools.cache
def _type(name: str) -> t.Any:
    return pyvmomi.VmomiSupport.GetWsdlType("urn:vim25", name)

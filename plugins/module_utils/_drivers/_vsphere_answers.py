# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the PropertyCollector answers, made into Python values no sooner than somebody looks at them.

pyVmomi 9.1 makes an object of every element at once. The devices of 500 VMs, of which a disk's mode is all that is wanted, took it
more CPU than everything else of a call together, since the PropertyCollector gives them as a whole only.

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

from ansible_collections.safepoint.vm.plugins.module_utils._drivers._vsphere_library import LARGEST_ANSWER, BadAnswer, pyvmomi

_NS = "{urn:vim25}"
_PROP_SET = _NS + "propSet"
_XSI_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"
_NUMBERS = {"byte": int, "short": int, "int": int, "long": int, "float": float, "double": float}


class LazyStub:
    """Stands in for pyVmomi's stub under a managed object. Its answers are values of this file, faults are pyVmomi's."""

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
            # What was kept for later has most likely been cut as well.
            stub.DropConnections()
            raise
        stub.ReturnConnection(connection)
        if answer.status not in (200, 500):
            raise http.client.HTTPException(f"{answer.status} {answer.reason}")
        if answer.headers.get("Content-Encoding", "").lower() == "gzip":
            body = _unpacked(body)
        if answer.status == 500 or b"missingSet>" in body or b"MethodFault" in body:
            # Faults have many shapes, and are rare.
            read = pyvmomi.SoapAdapter.SoapResponseDeserializer(stub).Deserialize(io.BytesIO(body), info.result)
            if answer.status == 500:
                raise read if isinstance(read, BaseException) else http.client.HTTPException("500, and no fault")
            return read
        try:
            envelope = ElementTree.fromstring(body)
        except ElementTree.ParseError as exc:
            raise http.client.HTTPException(f"an answer that is no XML: {exc}") from exc
        if not envelope.tag.endswith("}Envelope"):
            raise http.client.HTTPException(f"an answer that is no SOAP, but <{envelope.tag}>")
        found = envelope.find(f".//{_NS}returnval")
        return None if found is None else Lazy(found, info.result, stub)


def _unpacked(body: bytes) -> bytes:
    packed = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = packed.decompress(body, LARGEST_ANSWER)
    except zlib.error as exc:
        raise http.client.HTTPException(f"an answer that cannot be unpacked: {exc}") from exc
    if packed.unconsumed_tail:
        raise BadAnswer(f"more than {LARGEST_ANSWER} bytes")
    if not packed.eof:
        raise http.client.HTTPException("a packed answer that is cut off")
    return plain


class Lazy:
    """A data object of the API, read from its XML attribute by attribute."""

    __slots__ = ("_element", "_kind", "_stub")

    def __init__(self, element: ElementTree.Element, kind: t.Any, stub: t.Any) -> None:
        self._element = element
        self._kind = kind
        self._stub = stub

    @property  # type: ignore[misc]
    def __class__(self) -> t.Any:
        """The type in the API; isinstance() goes by it."""
        return self._kind

    def __getattr__(self, name: str) -> t.Any:
        tag, kind, many = _declared(self._kind, name)
        if many:
            return [_value(one, kind, self._stub) for one in self._element if one.tag == tag]
        found = self._element.find(tag)
        return None if found is None else _value(found, kind, self._stub)

    def properties(self) -> dict[str, t.Any]:
        """Of an ObjectContent: what was read, by the paths. As ``propSet`` says it, without an object for each of its thousands."""
        return {
            name.text or "": _value(value, object, self._stub)
            for name, value in (one for one in self._element if one.tag == _PROP_SET)
        }


def _value(element: ElementTree.Element, kind: t.Any, stub: t.Any) -> t.Any:
    """The value of an element whose declared type is ``kind``."""
    attributes = element.attrib
    if "type" in attributes:
        return _type(attributes["type"])(element.text, stub)
    # With a prefix or without, as the server likes.
    said = attributes.get(_XSI_TYPE, "").rpartition(":")[2]
    if said.startswith("ArrayOf"):
        name = said[len("ArrayOf") :]
        item = str if name in ("String", "ManagedObjectReference") else _type(name)
        return [_value(one, item, stub) for one in element]
    data_object, read = _shape(kind, said)
    return Lazy(element, data_object, stub) if data_object else read(element.text or "")


# What the API's types say is the same for all objects of a type, of which one answer has thousands.


@functools.cache
def _declared(kind: t.Any, name: str) -> tuple[str, t.Any, bool]:
    """Of an attribute: the tag of its elements, their type, and whether there may be many of them.

    :raises AttributeError: the type has no such attribute; as the object itself would.
    """
    declared = kind._GetPropertyInfo(name).type
    many = issubclass(declared, list)
    return _NS + name, declared.Item if many else declared, many


@functools.cache
def _shape(kind: t.Any, said: str) -> tuple[t.Any, Callable[[str], t.Any]]:
    """The type of the data object that an element is, or None and how to read its text; ``said`` is the type that it names itself."""
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

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Parameters of calls, with the error texts for invalid values (pve-common 9.2.1)."""

from __future__ import annotations

import dataclasses
import re
import typing as t
from collections.abc import Mapping

from pve_errors import bad_parameters
from pve_tasks import UPID

EXTRA = "property is not defined in schema and the schema does not allow additional properties"
MISSING = "property is missing and it is not optional"

FORMATS: dict[str, tuple[re.Pattern[str], str]] = {
    "configid": (re.compile(r"[a-z][a-z0-9_-]+\Z", re.IGNORECASE), "invalid configuration ID '{}'\n"),
    "vmid": (re.compile(r"[1-9][0-9]{2,8}\Z"), "value does not look like a valid VM ID\n"),
    "node": (re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?\Z"), "value does not look like a valid node name\n"),
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter. `type` is string, integer or boolean; `format` is a key of FORMATS."""

    type: str = "string"
    optional: bool = True
    format: str = ""
    longest: int | None = None
    least: int | None = None
    choices: tuple[str, ...] = ()

    def fault(self, value: str) -> str | None:
        """Return the error text for `value`, or None."""
        if self.type == "boolean" and value not in ("0", "1"):
            return f"type check ('boolean') failed - got '{value}'"
        if self.type == "integer" and not re.match(r"-?\d+\Z", value):
            return f"type check ('integer') failed - got '{value}'"
        if self.format:
            pattern, text = FORMATS[self.format]
            if not pattern.match(value):
                return f"invalid format - {text.format(value)}"
        if self.longest is not None and len(value) > self.longest:
            return f"value may only be {self.longest} characters long"
        if self.least is not None and int(value) < self.least:
            return f"value must have a minimum value of {self.least}"
        if self.choices and value not in self.choices:
            return f"value '{value}' does not have a value in the enumeration '{', '.join(self.choices)}'"
        return None

    def value(self, value: str) -> t.Any:
        """Return the value for the handler."""
        if self.type == "boolean":
            return value == "1"
        return int(value) if self.type == "integer" else value


STRING = Parameter()
BOOLEAN = Parameter("boolean")
NODE = Parameter(optional=False, format="node")
VMID = Parameter("integer", optional=False, format="vmid")
SNAPNAME = Parameter(optional=False, format="configid", longest=40)
COUNT = Parameter("integer", least=0)
# Schemas of the placeholders in paths.
IN_PATH = {
    "node": NODE,
    "vmid": VMID,
    "snapname": SNAPNAME,
    "upid": Parameter(optional=False),
    "storage": Parameter(optional=False),
}


def validate(parameters: Mapping[str, Parameter], values: Mapping[str, str]) -> dict[str, t.Any]:
    """Return the converted values; Refused with 400 and a text for each invalid one."""
    errors: dict[str, str] = {}
    for name, value in values.items():
        fault = parameters[name].fault(value) if name in parameters else EXTRA
        if fault:
            errors[name] = fault
    for name, parameter in parameters.items():
        if not parameter.optional and name not in values:
            errors[name] = MISSING
    if errors:
        raise bad_parameters(errors)
    return {name: parameters[name].value(value) for name, value in values.items()}


def parse_upid(text: str) -> re.Match[str]:
    """Return the parts of a task's id; Refused with 400 if it is invalid."""
    found = UPID.match(text)
    if found is None:
        raise bad_parameters({"upid": "unable to parse worker upid"})
    return found

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The argument specs of the modules. Rules between options are checked in _operations/request.py.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import os
import typing as t
from collections.abc import Mapping

from ansible_collections.safepoint.vm.plugins.module_utils._core.retention import KEEP_COUNTS

Spec = dict[str, t.Any]


def _variable(name: str) -> str:
    """Return the value of an environment variable. An empty one counts as not set: AWX sets it for a field that was left empty."""
    from ansible.module_utils.errors import AnsibleFallbackNotFound

    if not os.environ.get(name):
        raise AnsibleFallbackNotFound
    return os.environ[name]


# Must be kept in sync with plugins/doc_fragments/_connection.py
_CONNECTION: Spec = {
    "backend": {"type": "str", "required": True, "choices": ["libvirt", "proxmox", "vsphere"]},
    "uri": {"type": "str"},
    "hostname": {"type": "str"},
    "port": {"type": "int"},
    "username": {"type": "str"},
    "password": {"type": "str", "no_log": True},
    "token_id": {"type": "str"},
    "token_secret": {"type": "str", "no_log": True},
    "validate_certs": {"type": "bool"},
    "ca_path": {"type": "path"},
    "connect_timeout": {"type": "str", "default": "15s"},
    "timeout": {"type": "str", "default": "15m"},
}

# Must be kept in sync with plugins/doc_fragments/_vms.py
_VMS: Spec = {
    "vm": {"type": "str"},
    "vms": {"type": "list", "elements": "str"},
    "owner": {"type": "str", "default": "safepoint", "fallback": (_variable, ["SAFEPOINT_OWNER"])},
    "label_key": {"type": "str", "no_log": True, "fallback": (_variable, ["SAFEPOINT_LABEL_KEY"])},
}
# Select VMs and snapshots; scope=endpoint selects all VMs.
_SCOPE: Spec = {
    **_VMS,
    "scope": {"type": "str", "choices": ["vms", "endpoint"], "default": "vms"},
    "name_pattern": {"type": "str"},
    "match_labels": {"type": "dict"},
}
_INFO: Spec = {
    **_SCOPE,
    "older_than": {"type": "str"},
    "newer_than": {"type": "str"},
    "ownership": {"type": "str", "choices": ["any", "ours", "foreign"], "default": "any"},
    "drift": {"type": "bool", "default": False},
    "check_images": {"type": "bool", "default": False},
}
# Must be kept in sync with plugins/doc_fragments/_audit.py
_AUDIT: Spec = {"audit_file": {"type": "path", "fallback": (_variable, ["SAFEPOINT_AUDIT_FILE"])}}
_WORK: Spec = {
    **_AUDIT,
    "lock_timeout": {"type": "str", "default": "60s"},
    "max_parallel": {"type": "int", "default": 16},
}
_CHANGE: Spec = {
    **_VMS,
    **_WORK,
    "targets": {
        "type": "list",
        "elements": "dict",
        "options": {
            "vm": {"type": "str", "required": True},
            "id": {"type": "str", "required": True},
            "match_labels": {"type": "dict"},
        },
    },
    "name": {"type": "str"},
    "id": {"type": "str"},
    "foreign": {"type": "str", "choices": ["refuse", "allow"], "default": "refuse"},
}
# One or several VMs, or all VMs of the endpoint.
_SCOPE_RULES: Spec = {"mutually_exclusive": [("vm", "vms")], "required_if": [("scope", "vms", ("vm", "vms"), True)]}
_CHANGE_RULES: Spec = {
    "mutually_exclusive": [("vm", "vms", "targets"), ("name", "id", "targets")],
    "required_one_of": [("vm", "vms", "targets"), ("name", "id", "targets")],
}
_REVERT_RULES: Spec = {
    "mutually_exclusive": [("vm", "vms", "targets"), ("name", "id", "targets", "select")],
    "required_one_of": [("vm", "vms", "targets"), ("name", "id", "targets", "select")],
    "required_if": [("select", "before", ("time",))],
}

# Short name of a module -> keyword arguments for AnsibleModule and ArgumentSpecValidator.
OPTIONS: Mapping[str, Spec] = {
    "snapshot": {
        "argument_spec": {
            **_CONNECTION,
            **_CHANGE,
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "children": {"type": "str", "choices": ["keep", "remove"], "default": "keep"},
            "kind": {"type": "str", "choices": ["auto", "internal", "external"], "default": "auto"},
            "memory": {"type": "bool", "default": False},
            "quiesce": {"type": "str", "choices": ["never", "prefer", "require"], "default": "never"},
            "description": {"type": "str"},
            "expires": {"type": "str"},
            "labels": {"type": "dict"},
            "hold": {"type": "bool"},
            "hold_by": {"type": "str"},
            "hold_reason": {"type": "str"},
            "if_exists": {"type": "str", "choices": ["keep", "fail"], "default": "keep"},
            "on_error": {"type": "str", "choices": ["undo", "stop", "continue"], "default": "undo"},
        },
        **_CHANGE_RULES,
    },
    "snapshot_info": {"argument_spec": {**_CONNECTION, **_INFO}, **_SCOPE_RULES},
    "snapshot_revert": {
        "argument_spec": {
            **_CONNECTION,
            **_CHANGE,
            "select": {"type": "str", "choices": ["newest", "before"]},
            "match_labels": {"type": "dict"},
            "time": {"type": "str"},
            "power": {"type": "str", "choices": ["as_snapshot", "on", "off"], "default": "as_snapshot"},
            "discard_newer": {"type": "bool", "default": False},
            "on_error": {"type": "str", "choices": ["stop", "continue"], "default": "stop"},
        },
        **_REVERT_RULES,
    },
    "snapshot_prune": {
        "argument_spec": {
            **_CONNECTION,
            **_SCOPE,
            **_WORK,
            "policy": {"type": "str"},
            "change": {"type": "str"},
            **{option: {"type": "int"} for option in KEEP_COUNTS},
            "keep_within": {"type": "str"},
            "keep_labels": {"type": "dict"},
            "max_age": {"type": "str"},
            "max_count": {"type": "int"},
            "min_age": {"type": "str"},
            "expired": {"type": "bool", "default": False},
            "max_delete_per_run": {"type": "int"},
            "timezone": {"type": "str", "default": "UTC"},
            "all": {"type": "bool", "default": False},
            "confirm": {"type": "int"},
            "on_error": {"type": "str", "choices": ["stop", "continue"], "default": "continue"},
        },
        **_SCOPE_RULES,
    },
}

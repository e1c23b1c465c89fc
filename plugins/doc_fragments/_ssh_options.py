# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this doc fragment is **PRIVATE** to the collection.

"""The options of the ssh connection plugin, for the connection plugin that extends it.

They are read from the ansible-core in use: they differ between 2.16, 2.19 and 2.21, and a copy would miss new ones.
"""

from __future__ import annotations

import typing as t

# They use libyaml. Plain PyYAML takes ten times as long in every process that connects.
from ansible.module_utils.common.yaml import yaml_dump, yaml_load
from ansible.plugins.connection import ssh


def _without_versions(value: t.Any) -> t.Any:
    """Remove versions of ansible-core, which would be read here as versions of this collection."""
    if isinstance(value, dict):
        return {key: _without_versions(item) for key, item in value.items() if key not in ("version_added", "deprecated")}
    if isinstance(value, list):
        return [_without_versions(item) for item in value]
    return value


class ModuleDocFragment:
    """``extends_documentation_fragment: safepoint.vm._ssh_options``, listed before ``connection_pipelining``."""

    DOCUMENTATION: str


# Not in the class body: yamllint of ansible-test expects a literal there and stops at anything else.
ModuleDocFragment.DOCUMENTATION = yaml_dump({"options": _without_versions(yaml_load(ssh.DOCUMENTATION)["options"])})

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Refuse unknown variables of a role. Documented in plugins/modules/role_variables.py."""

from __future__ import annotations

import os
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.yaml import yaml_load
from ansible.plugins.action import ActionBase

from ansible_collections.safepoint.vm.plugins.plugin_utils._role_variables import known_variables, unknown_variables


class ActionModule(ActionBase):
    """Runs on the controller only. It reads only the names of the variables and does not template their values."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Fail if a variable has the prefix of the role, but is not one of its options."""
        super().run(tmp, task_vars)
        _dummy, options = self.validate_argument_spec(argument_spec={"also": {"type": "list", "elements": "str", "default": []}})
        found = task_vars or {}
        if "role_path" not in found:
            raise AnsibleActionFail("role_variables was called outside of a role; use it in a task file of a role")
        with open(os.path.join(found["role_path"], "meta", "argument_specs.yml"), encoding="utf-8") as file:
            specs = yaml_load(file)
        problem = unknown_variables(found, role=found["ansible_role_name"], known=known_variables(specs), also=options["also"])
        if problem:
            raise AnsibleActionFail(problem)
        return {"changed": False}

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The entry point of the modules that talk to a hypervisor: it runs a call and returns the result to Ansible.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.safepoint.vm.plugins.module_utils._credentials import secrets
from ansible_collections.safepoint.vm.plugins.module_utils._perform import Call, perform
from ansible_collections.safepoint.vm.plugins.module_utils._stop import Stop


def run(name: str, module: AnsibleModule) -> t.NoReturn:
    """Run the module with the short name ``name`` and exit.

    The only function that calls fail_json() and exit_json().
    """
    stop = Stop()
    stop.install()
    module.no_log_values.update(secrets(module.params, os.environ))
    answer = perform(Call(name, module.params, module.check_mode, module._diff, module.no_log_values), stop)
    for warning in answer.warnings:
        module.warn(warning)
    if answer.failure is not None:
        module.fail_json(**answer.failure, **answer.result)
    module.exit_json(**answer.result)
    raise SystemExit  # exit_json() is not annotated as NoReturn

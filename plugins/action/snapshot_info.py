# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""List snapshots. Documented in plugins/modules/snapshot_info.py."""

from __future__ import annotations

from ansible_collections.safepoint.vm.plugins.plugin_utils._local.action import LocalAction


class ActionModule(LocalAction):
    """Runs the module directly from the installed collection if its task runs on the controller."""

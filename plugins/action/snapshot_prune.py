# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Prune snapshots, and show the progress. Documented in plugins/modules/snapshot_prune.py."""

from __future__ import annotations

from ansible_collections.safepoint.vm.plugins.plugin_utils._local.progress import ProgressAction


class ActionModule(ProgressAction):
    """Runs the module and shows its progress on the terminal."""

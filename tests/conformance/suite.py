# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The suite: what every backend does alike. It is the definition of the interface.

A backend joins by one class that says how to get VMs (see Backend in kit.py), and one test class with the fixture ``backend``.
"""

from __future__ import annotations

from suite_fleet import FleetOfVms
from suite_info import Info
from suite_labels import Labels
from suite_prune import Prune
from suite_snapshots import Snapshots


class Conformance(Snapshots, Labels, FleetOfVms, Prune, Info):
    """All of it. Subclasses provide the fixture ``backend``; one whose VMs have real disks also takes WithData or WithMemory from suite_data.py."""

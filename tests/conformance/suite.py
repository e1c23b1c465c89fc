# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The conformance suite: the behaviour that all backends share. It defines the driver interface.

Each backend has one class that creates VMs (see Backend in kit.py) and one test class with the fixture ``backend``.
"""

from __future__ import annotations

from suite_fleet import FleetOfVms
from suite_info import Info
from suite_labels import Labels
from suite_prune import Prune
from suite_snapshots import Snapshots


class Conformance(Snapshots, Labels, FleetOfVms, Prune, Info):
    """The whole suite. Subclasses provide the fixture ``backend``; if the VMs have real disks, they also inherit WithData or WithMemory of suite_data.py."""

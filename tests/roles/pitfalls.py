# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several guests and their VMs on a simulated Proxmox VE, each with a change of its own, for the tests of Ansible's pitfalls."""

from __future__ import annotations

import json
import re
import threading
import typing as t

from change import Change
from hypervisor import ProxmoxHypervisor
from stage import Run, Stage


class Fleet(Change):
    """The role on the guests `names`; what a guest is changed by is the file of its name."""

    def __init__(self, stage: Stage, pve: t.Any, *names: str) -> None:
        self.pve = pve
        self.names = names
        first, *others = names
        super().__init__(stage, ProxmoxHypervisor(pve), first)
        for name in others:
            self.add(name)

    def changes(self, **files: str) -> None:
        """Write the changes of guests."""
        for name, text in files.items():
            self.stage.write(f"{name}.yml", text)

    def run(self, *arguments: str, **options: t.Any) -> Run:
        """Play the role on all of them."""
        if options.get("entry", "main") == "main":
            options.setdefault("tasks", "{{ inventory_hostname }}.yml")
        return super().run(*arguments, **options)

    def came_back_by_the_revert(self, *names: str) -> list[threading.Thread]:
        """Start the guests again, in threads, when they are down and their VMs have been reverted: as a VM boots from its snapshot."""
        return [self.stage.guests[name].come_back_when(Reverted(self.hypervisor, name)) for name in names]

    def states(self) -> dict[str, str]:
        """What the labels say, by guest: the state, or `none` where there is no snapshot."""
        return {name: ", ".join(one["state"] for one in self.labels(name)) or "none" for name in self.names}


class Reverted:
    """A flag that exists once the VM of a guest has been reverted."""

    def __init__(self, hypervisor: t.Any, name: str) -> None:
        self._hypervisor = hypervisor
        self._name = name

    def exists(self) -> bool:
        return bool(self._hypervisor.reverts(self._name))


def last_message(run: Run, host: str) -> str:
    """The message with which `host` failed last."""
    found = re.findall(rf"^fatal: \[{host}(?: -> [^\]]*)?\]: (?:FAILED|UNREACHABLE)! => (\{{.*\}})$", run.output, re.MULTILINE)
    return str(json.loads(found[-1])["msg"]) if found else ""

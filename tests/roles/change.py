# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role guarded_change on one guest and its VM, or on several."""

from __future__ import annotations

import json
import typing as t

from hypervisor import Endpoint
from stage import Playing, Run, Stage

GOOD = "- name: Change it\n  ansible.builtin.command: 'true'\n"
FAIL = "- name: Break it\n  ansible.builtin.shell: echo it does not fit; exit 3\n"
KILL = "- name: Kill it\n  ansible.builtin.shell: kill -KILL $SSHD_PID\n"


class Change:
    """One guest, its VM, and the role on it."""

    def __init__(self, stage: Stage, hypervisor: Endpoint, name: str = "web01") -> None:
        self.stage = stage
        self.hypervisor = hypervisor
        self.evidence = stage.folder / "evidence"
        self.add(name)

    def add(self, name: str) -> None:
        self.hypervisor.define(name)
        self.stage.guest(name)

    def run(self, *arguments: str, meanwhile: t.Callable[[int], None] | None = None, **given: t.Any) -> Run:
        """Play the role, as ``start`` does, to its end; ``meanwhile`` as in Stage.play()."""
        return self.start(*arguments, **given).result(meanwhile=meanwhile)

    def start(
        self,
        *arguments: str,
        entry: str = "main",
        head: str = "",
        hosts: str = "guests",
        more: str = "",
        **variables: object,
    ) -> Playing:
        """Begin to play the role; ``variables`` without their prefix, ``head`` more lines of the play, ``more`` another play."""
        playbook = self.stage.write(
            "site.yml",
            f"""
            - hosts: {hosts}
              gather_facts: false
              {head}
              tasks:
                - ansible.builtin.include_role:
                    name: safepoint.vm.guarded_change
                    tasks_from: {entry}
                  vars: {json.dumps(self.variables(entry, **variables))}
            {more}
            """,
        )
        return self.stage.start(str(playbook), *arguments)

    def run_by_name(self, entry: str, *arguments: str, env: dict[str, str] | None = None, **variables: object) -> Run:
        """Run the collection's own playbook for an entry point, with extra variables only, as a job template does."""
        name = "guarded_change" if entry == "main" else entry
        extra = json.dumps(self.variables(entry, **variables))
        return self.stage.start(f"safepoint.vm.{name}", "-e", extra, *arguments, env=env).result()

    def variables(self, entry: str, **given: object) -> dict[str, object]:
        """The role's variables."""
        defaults: dict[str, object] = {
            "endpoint": self.hypervisor.connection,
            "evidence_dir": str(self.evidence),
            "reconnect_timeout": "20s",
            **({"tasks": "change.yml"} if entry == "main" else {}),
        }
        return {f"guarded_change_{key}": value for key, value in {**defaults, **given}.items() if value is not None}

    def labels(self, name: str = "web01") -> list[dict[str, str]]:
        return self.hypervisor.labels(name)

    def was_rolled_back(self, run: Run, name: str = "web01") -> bool:
        """Whether all of it happened: exit code, recap, message, label."""
        [label] = self.labels(name)
        recap = run.recap(name)
        return (
            run.rc == 2
            and recap["unreachable"] == 0
            and recap["failed"] == 1
            and run.said(f"{name} was rolled back to {label['name']}, and")
            and label["state"] == "rolled_back"
            and "lease" not in label
            and label["expires"] > "2026"
        )

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shared by all benchmarks, independent of the backend: run and measure a play with one task, and print tables."""

from __future__ import annotations

import collections
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
import typing as t
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from peers import ROOT, VENV, clean_environment, has_module

Requests = t.Mapping[str, int]
NONE = "none"  # in a table: the tool has no module for it


@dataclasses.dataclass(frozen=True)
class Task:
    """One call of a module, or one for each VM."""

    module: str
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    every: str = ""  # the option that takes all VMs in one call
    each: str = ""  # the option that takes one VM, so that the module is called for each of them


@dataclasses.dataclass(frozen=True)
class Tool:
    """A collection with its call for each operation; operations without a call are not supported."""

    name: str
    tasks: Mapping[str, Task]

    def can(self, operation: str) -> bool:
        """Return True if the installed release of the collection has a module for the operation."""
        task = self.tasks.get(operation)
        return task is not None and (task.module.startswith("safepoint.vm.") or has_module(task.module))


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one run of ansible-playbook. CPU is the sum of all its processes, without the server."""

    requests: Requests
    wall: float
    cpu: float


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured run; without a cost if the tool does not support the operation."""

    operation: str
    vms: int
    tool: str
    cost: Cost | None


class Plays:
    """Runs plays on localhost against one server, for all tools in the environment of the peers.

    `take_requests` returns the requests by kind since its last call. With `forks` a peer runs with one host for each VM, and
    this many forks; without it with a loop.
    """

    def __init__(self, environment: Mapping[str, str], take_requests: Callable[[], Requests], forks: int = 0) -> None:
        self._forks = forks
        self._take_requests = take_requests
        self._environment = {
            **clean_environment(),
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_PYTHON_INTERPRETER": str(VENV / "bin/python"),
            "ANSIBLE_DEPRECATION_WARNINGS": "false",
            **environment,
        }

    def empty(self) -> Cost:
        """Measure a play without a task: the fixed cost of every play."""
        return self._run([], ["localhost"], [])

    def cost(self, task: Task, vms: Sequence[str]) -> Cost:
        """Run a task on the VMs. A failed play ends the benchmark, since its figures would be useless."""
        hosts, options, loop = ["localhost"], dict(task.options), {}
        if task.every:
            options[task.every] = list(vms)
        if task.each and self._forks:
            hosts = list(vms)
            options[task.each] = "{{ inventory_hostname }}"
        elif task.each:
            options[task.each] = "{{ item }}"
            loop = {"loop": list(vms)}
        flags = ["--forks", str(self._forks)] if self._forks else []
        return self._run([{"name": "Measured", task.module: options, **loop}], hosts, flags)

    def _run(self, tasks: list[dict[str, object]], hosts: list[str], flags: list[str]) -> Cost:
        with tempfile.TemporaryDirectory(prefix="sp-bench-") as folder:
            playbook, inventory, output = (Path(folder) / name for name in ("play.json", "inventory.json", "output"))
            # JSON is valid YAML.
            playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
            local = {"ansible_connection": "local"}
            inventory.write_text(json.dumps({"all": {"hosts": dict.fromkeys(hosts, local)}}))
            command = [str(VENV / "bin/ansible-playbook"), "--inventory", str(inventory), *flags, str(playbook)]
            self._take_requests()
            with output.open("w") as stream:
                wall, cpu = time.monotonic(), _cpu_of_children()
                done = subprocess.run(
                    command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, check=False
                )
                wall, cpu = time.monotonic() - wall, _cpu_of_children() - cpu
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{output.read_text()[-4000:]}")
        return Cost(self._take_requests(), wall, cpu)


def _cpu_of_children() -> float:
    """Return the CPU seconds of ended child processes, so a running server is not included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


Look = Callable[[str, Sequence[str]], None]


def measure(plays: Plays, tool: Tool, operations: Iterable[str], vms: Sequence[str], look: Look) -> Iterator[Row]:
    """Run the operations in order on these VMs. `look` can raise an error if the effect of an operation is wrong."""
    for operation in operations:
        cost = None
        if tool.can(operation):
            cost = plays.cost(tool.tasks[operation], vms)
            look(operation, vms)
            print(f"{tool.name}: {operation}, VMs: {len(vms)}, {cost.wall:.1f} s", file=sys.stderr, flush=True)
        yield Row(operation, len(vms), tool.name, cost)


def measure_beside(
    plays: Plays, ours: Tool, peers: Sequence[Tool], operations: Sequence[str], vms: Sequence[str], peer_vms: int, look: Look
) -> list[Row]:
    """Run all operations with all tools on one VM and on `peer_vms`, and with ours also on 100 and on all VMs."""
    rows: list[Row] = []
    for count in sorted({1, peer_vms, 100, len(vms)}):
        for tool in [ours, *peers] if count in (1, peer_vms) else [ours]:
            rows += measure(plays, tool, operations, vms[:count], look)
    return rows


# -- tables ------------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table that is also readable as text; columns of numbers are right-aligned."""
    columns = []
    for name, *cells in zip(head, *rows, strict=True):
        width = max(map(len, [name, *cells]))
        if all(cell in ("", NONE) or cell.replace(".", "", 1).isdigit() for cell in cells):
            columns.append([name.rjust(width), "-" * (width - 1) + ":", *(cell.rjust(width) for cell in cells)])
        else:
            columns.append([name.ljust(width), "-" * width, *(cell.ljust(width) for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def by_operation(rows: Sequence[Row]) -> list[Row]:
    """Return a table with the operations in order of execution, and the tools side by side for each number of VMs."""
    places = {operation: place for place, operation in enumerate(dict.fromkeys(row.operation for row in rows))}
    return sorted(rows, key=lambda row: (places[row.operation], row.vms))


def comparison(empty: Cost, rows: Sequence[Row], ours: str) -> str:
    """Return a table of all results. The ratios are per VM, relative to ours for the same operation and number of VMs."""
    base = {(row.operation, row.vms): row.cost for row in rows if row.tool == ours}
    head = ["operation", "VMs", "tool", "requests", "requests/VM", "x ours", "wall s", "CPU s", "CPU s/VM", "x ours"]
    lines = [["empty play", "", "", "0", "", "", f"{empty.wall:.1f}", f"{empty.cpu:.2f}", "", ""]]
    for row in by_operation(rows):
        cost, beside = row.cost, base[row.operation, row.vms]
        if cost is None or beside is None:
            lines.append([row.operation, str(row.vms), row.tool, NONE, *[""] * 6])
            continue
        asked, least = sum(cost.requests.values()), sum(beside.requests.values())
        lines.append(
            [
                *(row.operation, str(row.vms), row.tool),
                *(str(asked), f"{asked / row.vms:.2f}", f"{asked / least:.1f}"),
                *(f"{cost.wall:.1f}", f"{cost.cpu:.2f}", f"{cost.cpu / row.vms:.3f}", f"{cost.cpu / beside.cpu:.1f}"),
            ]
        )
    return table(head, lines)


def requests_by_kind(rows: Sequence[Row], tool: str) -> str:
    """Return the requests of the tool, the most frequent first."""
    lines = []
    for row in by_operation(rows):
        if row.tool == tool and row.cost:
            kinds = collections.Counter(row.cost.requests).most_common()
            lines.append([row.operation, str(row.vms), ", ".join(f"{count} {kind}" for kind, count in kinds)])
    return table(["operation", "VMs", "requests"], lines)

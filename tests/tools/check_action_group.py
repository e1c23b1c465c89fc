# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that the action group ``all`` of meta/runtime.yml holds exactly the modules that connect to a hypervisor.

A module that is not in the group gets no connection options from ``module_defaults: group/safepoint.vm.all``, without an error.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
CONNECTION = "safepoint.vm._connection"


def fragments(module: Path) -> list[str]:
    """Return the documentation fragments that a module extends, without the part after the second dot."""
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["DOCUMENTATION"]:
            extended = yaml.safe_load(ast.literal_eval(node.value)).get("extends_documentation_fragment", [])
            extended = [extended] if isinstance(extended, str) else extended
            return [".".join(name.split(".")[:3]) for name in extended]
    return []


def main() -> int:
    runtime = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())
    grouped = {entry for entry in runtime["action_groups"]["all"] if isinstance(entry, str)}
    modules = sorted((ROOT / "plugins/modules").glob("*.py"))
    connecting = {module.stem for module in modules if CONNECTION in fragments(module)}
    for name in sorted(connecting - grouped):
        print(f"meta/runtime.yml: {name} takes the connection options but is not in the action group `all`")
    for name in sorted(grouped - connecting):
        print(f"meta/runtime.yml: {name} is in the action group `all`, but no such module extends {CONNECTION}")
    print(f"{len(modules)} modules, {len(connecting)} of them connect to a hypervisor")
    return 0 if connecting == grouped and connecting else 1


if __name__ == "__main__":
    sys.exit(main())

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""List the source files without the licence header: check_licence.py FILE..."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HEADER = [
    "GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)",
    "SPDX-License-Identifier: GPL-3.0-or-later",
]
# What may stand before a line of a comment in any of the languages.
_COMMENT = re.compile(r"^(#|//|/\*| \*|\{#|  ) ")


def is_source(path: Path) -> bool:
    """Return True for files that need a header: Python, shell, Go, templates with their style and script, Makefiles, and scripts with a shebang."""
    if path.suffix in {".py", ".sh", ".go", ".j2", ".css", ".js"} or path.name == "Makefile":
        return True
    with path.open("rb") as stream:
        return stream.read(2) == b"#!"


def _header(path: Path) -> list[str]:
    lines = [_COMMENT.sub("", line).removesuffix(" #}") for line in path.read_text().splitlines()[:6]]
    return [line for line in lines if line in HEADER]


def main() -> int:
    sources = [path for path in map(Path, sys.argv[1:]) if path.is_file() and is_source(path)]
    bare = [path for path in sources if _header(path) != HEADER]
    for path in bare:
        print(f"{path}: the licence header is missing from its first lines")
    print(f"{len(sources)} source files, {len(bare)} without the licence header")
    return 1 if bare or not sources else 0


if __name__ == "__main__":
    sys.exit(main())

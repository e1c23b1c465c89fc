# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files on hanging storage: open() blocks, as on an NFS server that does not answer.

Before each open(), the kernel asks a process (FAN_OPEN_PERM of fanotify), which does not answer. Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_FAN_CLASS_CONTENT, _FAN_MARK_ADD, _FAN_OPEN_PERM, _AT_FDCWD = 0x4, 0x1, 0x10000, -100


@contextlib.contextmanager
def hanging(*paths: Path) -> Iterator[None]:
    """Block open() of the files during the block; waiting processes continue at its end."""
    root = [] if os.geteuid() == 0 else ["sudo"]
    command = [*root, sys.executable, __file__, *map(str, paths)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == b"hangs\n"
            yield
        finally:
            process.stdin.close()


def main(paths: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    listener = libc.fanotify_init(_FAN_CLASS_CONTENT, os.O_RDONLY)
    for path in paths:
        done = libc.fanotify_mark(
            listener, _FAN_MARK_ADD, ctypes.c_uint64(_FAN_OPEN_PERM), _AT_FDCWD, ctypes.c_char_p(os.fsencode(path))
        )
        assert listener >= 0 and done == 0, os.strerror(ctypes.get_errno())
    print("hangs", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])

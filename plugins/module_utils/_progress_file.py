# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The file through which a module tells its action plugin how far it is.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Collection

from ansible_collections.safepoint.vm.plugins.module_utils._progress import Progress

# Work that is done sooner shows no progress, and what takes longer is written down so often.
_QUICK_SECONDS = 2.0
_WRITE_SECONDS = 1.0


class ProgressFile:
    """A file with a line that says how far the work is. The action plugin of the module reads it, and shows it to people."""

    def __init__(self, path: str, secrets: Collection[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._secrets = secrets
        self._clock = clock
        self._written = ""
        self._next = clock() + _QUICK_SECONDS

    def note(self, progress: Progress) -> None:
        """Write it down if it is time. That this fails is no reason to fail."""
        now = self._clock()
        if now < self._next:
            return
        from ansible.module_utils.common.parameters import remove_values

        # A VM may be named like a secret, and its name may hold what a terminal takes for a command.
        text = "".join(one if one.isprintable() else "?" for one in str(remove_values(str(progress), self._secrets)))
        if text == self._written:
            return
        self._next = now + _WRITE_SECONDS
        try:
            with tempfile.TemporaryDirectory(dir=os.path.dirname(self._path)) as folder:
                new = os.path.join(folder, "new")
                with open(new, "w", encoding="utf-8") as file:
                    file.write(text)
                # With become the reader is another user; who may look into the folder is for the folder to say.
                os.chmod(new, 0o644)
                os.replace(new, self._path)
        except (OSError, UnicodeError):
            return
        self._written = text

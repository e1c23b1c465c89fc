# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The file through which a module reports its progress to its action plugin.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Collection

from ansible_collections.safepoint.vm.plugins.module_utils._progress import Progress

# A call shows progress only after the first time, and then once per the second.
_QUICK_SECONDS = 2.0
_WRITE_SECONDS = 1.0


class ProgressFile:
    """A file with one line of progress. The action plugin of the module reads and shows it."""

    def __init__(self, path: str, secrets: Collection[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._secrets = secrets
        self._clock = clock
        self._written = ""
        self._next = clock() + _QUICK_SECONDS

    def note(self, progress: Progress) -> None:
        """Write the progress if it is due. A write error is ignored."""
        now = self._clock()
        if now < self._next:
            return
        from ansible.module_utils.common.parameters import remove_values

        # The name of a VM may contain a secret, or control characters for a terminal.
        text = "".join(one if one.isprintable() else "?" for one in str(remove_values(str(progress), self._secrets)))
        if text == self._written:
            return
        self._next = now + _WRITE_SECONDS
        try:
            with tempfile.TemporaryDirectory(dir=os.path.dirname(self._path)) as folder:
                new = os.path.join(folder, "new")
                with open(new, "w", encoding="utf-8") as file:
                    file.write(text)
                # With become the reader is another user; the mode of the folder limits who can read the file.
                os.chmod(new, 0o644)
                os.replace(new, self._path)
        except (OSError, UnicodeError):
            return
        self._written = text

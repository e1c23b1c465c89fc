# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab that counts the requests to its daemon, from the daemon's log. The log is large: not for long runs."""

from __future__ import annotations

import collections
import contextlib
import re
from collections.abc import Iterator

from lab import Lab


class CountingLab(Lab):
    """A lab whose daemon logs each request."""

    def _write_configuration(self) -> None:
        super()._write_configuration()
        file = self.folder / "libvirtd.conf"
        quiet = " ".join(f"3:{part}" for part in ("util", "qemu", "conf", "cpu", "libvirt", "event", "rpc", "remote", "storage"))
        text = file.read_text().replace('"2:file:', '"1:file:')
        file.write_text(f'{text}log_filters = "1:rpc.netserverprogram {quiet}"\n')

    @contextlib.contextmanager
    def counted(self) -> Iterator[collections.Counter[int]]:
        """Count the requests in the block by procedure number; the result is filled in at its end."""
        counts: collections.Counter[int] = collections.Counter()
        begin = len(self.log.read_bytes())
        yield counts
        calls = re.findall(
            rb"virNetServerProgramDispatch:\d+ : prog=536903814 ver=1 type=0 .* proc=(\d+)", self.log.read_bytes()[begin:]
        )
        counts.update(int(number) for number in calls)

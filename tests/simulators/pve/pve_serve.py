# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A simulated Proxmox VE cluster for manual tests: `python pve_serve.py` prints its address and login, and serves until Ctrl-C."""

from __future__ import annotations

import contextlib
import time

from pve_server import PveServer


def main() -> None:
    """Start one with a few guests."""
    with PveServer() as pve:
        pve.set_task_seconds(2.0)
        for number in range(1, 5):
            pve.make_guest(f"web{number:02}", node=f"pve{1 + number % 2}", agent=True)
        pve.make_guest("db01", storage="zfs", memory_mb=4096)
        pve.make_guest("files01", type="lxc", storage="lvmthin")
        pve.make_guest("debian-13", template=True, status="stopped")
        print(f"export PROXMOX_HOST={pve.hostname} PROXMOX_PORT={pve.port}")
        print(f"export PROXMOX_TOKEN_ID='{pve.token_id}' PROXMOX_TOKEN_SECRET={pve.token_secret}")
        print(f"or    {pve.username} {pve.password}")
        print(f"ca_path: {pve.ca_path}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()

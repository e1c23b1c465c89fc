# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real SSH server on loopback that stands for a guest: commands run with /bin/sh on this machine, files go by SFTP.

    guest_sshd.py HOME PORT

HOME holds `host_key` and `authorized_keys`, and is the home folder of every command. Commands see the server as $SSHD_PID, so that
a change can kill or stop it, and find what is in HOME/bin before the programs of this machine.
Prints the port when it listens, and ends when its stdin does. One process for all sessions: when it dies, all of them break.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from pathlib import Path

import asyncssh


async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Run the client's command, as sshd does: through the shell, in the home folder."""
    command = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        process.command or "",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=os.environ["HOME"],
    )
    await process.redirect(stdin=command.stdin, stdout=command.stdout, stderr=command.stderr)
    code = await command.wait()
    await process.stdout.drain()
    await process.stderr.drain()
    process.exit(code if code >= 0 else 128 - code)


async def serve(home: Path, port: int) -> None:
    """Listen until the end of the process."""
    os.environ.update(HOME=str(home), TMPDIR=str(home), SSHD_PID=str(os.getpid()), PATH=f"{home}/bin:{os.environ['PATH']}")
    # A guest's boot id is another one after each start, which is how `reboot` knows that the guest has gone down.
    (home / "boot_id").write_text(f"{uuid.uuid4()}\n")
    server = await asyncssh.listen(
        "127.0.0.1",
        port,
        server_host_keys=[str(home / "host_key")],
        authorized_client_keys=str(home / "authorized_keys"),
        process_factory=run,
        sftp_factory=True,
        encoding=None,
        reuse_address=True,
    )
    # The other end of stdin is the test's: however that ends, this ends with it.
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), lambda: sys.stdin.buffer.raw.read(1) or os._exit(0))
    # sshd ends while its sessions go on, which is what `systemctl stop ssh` does to a guest.
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, server.close)
    print(server.get_port(), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: guarded_ssh
short_description: SSH connection that reports a lost host as failed
description:
  - The connection plugin P(ansible.builtin.ssh#connection) with one difference.
    A host whose connection is lost during a task is C(failed), not C(unreachable). So C(rescue) and C(always) run for it.
  - A host counts as lost after the retries of the SSH plugin. This plugin is made for the tasks of a change that can be rolled back.
    The role P(safepoint.vm.guarded_change#role) sets it for the change that it guards.
  - M(ansible.builtin.reboot), M(ansible.builtin.wait_for_connection) and the meta task C(reset_connection) work as they do with SSH.
  - A host that stops answering without closing its connections is lost after about 40 seconds.
    The plugin adds C(ServerAliveInterval) and C(ServerAliveCountMax) for this, unless they are in the SSH arguments.
  - It does not share multiplexed connections with the SSH plugin. Its C(ControlPath) has an additional suffix.
author:
  - The safepoint.vm authors (@safepoint)
version_added: 0.1.0
notes:
  - Set it with the keyword C(connection) on a block, or in C(apply) of M(ansible.builtin.include_tasks). The keyword has no effect on tasks that set their
    own C(connection), on hosts whose variables set C(ansible_connection), and on handlers.
  - The options are those of the SSH plugin of the ansible-core in use.
extends_documentation_fragment:
  # The order matters: the other order loses ansible_ssh_pipelining, which connection_pipelining does not have.
  - safepoint.vm._ssh_options
  - connection_pipelining
"""

EXAMPLES = r"""
- name: Upgrade with a rescue that also runs if the host is lost
  connection: safepoint.vm.guarded_ssh
  block:
    - name: Upgrade
      ansible.builtin.command: /usr/local/sbin/upgrade
      changed_when: true
  rescue:
    - name: Show the error
      ansible.builtin.debug:
        var: ansible_failed_result.msg
"""

import functools
import re
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.connection.ssh import Connection as SshConnection

_F = t.TypeVar("_F", bound=t.Callable[..., t.Any])

# A guest that hangs sends no TCP reset, and ssh would wait forever. 3 unanswered keepalives end the connection, 10 seconds after the last one.
# With shorter times, a short stun of the VM (live migration, storage) would count as a loss and roll back a good change.
_KEEPALIVE = {"ServerAliveInterval": "10", "ServerAliveCountMax": "3"}

_CONTROL_PATH = re.compile(rb'^((?:-o)?\s*ControlPath\s*[=\s]\s*"?)(?!none"?$)([^"]+)("?)$', re.IGNORECASE)

# The command with which the action base class creates its temporary folder on the host. If it fails, the base class raises AnsibleConnectionFailure
# itself, outside of the connection plugin (ansible-core 2.16 to 2.21, ActionBase._make_tmp_path): a full disk would be UNREACHABLE.
_MAKES_TEMP_DIR = re.compile(r"\bmkdir\b.*\bansible-tmp-\d", re.DOTALL)


class HostLost(AnsibleActionFail, AnsibleConnectionFailure):
    """The connection to the host was lost.

    As an AnsibleActionFail it makes the host ``failed``, so that rescue runs, and ``fetch`` does not report a missing file.
    As an AnsibleConnectionFailure it is the exception that ``reboot`` expects when a host goes down.
    """

    def __init__(self, message: str, *, no_log: bool) -> None:
        super().__init__(message, result={"changed": False})
        if isinstance(getattr(self, "result", None), dict) and "exception" in self.result:
            # ansible-core 2.16 builds the result here, with a traceback, and ignores no_log.
            del self.result["exception"]
            self.result["_ansible_no_log"] = no_log

    @property
    def omit_failed_key(self) -> bool:
        """Keep ``failed`` in the result, which AnsibleConnectionFailure omits (ansible-core 2.19 and later)."""
        return False


def _lost_is_failed(method: _F) -> _F:
    """Decorate ``method`` to raise HostLost instead of AnsibleConnectionFailure."""

    @functools.wraps(method)
    def guarded(self: Connection, *args: t.Any, **kwargs: t.Any) -> t.Any:
        try:
            return method(self, *args, **kwargs)
        except HostLost:
            raise
        except AnsibleConnectionFailure as exc:
            message = str(exc).rstrip()
        if message.endswith("ssh:"):
            # With LogLevel=ERROR, ssh prints nothing when a session breaks.
            message += " ssh gave no reason. The host has gone down, or has stopped answering"
        # Not "from exc": ansible-core 2.19 and later follow the causes and would find the unreachable error. Not inside the except
        # block: 2.16 would print both tracebacks.
        raise HostLost(message, no_log=bool(self._play_context.no_log))

    return t.cast(_F, guarded)


class Connection(SshConnection):
    """SSH connection with lost hosts as failed hosts. ``transport`` stays ``ssh`` because synchronize and other plugins read it."""

    @_lost_is_failed
    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run ``cmd`` on the host."""
        returncode, stdout, stderr = super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        if returncode != 0 and _MAKES_TEMP_DIR.search(str(cmd)):
            output = b" ".join(part.strip() for part in (stderr, stdout) if part.strip()).decode(errors="replace")
            raise AnsibleConnectionFailure(
                f"Failed to create a temporary directory on the host (exit code {returncode}): {output}"
            )
        return returncode, stdout, stderr

    @_lost_is_failed
    def put_file(self, in_path: str, out_path: str) -> t.Any:
        """Copy a file to the host."""
        return super().put_file(in_path, out_path)

    @_lost_is_failed
    def fetch_file(self, in_path: str, out_path: str) -> t.Any:
        """Copy a file from the host."""
        return super().fetch_file(in_path, out_path)

    def _build_command(self, binary: str, subsystem: str, *other_args: bytes | str) -> list[bytes]:
        """Add the keepalive options and use a separate ControlPath.

        This plugin must not use a master connection without keepalive, and the SSH plugin must not use a dead master of this plugin.
        """
        command = [_CONTROL_PATH.sub(rb"\1\2.g\3", arg) for arg in super()._build_command(binary, subsystem, *other_args)]
        first_other = len(command) - len(other_args)
        given = b" ".join(command[:first_other]).lower()
        keepalive = [
            part
            for name, value in _KEEPALIVE.items()
            if name.lower().encode() not in given
            for part in (b"-o", f"{name}={value}".encode())
        ]
        return command[:first_other] + keepalive + command[first_other:]

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: guarded_ssh
short_description: SSH, with a lost host being an ordinary failure
description:
  - The connection plugin P(ansible.builtin.ssh#connection), with one difference.
    A host that is lost in the middle of a task is C(failed), not C(unreachable), so that C(rescue) and C(always) run for it.
  - It acts after the plugin's own retries, and is meant for the tasks of a change that can be rolled back.
    The role P(safepoint.vm.guarded_change#role) sets it on the change that it guards.
  - M(ansible.builtin.reboot), M(ansible.builtin.wait_for_connection) and the meta task C(reset_connection) work as they do with SSH.
  - A host that has stopped answering without closing its connections is lost after about 40 seconds.
    C(ServerAliveInterval) and C(ServerAliveCountMax) are added for this, unless the SSH arguments already set them.
  - It keeps its own multiplexed connections, apart from those of the SSH plugin, by a longer C(ControlPath).
author:
  - The safepoint.vm authors (@safepoint)
version_added: 0.1.0
notes:
  - Set it by the keyword C(connection) on a block, or in C(apply) of M(ansible.builtin.include_tasks). Tasks that set their own C(connection)
    and hosts whose variables set C(ansible_connection) are not reached by the keyword, and handlers do not inherit it.
  - The options are those of the SSH plugin of the ansible-core in use.
extends_documentation_fragment:
  # This order: the other one loses ansible_ssh_pipelining, which connection_pipelining does not know.
  - safepoint.vm._ssh_options
  - connection_pipelining
"""

EXAMPLES = r"""
- name: Upgrade, and undo it also when the host is lost
  connection: safepoint.vm.guarded_ssh
  block:
    - name: Upgrade
      ansible.builtin.command: /usr/local/sbin/upgrade
      changed_when: true
  rescue:
    - name: Say what happened
      ansible.builtin.debug:
        var: ansible_failed_result.msg
"""

import functools
import re
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.connection.ssh import Connection as SshConnection

_F = t.TypeVar("_F", bound=t.Callable[..., t.Any])

# A guest that hangs sends no reset, so that ssh would wait for ever; 3 unanswered questions end it, 10 seconds after the last.
# Less would take a short stun of the VM (live migration, storage) for a loss and roll back a good change.
_KEEPALIVE = {"ServerAliveInterval": "10", "ServerAliveCountMax": "3"}

_CONTROL_PATH = re.compile(rb'^((?:-o)?\s*ControlPath\s*[=\s]\s*"?)(?!none"?$)([^"]+)("?)$', re.IGNORECASE)

# What the action base class runs to make its folder on the host. When this fails it raises AnsibleConnectionFailure by itself,
# outside of any connection plugin (ansible-core 2.16 to 2.21, ActionBase._make_tmp_path): a full disk would be UNREACHABLE.
_MAKES_TEMP_DIR = re.compile(r"\bmkdir\b.*\bansible-tmp-\d", re.DOTALL)


class HostLost(AnsibleActionFail, AnsibleConnectionFailure):
    """The host was lost, told in a way that is a failure to the play and a lost connection to the action plugins.

    As AnsibleActionFail it becomes ``failed``, so that rescue runs, and ``fetch`` does not take it for a missing file. As
    AnsibleConnectionFailure it is what ``reboot`` expects of a host that goes down.
    """

    def __init__(self, message: str, *, no_log: bool) -> None:
        super().__init__(message, result={"changed": False})
        if isinstance(getattr(self, "result", None), dict) and "exception" in self.result:
            # ansible-core 2.16 makes the result here, with a traceback, and hands it on without looking at no_log.
            del self.result["exception"]
            self.result["_ansible_no_log"] = no_log

    @property
    def omit_failed_key(self) -> bool:
        """Keep ``failed`` (from ansible-core 2.19 on; AnsibleConnectionFailure leaves it out)."""
        return False


def _lost_is_failed(method: _F) -> _F:
    """Turn the loss of the host in ``method`` into HostLost."""

    @functools.wraps(method)
    def guarded(self: Connection, *args: t.Any, **kwargs: t.Any) -> t.Any:
        try:
            return method(self, *args, **kwargs)
        except HostLost:
            raise
        except AnsibleConnectionFailure as exc:
            message = str(exc).rstrip()
        if message.endswith("ssh:"):
            # With LogLevel=ERROR, ssh is silent about a session that ends under it.
            message += " ssh gave no reason. The host has gone down, or has stopped answering"
        # Not from exc: ansible-core 2.19 and later walk the causes and would find the unreachable one. Not inside of the except
        # block either, where 2.16 would print the traceback of both.
        raise HostLost(message, no_log=bool(self._play_context.no_log))

    return t.cast(_F, guarded)


class Connection(SshConnection):
    """SSH whose lost hosts are failed hosts; ``transport`` stays ``ssh``, which synchronize and others look at."""

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
        """Add the keepalive and take a ControlPath of our own.

        A master that was started without the keepalive must not be used here, and the ordinary plugin must not meet a dead one of ours.
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

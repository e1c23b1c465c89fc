# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A simulated vCenter on loopback: starts and controls the program that build.sh builds."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
import typing as t
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent
PROGRAM = HERE.parents[2] / ".cache" / "vcsim" / "vcsim"
START_TIMEOUT = 60.0


class VCenterError(Exception):
    """A request to the simulator failed; the message is the simulator's own."""


class VCenter:
    """One simulated vCenter, from `start()` to `stop()` (or as a context manager).

    It starts with `vms` powered-on VMs, DC0_C0_RP0_VM0 and so on in /DC0/vm; `make_vms` creates others. With `stock` it is the
    unchanged simulator of Debian, and only the methods `counters`, `reset_counters`, `make_vms` and `vm` work.
    `faults` are rules for the command line, `method:vm-glob:FaultType[:nth]`.
    """

    def __init__(
        self,
        *,
        vms: int = 2,
        stock: bool = False,
        faults: Sequence[str] = (),
        api_version: str | None = None,
        tls_names: str | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sp-vcsim-"))
        self.hostname = "127.0.0.1"
        self.port = 0
        self.username = self.password = ""
        self.ca_path = ""
        self._arguments = ["-folder", str(self.folder), "-vm", str(vms)]
        if stock:
            self._arguments.append("-stock")
        if api_version:
            self._arguments += ["-api-version", api_version]
        if tls_names:
            self._arguments += ["-tls-names", tls_names]
        for fault in faults:
            self._arguments += ["-fault", fault]
        self._control = ""
        self._process: subprocess.Popen[str] | None = None
        # Its stderr must not go to the terminal; unlike a pipe, an unlinked file cannot fill up, and it is gone when this process ends.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115

    # -- life ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> VCenter:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> VCenter:
        """Build the program if needed, start it and wait until it is ready; after a failed start everything is removed."""
        try:
            subprocess.run([str(HERE / "build.sh")], stdin=subprocess.DEVNULL, check=True)
            self._process = subprocess.Popen(
                [str(PROGRAM), *self._arguments],
                stdin=subprocess.PIPE,  # it ends when this closes, so also when this process is killed
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                start_new_session=True,  # a Ctrl-C on the terminal must only reach the tests
            )
            ready = self._first_line()
        except BaseException:
            self.stop()
            raise
        self.port = ready["port"]
        self.username, self.password = ready["username"], ready["password"]
        self.ca_path = ready["ca_path"]
        self._control = f"http://127.0.0.1:{ready['control_port']}"
        return self

    def stop(self) -> None:
        """Stop the server and remove its folder. Safe to call twice and after a failed start."""
        process, self._process = self._process, None
        if process is not None:
            try:
                process.communicate(timeout=10)  # closes its standard input
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The process id of the server."""
        if self._process is None:
            raise VCenterError("The vCenter is not started")
        return self._process.pid

    @property
    def errors(self) -> str:
        """Return the server's stderr: empty, unless it has a bug."""
        self._errors.seek(0)
        return self._errors.read()

    # -- behaviour -----------------------------------------------------------------------------------------------------

    def set(self, **settings: t.Any) -> None:
        """Change settings while it runs; see settingValues in settings.go.

        task_time, task_times, queue_time and call_delays are seconds; task_times and call_delays are maps by a glob of the method's name.
        vm_task_times is a map by a glob of the VM's name; it takes precedence, and also applies to running tasks. `busy` sets
        the handling of a second task on a VM: "task" (it ends with TaskInProgress), "call" (the call raises this fault) or "queue".
        `page_objects` splits answers of the PropertyCollector into pages. With `mute` the server accepts everything but answers nothing.
        With `lose_updates` it reports no changes since a version.
        """
        self._ask("POST", "/settings", settings)

    def fault(self, method: str, fault: str, *, vm: str = "*", nth: int = 0, when: str = "", message: str = "") -> None:
        """Raise a fault for each call of `method` (a glob) on a VM whose name matches `vm`, or only for the `nth` one.

        `when` is "call" (the call raises it; the default for runtime faults), "task" (the task ends with it; the default for others) or
        "after" (the work is done, and then the task ends with it). The fault "Disconnect" closes the connection, with "after" after the work.
        """
        rule = {"method": method, "vm": vm, "fault": fault, "nth": nth, "when": when, "message": message}
        self._ask("POST", "/faults", [rule])

    def clear_faults(self) -> None:
        """Remove all rules, including those of the command line."""
        self._ask("DELETE", "/faults")

    def expire_sessions(self) -> None:
        """End all sessions, like a restart of vCenter; a running wait ends with NotAuthenticated."""
        self._ask("DELETE", "/sessions")

    def forget_tasks(self, *, undone: bool = False) -> None:
        """Forget all tasks, as a restart of vCenter may; their work is done, or with `undone` is not."""
        self._ask("DELETE", "/tasks", {"undone": undone})

    def hold(self, method: str, calls: int) -> None:
        """Hold the next calls of `method` (a glob) until `calls` of them have arrived, for at most 30 seconds. 0 removes the barrier."""
        self._ask("POST", "/barrier", {"method": method, "calls": calls})

    def outage(self, kind: str, *, nth: int = 1, method: str = "*", seconds: float = 2.0) -> None:
        """Apply an outage to the `nth` SOAP request from now on whose `method` matches the glob; see outage.go for the kinds.

        "gone": for `seconds` from then on, connections are reset and new ones refused. "lost" and "502": the work is done, and the answer is lost or
        from a proxy; "504": a proxy times out, and the work is done `seconds` later; with "_before" nothing is done. "silent":
        no answers from then on, until `end_outage`. "null", "shape", "half" and "huge": the work is done, and the answer has no value, a value of
        the wrong format, is truncated, or does not end.
        """
        self._ask("POST", "/outage", {"kind": kind, "nth": nth, "method": method, "seconds": seconds})

    def end_outage(self) -> int:
        """End the outage, and return the number of requests that it counted."""
        seen: int = self._ask("GET", "/outage")["seen"]
        self._ask("POST", "/outage", {"kind": ""})
        self.set(mute=False)
        return seen

    @contextlib.contextmanager
    def mute(self) -> Iterator[None]:
        """Let the server accept everything but answer nothing, until the end of the block."""
        self.set(mute=True)
        try:
            yield
        finally:
            self.set(mute=False)

    # -- VMs -----------------------------------------------------------------------------------------------------------

    def make_vms(self, *vms: dict[str, t.Any]) -> list[dict[str, t.Any]]:
        """Create VMs, powered off. Each has a `name`, a `folder` such as /DC0/vm/prod (default /DC0/vm) and the settings of `set_vm`."""
        return self._ask("POST", "/vms", [{"folder": "/DC0/vm", **vm} for vm in vms])

    def set_vm(self, vm: str, **knobs: t.Any) -> dict[str, t.Any]:
        """Change a VM, by its name, inventory path or managed object id; see knobs in vms.go."""
        return self._ask("PATCH", f"/vms?vm={urllib.parse.quote(vm)}", knobs)

    def vm(self, vm: str) -> dict[str, t.Any]:
        """Return the real state of a VM: power, data, CPUs, snapshots."""
        return self._ask("GET", f"/vms?vm={urllib.parse.quote(vm)}")

    def set_datastore(self, name: str = "LocalDS_0", **sizes: int) -> None:
        """Set `free_bytes` and `capacity_bytes` of a datastore."""
        self._ask("PATCH", f"/datastores?name={urllib.parse.quote(name)}", sizes)

    # -- counters ------------------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, t.Any]:
        """Return the calls of each SOAP method since `reset_counters`, and the total requests, connections and bytes."""
        return self._ask("GET", "/counters")

    def reset_counters(self) -> None:
        """Reset all counters."""
        self._ask("DELETE", "/counters")

    def logins(self) -> list[str]:
        """Return the user of each session."""
        return self._ask("GET", "/state")["logins"]

    def state(self) -> dict[str, t.Any]:
        """Settings, faults, counters and logins."""
        return self._ask("GET", "/state")

    # -- inside --------------------------------------------------------------------------------------------------------

    def _first_line(self) -> dict[str, t.Any]:
        assert self._process is not None and self._process.stdout is not None
        deadline = time.monotonic() + START_TIMEOUT
        if not select.select([self._process.stdout], [], [], deadline - time.monotonic())[0]:
            raise VCenterError(f"The vCenter does not serve after {START_TIMEOUT:g} s:\n{self.errors}")
        line = self._process.stdout.readline()
        if not line:
            raise VCenterError(f"The vCenter ended at its start:\n{self.errors}")
        return json.loads(line)

    def _ask(self, method: str, path: str, body: t.Any = None) -> t.Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._control + path, data=data, method=method)
        # Not urlopen, which would use a proxy from the environment.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as exc:
            raise VCenterError(f"{method} {path}: {exc.read().decode().strip()}") from exc


def serve_for_people() -> None:
    """Start a server and print its address and login, until Ctrl-C."""
    with VCenter(vms=10) as vcenter:
        print(f"{vcenter.hostname}:{vcenter.port} {vcenter.username} {vcenter.password} {vcenter.ca_path} pid {os.getpid()}")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    serve_for_people()

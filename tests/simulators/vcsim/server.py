# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A vCenter on loopback, for one test or a whole run: the program that build.sh builds, as a Python object."""

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
    """The simulator could not do what was asked; the message says why, in its own words."""


class VCenter:
    """One simulated vCenter, from `start()` to `stop()` (or as a context manager).

    It begins with `vms` powered-on VMs, DC0_C0_RP0_VM0 and so on in /DC0/vm; `make_vms` makes others. With `stock` it is the
    simulator as Debian ships it, and of the methods here only `counters`, `reset_counters`, `make_vms` and `vm` work.
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
        # What it says belongs to no terminal; an unlinked file cannot fill up a pipe, and goes with us.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115

    # -- life ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> VCenter:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> VCenter:
        """Build the program where that is needed, start it and wait until it serves; a failed start leaves nothing behind."""
        try:
            subprocess.run([str(HERE / "build.sh")], stdin=subprocess.DEVNULL, check=True)
            self._process = subprocess.Popen(
                [str(PROGRAM), *self._arguments],
                stdin=subprocess.PIPE,  # it ends when this closes, thus also when we are killed
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                start_new_session=True,  # a Ctrl-C on the terminal is for the tests
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
        """End the server and remove its folder. Safe to call twice and after a failed start."""
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
        """What the server said on stderr: nothing, unless it has a bug."""
        self._errors.seek(0)
        return self._errors.read()

    # -- what it does --------------------------------------------------------------------------------------------------

    def set(self, **settings: t.Any) -> None:
        """Change settings while it runs; see settingValues in settings.go.

        task_time, task_times, queue_time and call_delays are seconds, two of them maps by a glob of the method's name; vm_task_times is one
        by a glob of the VM's name, and counts before these, for tasks that run already as well. `busy` says
        what becomes of a second task of a VM: "task" (it ends with TaskInProgress), "call" (the call raises that) or "queue".
        `page_objects` cuts answers of the PropertyCollector into pages. With `mute` the server accepts everything and answers nothing.
        """
        self._ask("POST", "/settings", settings)

    def fault(self, method: str, fault: str, *, vm: str = "*", nth: int = 0, when: str = "", message: str = "") -> None:
        """Raise a fault for each call of `method` (a glob) on a VM whose name matches `vm`, or only for the `nth` of them.

        `when` is "call" (the call raises it; what runtime faults do), "task" (the task ends with it; all others) or "after" (it is
        all done, and then the task ends with it). The fault "Disconnect" closes the connection, with "after" when all is done.
        """
        rule = {"method": method, "vm": vm, "fault": fault, "nth": nth, "when": when, "message": message}
        self._ask("POST", "/faults", [rule])

    def clear_faults(self) -> None:
        """Remove all rules, those of the command line too."""
        self._ask("DELETE", "/faults")

    def expire_sessions(self) -> None:
        """End all logins, as a restart of vCenter does; a wait that is under way ends with NotAuthenticated."""
        self._ask("DELETE", "/sessions")

    def forget_tasks(self, *, undone: bool = False) -> None:
        """End all tasks and let nothing tell of them, as a restart of vCenter may; their work is done, or with `undone` never will be."""
        self._ask("DELETE", "/tasks", {"undone": undone})

    def hold(self, method: str, calls: int) -> None:
        """Hold the next calls of `method` (a glob) until `calls` of them have come, for 30 seconds at most. 0 holds none."""
        self._ask("POST", "/barrier", {"method": method, "calls": calls})

    def outage(self, kind: str, *, nth: int = 1, method: str = "*", seconds: float = 2.0) -> None:
        """Strike the `nth` SOAP request from now on of those whose `method` (a glob) fits; see outage.go for what can happen to it.

        "gone": for some `seconds` from there on the connections are reset, and new ones refused. "lost" and "502": the answer is lost, or a proxy's,
        when all is done; "504": a proxy gave up waiting, and all is done that many `seconds` later; with "_before" nothing was done. "silent":
        nothing is answered any more, until `end_outage`. "null", "shape", "half" and "huge": all is done, and the answer has no value, one of a
        wrong shape, ends half-way, or does not end.
        """
        self._ask("POST", "/outage", {"kind": kind, "nth": nth, "method": method, "seconds": seconds})

    def end_outage(self) -> int:
        """End the outage, and say how many requests it counted."""
        seen: int = self._ask("GET", "/outage")["seen"]
        self._ask("POST", "/outage", {"kind": ""})
        self.set(mute=False)
        return seen

    @contextlib.contextmanager
    def mute(self) -> Iterator[None]:
        """Let the server accept everything and answer nothing, until the end of the block."""
        self.set(mute=True)
        try:
            yield
        finally:
            self.set(mute=False)

    # -- what it has ---------------------------------------------------------------------------------------------------

    def make_vms(self, *vms: dict[str, t.Any]) -> list[dict[str, t.Any]]:
        """Make VMs, powered off: each has a `name`, a `folder` as /DC0/vm/prod (the default is /DC0/vm) and what `set_vm` takes."""
        return self._ask("POST", "/vms", [{"folder": "/DC0/vm", **vm} for vm in vms])

    def set_vm(self, vm: str, **knobs: t.Any) -> dict[str, t.Any]:
        """Set what a VM is, by its name, inventory path or managed object id; see knobs in vms.go."""
        return self._ask("PATCH", f"/vms?vm={urllib.parse.quote(vm)}", knobs)

    def vm(self, vm: str) -> dict[str, t.Any]:
        """A VM as it really is: power, data, CPUs, snapshots."""
        return self._ask("GET", f"/vms?vm={urllib.parse.quote(vm)}")

    def set_datastore(self, name: str = "LocalDS_0", **sizes: int) -> None:
        """Set `free_bytes` and `capacity_bytes` of a datastore."""
        self._ask("PATCH", f"/datastores?name={urllib.parse.quote(name)}", sizes)

    # -- what it saw ---------------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, t.Any]:
        """How often which SOAP method was called since `reset_counters`, and the requests, connections and bytes in all."""
        return self._ask("GET", "/counters")

    def reset_counters(self) -> None:
        """Begin to count anew."""
        self._ask("DELETE", "/counters")

    def logins(self) -> list[str]:
        """Who is logged in, each session once."""
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
        # Not urlopen: a proxy of the environment has no business here.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as exc:
            raise VCenterError(f"{method} {path}: {exc.read().decode().strip()}") from exc


def serve_for_people() -> None:
    """Start one and print how to reach it, until Ctrl-C."""
    with VCenter(vms=10) as vcenter:
        print(f"{vcenter.hostname}:{vcenter.port} {vcenter.username} {vcenter.password} {vcenter.ca_path} pid {os.getpid()}")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    serve_for_people()

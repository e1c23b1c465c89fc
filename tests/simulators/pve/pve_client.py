# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A minimal client for the tests of the simulator, with requests. Independent of the collection's driver."""

from __future__ import annotations

import time
import typing as t

import requests
from pve_server import PveServer

PAUSE = 0.01


class Client:
    """A session with a cluster, by default with a token of root."""

    def __init__(self, pve: PveServer, *, token: tuple[str, str] | None = None, timeout: float = 10.0) -> None:
        self.base = f"https://{pve.hostname}:{pve.port}/api2/json"
        self.timeout = timeout
        self.session = requests.Session()
        # Else REQUESTS_CA_BUNDLE of the environment takes precedence over `verify`.
        self.session.trust_env = False
        self.session.verify = pve.ca_path
        name, secret = token or (pve.token_id, pve.token_secret)
        self.session.headers["Authorization"] = f"PVEAPIToken={name}={secret}"

    def log_in(self, username: str, password: str) -> Client:
        """Use a ticket for all further requests."""
        del self.session.headers["Authorization"]
        data = self.data("POST", "/access/ticket", username=username, password=password)
        self.session.headers["Cookie"] = f"PVEAuthCookie={data['ticket']}"
        self.session.headers["CSRFPreventionToken"] = data["CSRFPreventionToken"]
        return self

    def ask(self, method: str, path: str, /, **values: t.Any) -> requests.Response:
        """Send one request; the method decides if parameters go into the URL or the body."""
        if method in ("GET", "DELETE"):
            return self.session.request(method, self.base + path, timeout=self.timeout, params=values)
        return self.session.request(method, self.base + path, timeout=self.timeout, data=values)

    def data(self, method: str, path: str, /, **values: t.Any) -> t.Any:
        """Return the data of an answer that must be a success."""
        answer = self.ask(method, path, **values)
        assert answer.status_code == 200, f"{answer.status_code} {answer.reason} {answer.text}"
        return answer.json()["data"]

    def refused(self, method: str, path: str, /, **values: t.Any) -> str:
        """Return status and reason of an answer that must be an error."""
        answer = self.ask(method, path, **values)
        assert answer.status_code != 200
        return f"{answer.status_code} {answer.reason}"

    def exit_text(self, upid: str, seconds: float = 10.0) -> str:
        """Wait for a task and return its exit text."""
        path = f"/nodes/{upid.split(':')[1]}/tasks/{upid}/status"
        end = time.monotonic() + seconds
        while (status := self.data("GET", path))["status"] == "running":
            assert time.monotonic() < end, f"{upid} still runs"
            time.sleep(PAUSE)
        return str(status["exitstatus"])

    def task(self, method: str, path: str, /, **values: t.Any) -> str:
        """Start a task, wait for it, and return its exit text."""
        return self.exit_text(self.data(method, path, **values))


class GuestClient(Client):
    """A session for one guest."""

    def __init__(self, pve: PveServer, vmid: int, **options: t.Any) -> None:
        super().__init__(pve, **options)
        guest = pve.guest(vmid)
        self.path = f"/nodes/{guest['node']}/{guest['type']}/{vmid}"
        self.snapshots = f"{self.path}/snapshot"

    def create(self, name: str, **values: t.Any) -> str:
        """Create a snapshot and return the exit text."""
        return self.task("POST", self.snapshots, snapname=name, **values)

    def delete(self, name: str, **values: t.Any) -> str:
        """Delete a snapshot and return the exit text."""
        return self.task("DELETE", f"{self.snapshots}/{name}", **values)

    def rollback(self, name: str, **values: t.Any) -> str:
        """Roll back to a snapshot and return the exit text."""
        return self.task("POST", f"{self.snapshots}/{name}/rollback", **values)

    def listed(self) -> dict[str, dict[str, t.Any]]:
        """Return the rows of the list by name, including `current`."""
        return {row["name"]: row for row in self.data("GET", self.snapshots)}

    def status(self) -> dict[str, t.Any]:
        """The status of the guest."""
        return t.cast("dict[str, t.Any]", self.data("GET", f"{self.path}/status/current"))

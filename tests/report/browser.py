# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Debian's Chromium without a window, driven by its command line and its DevTools protocol on a pipe: no driver and no library is needed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import typing as t
from pathlib import Path

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # the tests may be root, and open nothing but their own page
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)


class Browser:
    """One Chromium with one page.

    What the page asks for is in ``requests``, what of it its own policy stopped in ``stopped``, and what the browser complains of in ``complaints``.
    """

    def __init__(self) -> None:
        program = shutil.which("chromium")
        assert program, "Debian's chromium is missing; tests/lab/packages.sh tests installs it"
        self._folder = tempfile.mkdtemp(prefix="sp-chromium-")
        # Chromium reads from its descriptor 3, and writes to 4. The sh of Debian knows no descriptor above 9.
        theirs_in, self._out = os.pipe()
        ours_in, theirs_out = os.pipe()
        self._in = os.fdopen(ours_in, "rb")
        self._process = subprocess.Popen(
            [
                "/bin/bash",
                "-c",
                f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}',
                "bash",
                program,
                *_ARGUMENTS,
                f"--user-data-dir={self._folder}",
            ],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self._folder},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number = 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.stopped: list[str] = []
        self.complaints: list[str] = []
        self._urls: dict[str, str] = {}
        self._events: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.wait()
        self._in.close()
        os.close(self._out)
        shutil.rmtree(self._folder, ignore_errors=True)

    def call(self, method: str, **parameters: t.Any) -> dict[str, t.Any]:
        """Ask for something and wait for the answer; events that come before it are taken note of."""
        self._number += 1
        message: dict[str, t.Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session and not method.startswith("Target."):
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            said = self._read()
            if said.get("id") == self._number:
                assert "error" not in said, said
                return t.cast("dict[str, t.Any]", said["result"])

    def show(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False, script: bool = True) -> float:
        """Load a file; how many seconds that took, until it is laid out and painted."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self._events.clear()
        began = time.monotonic()
        self.call("Page.navigate", url=page.as_uri())
        while "Page.loadEventFired" not in self._events:
            self._read()
        # A picture is there when all has been laid out and painted.
        self.call("Page.captureScreenshot", format="jpeg", quality=1)
        return time.monotonic() - began

    def run(self, expression: str) -> t.Any:
        """The value of an expression of JavaScript, JSON or a promise of it."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def _read(self) -> dict[str, t.Any]:
        data = bytearray()
        while (one := self._in.read(1)) != b"\0":
            assert one, "Chromium has ended"
            data += one
        said: dict[str, t.Any] = json.loads(data)
        method, told = said.get("method", ""), said.get("params", {})
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
            self._urls[told["requestId"]] = told["request"]["url"]
        elif method == "Network.loadingFailed" and told.get("blockedReason") == "csp":
            self.stopped.append(self._urls[told["requestId"]])
        elif method == "Log.entryAdded":
            self.complaints.append(told["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        return said

#!/usr/bin/python

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module runs in the guest, which may have an older Python than the hosts that talk to hypervisors: Python 3.6 of RHEL 8 is the oldest that
# ansible-core 2.16 supports. So it uses no module_utils of the collection, and only the standard library.

DOCUMENTATION = r"""
module: guest_health_info
short_description: Check the health of a guest
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Checks systemd units, ports, URLs and commands from inside a guest. Failed checks are returned as a list of sentences and do not fail the module.
  - All checks are repeated until they pass, or until O(retries) or O(budget) is used up.
  - The role P(safepoint.vm.guarded_change#role) runs this module before a change, after it and after a rollback.
attributes:
  check_mode:
    description: Can run in check mode and return the result of a real run without changing anything.
    support: full
    details: The O(commands) run in check mode too. They must not change anything.
  diff_mode:
    description: Returns the changes in diff mode.
    support: N/A
    details: Nothing is changed.
options:
  failed_units:
    description:
      - If V(true), no systemd unit may be in the failed state.
    type: bool
    default: false
  known_failed_units:
    description:
      - Names of units that may be in the failed state, for example because they failed before the change. C(*) matches any text and C(?) one character.
    type: list
    elements: str
    default: []
  services:
    description:
      - Systemd units that must be active, such as V(nginx) or V(backup.timer).
    type: list
    elements: str
    default: []
  ports:
    description:
      - TCP ports that must accept connections, for example V(443) for a port of the guest itself (127.0.0.1), or V(192.0.2.10:443).
    type: list
    elements: str
    default: []
  http:
    description:
      - URLs that must answer. The requests are sent from the host that runs the module.
    type: list
    elements: dict
    default: []
    suboptions:
      url:
        description:
          - The URL, beginning with V(http://) or V(https://). User, password, query and fragment do not appear in results and logs.
          - A character with a meaning in a URL, such as C(/) or C(@) in a password, must be percent-encoded.
        type: str
        required: true
      status:
        description:
          - The accepted status codes. Redirects are followed, unless the list has a code from 300 to 399.
        type: list
        elements: int
        default: [200]
      validate_certs:
        description:
          - If V(true), the certificate of the server must be valid.
        type: bool
        default: true
  commands:
    description:
      - Commands that must exit with status 0. They run without a shell, one after the other.
    type: list
    elements: str
    default: []
  retries:
    description:
      - The number of attempts after the first one.
    type: int
    default: 3
  delay:
    description:
      - The pause between two attempts, in seconds.
    type: float
    default: 5
  budget:
    description:
      - The time in seconds after which no new attempt is started.
      - Running checks are then killed, and each remaining check of the attempt gets one more second.
    type: float
    default: 120
seealso:
  - module: safepoint.vm.change_info
"""

EXAMPLES = r"""
- name: Check the health of the web server
  safepoint.vm.guest_health_info:
    failed_units: true
    services: [nginx]
    ports: [443]
    commands: [nginx -t]
  register: health

- name: Fail if the web server is not healthy
  ansible.builtin.assert:
    that: health.healthy
    fail_msg: "{{ health.problems | join('; ') }}"
"""

RETURN = r"""
healthy:
  description: V(true) if all checks passed.
  returned: success
  type: bool
  sample: false
problems:
  description: Failed checks of the last attempt, each with the actual and the expected state.
  returned: success
  type: list
  elements: str
  sample: ["service nginx is failed, expected active"]
failed_units:
  description: All failed units, including those in O(known_failed_units).
  returned: success, when O(failed_units) is true
  type: list
  elements: str
  sample: [certbot.service]
tries:
  description: The number of attempts.
  returned: success
  type: int
  sample: 4
seconds:
  description: The duration of all checks, in seconds.
  returned: success
  type: float
  sample: 15.2
"""

import fnmatch
import re
import shlex
import socket
import subprocess
import time
import typing as t
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

# Timeout of one connection in one attempt.
_ANSWER_SECONDS = 10.0
_UP = ("active", "reloading")

# The validated options. Python in the guest may be 3.6: no list[str], and no `from __future__ import annotations`.
Params = t.Mapping[str, t.Any]


class Health:
    """All checks of one module call, and its time limit."""

    def __init__(
        self, params: Params, clock: t.Callable[[], float] = time.monotonic, sleep: t.Callable[[float], None] = time.sleep
    ) -> None:
        self._params = params
        self._clock = clock
        self._sleep = sleep
        self._begun = clock()
        self._end = self._begun + params["budget"]

    def look(self) -> t.Dict[str, t.Any]:
        """Repeat the checks until all pass or the attempts or the time are used up. Return the result of the module."""
        tries = 0
        while True:
            tries += 1
            failed = self._failed_units() if self._params["failed_units"] else ([], [])
            problems = failed[1] + self._services() + self._ports() + self._http() + self._commands()
            if not problems or tries > self._params["retries"] or self._clock() + self._params["delay"] >= self._end:
                break
            self._sleep(self._params["delay"])
        result: t.Dict[str, t.Any] = {
            "healthy": not problems,
            "problems": problems,
            "tries": tries,
            "seconds": round(self._clock() - self._begun, 1),
        }
        if self._params["failed_units"]:
            result["failed_units"] = failed[0]
        return result

    def _left(self, most: t.Optional[float] = None) -> float:
        left: float = max(1.0, self._end - self._clock())
        return left if most is None else min(left, most)

    def _run(self, argv: t.List[str]) -> t.Tuple[t.Optional[int], str, str]:
        """Run a command. Return its exit status (None if it did not start or timed out), its stdout, and the last line of its output."""
        try:
            # Not AnsibleModule.run_command(), which cannot kill a hanging command. Not capture_output, which is new in Python 3.7.
            done = subprocess.run(  # noqa: UP022
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=self._left(), check=False
            )
        except subprocess.TimeoutExpired as exc:
            return None, "", f"timed out after {exc.timeout:.0f} seconds"
        except OSError as exc:
            return None, "", f"could not be run: {exc.strerror or exc}"
        stdout = done.stdout.decode(errors="replace")
        lines = (done.stderr.decode(errors="replace").strip() or stdout.strip()).splitlines()
        return done.returncode, stdout, lines[-1][:200] if lines else ""

    def _failed_units(self) -> t.Tuple[t.List[str], t.List[str]]:
        """Return all failed units, and the problems of those that are not in known_failed_units."""
        code, stdout, said = self._run(["systemctl", "list-units", "--failed", "--all", "--plain", "--no-legend", "--no-pager"])
        if code != 0:
            return [], ["failed units cannot be listed: systemctl {}".format(said if code is None else "failed: " + said)]
        units = [line.split()[0] for line in stdout.splitlines() if line.strip()]
        known = self._params["known_failed_units"]
        return units, [
            f"unit {unit} has failed and is not in known_failed_units"
            for unit in units
            if not any(fnmatch.fnmatchcase(unit, pattern) for pattern in known)
        ]

    def _services(self) -> t.List[str]:
        services = self._params["services"]
        if not services:
            return []
        code, stdout, said = self._run(["systemctl", "is-active", "--"] + services)
        states = stdout.split()
        if len(states) != len(services):
            reason = said if code is None else "failed: " + said
            return ["the state of {} cannot be read: systemctl {}".format(", ".join(services), reason)]
        return [f"service {service} is {state}, expected active" for service, state in zip(services, states) if state not in _UP]

    def _ports(self) -> t.List[str]:
        problems = []
        for host, port in [address(one) for one in self._params["ports"]]:
            try:
                socket.create_connection((host, port), timeout=self._left(_ANSWER_SECONDS)).close()
            except OSError as exc:
                problems.append(f"port {port} of {host} does not accept connections ({exc.strerror or exc})")
        return problems

    def _http(self) -> t.List[str]:
        problems = []
        for one in self._params["http"]:
            wanted = one["status"]
            follow = "none" if any(300 <= code < 400 for code in wanted) else "safe"
            try:
                status = open_url(
                    one["url"], validate_certs=one["validate_certs"], timeout=self._left(_ANSWER_SECONDS), follow_redirects=follow
                ).getcode()
                seen = f"answered {status}"
            except HTTPError as exc:
                status = exc.code
                seen = f"answered {status}"
            # open_url() raises several own exception classes for bad certificates and URLs.
            except Exception as exc:
                status = None
                seen = "did not answer ({})".format(without_secrets(str(getattr(exc, "reason", None) or exc), one["url"]))
            if status not in wanted:
                good = " or ".join(str(code) for code in wanted)
                problems.append(f"{public_url(one['url'])} {seen}, expected {good}")
        return problems

    def _commands(self) -> t.List[str]:
        problems = []
        for command in self._params["commands"]:
            code, _stdout, said = self._run(shlex.split(command))
            if code is None:
                problems.append(f"command '{command}' {said}")
            elif code != 0:
                said = f" ({said})" if said else ""
                problems.append(f"command '{command}' exited with status {code}{said}, expected 0")
        return problems


def address(text: str) -> t.Tuple[str, int]:
    """Return host and port of ``443``, ``192.0.2.10:443`` or ``[2001:db8::1]:443``. Raise ValueError if it is none of these."""
    host, colon, port = text.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536 or (colon and not host):
        raise ValueError(f"ports: {text!r} is not a port; use for example 443 or 192.0.2.10:443")
    return host.strip("[]") or "127.0.0.1", int(port)


def public_url(url: str) -> str:
    """Return the URL without user, password, query and fragment, which may contain secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "***" if parts.query else "", ""))


def without_secrets(text: str, url: str) -> str:
    """Replace in an error text the parts of the URL that public_url() removes."""
    parts = urlsplit(url)
    userinfo = parts.netloc.rpartition("@")[0]
    secrets = [url, userinfo, parts.query, parts.fragment, parts.password, unquote(parts.password or "")]
    for secret in sorted([one for one in secrets if one], key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def check_url(number: int, url: str) -> None:
    """Raise a ValueError, which does not show the URL, if clients could parse it differently."""
    fix = "use for example https://web01.example.com/health, and percent-encode special characters"
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    # http://admin:123#x@web01 would be host admin, port 123.
    split_password = sound and "@" not in parts.netloc and ":" in parts.netloc and "@" in url
    if not sound or split_password or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError(f"http: the url of entry {number} is not a valid URL; {fix}")


def check(params: Params) -> None:
    """Raise ValueError for options that can never pass, so that they are not retried."""
    for number, one in enumerate(params["http"], 1):
        check_url(number, one["url"])
    for text in params["ports"]:
        address(text)
    for command in params["commands"]:
        try:
            words = shlex.split(command)
        except ValueError as exc:
            raise ValueError(f"commands: {command!r} cannot be split into words: {exc}") from None
        if not words:
            raise ValueError("commands: one command is empty; remove it")


def hide_urls(module: AnsibleModule) -> None:
    """Let Ansible censor only those URLs that contain more than public_url() shows."""
    urls = [one["url"] for one in module.params["http"]]
    shown = [str(code) for one in module.params["http"] for code in one["status"]]
    module.no_log_values.difference_update(shown + urls)
    module.no_log_values.update(url for url in urls if not is_public(url))


def is_public(url: str) -> bool:
    try:
        check_url(0, url)
    except ValueError:
        return False
    return public_url(url) == url


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "failed_units": {"type": "bool", "default": False},
            "known_failed_units": {"type": "list", "elements": "str", "default": []},
            "services": {"type": "list", "elements": "str", "default": []},
            "ports": {"type": "list", "elements": "str", "default": []},
            "http": {
                "type": "list",
                "elements": "dict",
                "default": [],
                # For the syslog, which AnsibleModule writes before any code here runs. hide_urls() limits the censoring of results.
                "no_log": True,
                "options": {
                    "url": {"type": "str", "required": True},
                    "status": {"type": "list", "elements": "int", "default": [200]},
                    "validate_certs": {"type": "bool", "default": True},
                },
            },
            "commands": {"type": "list", "elements": "str", "default": []},
            "retries": {"type": "int", "default": 3},
            "delay": {"type": "float", "default": 5},
            "budget": {"type": "float", "default": 120},
        },
        supports_check_mode=True,
    )
    hide_urls(module)
    try:
        check(module.params)
    except ValueError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, **Health(module.params).look())


if __name__ == "__main__":
    main()

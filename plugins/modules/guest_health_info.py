#!/usr/bin/python

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# It runs in the guest, which may have an older Python than the hosts that talk to hypervisors: 3.6, of RHEL 8, is the oldest that ansible-core 2.16
# reaches. So no annotations, no module_utils of the collection, and nothing but the standard library.

DOCUMENTATION = r"""
module: guest_health_info
short_description: Look whether a guest is well
version_added: 0.1.0
author:
  - The safepoint.vm maintainers (@safepoint-vm)
description:
  - Looks from inside a guest whether it does what it is for. What was not met is returned as a list of sentences; the module does not fail by it.
  - All of it is tried again until it is met, or the tries or the time are used up.
  - The role P(safepoint.vm.guarded_change#role) runs it before a change, after it and after a rollback.
attributes:
  check_mode:
    description: Can run in check mode and return what a real run would, without a write.
    support: full
    details: The O(commands) run in check mode too. They are there to look, not to change.
  diff_mode:
    description: Returns what changed when in diff mode.
    support: N/A
    details: Nothing is changed.
options:
  failed_units:
    description:
      - Whether no unit of systemd may have failed.
    type: bool
    default: false
  known_failed_units:
    description:
      - Units that may have failed, for example because they had failed before. C(*) and C(?) stand for any characters.
    type: list
    elements: str
    default: []
  services:
    description:
      - Units of systemd that must be active, such as V(nginx) or V(backup.timer).
    type: list
    elements: str
    default: []
  ports:
    description:
      - TCP ports that must accept connections, as V(443) for one of the guest itself (127.0.0.1), or V(192.0.2.10:443).
    type: list
    elements: str
    default: []
  http:
    description:
      - Addresses that must answer, as they are seen from the host where the module runs.
    type: list
    elements: dict
    default: []
    suboptions:
      url:
        description:
          - The address, V(http://) or V(https://). User, password, query and fragment are in no result and no log.
          - A character with a meaning in a URL, such as C(/) or C(@) in a password, must be percent-encoded.
        type: str
        required: true
      status:
        description:
          - The status codes that are good. Redirections are followed, unless one of these is 300 to 399.
        type: list
        elements: int
        default: [200]
      validate_certs:
        description:
          - Whether the certificate of the server must be valid.
        type: bool
        default: true
  commands:
    description:
      - Commands that must end with 0. They run without a shell, one after the other.
    type: list
    elements: str
    default: []
  retries:
    description:
      - How often to look again after the first time.
    type: int
    default: 3
  delay:
    description:
      - The seconds in between.
    type: float
    default: 5
  budget:
    description:
      - The seconds after which no other try is begun. What hangs is ended then; each thing that is still to be looked at in this try has one second more.
    type: float
    default: 120
seealso:
  - module: safepoint.vm.change_info
"""

EXAMPLES = r"""
- name: Look whether the web server is well
  safepoint.vm.guest_health_info:
    failed_units: true
    services: [nginx]
    ports: [443]
    commands: [nginx -t]
  register: health

- name: Fail where it is not
  ansible.builtin.assert:
    that: health.healthy
    fail_msg: "{{ health.problems | join('; ') }}"
"""

RETURN = r"""
healthy:
  description: Whether all was met.
  returned: success
  type: bool
  sample: false
problems:
  description: What was not, as it was seen the last time. Each says what it is about, what was seen, and what was wanted.
  returned: success
  type: list
  elements: str
  sample: ["the service nginx is failed, and should be active"]
failed_units:
  description: All units that have failed, those of O(known_failed_units) too.
  returned: success, when O(failed_units) is true
  type: list
  elements: str
  sample: [certbot.service]
tries:
  description: How often it was looked.
  returned: success
  type: int
  sample: 4
seconds:
  description: How long all of it took.
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

# What does not answer at all is not waited for longer in one try.
_ANSWER_SECONDS = 10.0
_UP = ("active", "reloading")

# The checked options. This module runs in the guest, where Python may be 3.6: no list[str], and no `from __future__ import annotations`.
Params = t.Mapping[str, t.Any]


class Health:
    """What is to be looked at, and how long that may take."""

    def __init__(
        self, params: Params, clock: t.Callable[[], float] = time.monotonic, sleep: t.Callable[[float], None] = time.sleep
    ) -> None:
        self._params = params
        self._clock = clock
        self._sleep = sleep
        self._begun = clock()
        self._end = self._begun + params["budget"]

    def look(self) -> t.Dict[str, t.Any]:
        """Look until all is well or it has been tried long enough; return what the module returns."""
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
        """Run a command; return its exit code (None: it did not run to its end), its stdout, and the last thing that it said."""
        try:
            # Not run_command() of AnsibleModule, which cannot end what hangs; and capture_output came with Python 3.7.
            done = subprocess.run(  # noqa: UP022
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=self._left(), check=False
            )
        except subprocess.TimeoutExpired as exc:
            return None, "", f"did not end within {exc.timeout:.0f} seconds"
        except OSError as exc:
            return None, "", f"could not be run: {exc.strerror or exc}"
        stdout = done.stdout.decode(errors="replace")
        lines = (done.stderr.decode(errors="replace").strip() or stdout.strip()).splitlines()
        return done.returncode, stdout, lines[-1][:200] if lines else ""

    def _failed_units(self) -> t.Tuple[t.List[str], t.List[str]]:
        """All units that have failed, and the problems with those that may not."""
        code, stdout, said = self._run(["systemctl", "list-units", "--failed", "--all", "--plain", "--no-legend", "--no-pager"])
        if code != 0:
            return [], ["the failed units cannot be listed, systemctl {}".format(said if code is None else "says: " + said)]
        units = [line.split()[0] for line in stdout.splitlines() if line.strip()]
        known = self._params["known_failed_units"]
        return units, [
            f"the unit {unit} has failed, and none should that is not known to"
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
            reason = said if code is None else "says: " + said
            return ["the state of {} cannot be told, systemctl {}".format(", ".join(services), reason)]
        return [
            f"the service {service} is {state}, and should be active"
            for service, state in zip(services, states)
            if state not in _UP
        ]

    def _ports(self) -> t.List[str]:
        problems = []
        for host, port in [address(one) for one in self._params["ports"]]:
            try:
                socket.create_connection((host, port), timeout=self._left(_ANSWER_SECONDS)).close()
            except OSError as exc:
                problems.append(f"the port {port} of {host} does not accept connections ({exc.strerror or exc}), and should")
        return problems

    def _http(self) -> t.List[str]:
        problems = []
        for one in self._params["http"]:
            wanted = one["status"]
            follow = "none" if any(300 <= code < 400 for code in wanted) else "safe"
            try:
                seen = open_url(
                    one["url"], validate_certs=one["validate_certs"], timeout=self._left(_ANSWER_SECONDS), follow_redirects=follow
                ).getcode()
            except HTTPError as exc:
                seen = exc.code
            # open_url() has classes of its own for what it does not like about certificates and addresses.
            except Exception as exc:
                seen = "nothing ({})".format(without_secrets(str(getattr(exc, "reason", None) or exc), one["url"]))
            if seen not in wanted:
                good = " or ".join(str(code) for code in wanted)
                problems.append(f"{public_url(one['url'])} answers {seen}, and should answer {good}")
        return problems

    def _commands(self) -> t.List[str]:
        problems = []
        for command in self._params["commands"]:
            code, _stdout, said = self._run(shlex.split(command))
            if code is None:
                problems.append(f"the command '{command}' {said}, and should end with 0")
            elif code != 0:
                said = f" ({said})" if said else ""
                problems.append(f"the command '{command}' ended with {code}{said}, and should with 0")
        return problems


def address(text: str) -> t.Tuple[str, int]:
    """The host and the port of V(443), V(192.0.2.10:443) or V([2001:db8::1]:443); a ValueError says what is wrong with it."""
    host, colon, port = text.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536 or (colon and not host):
        raise ValueError(f"ports: {text!r} is no port; write for example 443 or 192.0.2.10:443")
    return host.strip("[]") or "127.0.0.1", int(port)


def public_url(url: str) -> str:
    """The address as it may be shown: without user, password, query and fragment, which may hold a token."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "***" if parts.query else "", ""))


def without_secrets(text: str, url: str) -> str:
    """The text of an error about this address, without the parts of it that public_url() leaves out."""
    parts = urlsplit(url)
    userinfo = parts.netloc.rpartition("@")[0]
    secrets = [url, userinfo, parts.query, parts.fragment, parts.password, unquote(parts.password or "")]
    for secret in sorted([one for one in secrets if one], key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def check_url(number: int, url: str) -> None:
    """Raise a ValueError, which does not show the address, where a client could take a part of it for another one."""
    fix = "write for example https://web01.example.com/health, and percent-encode what has a meaning in a URL"
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    # http://admin:123#x@web01 would be the host admin at port 123.
    split_password = sound and "@" not in parts.netloc and ":" in parts.netloc and "@" in url
    if not sound or split_password or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError(f"http: the url of entry {number} is not a usable address; {fix}")


def check(params: Params) -> None:
    """Raise a ValueError for what can never be met, so that it is not tried again and again."""
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
            raise ValueError("commands: one of them is empty; leave it out")


def hide_urls(module: AnsibleModule) -> None:
    """Have Ansible cut out of the results the addresses with more than public_url() shows, and nothing else of them."""
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
                # For the syslog, which AnsibleModule writes before anything here runs. main() shows again what is no secret.
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

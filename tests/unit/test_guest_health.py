# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of guest_health_info, and their repetition."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.safepoint.vm.plugins.modules import guest_health_info as health

NOTHING: dict[str, t.Any] = {
    "failed_units": False,
    "known_failed_units": [],
    "services": [],
    "ports": [],
    "http": [],
    "commands": [],
    "retries": 0,
    "delay": 5,
    "budget": 60,
}


class Clock:
    """A clock that advances only in sleep()."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self.meanwhile()


def look(clock: Clock | None = None, **wanted: t.Any) -> dict[str, t.Any]:
    clock = clock or Clock()
    result: dict[str, t.Any] = health.Health({**NOTHING, **wanted}, clock, clock.sleep).look()
    assert result["healthy"] == (not result["problems"])
    return result


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a fake systemctl; return the folder with its lists `failed` and `active`."""
    program = tmp_path / "systemctl"
    program.write_text(
        f"""#!/bin/sh
case "$1" in
list-units) while read -r unit; do echo "$unit loaded failed failed A unit"; done <{tmp_path}/failed ;;
is-active) shift 2; code=0; for unit; do grep -qx "$unit" {tmp_path}/active && echo active || {{ echo inactive; code=3; }}; done; exit $code ;;
esac
"""
    )
    program.chmod(0o755)
    (tmp_path / "failed").touch()
    (tmp_path / "active").write_text("sshd\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


@pytest.fixture
def url() -> Iterator[str]:
    """Return the URL of a server that answers with the status in the path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path[1:4]))
            self.send_header("Location", "/200")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_failed_units_are_listed_unless_they_are_known(systemctl: Path) -> None:
    assert look(failed_units=True)["failed_units"] == []
    (systemctl / "failed").write_text("old.service\nnew.service\nuser@7.service\n")
    seen = look(failed_units=True, known_failed_units=["old.service", "user@*.service"])
    assert seen["problems"] == ["unit new.service has failed and is not in known_failed_units"]
    assert seen["failed_units"] == ["old.service", "new.service", "user@7.service"]
    assert look(failed_units=True, known_failed_units=["*"])["healthy"]


def test_inactive_services_are_listed(systemctl: Path) -> None:
    assert look(services=["sshd"])["healthy"]
    assert look(services=["sshd", "nginx"])["problems"] == ["service nginx is inactive, expected active"]


def test_guest_without_systemd_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    seen = look(services=["sshd"], failed_units=True)["problems"]
    assert seen == [
        "failed units cannot be listed: systemctl could not be run: No such file or directory",
        "the state of sshd cannot be read: systemctl could not be run: No such file or directory",
    ]


def test_closed_port_is_a_problem(url: str) -> None:
    port = url.rsplit(":", 1)[1]
    assert look(ports=[port, f"127.0.0.1:{port}"])["healthy"]
    assert look(ports=["127.0.0.2:1"])["problems"] == ["port 1 of 127.0.0.2 does not accept connections (Connection refused)"]


def test_unexpected_http_status_is_a_problem(url: str) -> None:
    def http_of(path: str, *status: int) -> dict[str, t.Any]:
        return {"http": [{"url": f"{url}{path}", "status": list(status), "validate_certs": True}]}

    assert look(**http_of("/200", 200))["healthy"]
    assert look(**http_of("/301", 200))["healthy"]
    assert look(**http_of("/301", 301))["healthy"]
    assert look(**http_of("/503", 200, 204))["problems"] == [f"{url}/503 answered 503, expected 200 or 204"]
    nobody = {"http": [{"url": "http://me:s3cr3t@127.0.0.2:1/", "status": [200], "validate_certs": True}]}
    [problem] = look(**nobody)["problems"]
    assert problem == "http://127.0.0.2:1/ did not answer ([Errno 111] Connection refused), expected 200"


HIDDEN = ("s3cr3t-user", "s3cr3t-word", "s3cr3t-token", "s3cr3t-end")


def hidden(url: str) -> str:
    return url.replace("//", "//s3cr3t-user:s3cr3t-word@") + "/503?token=s3cr3t-token#s3cr3t-end"


RUN = """
import json, sys, syslog
syslog.syslog = lambda *said: print(*said, file=sys.stderr)
from ansible.module_utils import basic
basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = sys.argv[1].encode(), "legacy"
from ansible_collections.safepoint.vm.plugins.modules import guest_health_info
guest_health_info.main()
"""


def run(**options: t.Any) -> tuple[dict[str, t.Any], str]:
    """Run the module like Ansible. Return its result, and its syslog output."""
    given = json.dumps({"ANSIBLE_MODULE_ARGS": {**options, "retries": 0}})
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", RUN, given], capture_output=True, text=True, env=env, timeout=60, check=False)
    return json.loads(done.stdout), done.stderr


def test_secrets_in_a_url_are_in_no_result_and_no_log(url: str) -> None:
    other = url.replace("127.0.0.1", "127.0.0.2")
    result, log = run(http=[{"url": hidden(one)} for one in (url, other)])
    assert result["problems"][0] == f"{url}/503?*** answered 503, expected 200"
    assert result["problems"][1].startswith(f"{other}/503?*** did not answer (")
    assert "Invoked with" in log
    for secret in HIDDEN:
        assert secret not in json.dumps(result) and secret not in log
    # Other values are still shown.
    result, _log = run(http=[{"url": f"{url}/200", "status": [204]}], commands=["sh -c 'exit 200'"])
    assert result["problems"][0] == f"{url}/200 answered 200, expected 204"
    assert "200" in result["problems"][1]
    assert result["invocation"]["module_args"]["http"][0]["url"] == f"{url}/200"


@pytest.mark.parametrize(
    "url",
    [
        "http://s3cr3t-user:s3cr3t/word@web01/",
        "http://s3cr3t-user:123#s3cr3t-word@web01/",
        "http://s3cr3t-user:80/s3cr3t-word@web01/",
        "http://s3cr3t-user:p?s3cr3t-word@web01/",
        "http://web01:http/?token=s3cr3t-token",
        "http://web01:0/?token=s3cr3t-token",
        "http://web01/?token=s3cr3t token",
        "http://web01/\n?token=s3cr3t-token",
        "http://[::1/?token=s3cr3t-token",
        "ftp://s3cr3t-user:s3cr3t-word@web01/",
        "file:///etc/passwd?s3cr3t",
        "s3cr3t-user:s3cr3t-word@web01",
        "http://?s3cr3t",
    ],
)
def test_invalid_url_is_refused_and_not_shown(url: str) -> None:
    result, log = run(http=[{"url": "http://127.0.0.1:1/"}, {"url": url}])
    assert result["failed"] and "the url of entry 2 is not a valid URL" in result["msg"]
    assert "s3cr3t" not in json.dumps(result) and "s3cr3t" not in log


@pytest.mark.parametrize(
    "url", ["http://web01/@me", "https://u:p%40x@web01:8443/a?b=c@d", "http://[::1]:80/", "http://bücher.example"]
)
def test_valid_url_is_accepted(url: str) -> None:
    health.check({**NOTHING, "http": [{"url": url}]})


def test_failed_command_is_a_problem() -> None:
    assert look(commands=["true", "sh -c 'exit 0'"])["healthy"]
    assert look(commands=["sh -c 'echo no luck >&2; exit 3'", "no-such-program"])["problems"] == [
        "command 'sh -c 'echo no luck >&2; exit 3'' exited with status 3 (no luck), expected 0",
        "command 'no-such-program' could not be run: No such file or directory",
    ]


def test_hanging_command_is_killed() -> None:
    assert look(commands=["sleep 60"], budget=0.1)["problems"] == ["command 'sleep 60' timed out after 1 seconds"]


def test_checks_are_repeated_until_they_pass(tmp_path: Path) -> None:
    clock = Clock()
    clock.meanwhile = lambda: (tmp_path / "there").touch() if clock.now >= 10 else None
    seen = look(clock, commands=[f"test -e {tmp_path}/there"], retries=5)
    assert seen["healthy"]
    assert (seen["tries"], clock.slept) == (3, [5, 5])


@pytest.mark.parametrize(("retries", "budget", "tries"), [(2, 60, 3), (20, 12, 3), (20, 3, 1)])
def test_checks_end_after_the_retries_or_the_budget(retries: int, budget: float, tries: int) -> None:
    assert look(commands=["false"], retries=retries, budget=budget)["tries"] == tries


@pytest.mark.parametrize("port", ["", "http", "0", "65536", ":443", "host:", "1.5"])
def test_invalid_port_is_refused(port: str) -> None:
    with pytest.raises(ValueError, match="is not a port; use for example 443"):
        health.check({**NOTHING, "ports": [port]})


@pytest.mark.parametrize(("command", "said"), [("echo 'a", "cannot be split into words"), (" ", "is empty")])
def test_invalid_command_is_refused(command: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        health.check({**NOTHING, "commands": [command]})


def test_port_of_an_ipv6_address_is_accepted() -> None:
    assert health.address("[2001:db8::1]:443") == ("2001:db8::1", 443)


def test_module_compiles_on_the_oldest_python_of_a_guest() -> None:
    """ansible-core 2.16 supports Python 3.6; a newer Python parses the module with the grammar of 3.6."""
    program = "import ast, sys; ast.parse(open(sys.argv[1]).read(), feature_version=(3, 6))"
    subprocess.run([sys.executable, "-c", program, str(health.__file__)], check=True)

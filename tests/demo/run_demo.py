# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`make demo`: a change makes a real guest unreachable for Ansible, and the guest is rolled back.

Prints each step on the terminal. Exits with 0 if all went as expected, else with 1 and the reason.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import typing as t
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / ".ansible" / "collections"), str(ROOT / "tests" / "lab")]

from lab import Lab  # noqa: E402
from lab_guest import Guest  # noqa: E402

# Shell commands that show the state inside the guest; each prints one line.
PREPARE = "echo version 1 > /etc/app.conf; sync; setsid sleep 1000000 </dev/null >/dev/null 2>&1 & echo $! > /run/app.pid"
LOOK = (
    "cat /etc/app.conf; cut -d ' ' -f 1,22 /proc/$(cat /run/app.pid)/stat; cat /proc/sys/kernel/random/boot_id; ls /usr/sbin/sshd"
)

# The tasks of the role that the demo shows, with the text for each.
STEPS = {
    "Take the checkpoints": "role     takes a snapshot of web01, with its memory",
    "Failed | Keep the evidence": "role     the host is lost: writes the evidence of the failure",
    "Revert": "role     reverts web01 to the snapshot",
    "Connect | Wait for the guest": "role     reconnects to web01",
    "The application runs": "health   {name}",
    "Fail, now that all hosts of the batch have ended their change": "role     fails the play with the cause of the failed change",
}
UPGRADE = (HERE / "upgrade.yml").read_text()
BREAKS = re.findall(r"- name: (.*)", UPGRADE)[1]


class StoryFailed(Exception):
    """A step did not have the expected result."""


class Teller:
    """Prints lines with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:5.1f} s] {text}", flush=True)


class Watch(threading.Thread):
    """Records when the guest's ssh server stops answering, and when it answers again.

    Only started shortly before the change breaks it: each probe starts a process in the guest, which is slow under TCG.
    """

    def __init__(self, guest: Guest) -> None:
        super().__init__(daemon=True)
        self._guest = guest
        self._done = threading.Event()
        self.lost: float | None = None
        self.back: float | None = None

    def run(self) -> None:
        while self.back is None and not self._done.wait(0.5):
            asked = time.monotonic()
            if not self._guest.ssh_answers(timeout=10):
                self.lost = self.lost or asked
            elif self.lost is not None:
                self.back = time.monotonic()

    def stop(self) -> None:
        self._done.set()
        if self.is_alive():
            self.join()


class Play:
    """One run of ansible-playbook, shown from its output."""

    def __init__(self, teller: Teller, watch: Watch, lab: Lab, guest: Guest, folder: Path) -> None:
        self._teller = teller
        self._watch = watch
        self._steps: list[tuple[str, float]] = []
        inventory = folder / "inventory.json"
        inventory.write_text(json.dumps({"web": {"hosts": {guest.name: guest.inventory_vars()}}}))
        variables = {"demo_uri": lab.uri, "guarded_change_evidence_dir": str(folder / "evidence")}
        self._command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory), str(HERE / "site.yml")]
        self._command += ["-e", json.dumps(variables)]
        self._environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "HOME": str(ROOT / ".cache" / "home"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),  # short: the path of a unix socket is limited to 107 bytes
            "ANSIBLE_PIPELINING": "1",  # an emulated guest needs a second for each ssh command
            "ANSIBLE_NOCOLOR": "1",
        }
        self.output = ""
        self.code = -1

    def run(self) -> None:
        with subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            for line in t.cast("t.IO[str]", process.stdout):
                self.output += line
                header = re.match(r"TASK \[(?:.* : )?(.*?)\] \*", line)
                if header:
                    self._step(header.group(1))
                elif line.startswith("fatal: [web01]") and self._steps[-1][0] == BREAKS:
                    self._teller.say("         FAILED")
        self._steps.append(("end", time.monotonic()))
        self.code = process.returncode

    def _step(self, name: str) -> None:
        self._steps.append((name, time.monotonic()))
        if name == BREAKS:
            self._watch.start()
        if name in STEPS:
            self._teller.say(STEPS[name].format(name=name))
        elif f"- name: {name}\n" in UPGRADE:
            self._teller.say(f"change   {name}")

    def times(self, name: str) -> tuple[float, float]:
        """Return the start and end time of the task with that name."""
        for (step, began), (_next, ended) in zip(self._steps, self._steps[1:]):
            if step == name:
                return began, ended
        raise StoryFailed(f"the task {name!r} never ran")

    def last_message(self) -> str:
        """Return the final message of the role."""
        found = re.findall(r"^fatal: \[web01\].*?=> (\{.*\})$", self.output, re.MULTILINE)
        if not found:
            raise StoryFailed("the play did not fail")
        return str(json.loads(found[-1])["msg"])

    def recap(self) -> str:
        line = next((line for line in self.output.splitlines() if re.match(r"web01\s+: ok=", line)), "")
        return " ".join(line.split())


def expect(happened: bool, otherwise: str) -> None:
    if not happened:
        raise StoryFailed(otherwise)


def look(guest: Guest) -> list[str]:
    seen = guest.ssh(LOOK)
    expect(seen.returncode == 0, f"reading the state of web01 failed: {seen.stderr.strip()}")
    return seen.stdout.splitlines()


def tell(teller: Teller, lab: Lab, folder: Path) -> str:
    """Run the demo and return a summary."""
    teller.say(f"A private libvirtd runs (process {lab.pid}); your own libvirt is not touched")
    guest = lab.guest("web01")
    guest.wait_ssh()
    guest.ssh(PREPARE)
    before = look(guest)
    teller.say(f"web01, a Debian guest under QEMU, is up: {before[0]!r}, application is process {before[1].split()[0]}")
    teller.say("ansible-playbook tests/demo/site.yml: the role safepoint.vm.guarded_change runs upgrade.yml, then health.yml")
    watch = Watch(guest)
    play = Play(teller, watch, lab, guest, folder)
    play.run()
    watch.stop()
    if watch.lost is None or watch.back is None:
        print(play.output)
        raise StoryFailed("web01 was never unreachable, or did not become reachable again")
    reverting, reverted = play.times("Revert")
    expect(watch.lost < reverting, "web01 was still reachable before the revert: the change did not break it")
    teller.say("ansible-playbook has ended with the message:")
    print(textwrap.fill(play.last_message(), 110, initial_indent=" " * 12, subsequent_indent=" " * 12))
    teller.say(f"exit code {play.code}; {play.recap()}")
    expect(play.code == 2, f"ansible-playbook exited with {play.code}, expected 2 for a failed change")
    expect("unreachable=0" in play.recap(), "the host is counted as unreachable")
    teller.say("The proof, from inside web01:")
    after = look(guest)
    names = ("configuration", "application (process, start time)", "boot", "ssh server")
    for name, was, now in zip(names, before, after):
        print(f"            {name:34} before: {was:36} after: {now}")
    expect(after == before, "the state of web01 differs from that before the change")
    with guest.domain() as domain:
        notes = [one.getXMLDesc() for one in domain.listAllSnapshots()]
    label = re.search(r"\[safepoint .*\]", "".join(notes))
    expect(
        len(notes) == 1 and label is not None and "state=rolled_back" in label.group(),
        "the snapshot's label does not have state=rolled_back",
    )
    teller.say(f"The snapshot is kept for three days; its label: {label.group() if label else ''}")
    return f"web01 was lost for {watch.back - watch.lost:.1f} s, and its rollback took {reverted - reverting:.1f} s"


def main() -> int:
    teller = Teller()
    try:
        with Lab() as lab, tempfile.TemporaryDirectory(prefix="sp-") as folder:
            ending = tell(teller, lab, Path(folder))
    except StoryFailed as exc:
        print(f"DEMO FAILED: {exc}", flush=True)
        return 1
    print(f"DEMO OK: {ending}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

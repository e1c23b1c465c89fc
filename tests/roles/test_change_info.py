# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""safepoint.vm.change_info: what it sees of a play, and what it finds in the files of a change. No host is ever contacted."""

from __future__ import annotations

import json
import re

import pytest
from stage import Run, Stage

pytestmark = [pytest.mark.core_versions, pytest.mark.newest]

GOOD = "- name: Good\n  ansible.builtin.command: 'true'\n"
BAD = "- name: Bad\n  no.such.module:\n    a: 1\n"


def look(stage: Stage, options: str = "", *, head: str = "", before: str = "", arguments: tuple[str, ...] = ()) -> Run:
    """Run change_info on a host that does not exist, with ``options`` as its YAML flow mapping."""
    return stage.play(
        f"""
        - hosts: all
          gather_facts: false
          {head}
          tasks:
            - safepoint.vm.change_info: {options or "{}"}
              register: info
            - ansible.builtin.debug: {{msg: "INFO {{{{ info | to_json }}}} INFO"}}
        """,
        "-i",
        "nowhere.invalid,",
        *arguments,
    )


def info(run: Run) -> dict[str, object]:
    assert run.rc == 0
    text = re.search(r'"msg": (".*INFO")', run.output)
    assert text
    return json.loads(json.loads(text[1]).removeprefix("INFO ").removesuffix(" INFO"))


def test_it_says_what_the_play_is(stage: Stage) -> None:
    stage.write("upgrade.yml", GOOD)
    stage.write("health.yml", GOOD)
    seen = info(look(stage, "{tasks: upgrade.yml, checks: health.yml}"))
    assert seen["tasks"] == str(stage.project / "upgrade.yml")
    assert seen["checks"] == str(stage.project / "health.yml")
    assert seen["strategy"] == "linear"
    assert seen["connection"] == "ssh"
    assert seen["guardable"] is True
    assert seen["connection_variable"] is False
    assert seen["force_handlers"] is False
    assert seen["handlers"] is False
    assert seen["changed"] is False


def test_it_runs_in_check_mode(stage: Stage) -> None:
    stage.write("upgrade.yml", GOOD)
    assert info(look(stage, "{tasks: upgrade.yml}", arguments=("--check",)))["tasks"] == str(stage.project / "upgrade.yml")


@pytest.mark.parametrize(
    ("head", "arguments", "connection", "guardable", "variable"),
    [
        ("", (), "ssh", True, False),
        ("connection: local", (), "local", False, False),
        ("connection: ansible.builtin.ssh", (), "ssh", True, False),
        ("connection: safepoint.vm.guarded_ssh", (), "safepoint.vm.guarded_ssh", True, False),
        ("vars: {ansible_connection: ssh}", (), "ssh", True, True),
        ("vars: {ansible_connection: local}", (), "local", False, True),
        ("", ("-e", "ansible_connection=ssh"), "ssh", False, True),
        ("", ("-c", "local"), "local", False, False),
    ],
)
def test_it_says_which_connection_the_host_has(
    stage: Stage, head: str, arguments: tuple[str, ...], connection: str, guardable: bool, variable: bool
) -> None:
    seen = info(look(stage, head=head, arguments=arguments))
    assert seen["connection"] == connection
    assert seen["guardable"] is guardable
    assert seen["connection_variable"] is variable


def test_it_sees_handlers_and_force_handlers(stage: Stage) -> None:
    seen = info(look(stage, head="force_handlers: true\n          handlers: [{name: Restart, ansible.builtin.meta: noop}]"))
    assert seen["force_handlers"] is True
    assert seen["handlers"] is True


@pytest.mark.parametrize("strategy", ["free", "ansible.builtin.host_pinned"])
def test_another_strategy_is_refused(stage: Stage, strategy: str) -> None:
    run = look(stage, head=f"strategy: {strategy}")
    assert run.rc == 2
    assert run.said(f"The strategy of this play is '{strategy}'. A guarded change needs 'linear'")


@pytest.mark.parametrize("option", ["tasks", "checks"])
def test_a_missing_file_names_the_option_and_where_it_was_looked_for(stage: Stage, option: str) -> None:
    run = look(stage, f"{{{option}: upgrade.yml}}")
    assert run.rc == 2
    assert run.said(
        f"The option '{option}' names the file 'upgrade.yml', which was not found. Searched {stage.project}/upgrade.yml"
    )


def test_an_unknown_option_is_refused_by_name(stage: Stage) -> None:
    run = look(stage, "{task: upgrade.yml}")
    assert run.rc == 2
    assert "Unsupported parameters" in run.output
    assert "task" in run.output


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"upgrade.yml": BAD}, "upgrade.yml, line 1"),
        ({"upgrade.yml": GOOD + BAD}, "upgrade.yml, line 3"),
        (
            {
                "upgrade.yml": "- block:\n    - block:\n        - no.such.module:\n      rescue:\n        - ansible.builtin.meta: noop\n"
            },
            "upgrade.yml, line 3",
        ),
        (
            {"upgrade.yml": "- block:\n    - ansible.builtin.meta: noop\n  rescue:\n    - no.such.module:\n"},
            "upgrade.yml, line 4",
        ),
        ({"upgrade.yml": "- ansible.builtin.import_tasks: sub/deep.yml\n", "sub/deep.yml": GOOD + BAD}, "sub/deep.yml, line 3"),
        ({"upgrade.yml": "- ansible.builtin.include_tasks: sub/deep.yml\n", "sub/deep.yml": GOOD + BAD}, "sub/deep.yml, line 3"),
        (
            {
                "upgrade.yml": "- ansible.builtin.include_tasks: {file: sub/deep.yml, apply: {become: true}}\n",
                "sub/deep.yml": "- ansible.builtin.include_tasks: deeper.yml\n",
                "sub/deeper.yml": BAD,
            },
            "sub/deeper.yml, line 1",
        ),
        (
            {"upgrade.yml": "- ansible.builtin.import_role: {name: web}\n", "roles/web/tasks/main.yml": BAD},
            "roles/web/tasks/main.yml, line 1",
        ),
        (
            {"upgrade.yml": "- ansible.builtin.include_role: {name: web}\n", "roles/web/tasks/main.yml": BAD},
            "roles/web/tasks/main.yml, line 1",
        ),
        (
            {
                "upgrade.yml": "- ansible.builtin.include_role: {name: web}\n",
                "roles/web/tasks/main.yml": GOOD,
                "roles/web/handlers/main.yml": BAD,
            },
            "roles/web/handlers/main.yml, line 1",
        ),
    ],
)
def test_an_unknown_module_is_found_wherever_it_is(stage: Stage, files: dict[str, str], line: str) -> None:
    for name, text in files.items():
        stage.write(name, text)
    run = look(stage, "{tasks: upgrade.yml}")
    assert run.rc == 2
    assert run.said(f"The option 'tasks' cannot be used. {stage.project}/{line}")
    assert "no.such.module" in run.output


def test_the_unknown_module_would_end_the_run_without_rescue(stage: Stage) -> None:
    """The reason for looking; when ansible-core changes it, this can go."""
    stage.write("upgrade.yml", BAD)
    run = stage.play(
        """
        - hosts: localhost
          gather_facts: false
          tasks:
            - block:
                - ansible.builtin.include_tasks: upgrade.yml
              rescue:
                - ansible.builtin.debug: {msg: RESCUED}
        """
    )
    assert run.rc == 4
    assert "RESCUED" not in run.output


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- name: [unclosed\n", "upgrade.yml, line"),
        ("name: a mapping\n", "is not a list of tasks"),
        ("- just a text\n", "is not a list of tasks"),
        ("- hosts: all\n  tasks: []\n", "upgrade.yml, line 1"),
        ("- name: Nothing to do\n", "upgrade.yml, line 1"),
        ("- ansible.builtin.debug: {msg: 1}\n  ansible.builtin.command: ls\n", "upgrade.yml, line 1"),
        ("- ansible.builtin.import_tasks: missing.yml\n", "missing.yml"),
        ("- ansible.builtin.import_role: {name: missing}\n", "missing"),
    ],
)
def test_what_is_no_list_of_tasks_is_found(stage: Stage, text: str, told: str) -> None:
    stage.write("upgrade.yml", text)
    run = look(stage, "{tasks: upgrade.yml}")
    assert run.rc == 2
    assert run.said("The option 'tasks'")
    assert run.said(told)
    assert "Traceback" not in run.output


@pytest.mark.parametrize(
    "text",
    [
        "# nothing yet\n",
        "- ansible.builtin.include_tasks: missing.yml\n",  # rescued when it is reached
        "- ansible.builtin.include_tasks: bad.yml\n  when: false\n",
        "- when: false\n  block:\n    - ansible.builtin.include_tasks: bad.yml\n",
        "- ansible.builtin.include_tasks: '{{ anything }}.yml'\n",
        "- ansible.builtin.include_tasks: upgrade.yml\n",  # itself
        "- ansible.builtin.include_role: {name: missing}\n  when: false\n",
        "- here:\n    a: 1\n",  # of the library folder beside the playbook
        "- safepoint.vm.snapshot: {}\n",  # of an installed collection; its options are not looked at
        "- ansible.builtin.copy: {unknown: option}\n",
    ],
)
def test_what_is_rescued_or_never_reached_is_left_alone(stage: Stage, text: str) -> None:
    stage.write("upgrade.yml", text)
    stage.write("bad.yml", BAD)
    stage.write("library/here.py", "#!/usr/bin/python\n")
    assert info(look(stage, "{tasks: upgrade.yml}"))["tasks"] == str(stage.project / "upgrade.yml")


def test_a_role_is_loaded_with_all_it_has(stage: Stage) -> None:
    stage.write("roles/web/meta/main.yml", "dependencies: [{role: base}]\n")
    stage.write("roles/web/tasks/main.yml", GOOD)
    stage.write("roles/base/tasks/main.yml", GOOD)
    assert info(look(stage, "{role: web}"))["role"] == "web"
    stage.write("roles/base/tasks/main.yml", BAD)
    run = look(stage, "{role: web}")
    assert run.rc == 2
    assert run.said(f"The option 'role' cannot be used. {stage.project}/roles/base/tasks/main.yml, line 1")


def test_a_missing_role_says_where_it_was_looked_for(stage: Stage) -> None:
    run = look(stage, "{role: web}")
    assert run.rc == 2
    assert run.said("The option 'role' cannot be used.")
    assert f"{stage.project}/roles" in run.output


def test_tasks_and_role_exclude_each_other(stage: Stage) -> None:
    run = look(stage, "{role: web, tasks: upgrade.yml}")
    assert run.rc == 2
    assert "mutually exclusive" in run.output

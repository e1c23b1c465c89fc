# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Check the play and the files of a change before anything is written. Documented in plugins/modules/change_info.py."""

from __future__ import annotations

import os
import platform
import typing as t

from ansible import constants as C
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.playbook.block import Block
from ansible.playbook.helpers import load_list_of_blocks
from ansible.playbook.role_include import IncludeRole
from ansible.playbook.task import Task
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.action import ActionBase

_SSH = {"ssh", "ansible.builtin.ssh", "ansible.legacy.ssh"}
_GUARD = "safepoint.vm.guarded_ssh"
_LINEAR = {"linear", "ansible.builtin.linear", "ansible.legacy.linear"}
_ENDS = {"end_host", "end_play", "end_batch"}


class ActionModule(ActionBase):
    """Runs on the controller only. It reads the properties of the connection, but does not use it."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Return facts on the play and the files, or fail with the first problem."""
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        _dummy, options = self.validate_argument_spec(
            argument_spec={"tasks": {"type": "str"}, "checks": {"type": "str"}, "role": {"type": "str"}},
            mutually_exclusive=[["tasks", "role"]],
        )
        play = self._task.play
        if play.strategy not in _LINEAR:
            raise AnsibleActionFail(
                f"The strategy of this play is {play.strategy!r}. A guarded change needs 'linear', because the call of one host takes the "
                "snapshots of all hosts, and must end before the other hosts continue. Set strategy: linear on the play"
            )
        self._refuse_around()
        batch = task_vars.get("ansible_play_batch") or []
        reader = _Reader(self._task, self._loader, alone=len(batch) < 2)
        result: dict[str, t.Any] = {
            "changed": False,
            "strategy": play.strategy,
            "force_handlers": bool(play.force_handlers),
            "handlers": any(block.block for block in play.handlers),
            "controller": platform.node(),
            "check_mode": bool(self._task.check_mode),
            **self._connection_facts(task_vars),
        }
        for option in ("tasks", "checks"):
            if options[option] is not None:
                result[option] = self._find(option, options[option], task_vars)
                reader.file(option, result[option])
        if options["role"] is not None:
            result["role"] = options["role"]
            reader.role(options["role"])
        if reader.warnings:
            result["warnings"] = reader.warnings
        return result

    def _refuse_around(self) -> None:
        """Refuse keywords of the play or of a block around the role that would break the role."""
        # Not the keywords of this task itself, on which the role sets ignore_errors.
        above = [self._task.play]
        parent = self._task._parent
        while parent is not None:
            above.append(parent)
            parent = parent._parent
        if any(one.ignore_errors for one in above):
            raise AnsibleActionFail(
                "ignore_errors is set on this play or on a block around the role, so a failed change would count as a success. "
                "Set it only on the tasks of the change whose errors do not matter"
            )

    def _connection_facts(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """Return the connection plugin of this task, and if variables have set it: variables override the keyword."""
        manager = self._task.get_variable_manager()
        name = getattr(self._connection, "ansible_name", None) or self._connection._load_name
        # Not task_vars: ansible-core 2.16 adds the connection that it has chosen itself.
        host = manager._inventory.get_host(task_vars["inventory_hostname"])
        variables = manager.get_vars(play=self._task.play, host=host, task=self._task)
        extra = "ansible_connection" in manager.extra_vars
        return {
            "connection": name.removeprefix("ansible.builtin."),  # the prefix depends on the version of ansible-core
            # Nothing in a play overrides an extra variable.
            "guardable": name == _GUARD or (name in _SSH and not extra),
            "connection_variable": "ansible_connection" in variables,
            "connection_extra_variable": extra,
        }

    def _find(self, option: str, name: str, task_vars: dict[str, t.Any]) -> str:
        """Return the absolute path of a file of the user.

        The file is searched in the tasks folders of the roles that include ours, as for any include in a role, then next to the playbook,
        but never in our own role, where ansible-core would look first for a relative name.
        """
        folders = [os.path.join(path, "tasks") for path in task_vars.get("ansible_parent_role_paths") or []]
        folders.append(task_vars["playbook_dir"])
        if f"{os.sep}ansible_collections{os.sep}" in task_vars["playbook_dir"]:
            # A playbook of a collection, run by its full name: users do not keep files next to it.
            folders.append(os.getcwd())
        candidates = list(dict.fromkeys(os.path.abspath(os.path.join(folder, os.path.expanduser(name))) for folder in folders))
        for path in candidates:
            if os.path.isfile(path):
                return path
        raise AnsibleActionFail(
            f"The option {option!r} names the file {name!r}, which was not found. Searched {' and '.join(candidates)}"
        )


class _Reader:
    """Loads task files and roles like the play, to find errors before the change that would end the run in the middle of it.

    At an included file with a YAML error or an unknown module, ansible-core ends the whole run without rescue (2.16 to 2.21).
    """

    def __init__(self, task: Task, loader: t.Any, *, alone: bool) -> None:
        self.warnings: list[str] = []
        self._alone = alone
        self._play = task.play
        self._role = task._role
        self._parent = task._parent
        self._context = {"variable_manager": task.get_variable_manager(), "loader": loader}
        self._loader = loader
        self._option = ""
        self._seen: set[str] = set()

    def file(self, option: str, path: str) -> None:
        """Check the file ``path`` as if this task included it with include_tasks."""
        self._option = option
        self._try(
            path, lambda: self._include(self._new_include(TaskInclude, {"ansible.builtin.include_tasks": {"file": path}}), path)
        )

    def role(self, name: str) -> None:
        """Check the role ``name`` as if this task included it with include_role."""
        self._option = "role"
        include = self._new_include(IncludeRole, {"ansible.builtin.include_role": {"name": name}})
        self._try(name, lambda: self._include_role(include))
        if "." not in name and self._is_ours(include._role_path):
            raise AnsibleActionFail(
                f"The option 'role' is {name!r}, which Ansible resolves to a role of safepoint.vm here. "
                "Set the path of your role, or its full name with the collection"
            )

    def _new_include(self, kind: t.Any, source: dict[str, t.Any]) -> t.Any:
        return kind.load(source, block=self._parent, role=self._role, task_include=None, **self._context)

    def _try(self, subject: str, load: t.Callable[[], None]) -> None:
        """Run ``load`` and add the name of the option to its errors."""
        try:
            load()
        except AnsibleActionFail:
            raise
        except AnsibleError as exc:
            where = _position(exc) or subject
            # From None: ansible-core 2.19 and later would append the message of the cause again.
            raise AnsibleActionFail(
                f"The option {self._option!r} cannot be used. {where}: {_message(exc)}", obj=exc.obj
            ) from None
        except (
            Exception
        ) as exc:  # ansible-core 2.16 has a TypeError for a missing import_tasks in a role; it would end the run later
            raise AnsibleActionFail(
                f"The option {self._option!r} cannot be used. ansible-core cannot load {subject}: {type(exc).__name__}: {exc}"
            ) from None

    def _include(self, include: TaskInclude, path: str) -> None:
        """Load a task file and its includes."""
        if path in self._seen:
            return
        self._seen.add(path)
        data = self._loader.load_from_file(path)
        if data is None:
            return
        if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
            raise AnsibleActionFail(f"The option {self._option!r} names {path}, which is not a list of tasks")
        parent = include.build_parent_block()
        self._walk(load_list_of_blocks(data, play=self._play, parent_block=parent, role=include._role, **self._context))

    def _include_role(self, include: IncludeRole) -> None:
        """Load a role with its dependencies, handlers and the includes of its tasks."""
        blocks, _dummy = include.get_block_list(play=self._play, **self._context)
        if include._role_path not in self._seen:
            self._seen.add(include._role_path)
            self._walk(blocks)

    def _walk(self, tasks: t.Iterable[t.Any]) -> None:
        """Follow the includes in ``tasks`` that have no condition and no variable in their names."""
        for task in tasks:
            if isinstance(task, Block):
                self._walk([*task.block, *task.rescue, *task.always])
                continue
            path = (task.get_path() or "").rsplit(":", 1)[0]
            if task._role is self._role and self._is_ours(path):
                self._refuse_ours(os.path.basename(path))
            self._refuse_ends(task)
            # An include with a condition may be for another platform, whose collection may not be installed.
            if isinstance(task, TaskInclude) and not task.statically_loaded and not self._is_conditional(task):
                self._follow(task)

    def _follow(self, task: TaskInclude) -> None:
        name = task._role_name if isinstance(task, IncludeRole) else task.args.get("_raw_params")
        if not isinstance(name, str) or "{{" in name:
            return
        if isinstance(task, IncludeRole):
            self._include_role(task)
            return
        path = self._resolve(task, name)
        if path is None:  # at runtime, rescue handles a missing file
            return
        if task._role is self._role and self._is_ours(path):
            self._refuse_ours(name)
        self._include(task, path)

    def _resolve(self, task: TaskInclude, name: str) -> str | None:
        """Find the file of an include like ansible-core (IncludedFile.process_include_results): the files of the role come first."""
        base = os.path.join(task._role._role_path, "tasks") if task._role else self._loader.get_basedir()
        folders = [base] if task._role else []
        folder = ""
        parent = task._parent
        while parent is not None:
            if isinstance(parent, TaskInclude):
                above = (
                    parent._role_path if isinstance(parent, IncludeRole) else os.path.dirname(str(parent.args.get("_raw_params")))
                )
                folder = os.path.join(above or "", folder)  # an absolute path stays unchanged
                folders.append(os.path.join(base, folder))
            parent = parent._parent
        candidates = [self._loader.path_dwim_relative(folder, "tasks", name, is_role=True) for folder in folders]
        return next((path for path in candidates if os.path.isfile(path)), None)

    def _refuse_ends(self, task: Task) -> None:
        """Refuse tasks, or warn of them, that end the change of a host without rescue and commit: its checkpoint would be left behind."""
        meta = str(task.args.get("_raw_params")) if task.action in C._ACTION_META else ""
        # A task file of the change runs inside our role, so end_role (ansible-core 2.18 and later) would end our role.
        if meta in _ENDS or (meta == "end_role" and self._role is not None and task._role is self._role):
            self._refuse(
                task,
                f"meta: {meta} would end the change without commit and rollback, and leave its checkpoint behind",
                "Use `when` on a block around the tasks that come after it, or move it after the role",
            )
        if meta == "flush_handlers" and not task.implicit:
            # Handlers do not inherit the connection keyword, and a fact for the whole change would send `connection: local` tasks to the guest.
            self.warnings.append(
                f"{task.get_path() or 'A task of the change'}: meta: flush_handlers runs handlers outside of the guard. A host that becomes unreachable "
                "in one of them is not rolled back, and its checkpoint is left behind. Remove the task: the role runs the handlers guarded, before the checks"
            )
        if meta == "clear_host_errors":
            self._refuse(
                task, "meta: clear_host_errors would make the run succeed although hosts have failed", "Move it after the role"
            )
        # Read from the source of the tasks: any_errors_fatal of the play does not apply to the change.
        written = [node.get_ds() for node in self._ancestry(task)]
        if not self._alone and any(isinstance(one, dict) and one.get("any_errors_fatal") is True for one in written):
            self._refuse(
                task,
                "any_errors_fatal would end the change of the other hosts in the middle",
                "Set it on the play: the play then ends after all hosts have ended their change",
            )
        if not self._alone and task.run_once is True and task.ignore_errors is not True:
            self._refuse(
                task,
                "run_once: when it fails, ansible-core drops the other hosts in the middle of their change",
                "Use `when: inventory_hostname == ansible_play_batch[0]` instead, or run the task outside of the role",
            )

    def _ancestry(self, task: t.Any) -> t.Iterator[t.Any]:
        """Yield the task and the blocks and includes around it in the files of the change."""
        while task is not None and task is not self._parent:
            yield task
            task = task._parent

    def _refuse(self, task: Task, why: str, remedy: str) -> t.NoReturn:
        where = task.get_path() or "a task"
        raise AnsibleActionFail(f"The option {self._option!r} cannot be used. {where}: {why}. {remedy}")

    def _is_conditional(self, task: t.Any) -> bool:
        """Return True if the task or a block around it in the change has a condition."""
        return any(one.when for one in self._ancestry(task))

    def _is_ours(self, path: str | None) -> bool:
        return (
            self._role is not None
            and path is not None
            and path != ""
            and os.path.realpath(path).startswith(os.path.realpath(self._role._role_path) + os.sep)
        )

    def _refuse_ours(self, name: str) -> t.NoReturn:
        raise AnsibleActionFail(
            f"The option {self._option!r} leads to an include of {name!r}, for which ansible-core would use the file with this name "
            f"in the role {self._role.get_name()}. Add the folder, as in '{{{{ playbook_dir }}}}/{name}'"
        )


def _message(exc: AnsibleError) -> str:
    """Return the message on one line, without the source excerpt that ansible-core 2.16 appends."""
    text = str(exc).split("The error appears to be in", 1)[0].split("The error appears to have been in", 1)[0]
    return " ".join(text.split())


def _position(exc: BaseException | None) -> str | None:
    """Return file and line of the error if ansible-core reports them."""
    while exc is not None:
        source = getattr(exc, "obj", None)
        position = getattr(source, "ansible_pos", None)  # until 2.18
        if position:
            return f"{position[0]}, line {position[1]}"
        origin = _origin(source)
        if origin is not None and origin.path:
            return f"{origin.path}, line {origin.line_num}" if origin.line_num else str(origin.path)
        exc = exc.__cause__
    return None


def _origin(source: t.Any) -> t.Any:
    """Return the origin tag of ansible-core 2.19 and later; there is no public API for it."""
    try:
        from ansible._internal._datatag._tags import Origin
    except ImportError:
        return None
    return source if isinstance(source, Origin) else Origin.get_tag(source)

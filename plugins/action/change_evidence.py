# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Save the evidence of a failed change on the controller. Documented in plugins/modules/change_evidence.py."""

from __future__ import annotations

import json
import os
import re
import tempfile
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

_LONGEST = 120


class ActionModule(ActionBase):
    """Runs on the controller only. The rollback waits for it, and the file modules took seconds (2 on ansible-core 2.16, 4 on 2.21)."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Write the files and return their paths."""
        super().run(tmp, task_vars)
        _dummy, options = self.validate_argument_spec(
            argument_spec={
                "folder": {"type": "path", "required": True},
                "name": {"type": "str", "required": True},
                "record": {"type": "dict", "required": True},
                "texts": {"type": "list", "elements": "list", "default": []},
            },
        )
        folder = os.path.join(self._loader.get_basedir(), options["folder"])
        record = {**options["record"], "files": [source for source, _text in options["texts"]]}
        contents = {".json": json.dumps(record, indent=4, sort_keys=True, default=str)}
        for source, text in options["texts"]:
            # File systems limit names to 255 bytes. The end of a path is more specific than its beginning.
            contents["-" + re.sub(r"[^A-Za-z0-9._-]+", "_", source)[-_LONGEST:]] = text.replace("\r\n", "\n")
        paths = [os.path.join(folder, options["name"] + suffix) for suffix in contents]
        if not self._task.check_mode:
            self._write(folder, dict(zip(paths, contents.values())))
        return {"changed": True, "paths": paths}

    def _write(self, folder: str, files: dict[str, str]) -> None:
        """Write as many of the files as possible.

        :raises AnsibleActionFail: a file could not be written.
        """
        problems = []
        try:
            os.makedirs(folder, exist_ok=True)
            os.chmod(folder, 0o700)
        except OSError as exc:
            problems.append(f"{exc.filename} cannot be written: {exc.strerror}")
            files = {}
        for path, text in files.items():
            try:
                self._write_one(path, text)
            except OSError as exc:
                problems.append(f"{path} cannot be written: {exc.strerror}")
        if problems:
            raise AnsibleActionFail(
                f"{'; '.join(problems)}. Allow this user to write to folder={folder!r}, or set another folder"
            )

    def _write_one(self, path: str, text: str) -> None:
        """Write a file atomically, readable only by its owner."""
        with tempfile.NamedTemporaryFile(
            "w", dir=os.path.dirname(path), delete=False, encoding="utf-8", errors="backslashreplace", newline=""
        ) as file:
            try:
                file.write(text + "\n")
                file.flush()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise

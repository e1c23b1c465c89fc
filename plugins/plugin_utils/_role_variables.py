# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find unknown variables of a role. Pure: no I/O."""

from __future__ import annotations

import difflib
import typing as t
from collections.abc import Iterable, Mapping


def known_variables(argument_specs: Mapping[str, t.Any]) -> set[str]:
    """Return the variables of all entry points. ``argument_specs``: the content of meta/argument_specs.yml."""
    return {name for spec in argument_specs["argument_specs"].values() for name in spec.get("options") or {}}


def unknown_variables(names: Iterable[str], *, role: str, known: Iterable[str], also: Iterable[str] = ()) -> str | None:
    """Return a message about the ``names`` that have the prefix of the ``role`` and are unknown, or None if there are none.

    :param role: the full name of the role; the prefix is its last part and an underscore.
    :param also: further allowed names. They are not suggested, since users do not set them.
    """
    prefix = role.rpartition(".")[2] + "_"
    options = set(known)
    unknown = sorted({name for name in names if name.startswith(prefix)} - options - set(also))
    if not unknown:
        return None
    said = []
    for name in unknown:
        # Compare without the prefix, which would make all names similar.
        like = difflib.get_close_matches(name[len(prefix) :], [one[len(prefix) :] for one in options], n=1)
        said.append(
            f"unknown variable {name}; "
            + (f"did you mean {prefix}{like[0]}?" if like else "the role has no variable with a similar name.")
        )
    return f"{' '.join(said)} Nothing was done. The variables of the role: ansible-doc -t role {role}"

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The variables of a role that it does not know. Pure."""

from __future__ import annotations

import difflib
import typing as t
from collections.abc import Iterable, Mapping


def known_variables(argument_specs: Mapping[str, t.Any]) -> set[str]:
    """The variables of all entry points, from the content of meta/argument_specs.yml."""
    return {name for spec in argument_specs["argument_specs"].values() for name in spec.get("options") or {}}


def unknown_variables(names: Iterable[str], *, role: str, known: Iterable[str], also: Iterable[str] = ()) -> str | None:
    """A sentence on each of the ``names`` that has the prefix of the ``role`` and is not known, or None when there is none.

    :param role: its full name; the prefix is its last part and an underscore.
    :param also: more names that are let through. They are not proposed, since they are not for the user to set.
    """
    prefix = role.rpartition(".")[2] + "_"
    options = set(known)
    unknown = sorted({name for name in names if name.startswith(prefix)} - options - set(also))
    if not unknown:
        return None
    said = []
    for name in unknown:
        # All of them have the prefix, which would make any two look alike.
        like = difflib.get_close_matches(name[len(prefix) :], [one[len(prefix) :] for one in options], n=1)
        said.append(
            f"unknown variable {name}; "
            + (f"did you mean {prefix}{like[0]}?" if like else "the role has no variable with a similar name.")
        )
    return f"{' '.join(said)} Nothing was done. The variables of the role: ansible-doc -t role {role}"

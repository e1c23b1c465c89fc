# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Check the texts in the options before anything else: refuse texts that cannot be stored, and texts that Ansible could not show.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import typing as t
from collections.abc import Collection, Iterator, Mapping

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption

Params = Mapping[str, t.Any]

# Options whose text is in the results, where Ansible would mask a secret in it.
_SHOWN = (
    "vm",
    "vms",
    "targets",
    "name",
    "name_pattern",
    "id",
    "description",
    "labels",
    "match_labels",
    "hold_by",
    "hold_reason",
    "owner",
    "policy",
    "change",
    "keep_labels",
)


def check_params(params: Params, secrets: Collection[str]) -> None:
    """Refuse options with a text that cannot be stored or that contains a secret, which Ansible would mask.

    :raises InvalidOption: names the option, but does not show the secret.
    """
    for option, value in params.items():
        for text in _texts(value):
            _check_text(option, text)
    for option in _SHOWN:
        for text in _texts(params.get(option)):
            if any(secret in text for secret in secrets):
                raise InvalidOption(
                    f"{option} contains the value of a secret option (password, token_secret or label_key). Ansible masks it in every result, so that "
                    f"ids and names would be wrong; use another {option}, or change the secret"
                )


def _texts(value: t.Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _texts(key)
            yield from _texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _check_text(option: str, text: str) -> None:
    # No API and no file system accepts these.
    if "\0" in text:
        raise InvalidOption(f"{option} contains a NUL character; remove it")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidOption(f"{option} contains an unpaired surrogate, which is not valid text; remove it")

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The owner class of a snapshot: ours, another owner's, a backup product's, or a person's. Pure: no I/O, no clock.

Note that this plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import re
import typing as t
from collections.abc import Mapping, Sequence

from ansible_collections.safepoint.vm.plugins.plugin_utils._report.model import OwnerClass


class Product(t.NamedTuple):
    """A product, and what the name or the description of its snapshots is like. Both patterns are searched for, upper and lower case alike."""

    name: str
    names: str | None = None
    descriptions: str | None = None


# Names that the products give, as far as they are told by their makers or by those who clean up after them (November 2026). People write
# the name of a product into the middle of a name ("before the Veeam upgrade"), so that at the beginning only it counts.
_KNOWN = (
    Product("Veeam", r"^veeam\b|^veeam_", r"being used by veeam"),  # veeam.com/kb1790
    Product("Commvault", r"^__GX_(BACKUP|FAILOVER|TESTBOOT)__"),
    Product("NetBackup", r"^NBU_SNAPSHOT"),
    Product("Backup Exec", r"^SYMC-(FULL|INCR|DIFF)\b"),
    Product("IBM Storage Protect", r"^TSM-VM\b"),
    Product("VMware VCB", r"^_VCB-BACKUP_"),
    Product("VMware, left behind by a consolidation", r"^Consolidate Helper-? ?\d*"),
    Product("vzdump", r"^vzdump$"),  # what Proxmox VE's own backup takes of a container
    Product("Proxmox VE replication", r"^__replicate_"),
)
_WORDS = (
    "Acronis",
    "Altaro",
    "Arcserve",
    "Avamar",
    "Bacula",
    "Cohesity",
    "Commvault",
    "Dell PowerProtect",
    "Druva",
    "HYCU",
    "NAKIVO",
    "NetBackup",
    "NetWorker",
    "Rubrik",
    "Storware",
    "Unitrends",
    "Veeam",
    "Vembu",
    "Vinchin",
    "vRanger",
    "Zerto",
)


def products(patterns: Sequence[Mapping[str, t.Any]]) -> list[Product]:
    """The products that are known, those of the user first.

    :raises ValueError: a pattern of the user is none, or says nothing; names it.
    """
    own = []
    for one in patterns:
        product = Product(str(one.get("product") or ""), one.get("name"), one.get("description"))
        if not product.name or not (product.names or product.descriptions) or set(one) - {"product", "name", "description"}:
            raise ValueError(
                f"{dict(one)!r} is no pattern; it has a product, and a name or a description, which are regular expressions"
            )
        for pattern in product[1:]:
            try:
                re.compile(pattern or "")
            except re.error as exc:
                raise ValueError(f"{pattern!r}, the pattern of {product.name}, is no regular expression: {exc}") from exc
        own.append(product)
    worded = [Product(word, rf"^[\W_]*{re.escape(word)}(?![a-z])", rf"\bby {re.escape(word)}\b") for word in _WORDS]
    return [*own, *_KNOWN, *worded]


def owner_class(snapshot: Mapping[str, t.Any], known: Sequence[Product]) -> tuple[OwnerClass, str | None]:
    """The owner class, and the name of the owner or product where that is known."""
    if snapshot.get("ours"):
        return "ours", None
    label = snapshot.get("label")
    if label:
        return "other_owner", str(label.get("owner"))
    for product in known:
        for pattern, text in ((product.names, snapshot.get("name")), (product.descriptions, snapshot.get("description"))):
            if pattern and text and re.search(pattern, str(text), re.IGNORECASE):
                return "backup", product.name
    return "person", None

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which calls there are, what each takes, and who may make it."""

from __future__ import annotations

import collections.abc
import dataclasses
import typing as t
from collections.abc import Mapping, Sequence

from pve_cluster import Cluster, Place
from pve_errors import Refused, bad_parameters
from pve_schema import IN_PATH, Parameter, validate


@dataclasses.dataclass
class Call:
    """One request, as the code behind a path sees it: who makes it, and with which values."""

    cluster: Cluster
    user: str
    values: dict[str, t.Any]
    # qemu or lxc, of the paths that begin with it.
    type: str = ""

    @property
    def place(self) -> Place:
        """Where the request looks for its guest."""
        return Place(self.values["vmid"], self.type, self.values["node"])

    def allowed(self, path: str, *privileges: str, pool: str | None = None) -> bool:
        """Whether its user has one of `privileges` at `path`."""
        return self.cluster.access.allowed(self.user, path, *privileges, pool=pool)

    def allowed_guest(self, vmid: int, *privileges: str) -> bool:
        """The same for a guest."""
        return self.allowed(f"/vms/{vmid}", *privileges, pool=self.cluster.pool_of(vmid))


@dataclasses.dataclass(frozen=True)
class Rows:
    """A list that is a part of a longer one."""

    rows: list[dict[str, t.Any]]
    total: int


# A coroutine is awaited, and takes the cluster's lock itself; a plain function is called while it is held.
Handler = collections.abc.Callable[[Call], t.Any]


@dataclasses.dataclass(frozen=True)
class Route:
    """A call. `privileges`: one of them is needed on the guest. `hand_on`: the node of the path answers it, not the one asked."""

    method: str
    path: str
    handler: Handler
    parameters: Mapping[str, Parameter]
    privileges: Sequence[str] = ()
    hand_on: bool = True
    type: str = ""
    # Takes parameters that the schema does not name, and looks at them itself.
    open: bool = False

    def prepare(self, cluster: Cluster, user: str, in_path: Mapping[str, str], given: Mapping[str, str]) -> Call:
        """All that is checked before the code of the call, in the order of pve-manager 9.2.11: rights, node, parameters."""
        for name, value in given.items():
            if name in in_path and in_path[name] != value:
                raise bad_parameters({name: "duplicate parameter (already defined in URI with conflicting values)"})
        if self.privileges:
            vmid = in_path["vmid"]
            pool = cluster.pool_of(int(vmid)) if vmid.isdecimal() else None
            cluster.access.check(user, f"/vms/{vmid}", self.privileges, pool)
        if in_path.get("node") == "localhost":
            in_path = {**in_path, "node": cluster.nodes[0]}
        if self.hand_on and "node" in in_path:
            cluster.reach(in_path["node"])
        known = {name: IN_PATH[name] for name in in_path} | dict(self.parameters)
        values = {**given, **in_path}
        if self.open:
            known |= {name: Parameter() for name in values if name not in known}
        return Call(cluster, user, validate(known, values), self.type)


class Routes:
    """All calls by method and path."""

    def __init__(self) -> None:
        self._routes: dict[tuple[str, int], list[tuple[list[str], Route]]] = {}

    def add(self, method: str, path: str, **options: t.Any) -> collections.abc.Callable[[Handler], Handler]:
        """Decorate the code of a call; `{type}` in the path makes it two, one for VMs and one for containers."""

        def decorate(handler: Handler) -> Handler:
            for guest_type in ("qemu", "lxc") if "{type}" in path else ("",):
                real = path.replace("{type}", guest_type)
                parts = real.strip("/").split("/")
                chosen = dict(options)
                by_type = chosen.pop("parameters", {})
                parameters = by_type(guest_type) if callable(by_type) else by_type
                route = Route(method, real, handler, parameters, type=guest_type, **chosen)
                self._routes.setdefault((method, len(parts)), []).append((parts, route))
            return handler

        return decorate

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The call, and what stands in the path for its placeholders."""
        parts = [part for part in path.split("/") if part]
        for pattern, route in self._routes.get((method, len(parts)), ()):
            if all(one.startswith("{") or one == part for one, part in zip(pattern, parts, strict=True)):
                return route, {one[1:-1]: part for one, part in zip(pattern, parts, strict=True) if one.startswith("{")}
        return None


routes = Routes()


def not_implemented(method: str, path: str) -> Refused:
    """501, which is also the answer to a path that does not exist."""
    return Refused(501, f"Method '{method} {path}' not implemented")

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table of API calls, with their parameters and privileges."""

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
    """One request with its user and values, for the handler of a path."""

    cluster: Cluster
    user: str
    values: dict[str, t.Any]
    # qemu or lxc, from the path.
    type: str = ""

    @property
    def place(self) -> Place:
        """Return the location of the guest according to the request."""
        return Place(self.values["vmid"], self.type, self.values["node"])

    def allowed(self, path: str, *privileges: str, pool: str | None = None) -> bool:
        """Return True if its user has one of `privileges` at `path`."""
        return self.cluster.access.allowed(self.user, path, *privileges, pool=pool)

    def allowed_guest(self, vmid: int, *privileges: str) -> bool:
        """The same for a guest."""
        return self.allowed(f"/vms/{vmid}", *privileges, pool=self.cluster.pool_of(vmid))


@dataclasses.dataclass(frozen=True)
class Rows:
    """One page of a longer list."""

    rows: list[dict[str, t.Any]]
    total: int


# A coroutine is awaited and takes the cluster's lock itself; a function is called with the lock held.
Handler = collections.abc.Callable[[Call], t.Any]


@dataclasses.dataclass(frozen=True)
class Route:
    """A call. `privileges`: one of them is needed on the guest. `hand_on`: forwarded to the node in the path."""

    method: str
    path: str
    handler: Handler
    parameters: Mapping[str, Parameter]
    privileges: Sequence[str] = ()
    hand_on: bool = True
    type: str = ""
    # Accepts parameters that are not in the schema, and checks them itself.
    open: bool = False

    def prepare(self, cluster: Cluster, user: str, in_path: Mapping[str, str], given: Mapping[str, str]) -> Call:
        """Run the checks before the handler, in the order of pve-manager 9.2.11: privileges, node, parameters."""
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
        """Register the handler of a call; a path with `{type}` is registered for VMs and for containers."""

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
        """Return the call, and the values of the placeholders in the path."""
        parts = [part for part in path.split("/") if part]
        for pattern, route in self._routes.get((method, len(parts)), ()):
            if all(one.startswith("{") or one == part for one, part in zip(pattern, parts, strict=True)):
                return route, {one[1:-1]: part for one, part in zip(pattern, parts, strict=True) if one.startswith("{")}
        return None


routes = Routes()


def not_implemented(method: str, path: str) -> Refused:
    """501, also the answer for an unknown path."""
    return Refused(501, f"Method '{method} {path}' not implemented")

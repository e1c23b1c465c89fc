# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Users, tokens, tickets and privileges."""

from __future__ import annotations

import base64
import dataclasses
import os
import time
import typing as t
import uuid
from collections.abc import Mapping, Sequence, Set

from pve_errors import Refused, forbidden

ROOT = "root@pam"
PRIVILEGES = frozenset(
    f"{kind}.{name}"
    for kind, names in {
        "Datastore": "Allocate AllocateSpace AllocateTemplate Audit",
        "Permissions": "Modify",
        "Pool": "Allocate Audit",
        "SDN": "Allocate Audit Use",
        "Sys": "AccessNetwork Audit Console Incoming Modify PowerMgmt Syslog",
        "User": "Modify",
        "VM": "Allocate Audit Backup Clone Config.CDROM Config.CPU Config.Cloudinit Config.Disk Config.HWType Config.Memory "
        "Config.Network Config.Options Console Migrate PowerMgmt Replicate Snapshot Snapshot.Rollback",
    }.items()
    for name in names.split()
)
Rights = Mapping[str, Set[str]]


@dataclasses.dataclass
class Token:
    """An API token. With `privsep` it has only the privileges that both it and its user have."""

    secret: str
    privsep: bool
    privileges: dict[str, frozenset[str]]


@dataclasses.dataclass
class User:
    """A user with privileges by path."""

    password: str
    privileges: dict[str, frozenset[str]]
    tokens: dict[str, Token] = dataclasses.field(default_factory=dict)


class Access:
    """All users of a cluster, and their tickets."""

    def __init__(self, root_password: str) -> None:
        self.users = {ROOT: User(root_password, {"/": PRIVILEGES})}
        self.ticket_seconds = 7200.0
        self._tickets: dict[str, tuple[str, str, float]] = {}

    def add_user(self, userid: str, password: str, privileges: Rights) -> None:
        """Add a user."""
        self.users[userid] = User(password, _frozen(privileges))

    def add_token(self, tokenid: str, secret: str | None, *, privsep: bool, privileges: Rights) -> str:
        """Add a token for a user and return its secret."""
        userid, _, name = tokenid.partition("!")
        token = Token(secret or str(uuid.uuid4()), privsep, _frozen(privileges))
        self.users[userid].tokens[name] = token
        return token.secret

    # -- login ---------------------------------------------------------------------------------------------------------

    def log_in(self, userid: str, password: str) -> dict[str, t.Any]:
        """Issue a ticket for a password, or renew a ticket of the same user."""
        user = self.users.get(userid)
        if user is None or not (password == user.password or self._ticket_user(password) == userid):
            raise Refused(401, "authentication failure\n")
        moment = f"{int(time.time()):08X}"
        ticket = f"PVE:{userid}:{moment}::{base64.b64encode(os.urandom(48)).decode()}"
        csrf = f"{moment}:{base64.b64encode(os.urandom(24)).decode()}"
        self._tickets[ticket] = (userid, csrf, time.monotonic())
        return {
            "username": userid,
            "ticket": ticket,
            "CSRFPreventionToken": csrf,
            "clustername": "safepoint",
            "cap": {"vms": dict.fromkeys(sorted(self.privileges(userid, "/vms")), 1)},
        }

    def expire_tickets(self) -> None:
        """Invalidate all tickets."""
        self._tickets.clear()

    def identify(self, method: str, *, authorization: str, ticket: str, csrf: str) -> str:
        """Return the user, or the full id of the token, that sent a request; Refused with 401."""
        if authorization.startswith("PVEAPIToken="):
            tokenid, _, secret = authorization.removeprefix("PVEAPIToken=").partition("=")
            userid, _, name = tokenid.partition("!")
            token = self.users[userid].tokens.get(name) if userid in self.users else None
            if token is None or token.secret != secret:
                raise Refused(401, "Authentication failed!", bare=True)
            return tokenid
        if not ticket:
            raise Refused(401, "No ticket", bare=True)
        found = self._ticket_user(ticket)
        if found is None:
            raise Refused(401, "Authentication failed!", bare=True)
        if method != "GET" and csrf != self._tickets[ticket][1]:
            raise Refused(401, "Permission denied - invalid csrf token", bare=True)
        return found

    def _ticket_user(self, ticket: str) -> str | None:
        userid, _, given = self._tickets.get(ticket, ("", "", 0.0))
        return userid if userid and time.monotonic() - given < self.ticket_seconds else None

    # -- privileges ----------------------------------------------------------------------------------------------------

    def privileges(self, who: str, path: str, pool: str | None = None) -> frozenset[str]:
        """Return the privileges of a user or token at `path`, including those on the pool of a guest."""
        userid, _, name = who.partition("!")
        user = self.users.get(userid)
        if user is None:
            return frozenset()
        owned = _at(user.privileges, path, pool)
        if not name:
            return owned
        token = user.tokens.get(name)
        if token is None:
            return frozenset()
        return owned & _at(token.privileges, path, pool) if token.privsep else owned

    def allowed(self, who: str, path: str, *privileges: str, pool: str | None = None) -> bool:
        """Return True if the user or token has one of `privileges` at `path`."""
        return who == ROOT or not self.privileges(who, path, pool).isdisjoint(privileges)

    def check(self, who: str, path: str, privileges: Sequence[str], pool: str | None = None) -> None:
        """Raise Refused with 403 unless the user or token has one of `privileges` at `path`."""
        if not self.allowed(who, path, *privileges, pool=pool):
            raise forbidden(path, privileges)

    def permissions(self, who: str, path: str | None) -> dict[str, dict[str, int]]:
        """Return all privileges by path; paths without any are left out."""
        userid, _, name = who.partition("!")
        user = self.users[userid]
        paths = {"/", "/access", "/nodes", "/pool", "/sdn", "/storage", "/vms", *user.privileges}
        if name in user.tokens:
            paths |= set(user.tokens[name].privileges)
        rights = {one: self.privileges(who, one) for one in sorted(paths if path is None else {path})}
        return {one: dict.fromkeys(sorted(given), 1) for one, given in rights.items() if given}


def _frozen(privileges: Rights) -> dict[str, frozenset[str]]:
    for path, given in privileges.items():
        unknown = set(given) - PRIVILEGES
        if unknown:
            raise ValueError(f"There is no privilege {', '.join(sorted(unknown))}, as {path} shall have")
    return {path: frozenset(given) for path, given in privileges.items()}


def _at(rights: dict[str, frozenset[str]], path: str, pool: str | None) -> frozenset[str]:
    """Privileges are inherited; those on a deeper path replace the inherited ones (pve-access-control 9.1.1)."""
    best = frozenset[str]()
    at = path
    while True:
        if at in rights:
            best = rights[at]
            break
        if at == "/":
            break
        at = at.rpartition("/")[0] or "/"
    return best | rights.get(f"/pool/{pool}", frozenset()) if pool else best

"""How commands show grants and authority requests, as texts and JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import click

from aether_trio.client.operations import Principal
from aether_trio.client.operations.grant_values import Grant
from aether_trio.client.operations.requests import AuthorityRequest
from aether_trio.model.access import AccessLevel

ANYTHING: Final = "any"
_UNITS: Final = {"s": 1, "m": 60, "h": 3600}
_DURATION: Final = re.compile(r"([1-9][0-9]{0,8})([smh]?)")


def parse_duration(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    """Parse the time span of an option: "90", "90s", "15m", "1h". Raises BadParameter."""
    if value is None:
        return None
    found = _DURATION.fullmatch(value)
    if found is None:
        raise click.BadParameter(f"{value!r} is not a time such as 90s, 15m or 1h")
    return timedelta(seconds=int(found[1]) * _UNITS[found[2] or "s"])


def when(moment: datetime | None) -> str:
    """Return a time as tables show it."""
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def who(principal: Principal | None) -> str:
    """Return a principal as tables show it."""
    return "" if principal is None else str(principal)


def scope_text(grant: Grant | AuthorityRequest) -> str:
    """Return workspaces, resources and operations of a grant or of a request."""
    resources = [
        f"{one.resource_type}:{pattern}" for one in grant.resource_scope for pattern in one.patterns or (ANYTHING,)
    ]
    parts = (("in", grant.workspace_scope), ("on", resources), ("to", grant.operation_scope))
    return ", ".join(f"{word} {_listed(names)}" for word, names in parts if names) or ANYTHING


def _listed(names: Sequence[str]) -> str:
    return " ".join(names)


def level_text(level: AccessLevel | None) -> str:
    """Return an access level as tables show it."""
    return "" if level is None else level.name.lower()


def state_of(grant: Grant, now: datetime) -> str:
    """Return whether a grant is valid, has expired, or was revoked."""
    if grant.revoked:
        return "revoked"
    return "expired" if grant.expires_at is not None and grant.expires_at <= now else "valid"

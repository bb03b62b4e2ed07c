"""Decides whether a session may rest on another credential from now on.

What is wider than before takes a new connection, which others see: so no session grows silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aether_trio.model.access.patterns import PatternError
from aether_trio.model.api_tokens import EVERY, contained
from aether_trio.model.errors import Status, StatusError
from aether_trio.session.init_connection import Authenticated

_CERTIFICATE: Final = "certificate:"


def check_renewal(before: Authenticated, after: Authenticated) -> None:
    """Refuse a renewal that proves nothing, or is wider. Raises StatusError."""
    if not after.credential or after.credential.startswith(_CERTIFICATE):
        why = "a renewal shows an API key, an API token or a JSON Web Token; a certificate belongs to the connection"
        raise StatusError(Status.UNAUTHENTICATED, why)
    if before.token or after.token:
        raise StatusError(Status.FAILED_PRECONDITION, "a task token lasts as long as its task, and is not renewed")
    wider = _wider(before, after)
    if wider is not None:
        why = f"a renewal is no wider than the session: the new credential has {wider}; connect again to use it"
        raise StatusError(Status.PERMISSION_DENIED, why)


def _wider(before: Authenticated, after: Authenticated) -> str | None:
    """Return what the new credential has more, in words, or None."""
    if after.cap > before.cap:
        return f"the level {after.cap.name}, and the session has {before.cap.name}"
    if groups := set(after.groups) - set(before.groups):
        return f"the group {min(groups)}"
    if not _within(after.accepted.workspace_limits, before.accepted.workspace_limits):
        return "more workspaces"
    if not _within(after.accepted.identity_limits, before.accepted.identity_limits):
        return "more identities"
    if not {*before.makers, *before.creators} <= {*after.makers, *after.creators}:
        return "another maker"
    return None


def _within(inner: Sequence[Sequence[str]], outer: Sequence[Sequence[str]]) -> bool:
    """Whether each outer limit holds all that one of the inner limits lets through."""
    try:
        return all(any(contained(one, limit) is None for one in (*inner, (EVERY,))) for limit in outer)
    except PatternError:
        return False

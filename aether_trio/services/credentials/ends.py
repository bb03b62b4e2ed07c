"""Ends sessions whose credential was revoked, or left the settings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import structlog

from aether_trio.model.errors import Status
from aether_trio.services.credentials.checker import CredentialChecker, token_key_of
from aether_trio.session.registry import SessionRegistry
from aether_trio.session.session import Session

logger = structlog.get_logger("aether.credentials")


class CredentialEnds:
    """Ends this node's sessions with what let them in."""

    def __init__(self, credentials: CredentialChecker, registry: SessionRegistry) -> None:
        self._credentials = credentials
        self._registry = registry
        self.ended = 0
        """How many sessions were ended since the start."""

    def tokens_changed(self, items: Sequence[tuple[str, Any]], everything: bool) -> None:
        """Apply a change of API tokens; `everything`: the items are all live tokens."""
        if everything:
            live = {token_id for token_id, _ in items}
            ended = {one.origin for one in self._registry if one.origin} - live
        else:
            ended = {token_id for token_id, value in items if value is None or value.get("revoked_ms")}
        for token_id in ended:
            self._credentials.token_ended(token_id)
        if ended:
            self._end(one for one in self._registry if one.origin in ended)

    def end_sessions(self, untrusted: Collection[bytes] = (), replaced: Collection[str] = ()) -> int:
        """End each session whose credential has ended; return how many.

        `untrusted` are names of authorities that are not trusted any more, `replaced` ids of keys
        of API tokens that stand for other keys now.
        """
        return self._end(self._registry, untrusted, replaced)

    def _end(
        self, sessions: Iterable[Session], untrusted: Collection[bytes] = (), replaced: Collection[str] = ()
    ) -> int:
        count = 0
        for session in sessions:
            certificate = session.link.peer.certificate
            problem = self._credentials.ended(session.accepted, certificate)
            if certificate is not None and certificate.issuer in untrusted:
                problem = "the authority of this session's client certificate is not trusted any more"
            if replaced and token_key_of(session.accepted) in replaced:
                problem = "the key of the API token by which this session is here was replaced by another"
            if problem is not None:
                session.end(Status.UNAUTHENTICATED, problem)
                count += 1
        self.ended += count
        if count:
            logger.info("sessions ended with their credentials", sessions=count)
        return count

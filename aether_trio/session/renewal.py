"""Lets a client show a fresh credential in the stream, before its session ends.

A client that has declared CREDENTIAL_RENEWAL is told in its ConnectionAck how long its session
lasts. Before that it sends another InitConnection, with credentials and no identity. The answer is
a ConnectionAck with this one extension: `supported` says whether the credentials are accepted,
`version` when the session ends now.

Invariants: a renewal is checked as a connection is, and while it is the session's other messages
are handled. One of a session is checked at a time. A refusal changes nothing: the session ends when
it would have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog

from aether_trio.model.errors import Status, StatusError
from aether_trio.session.dependencies import SessionDependencies
from aether_trio.session.init_connection import CREDENTIAL_RENEWAL, renewed_credentials
from aether_trio.session.session import Session
from aether_trio.storage.base import StorageUnavailable
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.session")

_NEVER: Final = 0


def left_ms(session: Session, now_ms: int) -> int:
    """Return how long a session lasts, in ms and at least 1; 0 if it has no end."""
    return max(session.expires_ms - now_ms, 1) if session.expires_ms else _NEVER


def tell_end(ack: pb.ConnectionAck, left: int) -> None:
    """Write the end of a session into the answer to its client's declaration."""
    for one in ack.negotiated_extensions:
        if one.uri == CREDENTIAL_RENEWAL:
            one.version = str(left)


class Renewals:
    """Checks the fresh credentials that the clients of a gateway show."""

    def __init__(self, dependencies: SessionDependencies) -> None:
        self._hooks = dependencies.hooks
        self._limits = dependencies.limits
        self._clock = dependencies.clock
        self._rates = dependencies.rates

    def begin(self, session: Session, init: pb.InitConnection) -> None:
        """Check the credentials of a renewal, beside the session's other messages."""
        assert session.nursery is not None
        if (over := self._rates.request_refusal(session.requests)) is not None:
            self._answer(session, StatusError(Status.RESOURCE_EXHAUSTED, over.message))
        elif session.renewing:
            self._answer(session, StatusError(Status.ALREADY_EXISTS, "a renewal of this session is being checked"))
        else:
            try:
                credentials = renewed_credentials(init, self._limits)
            except StatusError as error:
                self._answer(session, error)
                return
            session.renewing = True
            session.nursery.start_soon(self._renew, session, credentials, name="renewal")

    async def _renew(self, session: Session, credentials: Mapping[str, str]) -> None:
        refusal: StatusError | None = None
        try:
            await self._hooks.renew(session, credentials)
        except StatusError as error:
            refusal = error
        except StorageUnavailable as error:
            refusal = StatusError(Status.UNAVAILABLE, f"the gateway's storage does not answer: {error}")
        finally:
            session.renewing = False
        if session.ending is None:
            self._answer(session, refusal)

    def _answer(self, session: Session, refusal: StatusError | None) -> None:
        if refusal is not None:
            logger.info("renewal refused", session=session.who, status=refusal.status.name, reason=refusal.message)
        answer = pb.NegotiatedExtension(
            uri=CREDENTIAL_RENEWAL,
            version=str(left_ms(session, self._clock.now_ms())),
            supported=refusal is None,
            rejection_reason="" if refusal is None else f"{refusal.status.name}: {refusal.message}",
        )
        ack = pb.ConnectionAck(session_id=session.session_id, negotiated_extensions=[answer])
        session.put(pb.DownstreamMessage(connection_ack=ack))

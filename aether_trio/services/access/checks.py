"""Answers clients that ask whether an access is allowed.

`success` says that a verdict was reached, and not that it is yes. A receipt names its decision:
the audit row with that `decision_id` says the same, so while the audit log takes no row there is no
receipt. An access without a level asks for READ. Each access of a batch counts as a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import trio

from aether_trio.model.access.rules import RuleError
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.text import TextError
from aether_trio.model.token_bucket import TokenBucket
from aether_trio.services.access.authorizer import Actor, Authority
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from aether_trio.session.session import Session
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.outages import outage
from aether_trio.wire.error_response import error_response
from aether_trio.wire.pb import aether_pb2 as pb

MAX_BATCH: Final = 100
SLICE: Final = 16
"""Accesses that are decided in one step."""


class RequestRates(Protocol):
    """Counts the requests of connections."""

    def request_refusal(self, bucket: TokenBucket, times: int = 1) -> RequestError | None:
        """Count `times` requests; return the error if their connection makes too many."""


class AccessChecks:
    """Handles `access_check` and `batch_access_check`."""

    def __init__(self, authorizer: RuleAuthorizer, rates: RequestRates) -> None:
        self._authorizer = authorizer
        self._rates = rates

    async def check(self, session: Session, op: pb.AccessCheckOperation) -> Sequence[pb.DownstreamMessage]:
        """Answer one question."""
        answer = pb.AccessCheckResponse(request_id=op.request_id)
        try:
            authority = await self._authority(session, op)
            answer.decision.CopyFrom(self._authorizer.receipt(session, op.access, authority))
            answer.success = True
        except (RequestError, RuleError, TextError, StorageUnavailable) as error:
            answer.error, refusal = _explained(error, op.request_id)
            return [pb.DownstreamMessage(access_check_response=answer), refusal]
        return [pb.DownstreamMessage(access_check_response=answer)]

    async def check_all(self, session: Session, op: pb.BatchAccessCheckOperation) -> Sequence[pb.DownstreamMessage]:
        """Answer up to MAX_BATCH questions, in their order."""
        answer = pb.BatchAccessCheckResponse(request_id=op.request_id)
        try:
            if not 1 <= len(op.access) <= MAX_BATCH:
                raise RequestError(
                    Code.INVALID_ARGUMENT, f"a batch has 1 to {MAX_BATCH} access checks, not {len(op.access)}"
                )
            too_many = self._rates.request_refusal(session.requests, len(op.access) - 1)
            if too_many is not None:
                raise too_many
            for start in range(0, len(op.access), SLICE):
                if start:
                    await trio.lowlevel.checkpoint()
                authority = await self._authority(session, op)  # what it rests on may have ended
                for one in op.access[start : start + SLICE]:
                    answer.decisions.append(self._authorizer.receipt(session, one, authority))
            answer.success = True
        except (RequestError, RuleError, TextError, StorageUnavailable) as error:
            answer.ClearField("decisions")
            answer.error, refusal = _explained(error, op.request_id)
            return [pb.DownstreamMessage(batch_access_check_response=answer), refusal]
        return [pb.DownstreamMessage(batch_access_check_response=answer)]

    async def _authority(self, actor: Actor, op: pb.AccessCheckOperation | pb.BatchAccessCheckOperation) -> Authority:
        return await self._authorizer.authority(actor, op.authorization if op.HasField("authorization") else None)


def _explained(error: Exception, request_id: str) -> tuple[str, pb.DownstreamMessage]:
    if isinstance(error, StorageUnavailable):
        refusal = outage(error)
    else:
        refusal = error if isinstance(error, RequestError) else RequestError(Code.INVALID_ARGUMENT, str(error))
    return str(refusal), error_response(refusal, request_id)

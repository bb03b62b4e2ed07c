"""Answers clients that ask whether an access is allowed.

`success` says that a verdict was reached, and not that it is yes. A receipt names its decision:
the audit row with that `decision_id` says the same. An access without a level asks for READ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aether_trio.model.access.rules import RuleError
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.text import TextError
from aether_trio.services.access.authorizer import Actor, Authority
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from aether_trio.session.session import Session
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.outages import outage
from aether_trio.wire.error_response import error_response
from aether_trio.wire.pb import aether_pb2 as pb

MAX_BATCH: Final = 100


class AccessChecks:
    """Handles `access_check` and `batch_access_check`."""

    def __init__(self, authorizer: RuleAuthorizer) -> None:
        self._authorizer = authorizer

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
            authority = await self._authority(session, op)
            answer.decisions.extend([self._authorizer.receipt(session, one, authority) for one in op.access])
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

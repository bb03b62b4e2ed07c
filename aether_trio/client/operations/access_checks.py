"""`agent.access`: asks if an access is allowed; "no" is an answer, not an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from aether_trio.client.message import MessageType
from aether_trio.client.operations.enums import ContinuationMode
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.principals import (
    AccessLevel,
    Authorization,
    Principal,
    ResourceScope,
    authorization_context,
)
from aether_trio.client.operations.records import Millis, Wire, read, write
from aether_trio.wire.pb import aether_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRequest:
    """An access to be checked; `workspace` is where the resource is, "" if in none."""

    resource_type: str
    resource_id: str
    operation: str
    workspace: str = ""
    required_access_level: AccessLevel = AccessLevel.NONE
    correlation_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessVerdict:
    """The gateway's verdict on one access: allowed or not, for whom, and why."""

    decision_id: str
    request: AccessRequest | None
    allowed: bool
    decision: str
    """A word for how it was reached."""
    effective_access_level: AccessLevel
    actor: Principal | None
    subject: Principal | None
    root_subject: Principal | None
    authority_mode: str
    grant_id: str
    root_grant_id: str
    evaluated_at: Annotated[Millis, Wire("evaluated_at_ms", "ms")]
    expires_at: Annotated[Millis, Wire("expires_at_ms", "ms")]
    denial_code: str
    """Only when not allowed."""
    delivery_target: str
    """The only receiver it is meant for, when it travels with a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuationScope:
    """Limits of the authority that a message passes on to its receiver."""

    workspace_scope: tuple[str, ...] = ()
    resource_scope: tuple[ResourceScope, ...] = ()
    operation_scope: tuple[str, ...] = ()
    max_access_level: AccessLevel = AccessLevel.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """How a message passes its sender's delegated authority on to the receiver."""

    mode: Annotated[ContinuationMode, Wire("scope_mode")] = ContinuationMode.INHERIT_PARENT
    binding_id: str = ""
    """Ties the continuation to one exchange; echoed on the delivery."""
    scope: ContinuationScope | None = None
    """With ATTENUATE: no more than this."""


class Access(Namespace):
    """Checks accesses to resources, and sends messages on condition of a check."""

    async def check(self, access: AccessRequest, *, authorization: Authorization | None = None) -> AccessVerdict:
        """Ask whether an access is allowed. Raises Refused if no verdict is reached."""
        op = pb.AccessCheckOperation(access=access_message(access), authorization=authorization_context(authorization))
        answer: pb.AccessCheckResponse = await self._ask("access_check", op)
        return read(AccessVerdict, answer.decision)

    async def check_all(
        self, accesses: Sequence[AccessRequest], *, authorization: Authorization | None = None
    ) -> tuple[AccessVerdict, ...]:
        """Ask for the verdicts on up to 100 accesses, in the same order."""
        op = pb.BatchAccessCheckOperation(
            access=[access_message(one) for one in accesses], authorization=authorization_context(authorization)
        )
        answer: pb.BatchAccessCheckResponse = await self._ask("batch_access_check", op)
        return tuple(read(AccessVerdict, one) for one in answer.decisions)

    async def send_checked(
        self,
        topic: str,
        payload: bytes,
        access: AccessRequest,
        *,
        message_type: MessageType = MessageType.OPAQUE,
        app_workspace: str = "",
        continuation: Continuation | None = None,
        authorization: Authorization | None = None,
    ) -> None:
        """Send a message, with the verdict, if an access is allowed. Raises the refusal."""
        message = pb.SendMessage(
            target_topic=topic,
            payload=payload,
            message_type=pb.MessageType.ValueType(message_type),
            authorization=authorization_context(authorization),
            app_workspace=app_workspace,
            checked_access=access_message(access),
        )
        if continuation is not None:
            message.authority_continuation.CopyFrom(write(continuation, pb.AuthorityContinuationRequest()))
        await self._tell_confirmed("send", message)


def access_message(access: AccessRequest) -> pb.ResourceAccessRequest:
    """Convert an AccessRequest to its protobuf message."""
    return write(access, pb.ResourceAccessRequest())

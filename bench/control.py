"""Ask a gateway as a user: tokens, grants, revocations, locks.

These messages are few, so they are the protobuf runtime's, not laid by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import time
from typing import Any, Final

from aether_trio.wire.pb import aether_pb2 as pb
from bench.world import Participant, ScenarioFailed, World

READWRITE: Final = 20
GRANT_SECONDS: Final = 86_400
AT_ONCE: Final = 16
"""Requests in flight where many are made."""
ADMINISTRATOR: Final = "admin"
"""A user with all rights in a new database; dev asks for no credential."""


class UserWindow:
    """A connected user, who makes requests and waits for their answers."""

    def __init__(self, world: World, user_id: str = ADMINISTRATOR) -> None:
        self._world = world
        self._number = 0
        self._answered: dict[str, Callable[[Any], None]] = {}
        init = pb.InitConnection(user=pb.UserIdentity(user_id=user_id, window_id="bench"), client_sdk="bench")
        init.credentials.update(world.options.credentials)
        (self._window,) = world.open([pb.UpstreamMessage(init=init).SerializeToString()], f"user {user_id}")
        self._window.handler = self._received

    def begin(self, case: str, operation: Any, answered: Callable[[Any], None]) -> None:
        """Send a request in field `case`; `answered` gets its typed answer."""
        self._number += 1
        operation.request_id = f"bench-{self._number}"
        self._answered[operation.request_id] = answered
        self._window.send(pb.UpstreamMessage(**{case: operation}).SerializeToString())

    def ask(self, case: str, operations: Sequence[Any]) -> list[Any]:
        """Make requests, some at once; return their answers in order.

        Raises ScenarioFailed for one that is refused.
        """
        answers: list[Any] = [None] * len(operations)
        begun = done = 0

        def answered(number: int, answer: Any) -> None:
            nonlocal done
            answers[number] = answer
            done += 1

        def all_answered() -> bool:
            nonlocal begun
            while begun < len(operations) and begun - done < AT_ONCE:
                number, begun = begun, begun + 1
                self.begin(case, operations[number], lambda answer, number=number: answered(number, answer))
            return done == len(operations)

        self._world.wait(all_answered, f"{case}: answers")
        for answer in answers:
            if not answer.success:
                raise ScenarioFailed(f"{case} is refused: {answer.error}")
        return answers

    def _received(self, window: Participant, messages: list[bytes]) -> None:
        for message in messages:
            read = pb.DownstreamMessage.FromString(message)
            case = read.WhichOneof("payload")
            answer = getattr(read, case) if case else None
            answered = self._answered.pop(getattr(answer, "request_id", ""), None) if case != "error" else None
            if answered is not None:
                answered(answer)
            else:
                self._world.other(window, message)


def create_tokens(administrator: UserWindow, count: int, workspace: str) -> list[tuple[str, str]]:
    """Make API tokens for all agents of a workspace; return (id, secret) of each."""
    wanted = pb.TokenCreateRequest(name="bench", principal_type="agent", workspace_patterns=[workspace])
    create = pb.TokenOperation.CREATE
    operations = [pb.TokenOperation(op=create, create_request=wanted) for _ in range(count)]
    return [(one.created_token.id, one.plaintext_token) for one in administrator.ask("token_op", operations)]


def revoke_token(token_id: str) -> pb.TokenOperation:
    return pb.TokenOperation(op=pb.TokenOperation.REVOKE, token_id=token_id)


def lock(pattern: str) -> pb.ACLOperation:
    wanted = pb.ACLGrantRequest(principal_id=pattern, resource_type="lock", reason="bench")
    return pb.ACLOperation(op=pb.ACLOperation.GRANT, grant_request=wanted)


def allow(administrator: UserWindow, user_id: str, workspace: str) -> None:
    """Let a user read and write a workspace."""
    wanted = pb.ACLGrantRequest(
        principal_type="user",
        principal_id=user_id,
        resource_type="workspace",
        resource_id=workspace,
        access_level=READWRITE,
        reason="bench",
    )
    administrator.ask("acl_op", [pb.ACLOperation(op=pb.ACLOperation.GRANT, grant_request=wanted)])


def grants_for(owner: UserWindow, agents: Sequence[str]) -> list[str]:
    """Have agents act for the owner; return the id of the grant of each."""
    times = {"expires_at": int(time()) + GRANT_SECONDS, "renewable_until": int(time()) + GRANT_SECONDS}
    root = pb.AuthorityGrantExchangeRequest(
        max_access_level=READWRITE, may_delegate=True, remaining_hops=1, reason="bench", **times
    )
    exchange = pb.AuthorityGrantOperation(op=pb.AuthorityGrantOperation.EXCHANGE, exchange_request=root)
    (exchanged,) = owner.ask("authority_grant_op", [exchange])
    derived = [
        pb.AuthorityGrantOperation(
            op=pb.AuthorityGrantOperation.DERIVE,
            derive_request=pb.AuthorityGrantDeriveRequest(
                parent_grant_id=exchanged.grant.grant_id,
                delegate=pb.PrincipalRef(principal_type="agent", principal_id=agent),
                max_access_level=READWRITE,
                audience_type="agent",
                audience_id=agent,
                reason="bench",
                **times,
            ),
        )
        for agent in agents
    ]
    return [answer.grant.grant_id for answer in owner.ask("authority_grant_op", derived)]

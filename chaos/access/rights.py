"""The rights of a run, and the administrators who give and take them.

Each right has one administrator, who gives it, waits, takes it, waits, and so on. A request without
an answer is made again until its outcome is known.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import trio
from google.protobuf.message import Message

from aether_trio.client import (
    AetherError,
    Client,
    ConnectionLost,
    OutcomeUnknown,
    PermissionDenied,
    Refused,
    RequestTimeout,
    UserClient,
)
from aether_trio.client.operations.namespace import Namespace
from aether_trio.wire.pb import aether_pb2 as pb
from chaos.access.history import AccessHistory, Change
from chaos.load import options

OWN: Final = "red"
"""The workspace in which holders are."""
OTHER: Final = "blue"
"""The workspace that they may use while they have the right."""
BARRED: Final = "green"
"""The workspace from which its own agents are barred now and then."""
GROUP, INNER = "visitors", "regulars"
READWRITE: Final = 20
NONE: Final = 0
SHORT_S: Final = (0.3, 1.5)
LONG_S: Final = (3.0, 6.0)
"""How long a right stays taken: mostly short; sometimes longer, and until a stopped node wakes.

Always so while a node is stopped: what reached it meanwhile is decided without the right.
"""
LONG_SHARE: Final = 0.4
WAKES_S: Final = 2.0
"""How soon a node that wakes has answered, mostly."""
ANSWER_S: Final = 15.0
GRANT_S: Final = 24 * 3600
_NAMED: Final = re.compile(r"([\w-]+) \(node \d+\)")
_IN_DOUBT: Final = (ConnectionLost, RequestTimeout, OutcomeUnknown)

_Acl = pb.ACLOperation
_Token = pb.TokenOperation
_Grant = pb.AuthorityGrantOperation


class Answers(Namespace):
    """Makes requests of administrators; returns whole answers, with what they say."""

    client: Client

    @property
    def session_id(self) -> str:
        """The present session's id."""
        return self.client.session_id

    async def ask(self, case: str, payload: Message) -> Any:
        """Send a request; return its answer. Raises the refusal."""
        return await self._ask(case, payload)


Do = Callable[[Answers], Awaitable[str]]
"""Makes a request and returns what its answer says."""


@dataclass(frozen=True, slots=True)
class Right:
    """Something that is given and taken; `user` asks for it, "" is the administrator."""

    name: str
    give: Do
    take: Do
    user: str = ""


def rule(principal_id: str, resource_type: str, resource_id: str, level: int = READWRITE) -> tuple[Do, Do]:
    """Return what writes a rule for an agent, and what removes it."""

    async def write(answers: Answers) -> str:
        asked = pb.ACLGrantRequest(
            principal_type="agent",
            principal_id=principal_id,
            resource_type=resource_type,
            resource_id=resource_id,
            access_level=level,
        )
        return str((await answers.ask("acl_op", _Acl(op=_Acl.GRANT, grant_request=asked))).message)

    async def remove(answers: Answers) -> str:
        wanted = pb.ACLRuleFilter(
            principal_type="agent", principal_id=principal_id, resource_type=resource_type, resource_id=resource_id
        )
        return str((await answers.ask("acl_op", _Acl(op=_Acl.REVOKE, rule_filter=wanted))).message)

    return write, remove


def membership() -> tuple[Do, Do]:
    """Return what puts the inner group into the outer one, and what takes it out."""
    asked = pb.ACLGroupMemberRequest(member_type="group", member_id=INNER)

    async def add(answers: Answers) -> str:
        op = _Acl(op=_Acl.ADD_GROUP_MEMBER, name=GROUP, member_request=asked)
        return str((await answers.ask("acl_op", op)).message)

    async def remove(answers: Answers) -> str:
        op = _Acl(op=_Acl.REMOVE_GROUP_MEMBER, name=GROUP, member_request=asked)
        return str((await answers.ask("acl_op", op)).message)

    return add, remove


def lock(pattern: str) -> tuple[Do, Do]:
    """Return what ends all locks of a pattern, and what locks it."""

    async def unlock(answers: Answers) -> str:
        wanted = pb.ACLRuleFilter(resource_type="lock")
        found = await answers.ask("acl_op", _Acl(op=_Acl.LIST_RULES, rule_filter=wanted))
        said = [(await answers.ask("acl_op", _Acl(op=_Acl.REVOKE, rule_id=one.rule_id))).message for one in found.rules]
        return "; ".join(said)

    async def put(answers: Answers) -> str:
        asked = pb.ACLGrantRequest(principal_type="*", principal_id=pattern, resource_type="lock", resource_id="*")
        return str((await answers.ask("acl_op", _Acl(op=_Acl.GRANT, grant_request=asked))).message)

    return unlock, put


class TokenRight:
    """An API token; `secret` is that of the present one, or of the last."""

    def __init__(self) -> None:
        self.secret = ""
        self._token_id = ""

    async def give(self, answers: Answers) -> str:
        """Create a token for agents of the own workspace."""
        asked = pb.TokenCreateRequest(name="chaos", principal_type="agent", workspace_patterns=[OWN])
        answer = await answers.ask("token_op", _Token(op=_Token.CREATE, create_request=asked))
        self.secret, self._token_id = answer.plaintext_token, answer.created_token.id
        return str(answer.message)

    async def take(self, answers: Answers) -> str:
        """Revoke the token."""
        return str((await answers.ask("token_op", _Token(op=_Token.REVOKE, token_id=self._token_id))).message)


class GrantRight:
    """A grant by which an agent acts for a user; `grant_id` is that of the last one.

    The user's own grant is for its present session. The agent's is derived from it, and ends with
    it.
    """

    def __init__(self, agent: str) -> None:
        self.grant_id = ""
        self._root_id = ""
        self._agent = agent

    async def give(self, answers: Answers) -> str:
        """Let the agent act for the user who asks."""
        end = int(time.time()) + GRANT_S
        root = pb.AuthorityGrantExchangeRequest(
            max_access_level=READWRITE,
            expires_at=end,
            renewable_until=end,
            audience_type="session",
            audience_id=answers.session_id,
            workspace_scope=[OTHER],
            may_delegate=True,
            remaining_hops=3,
        )
        try:
            exchanged = await answers.ask("authority_grant_op", _Grant(op=_Grant.EXCHANGE, exchange_request=root))
            asked = pb.AuthorityGrantDeriveRequest(
                parent_grant_id=exchanged.grant.grant_id,
                delegate=pb.PrincipalRef(principal_type="agent", principal_id=self._agent),
                max_access_level=READWRITE,
                audience_type="agent",
                audience_id=self._agent,
                workspace_scope=[OTHER],
                expires_at=end,
                renewable_until=end,
                may_delegate=True,
                remaining_hops=2,
            )
            derived = await answers.ask("authority_grant_op", _Grant(op=_Grant.DERIVE, derive_request=asked))
        except (PermissionDenied, Refused) as error:
            raise ConnectionLost(f"the session may be another one now: {error}", in_doubt=True) from error
        self._root_id, self.grant_id = exchanged.grant.grant_id, derived.grant.grant_id
        return str(derived.message)

    async def take(self, answers: Answers) -> str:
        """Revoke the user's own grant, which takes the agent's along."""
        answer = await answers.ask("authority_grant_op", _Grant(op=_Grant.REVOKE, grant_id=self._root_id))
        return str(answer.message)


class Administrator:
    """Gives and takes one right, and records what was answered."""

    def __init__(
        self,
        right: Right,
        address: str,
        history: AccessHistory,
        now: Callable[[], float],
        chance: random.Random,
        is_stopped: Callable[[], bool],
    ) -> None:
        self._right = right
        self._address = address
        self._history = history
        self._now = now
        self._chance = chance
        self._is_stopped = is_stopped
        """Whether a node is stopped, by SIGSTOP."""
        self._changes = history.changes.setdefault(right.name, [])
        self.quiet = trio.Event()
        """Set: nothing more is begun, but what was taken is given again."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Give and take until `quiet`; started when the right is given."""
        user = self._right.user or "admin"
        window = self._right.name.replace(" ", "-")
        async with UserClient(f"aether://{self._address}", user_id=user, window_id=window, **options()) as client:
            answers = answers_of(client)
            await self._change(answers, given=True)
            task_status.started()
            while not self.quiet.is_set():
                await self._pause(SHORT_S)
                await self._change(answers, given=False)
                long = self._chance.random() < LONG_SHARE or self._is_stopped()
                await self._pause(LONG_S if long else SHORT_S)
                if long and self._is_stopped():
                    await self._nodes_awake()
                await self._change(answers, given=True)

    async def _pause(self, limits_s: tuple[float, float]) -> None:
        """Wait for a while, or until `quiet`."""
        with trio.move_on_after(self._chance.uniform(*limits_s)):
            await self.quiet.wait()

    async def _nodes_awake(self) -> None:
        """Wait until no node is stopped, and what it was sent meanwhile is answered."""
        while self._is_stopped():  # noqa: ASYNC110  # by a signal
            await trio.sleep(SHORT_S[0])
        await trio.sleep(WAKES_S)

    async def _change(self, answers: Answers, *, given: bool) -> None:
        change = Change(self._right.name, given, self._now())
        self._changes.append(change)
        do = self._right.give if given else self._right.take
        in_doubt = False
        while True:
            try:
                said = await do(answers)
            except AetherError as error:
                # A refusal of what may have been done before says that it was.
                done = in_doubt and not given and not error.retryable and not isinstance(error, _IN_DOUBT)
                in_doubt = in_doubt or isinstance(error, _IN_DOUBT)
                self._history.refused[f"{'give' if given else 'take'}: {error.code}"] += 1
                if not done and not error.retryable and not isinstance(error, _IN_DOUBT):
                    raise RuntimeError(f"{self._right.name}: {error}") from error
                if not done:
                    change.attempts += 1
                    await trio.sleep(0.1)
                    continue
                change.missing = frozenset(self._history.nodes)
            else:
                change.missing = self._missing(said)
            change.answered_s = self._now()
            return

    def _missing(self, said: str) -> frozenset[str]:
        """Return the nodes that an answer names as those that have not confirmed it.

        Without an answer that says something there was nothing left to do: a request whose answer
        was lost has done it, and may not be in force.
        """
        if said and "not confirmed" not in said:
            return frozenset()
        return frozenset(_NAMED.findall(said)) or frozenset(self._history.nodes)


def answers_of(client: Client) -> Answers:
    """Return what makes requests of administrators by a connected client."""
    answers = Answers(client.rules._requester, timeout_s=ANSWER_S)
    answers.client = client
    return answers

"""The holders of rights: each tries to use its right on one node, again and again."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import trio

from aether_trio.client import (
    AetherError,
    AgentClient,
    Client,
    PermissionDenied,
    Retry,
    SessionEnded,
    Unauthenticated,
)
from aether_trio.client.operations import AccessLevel, Authorization, Principal, on_behalf_of
from aether_trio.client.operations.access_checks import AccessRequest
from aether_trio.client.operations.enums import Scope
from aether_trio.client.options import ClientOptions
from aether_trio.wire.pb import aether_pb2 as pb
from chaos.access.checks import CONNECT
from chaos.access.history import AccessHistory, Attempt
from chaos.access.rights import BARRED, OTHER, OWN, GrantRight

VICTIM: Final = f"ag::{OTHER}::victim::1"
FRIEND: Final = f"ag::{OWN}::friend::1"
KEY: Final = "chaos"
PAUSE_S: Final = 0.3
AT_ONCE: Final = 12
"""Attempts of one holder that may wait for an answer."""
PATIENCE_S: Final = 14.0
"""For one attempt: a node is stopped for up to 12 s."""
_REFUSED: Final = (PermissionDenied, Unauthenticated, SessionEnded)

Try = Callable[[AgentClient, str], Awaitable[bool]]
"""Tries something; the text names the attempt. Returns whether it was allowed, or raises."""


class Attempts:
    """Makes attempts and records them; a message that arrives was allowed."""

    def __init__(self, history: AccessHistory, now: Callable[[], float]) -> None:
        self._history = history
        self.now = now
        self._numbers = count(1)
        self._sent: dict[bytes, Attempt] = {}
        self.quiet = False
        """Set: nothing more is begun."""

    def begin(self, right: str, holder: str, node: str, what: str) -> tuple[Attempt, str]:
        """Note an attempt that begins now; return it with its name."""
        attempt = Attempt(right, holder, node, what, self.now())
        name = f"attempt-{next(self._numbers)}"
        self._sent[name.encode()] = attempt
        self._history.attempts.append(attempt)
        return attempt, name

    def end(self, attempt: Attempt, allowed: bool | None, reason: str = "") -> None:
        """Note how an attempt has ended, unless its message has arrived before."""
        if attempt.allowed is None:
            attempt.done_s, attempt.allowed, attempt.reason = self.now(), allowed, reason

    async def witness(self, address: str, topic: str) -> None:
        """Read what arrives at a topic, until cancelled."""
        _, workspace, implementation, specifier = topic.split("::")
        options = ClientOptions(connect_timeout_s=600.0, ping_interval_s=10.0, retry=Retry(base_s=0.1, cap_s=1.0))
        client = AgentClient(
            f"aether://{address}", workspace=workspace, implementation=implementation, specifier=specifier, **options
        )
        async with client:
            async for message in client:
                attempt = self._sent.get(message.payload)
                if attempt is not None and attempt.allowed is not True:
                    attempt.done_s, attempt.allowed = self.now(), True


@dataclass
class Holder:
    """An agent that uses a right on one node, by one transport."""

    right: str
    workspace: str
    implementation: str
    node: str
    address: str
    """Of the node, with the scheme."""
    tries: Sequence[tuple[str, Try]]
    attempts: Attempts
    chance: random.Random
    secret: Callable[[], str] = lambda: ""
    """The API token with which it connects, "" for none."""
    lives: int = field(default=0, init=False)

    @property
    def identity(self) -> str:
        return f"ag::{self.workspace}::{self.implementation}::{self.node}"

    async def run(self) -> None:
        """Connect and try, until `quiet`; connect again when the session has ended."""
        while not self.attempts.quiet:
            secret = self.secret()
            attempt, _ = self.attempts.begin(self.right, self.identity, self.node, CONNECT)
            options = ClientOptions(
                connect_timeout_s=PATIENCE_S, ping_interval_s=10.0, retry=Retry(base_s=0.1, cap_s=0.5)
            )
            if secret:
                options["api_key"] = secret
            client = AgentClient(
                self.address,
                workspace=self.workspace,
                implementation=self.implementation,
                specifier=self.node,
                **options,
            )
            try:
                async with client:
                    # A newer token may have been made meanwhile: this one says nothing of it.
                    self.attempts.end(attempt, True if secret == self.secret() else None)
                    self.lives += 1
                    await self._use(client)
            except AetherError as error:
                refused = isinstance(error, _REFUSED) and secret == self.secret()
                self.attempts.end(attempt, False if refused else None, str(error))
            await trio.sleep(self.chance.uniform(0.5, 1.5) * PAUSE_S)

    async def _use(self, client: AgentClient) -> None:
        """Try again and again, also while answers are owed; raise the session's end."""
        ending: list[AetherError] = []
        places = trio.Semaphore(AT_ONCE)
        async with trio.open_nursery() as nursery:

            async def attempt_one() -> None:
                try:
                    await self._attempt(client)
                except AetherError as error:
                    ending.append(error)
                    nursery.cancel_scope.cancel()
                finally:
                    places.release()

            while not self.attempts.quiet:
                await trio.sleep(self.chance.uniform(0.5, 1.5) * PAUSE_S)
                await places.acquire()
                nursery.start_soon(attempt_one)
        if ending:
            raise ending[0]

    async def _attempt(self, client: AgentClient) -> None:
        what, attempted = self.chance.choice(list(self.tries))
        attempt, name = self.attempts.begin(self.right, self.identity, self.node, what)
        with trio.move_on_after(PATIENCE_S):
            try:
                self.attempts.end(attempt, await attempted(client, name))
            except _REFUSED as error:
                self.attempts.end(attempt, False, str(error))
                if not isinstance(error, PermissionDenied):
                    raise
            except AetherError as error:
                self.attempts.end(attempt, None, str(error))
                await client_is_open(client)
        self.attempts.end(attempt, None, "no answer")


async def client_is_open(client: Client) -> None:
    """Raise why a client has ended for good, if it has."""
    if (ending := client._ending) is not None:
        raise ending


# -- what holders try ------------------------------------------------------------------------------


async def send(client: AgentClient, name: str) -> bool:
    """Send a message to an agent of the other workspace."""
    await client.send(VICTIM, name)
    return True


async def send_at_home(client: AgentClient, name: str) -> bool:
    """Send a message to an agent of the own workspace."""
    await client.send(FRIEND, name)
    return True


async def send_inside(client: AgentClient, name: str) -> bool:
    """Send a message to an agent of the own workspace, which is the barred one."""
    await client.send(f"ag::{BARRED}::friend::1", name)
    return True


async def ask(client: AgentClient, _name: str) -> bool:
    """Ask whether the other workspace may be used."""
    return (await client.access.check(_request())).allowed


async def send_checked(client: AgentClient, name: str) -> bool:
    """Send a message at home, on condition that the other workspace may be used."""
    await client.access.send_checked(FRIEND, name.encode(), _request())
    return True


async def create_task(client: AgentClient, _name: str) -> bool:
    """Create a task in the other workspace."""
    await client.tasks.create("chaos", pool="unstaffed", workspace=OTHER)
    return True


async def put_key(client: AgentClient, name: str) -> bool:
    """Write a key that all workspaces share."""
    await client.kv.put(KEY, name.encode(), scope=Scope.GLOBAL)
    return True


async def get_key(client: AgentClient, _name: str) -> bool:
    """Read such a key."""
    await client.kv.get(KEY, scope=Scope.GLOBAL)
    return True


ON_OTHER: Final = (("send", send), ("ask", ask), ("checked send", send_checked), ("create task", create_task))
ON_KEYS: Final = (("put key", put_key), ("get key", get_key))
AT_HOME: Final = (("send", send_at_home),)
INSIDE: Final = (("send", send_inside),)


def on_behalf(user: str, grant: GrantRight) -> Sequence[tuple[str, Try]]:
    """Return the same as ON_OTHER, on behalf of a user by its last grant."""

    def acting() -> Authorization:
        return on_behalf_of(Principal.user(user), grant=grant.grant_id)

    def of_present(attempted: Callable[[AgentClient, str], Awaitable[Any]]) -> Try:
        async def run(client: AgentClient, name: str) -> bool:
            return (await attempted(client, name)) is not False

        return run

    async def send_for(client: AgentClient, name: str) -> None:
        context = pb.AuthorizationContext(authority_mode="on_behalf_of", grant_id=grant.grant_id)
        context.subject.principal_type, context.subject.principal_id = "user", user
        await client.send(VICTIM, name, details=pb.SendMessage(authorization=context))

    async def ask_for(client: AgentClient, _name: str) -> bool:
        return (await client.access.check(_request(), authorization=acting())).allowed

    async def send_checked_for(client: AgentClient, name: str) -> None:
        await client.access.send_checked(VICTIM, name.encode(), _request(), authorization=acting())

    async def create_task_for(client: AgentClient, _name: str) -> None:
        await client.tasks.create("chaos", pool="unstaffed", workspace=OTHER, authorization=acting())

    tries = {
        "send for a user": send_for,
        "ask for a user": ask_for,
        "checked send for a user": send_checked_for,
        "create task for a user": create_task_for,
    }
    return tuple((what, of_present(attempted)) for what, attempted in tries.items())


def _request() -> AccessRequest:
    return AccessRequest(
        resource_type="workspace",
        resource_id=OTHER,
        operation="chaos",
        workspace=OTHER,
        required_access_level=AccessLevel.READWRITE,
    )

"""API tokens of the database, on both engines: who gets in, and who must leave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.model.api_tokens import ApiToken, new_token_text
from aether_trio.model.errors import Status
from aether_trio.services.tokens import HmacKeys, rows
from aether_trio.session.expiry import CHECK_S
from aether_trio.storage.base import Database
from aether_trio.testing.memory import MemoryLink, StreamEnded, agent
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, barrier, connect, orchestrator, service, switch_to, task, user

Op = pb.TokenOperation
UNAUTHENTICATED, DENIED = Status.UNAUTHENTICATED, Status.PERMISSION_DENIED


async def ask(link: MemoryLink, **fields: Any) -> pb.TokenResponse:
    link.send(pb.UpstreamMessage(token_op=Op(request_id="r", **fields)))
    return (await link.next("token")).token


async def create(link: MemoryLink, **fields: Any) -> tuple[str, str]:
    """Make a token: its text and its id."""
    request = pb.TokenCreateRequest(**{"name": "ci", "principal_type": "agent", **fields})
    answer = await ask(link, op=Op.CREATE, create_request=request)
    assert answer.success, answer.error
    return answer.plaintext_token, answer.created_token.id


async def refusal(core: Core, hello: pb.UpstreamMessage, text: str, name: str = "api_key") -> StreamEnded | None:
    """Connect with a token; None for an admission."""
    greeting = pb.UpstreamMessage()
    greeting.CopyFrom(hello)
    greeting.init.credentials[name] = text
    async with connect(core, greeting, wait_ack=False) as link:
        try:
            await link.next("connection_ack")
        except StreamEnded as ended:
            return ended
    return None


async def status(core: Core, hello: pb.UpstreamMessage, text: str) -> Status | None:
    ended = await refusal(core, hello, text)
    return None if ended is None else ended.status


@pytest.fixture
async def admin(core: Core) -> AsyncIterator[MemoryLink]:
    async with connect(core, user("admin", "root")) as link:
        yield link


@asynccontextmanager
async def holder(core: Core, text: str, hello: pb.UpstreamMessage | None = None) -> AsyncIterator[MemoryLink]:
    greeting = pb.UpstreamMessage()
    greeting.CopyFrom(hello or agent("red", "worker", "1"))
    greeting.init.credentials["api_key"] = text
    async with connect(core, greeting) as link:
        yield link


async def test_a_token_lets_in_and_its_session_has_its_limits(core: Core, admin: MemoryLink) -> None:
    text, token_id = await create(admin, workspace_patterns=["red"], scopes=["connect", "level:READ"])
    async with holder(core, text):
        session = core.registry.holder("ag::red::worker::1")
        assert session is not None
        assert session.credential == f"token:{token_id}"
        assert session.cap is AccessLevel.READ
        assert session.expires_ms == 0
        assert not session.reaches_everything
        assert not session.allows_workspace("blue")
    assert await status(core, agent("blue", "worker", "1"), text) is DENIED
    assert await status(core, user("alice", "w"), text) is DENIED


async def test_the_level_of_a_token_caps_what_its_principal_may(core: Core, admin: MemoryLink) -> None:
    text, _ = await create(
        admin, principal_type="user", created_by="admin", scopes=["connect", "level:MANAGE"], name="weak"
    )
    strong, _ = await create(admin, principal_type="user", created_by="admin", name="strong")
    async with holder(core, text, user("admin", "w1")) as link:
        assert (await ask(link, op=Op.LIST)).error.startswith("ERR_PERMISSION_DENIED")
    async with holder(core, strong, user("admin", "w2")) as link:
        assert (await ask(link, op=Op.LIST)).total_count == 2


async def test_a_users_token_is_bound_to_its_workspaces(core: Core, admin: MemoryLink) -> None:
    text, _ = await create(admin, principal_type="user", created_by="alice", workspace_patterns=["red"])
    async with holder(core, text, user("alice", "w1")) as link:
        link.send(switch_to("blue"))
        assert (await link.next("error")).error.code == "ERR_PERMISSION_DENIED"
        link.send(switch_to("red"))
        await barrier(link)
        session = core.registry.holder("us::alice::w1")
        assert session is not None
        assert session.workspace == "red"


@pytest.mark.parametrize("end", [Op.REVOKE, Op.DELETE])
async def test_the_end_of_a_token_ends_its_sessions(core: Core, admin: MemoryLink, end: Op.OpType.ValueType) -> None:
    text, token_id = await create(admin)
    other, _ = await create(admin, name="other")
    async with holder(core, text) as link, holder(core, other, agent("red", "other", "1")):
        assert (await ask(admin, op=end, token_id=token_id)).success
        ended = await link.wait_end()
        assert (ended.status, "was revoked" in ended.message) == (UNAUTHENTICATED, True)
        assert await status(core, agent("red", "worker", "1"), text) is UNAUTHENTICATED
        assert core.registry.holder("ag::red::other::1") is not None


async def test_a_session_ends_with_the_time_of_its_token(core: Core, admin: MemoryLink) -> None:
    text, _ = await create(admin, expires_in_hours=1)
    start = trio.current_time()
    async with holder(core, text) as link:
        ended = await link.wait_end()
        assert (ended.status, "expired" in ended.message) == (UNAUTHENTICATED, True)
        assert 3600 - CHECK_S <= trio.current_time() - start <= 3600 + CHECK_S
    ended_later = await refusal(core, agent("red", "worker", "1"), text)
    assert ended_later is not None
    assert (ended_later.status, "has expired" in ended_later.message) == (UNAUTHENTICATED, True)


async def test_without_the_scope_connect_a_token_lets_in_no_client(core: Core, admin: MemoryLink) -> None:
    text, _ = await create(admin, scopes=["level:READ"])
    assert await status(core, agent("red", "worker", "1"), text) is DENIED


async def test_the_identities_of_a_token(core: Core, admin: MemoryLink) -> None:
    text, _ = await create(admin, scopes=["connect", "identity:ag::red::echo::*"])
    assert await status(core, agent("red", "echo", "7"), text) is None
    assert await status(core, agent("red", "other", "7"), text) is DENIED
    exact, _ = await create(admin, created_by="ag::red::echo::1")
    assert await status(core, agent("red", "echo", "1"), exact) is None
    assert await status(core, agent("red", "echo", "2"), exact) is DENIED


async def test_a_text_with_a_wrong_checksum_costs_no_query(
    core: Core, admin: MemoryLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, _ = await create(admin)
    asked: list[str] = []

    async def find(shown: str) -> None:
        asked.append(shown)

    monkeypatch.setattr(core.credentials._api_tokens, "find", find)
    slipped = text[:-1] + ("A" if text[-1] != "A" else "B")
    await status(core, agent("red", "worker", "1"), slipped)
    assert asked == []
    assert await status(core, agent("red", "worker", "1"), text) is UNAUTHENTICATED
    assert asked == [text]


async def test_a_token_that_has_let_in_others_is_checked_for_each(core: Core, admin: MemoryLink) -> None:
    text, token_id = await create(admin, workspace_patterns=["red"], scopes=["connect", "level:READ"])
    for name in ("1", "2", "3"):
        assert await status(core, agent("red", "worker", name), text) is None
        assert await status(core, agent("blue", "worker", name), text) is DENIED
        assert await status(core, user("eve", name), text) is DENIED
    async with connect(core, agent("red", "worker", "4", credentials={"api_key": text})):
        session = core.registry.holder("ag::red::worker::4")
        assert session is not None
        assert (session.credential, session.cap) == (f"token:{token_id}", AccessLevel.READ)
        assert session.allows_workspace("red")
        assert not session.allows_workspace("blue")
    assert (await ask(admin, op=Op.REVOKE, token_id=token_id)).success
    for _ in range(2):
        assert await status(core, agent("red", "worker", "5"), text) is UNAUTHENTICATED


async def test_token_revoked_while_connecting(core: Core, admin: MemoryLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row was read before the revocation, and the identity is taken after it."""
    text, token_id = await create(admin)
    find = core.credentials._api_tokens.find

    async def find_and_wait(shown: str) -> ApiToken | None:
        found = await find(shown)
        assert (await ask(admin, op=Op.REVOKE, token_id=token_id)).success
        return found

    monkeypatch.setattr(core.credentials._api_tokens, "find", find_and_wait)
    assert await status(core, agent("red", "worker", "1"), text) is UNAUTHENTICATED
    assert core.registry.holder("ag::red::worker::1") is None


# -- attacks ---------------------------------------------------------------------------------------


async def test_token_row_planted(core: Core, world: World, admin: MemoryLink) -> None:
    """A writer to the database without a key adds, copies and widens rows."""
    database: Database = world.databases["tasks"]
    mine, _ = await create(admin, name="mine", workspace_patterns=["red"])
    hello = agent("blue", "worker", "1")
    assert await status(core, hello, mine) is DENIED

    # A row with the intruder's own key, under the ids of all keys.
    text = new_token_text(lambda size: b"i" * size)
    for number, key_id in enumerate(("dev", "k1", "")):
        keys = HmacKeys({key_id: b"intruder" * 4})
        token = ApiToken(f"planted-{number}", "x", "agent", "admin", ("*",), ("*",), "user:admin", 1)
        hashed = keys.hash(key_id, text)
        planted = rows.TokenRow(token, hashed, key_id, keys.seal(key_id, hashed, token))
        await database.run(lambda planted=planted: rows.insert(planted))  # type: ignore[misc]
        assert await status(core, agent("red", "worker", "1"), text) is UNAUTHENTICATED
        await database.execute("DELETE FROM api_tokens WHERE token_id = $1", token.token_id)

    # The row of a good token, made to reach more.
    for change in (
        "workspace_patterns = '[\"*\"]'",
        "principal_type = 'orchestrator'",
        "scopes = '[\"*\"]'",
        "principal_id = 'root'",
        "expires_ms = 1",
    ):
        fresh, _ = await create(admin, name="fresh", workspace_patterns=["red"])
        await database.execute(f"UPDATE api_tokens SET {change} WHERE name = 'fresh'")
        for greeting in (agent("red", "worker", "1"), hello, orchestrator("o", "1")):
            assert await status(core, greeting, fresh) is UNAUTHENTICATED
        await database.execute("DELETE FROM api_tokens WHERE name = 'fresh'")

    # The hash of the intruder's token in the row of another one.
    wide, _ = await create(admin, name="wide")
    found = await database.fetch("SELECT token_hash FROM api_tokens WHERE name = 'mine'")
    await database.execute("DELETE FROM api_tokens WHERE name = 'mine'")
    await database.execute("UPDATE api_tokens SET token_hash = $1 WHERE name = 'wide'", found[0][0])
    assert await status(core, hello, mine) is UNAUTHENTICATED
    assert await status(core, hello, wide) is UNAUTHENTICATED


async def test_token_of_other(core: Core, admin: MemoryLink) -> None:
    """A good token with another principal's name."""
    text, _ = await create(admin, principal_type="user", created_by="alice")
    assert await status(core, user("alice", "w"), text) is None
    for hello in (user("bob", "w"), user("Alice", "w"), agent("red", "alice", "1"), orchestrator("alice", "1")):
        assert await status(core, hello, text) is DENIED


async def test_token_wider(core: Core, admin: MemoryLink) -> None:
    """A holder of admin/tokens makes a token that may more than it."""
    text, _ = await create(
        admin,
        name="minter",
        workspace_patterns=["red"],
        scopes=["connect", "level:ADMIN", "identity:ag::red::minter::*"],
    )
    await allow(admin, "ag::red::minter::1", "admin", "admin/tokens", 40)
    good = {"workspace_patterns": ["red"], "scopes": ["connect", "level:READ", "identity:ag::red::minter::2"]}
    async with holder(core, text, agent("red", "minter", "1")) as minter:
        await create(minter, **good)
        for wider in (
            {"workspace_patterns": ["*"]},
            {"workspace_patterns": []},
            {"workspace_patterns": ["red", "blue"]},
            {"workspace_patterns": ["re?"]},
            {"scopes": ["connect", "identity:ag::red::minter::2"]},
            {"scopes": ["*", "identity:ag::red::minter::2"]},
            {"scopes": ["connect", "level:READ"]},
            {"scopes": ["connect", "level:READ", "identity:*"]},
            {"created_by": "ag::red::other::1"},
            {"principal_type": "orchestrator"},
            {"principal_type": "workflow_engine"},
            {"principal_type": "service"},
            {"principal_type": "user", "created_by": "admin"},
            {"principal_type": "user", "created_by": "alice"},
        ):
            request = pb.TokenCreateRequest(**{"name": "x", "principal_type": "agent", **good, **wider})  # type: ignore[arg-type]
            answer = await ask(minter, op=Op.CREATE, create_request=request)
            assert answer.error.startswith("ERR_PERMISSION_DENIED"), wider
            assert not answer.plaintext_token
            refused = (await minter.next("error")).error
            assert (refused.code, refused.request_id) == ("ERR_PERMISSION_DENIED", "r")


async def allow(admin: MemoryLink, principal_id: str, resource_type: str, resource_id: str, level: int) -> None:
    rule = pb.ACLGrantRequest(
        principal_type="agent",
        principal_id=principal_id,
        resource_type=resource_type,
        resource_id=resource_id,
        access_level=level,
    )
    admin.send(pb.UpstreamMessage(acl_op=pb.ACLOperation(op=pb.ACLOperation.GRANT, grant_request=rule)))
    answer = (await admin.next("acl")).acl
    assert answer.success, answer.error


async def test_reserved_names_are_the_gateways(core: Core) -> None:
    for hello in (
        user("_system", "w"),
        user("alice", "_w"),
        agent("_internal", "a", "1"),
        agent("red", "_a", "1"),
        task("red", "a", "_1"),
        service("_s", "1"),
        orchestrator("_o", "1"),
    ):
        assert await status(core, hello, "") is DENIED

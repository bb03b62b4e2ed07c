"""The handler of `token_op`, on both engines: records, refusals, width."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.rules import Rule
from aether_trio.model.api_tokens import is_token_text
from aether_trio.model.audit import AuditEvent
from aether_trio.model.errors import Code
from aether_trio.model.identity import Identity
from aether_trio.model.ids import IdFactory
from aether_trio.services.access import Admin
from aether_trio.services.access.authorizer import NoDecisions, NoGrants
from aether_trio.services.access.changes import AccessChanges, NoPeers
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from aether_trio.services.tokens import HmacKeys, TokenService, TokenStore, rows
from aether_trio.session.init_connection import EVERYTHING
from aether_trio.session.lease_gate import LeaseGate
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, Program
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.clocks import ManualClock
from tests.helpers.engines import Engine

Op = pb.TokenOperation
ADMIN = Identity.user("admin", "w1")


class _Audit:
    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    def append(self, events: Sequence[AuditEvent], now_ms: int) -> Program[object]:
        self.events += events
        return
        yield


class World:
    def __init__(self, database: Database) -> None:
        self.database, self.clock, self.audit = database, ManualClock(), _Audit()
        self.authorizer = RuleAuthorizer(AccessIndex(), self.clock, NoGrants(), NoDecisions())
        self.allow("admin/tokens")
        self.allow("*", "workspace", AccessLevel.READ)
        self.changes = AccessChanges(database, self.clock, NoPeers(), LeaseGate(), self.audit)
        self.applied: list[tuple[str, Any]] = []
        self.changes.when_applied("token", lambda items, everything: self.applied.extend(items), rows.live)
        source = random.Random(1)
        self.store = TokenStore(database, self.clock, HmacKeys({"k1": bytes(32)}))
        self.changes.when_applied("token", self.store.changed)
        self.service = TokenService(
            database, self.store, self.changes, self.authorizer, IdFactory(source), self.clock, source.randbytes
        )
        self.numbers = iter(range(1000))

    def allow(self, resource: str, kind: str = "", level: AccessLevel = AccessLevel.ADMIN, who: str = "*") -> None:
        """Give the principals of every type a level on a resource."""
        for principal_type in ("user", "agent", "service"):
            rule_id = f"{principal_type} {who} {resource}"
            kind = kind or resource.partition("/")[0]
            self.authorizer.index.put_rule(Rule(rule_id, principal_type, who, kind, str(resource), level))
        self.authorizer._cache.clear()

    def forbid(self, resource: str, who: str = "*") -> None:
        for principal_type in ("user", "agent", "service"):
            self.authorizer.index.remove_rule(f"{principal_type} {who} {resource}")
        self.authorizer._cache.clear()

    def session(self, identity: Identity = ADMIN, **fields: Any) -> Session:
        given = {
            "identity": identity, "accepted": EVERYTHING, "cap": AccessLevel.SUPERADMIN, "reaches_everything": True,
            "session_id": "s1", "credential": "key:k", "task_id": "", "groups": (), "makers": (), "creators": (),
            "allows_workspace": lambda workspace: True, "reaches": lambda identity, workspace="": True,
        }  # fmt: skip
        return cast("Session", SimpleNamespace(**{**given, **fields}))

    async def ask(self, session: Session | None = None, **fields: Any) -> pb.TokenResponse:
        request_id = str(next(self.numbers))
        typed, *errors = await self.service.handle(session or self.session(), Op(request_id=request_id, **fields))
        assert typed.token.request_id == request_id
        assert typed.token.success is (not errors)
        if errors:
            assert errors[0].error.request_id == request_id
            assert typed.token.error == f"{errors[0].error.code}: {errors[0].error.message}"
        return typed.token

    async def create(self, session: Session | None = None, **fields: Any) -> pb.TokenResponse:
        request = pb.TokenCreateRequest(**{"name": "ci", "principal_type": "agent", **fields})
        return await self.ask(session, op=Op.CREATE, create_request=request)

    async def refused(self, session: Session | None = None, **fields: Any) -> str:
        answer = await self.create(session, **fields)
        assert not answer.plaintext_token
        return str(answer.error)


@pytest.fixture
async def world(engine: Engine) -> AsyncIterator[World]:
    with trio.fail_after(300):
        async with engine.open("tasks") as database, trio.open_nursery() as nursery:
            made = World(database)
            await made.changes.start()
            nursery.start_soon(made.changes.run)
            yield made
            nursery.cancel_scope.cancel()


async def test_a_token_is_shown_once_and_kept_as_a_hash(world: World) -> None:
    made = await world.create(workspace_patterns=["prod*"], scopes=["connect", "level:READ"], expires_in_hours=2)
    text, info = made.plaintext_token, made.created_token
    assert is_token_text(text)
    assert (info.name, info.principal_type, info.created_by) == ("ci", "agent", "admin")
    assert (list(info.workspace_patterns), list(info.scopes)) == (["prod*"], ["connect", "level:READ"])
    assert info.created_at == world.clock.now_ms() // 1000
    assert info.expires_at == info.created_at + 7200
    assert (info.revoked, info.last_used_at) == (False, 0)
    got = await world.ask(op=Op.GET, token_id=info.id)
    assert got.token == info
    listed = await world.ask(op=Op.LIST)
    assert (list(listed.tokens), listed.total_count) == ([info], 1)
    assert not got.plaintext_token
    assert not listed.plaintext_token
    columns = await world.database.fetch("SELECT * FROM api_tokens")
    assert text.encode() not in repr(columns).encode()
    assert text[4:] not in repr(columns)
    assert text not in repr(world.audit.events)
    found = await world.store.find(text)
    assert found is not None
    assert (found.token_id, found.maker) == (info.id, "user:admin")


async def test_defaults_are_those_of_the_reference(world: World) -> None:
    info = (await world.create()).created_token
    assert (list(info.workspace_patterns), list(info.scopes), info.created_by) == (["*"], ["connect"], "admin")
    assert info.expires_at == 0


async def test_a_revoked_token_stays_in_the_list_that_asks_for_it(world: World) -> None:
    ids = [(await world.create(name=str(n))).created_token.id for n in range(3)]
    world.clock.advance(5000)
    assert (await world.ask(op=Op.REVOKE, token_id=ids[1])).message == "the token was revoked"
    assert (await world.ask(op=Op.REVOKE, token_id=ids[1])).success
    assert {one.id for one in (await world.ask(op=Op.LIST)).tokens} == {ids[0], ids[2]}
    wanted = pb.TokenFilter(include_revoked=True)
    every = await world.ask(op=Op.LIST, filter=wanted)
    assert every.total_count == 3
    revoked = next(one for one in every.tokens if one.id == ids[1])
    assert (revoked.revoked, revoked.revoked_at) == (True, world.clock.now_ms() // 1000)
    await world.ask(op=Op.DELETE, token_id=ids[1])
    assert (await world.ask(op=Op.LIST, filter=wanted)).total_count == 2
    assert "no API token" in (await world.ask(op=Op.GET, token_id=ids[1])).error
    assert [(key, bool(value and value["revoked_ms"]), value is None) for key, value in world.applied[3:]] == [
        (ids[1], True, False),
        (ids[1], False, True),
    ]
    assert [one.operation for one in world.audit.events] == ["token_create"] * 3 + ["token_revoke", "token_delete"]


async def test_pages_are_newest_first(world: World) -> None:
    for number in range(5):
        await world.create(name=str(number))
        world.clock.advance(1)
    for offset, names in ((0, ["4", "3"]), (2, ["2", "1"]), (4, ["0"]), (9, [])):
        page = await world.ask(op=Op.LIST, filter=pb.TokenFilter(limit=2, offset=offset))
        assert ([one.name for one in page.tokens], page.total_count) == (names, 5)


async def test_without_the_right_nothing_is_done_or_said(world: World) -> None:
    made = (await world.create()).created_token
    world.forbid("admin/tokens")
    for op in (Op.LIST, Op.GET, Op.REVOKE, Op.DELETE):
        answer = await world.ask(op=op, token_id=made.id)
        assert answer.error.startswith(Code.PERMISSION_DENIED)
        assert (len(answer.tokens), answer.token.id) == (0, "")
    assert (await world.refused()).startswith(Code.PERMISSION_DENIED)
    assert len(await world.database.fetch("SELECT token_id FROM api_tokens WHERE revoked_ms = 0")) == 1


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": ""}, "name is missing"),
        ({"principal_type": ""}, "principal_type is missing"),
        ({"principal_type": "root"}, "unknown principal type"),
        ({"principal_type": "user"}, "created_by is missing"),
        ({"principal_type": "user", "created_by": "a::b"}, "::"),
        ({"principal_type": "user", "created_by": "_system"}, "are"),
        ({"created_by": "ag::prod::_x::1"}, "name of the gateway"),
        ({"created_by": "sv::x::1"}, "is a service, and principal_type is agent"),
        ({"created_by": "xx::y"}, "not an identity"),
        ({"workspace_patterns": ["["]}, "bad pattern"),
        ({"workspace_patterns": ["_gateway"]}, "gateway's"),
        ({"workspace_patterns": ["w"] + [f"w{n}" for n in range(64)]}, "at most"),
        ({"scopes": ["connect", "admin"]}, "unknown scope"),
        ({"expires_in_hours": -1}, "expires_in_hours"),
        ({"expires_in_hours": 2_000_000}, "expires_in_hours"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "n" * 300}, "name"),
    ],
)
async def test_bad_input(world: World, fields: dict[str, Any], text: str) -> None:
    error = await world.refused(**fields)
    assert error.startswith(Code.INVALID_ARGUMENT)
    assert text in error


async def test_unknown_ids_and_operations(world: World) -> None:
    for op in (Op.GET, Op.REVOKE, Op.DELETE):
        for token_id in ("", "nothing", "\x00", "x" * 10_000):
            assert "no API token" in (await world.ask(op=op, token_id=token_id)).error
    assert "unknown token operation" in (await world.ask(op=99)).error


async def test_without_a_key_no_token_is_made(world: World) -> None:
    world.store.keys = HmacKeys({})
    assert "auth.token_hmac_keys is empty" in await world.refused()


async def test_an_old_key_keeps_its_tokens(world: World) -> None:
    text = (await world.create()).plaintext_token
    world.store.keys = HmacKeys({"k2": b"2" * 32, "k1": bytes(32)})
    assert await world.store.find(text) is not None
    newer = (await world.create()).plaintext_token
    world.store.keys = HmacKeys({"k2": b"2" * 32})
    assert await world.store.find(text) is None
    assert await world.store.find(newer) is not None


@pytest.mark.parametrize(
    "change",
    [
        "principal_type = 'orchestrator'",
        "workspace_patterns = '[\"*\"]'",
        "scopes = '[\"*\"]'",
        "principal_id = 'root'",
        "expires_ms = 0",
        "maker = 'user:other'",
        "token_id = 'other'",
        "name = 'other'",
        "key_id = 'k2'",
        "scopes = 'nonsense'",
        "workspace_patterns = '[\"[\"]'",
    ],
)
async def test_a_row_that_was_changed_admits_no_client(world: World, change: str) -> None:
    world.store.keys = HmacKeys({"k1": bytes(32), "k2": b"2" * 32})
    text = (await world.create(workspace_patterns=["prod"], expires_in_hours=1)).plaintext_token
    found = await world.store.find(text)
    assert found is not None
    await world.database.execute(f"UPDATE api_tokens SET {change}")
    # What is remembered is the token as it was made, until any token is changed.
    assert (await world.store.find(text)) == found
    world.store.changed([], True)
    assert await world.store.find(text) is None


async def test_last_use_is_written_in_batches(world: World) -> None:
    made = await world.create()
    text = made.plaintext_token
    for _ in range(5):
        world.clock.advance(1000)
        await world.store.find(text)
    await world.store.flush_at_end()
    assert (await world.ask(op=Op.GET, token_id=made.created_token.id)).token.last_used_at == (
        world.clock.now_ms() // 1000
    )
    await world.store.flush_at_end()


async def test_a_token_that_is_remembered_costs_no_query(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await world.create()
    reads = 0
    read = world.store._read

    async def counted(*arguments: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read(*arguments)

    monkeypatch.setattr(world.store, "_read", counted)
    for _ in range(5):
        assert await world.store.find(made.plaintext_token) is not None
    assert reads == 1
    await world.create(name="other")
    assert await world.store.find(made.plaintext_token) is not None
    assert reads == 1
    await world.ask(op=Op.REVOKE, token_id=made.created_token.id)
    found = await world.store.find(made.plaintext_token)
    assert found is not None
    assert found.ended(world.clock.now_ms()) == "was revoked"


async def test_a_token_is_known_until_it_or_its_key_changes(world: World) -> None:
    made, other = await world.create(), await world.create(name="other")
    text = made.plaintext_token
    assert world.store.known(text) is None
    found = await world.store.find(text)
    assert world.store.known(text) is found
    assert world.store.known(other.plaintext_token) is None
    assert await world.store.find(other.plaintext_token) is not None
    await world.ask(op=Op.REVOKE, token_id=made.created_token.id)
    assert world.store.known(text) is None
    assert world.store.known(other.plaintext_token) is not None
    world.store.keys = HmacKeys({"k2": b"2" * 32})
    assert world.store.known(other.plaintext_token) is None


async def test_a_token_that_changes_while_it_is_read_is_not_remembered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await world.create()
    read = world.database.read_small

    async def late(program: Any) -> Any:
        row = await read(program)
        if getattr(program, "func", None) is rows.by_hash:
            monkeypatch.undo()
            await world.ask(op=Op.REVOKE, token_id=made.created_token.id)
        return row

    monkeypatch.setattr(world.database, "read_small", late)
    outdated = await world.store.find(made.plaintext_token)
    assert outdated is not None
    assert not outdated.revoked_ms
    fresh = await world.store.find(made.plaintext_token)
    assert fresh is not None
    assert fresh.revoked_ms


# -- no wider than the maker -----------------------------------------------------------------------


def limits(*workspaces: Sequence[str], identities: Sequence[Sequence[str]] = ()) -> Any:
    return SimpleNamespace(workspace_limits=workspaces, identity_limits=identities)


@pytest.mark.parametrize("kind", ["orchestrator", "workflow_engine", "metrics_bridge", "service", "bridge"])
async def test_other_kinds_need_all_of_admin(world: World, kind: str) -> None:
    assert (await world.refused(principal_type=kind)).startswith(Code.PERMISSION_DENIED)
    for resource in Admin:
        world.allow(resource.value)
    assert (await world.create(principal_type=kind)).success


async def test_a_maker_may_make_tokens_of_the_own_kind(world: World) -> None:
    service = world.session(Identity.service("minter", "1"))
    assert (await world.create(service, principal_type="service")).success
    assert "needs more" in await world.refused(service, principal_type="bridge")


async def test_tokens_for_users_need_their_capability(world: World) -> None:
    for held in (["capability/mint_user_tokens"], [one.value for one in Admin]):
        world.forbid("capability/mint_user_tokens", who="admin")
        assert "user" in await world.refused(principal_type="user", created_by="bob")
        for resource in held:
            world.allow(resource, who="admin")
        assert (await world.create(principal_type="User", created_by="bob")).success


async def test_no_token_for_a_principal_that_administers_more(world: World) -> None:
    world.allow("capability/mint_user_tokens", level=AccessLevel.MANAGE)
    world.allow("admin/acl", who="boss")
    world.allow("admin/acl", who="ag::prod::boss::1")
    assert "has ADMIN on admin/acl, and you have NONE" in await world.refused(principal_type="user", created_by="boss")
    assert "on admin/acl" in await world.refused(created_by="ag::prod::boss::1")
    capped = ["connect", "level:READ"]
    assert "has READ on admin/acl" in await world.refused(principal_type="user", created_by="boss", scopes=capped)
    world.allow("admin/acl", who="admin")
    assert (await world.create(principal_type="user", created_by="boss")).success


@pytest.mark.parametrize(
    ("reach", "patterns", "good"),
    [
        ((["*"],), ["*"], True),
        ((["prod*"],), ["prod", "prod-?"], True),
        ((["prod*"],), ["*"], False),
        ((["prod*"],), [], False),
        ((["prod*"],), ["prod", "dev"], False),
        ((["prod*"], ["*-1"]), ["prod-1"], True),
        ((["prod*"], ["*-1"]), ["prod-*"], False),
        ((["a", "b"],), ["[ab]"], False),
    ],
)
async def test_a_token_reaches_no_more_than_its_maker(
    world: World, reach: tuple[list[str], ...], patterns: list[str], good: bool
) -> None:
    session = world.session(Identity.agent("prod-1", "a", "1"), accepted=limits(*reach), reaches_everything=False)
    answer = await world.create(session, workspace_patterns=patterns)
    assert answer.success is good
    assert good or answer.error.startswith(Code.PERMISSION_DENIED)


@pytest.mark.parametrize(
    ("pattern", "good"),
    [
        ("prod", True),
        ("prod-*", True),
        ("dev", False),
        ("*", False),
        ("[p]rod", True),
        ("[pq]rod", False),
        ("?", False),
    ],
)
async def test_a_token_is_for_workspaces_that_its_maker_may_enter(world: World, pattern: str, good: bool) -> None:
    world.forbid("*")
    for name in ("prod", "prod-*"):
        world.allow(name, "workspace", AccessLevel.READ)
    assert (await world.create(workspace_patterns=[pattern])).success is good


async def test_a_capped_maker_makes_capped_tokens(world: World) -> None:
    session = world.session(cap=AccessLevel.ADMIN)
    assert "level:ADMIN" in await world.refused(session)
    assert "level:ADMIN" in await world.refused(session, scopes=["connect", "level:SUPERADMIN"])
    assert (await world.create(session, scopes=["connect", "level:ADMIN"])).success
    assert (await world.create(session, scopes=["connect", "level:READ"])).success


async def test_a_maker_of_few_identities_makes_no_token_for_others(world: World) -> None:
    accepted = limits(identities=[["ag::*::echo::*"]])
    session = world.session(Identity.agent("prod", "echo", "1"), accepted=accepted)
    assert "identity:PATTERN" in await world.refused(session)
    assert "identity:PATTERN" in await world.refused(session, scopes=["connect", "identity:ag::*"])
    assert "identity:PATTERN" in await world.refused(session, created_by="ag::prod::other::1")
    assert (await world.create(session, scopes=["connect", "identity:ag::prod::echo::*"])).success
    assert (await world.create(session, created_by="ag::prod::echo::2")).success


async def test_a_limited_maker_sees_and_ends_no_wider_tokens(world: World) -> None:
    wide = (await world.create(workspace_patterns=["*"])).created_token.id
    near = (await world.create(workspace_patterns=["prod-1"])).created_token.id
    session = world.session(accepted=limits(["prod*"]), reaches_everything=False)
    listed = await world.ask(session, op=Op.LIST)
    assert ([one.id for one in listed.tokens], listed.total_count) == ([near], 1)
    for op in (Op.GET, Op.REVOKE, Op.DELETE):
        assert "no API token" in (await world.ask(session, op=op, token_id=wide)).error
    assert (await world.ask(session, op=Op.REVOKE, token_id=near)).success

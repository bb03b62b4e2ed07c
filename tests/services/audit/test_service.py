"""Queries and entries of participants: who may do what, filters, pages, totals."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock

import pytest
import trio

from aether_trio.model.access import AccessLevel
from aether_trio.model.audit import METADATA_BYTES, AuditEvent, EventType
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity
from aether_trio.model.limits import CLIENT_MESSAGE_BYTES
from aether_trio.services.access import DIRECT, AccessDecision, Admin, Authority, Capability
from aether_trio.services.audit.log import AuditFilter, find
from aether_trio.services.audit.service import AuditService
from aether_trio.services.audit.trees import AuditTree, append
from aether_trio.services.audit.writer import AuditPolicy, AuditWriter
from aether_trio.storage.base import Database
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.clocks import ManualClock
from tests.services.audit.conftest import event

ME = Identity.agent("w", "a", "1")
OTHER = Identity.agent("w", "b", "1")


class Rules:
    """What the service uses of an Authorizer: levels by resource id, and no grants."""

    def __init__(self, **levels: AccessLevel) -> None:
        self.levels = {name.replace("__", "/"): level for name, level in levels.items()}
        self.asked: list[tuple[str, str, str, AccessLevel]] = []

    async def authority(self, actor: object, context: pb.AuthorizationContext | None) -> Authority:
        if context is not None:
            raise RequestError(Code.PERMISSION_DENIED, "there is no such grant")
        return DIRECT

    async def check(
        self,
        actor: object,
        operation: str,
        resource_type: str,
        resource_id: str,
        workspace: str,
        level: AccessLevel,
        authority: Authority = DIRECT,
    ) -> AccessDecision:
        self.asked.append((operation, resource_id, workspace, level))
        allowed = self.levels.get(resource_id, AccessLevel.NONE) >= level
        return AccessDecision(allowed, "" if allowed else f"no {level.name} of {resource_id}")


class Caller:
    """What the service uses of a session."""

    def __init__(self, identity: Identity = ME, workspaces: frozenset[str] | None = None, workspace: str = "w") -> None:
        self.identity = identity
        self.session_id = "session-1"
        self.workspace = workspace
        self.reaches_everything = workspaces is None
        self.allows_workspace = lambda name: workspaces is None or name in workspaces


class World:
    """A service with its writer on a database."""

    def __init__(self, database: Database, clock: ManualClock, tree: AuditTree, policy: AuditPolicy) -> None:
        self.database, self.clock, self.tree = database, clock, tree
        self.writer = AuditWriter(database, clock, tree, policy, first_batch=7)
        self.rules = Rules(admin__audit=AccessLevel.READ)
        self.settled = 0
        self.rows_of_settle = 0
        self.service = AuditService(database, clock, self.rules, self.writer, self.settle, self.forget)  # type: ignore[arg-type]

    def settle(self) -> int:
        self.settled += 1
        return self.rows_of_settle

    async def forget(self, days: int) -> int:
        return days

    async def store(self, *events: AuditEvent) -> None:
        await self.database.run(lambda: append(self.tree.origin, events, self.clock.now_ms()))

    async def query(self, caller: Caller | None = None, **fields: Any) -> pb.AuditQueryResponse:
        [answer] = await self.service.query(caller or Caller(), pb.AuditQuery(request_id="q", **fields))  # type: ignore[arg-type]
        assert answer.audit_response.request_id == "q"
        return answer.audit_response

    async def found(self, caller: Caller | None = None, **fields: Any) -> list[str]:
        reply = await self.query(caller, **fields)
        assert reply.success, reply.error
        return [entry.resource_id for entry in reply.entries]

    async def submit(self, caller: Caller | None = None, **fields: Any) -> pb.SubmitAuditEventResponse:
        made = {"event_type": "custom", "operation": "did", "success": True, **fields}
        request = pb.SubmitAuditEventRequest(client_request_id="s", **made)
        [answer] = await self.service.submit(caller or Caller(), request)  # type: ignore[arg-type]
        assert answer.submit_audit_event_response.client_request_id == "s"
        return answer.submit_audit_event_response


@asynccontextmanager
async def opened(
    database: Database, clock: ManualClock, tree: AuditTree, policy: AuditPolicy | None = None
) -> AsyncIterator[World]:
    made = World(database, clock, tree, policy or AuditPolicy())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.writer.run)
        yield made
        nursery.cancel_scope.cancel()


@pytest.fixture
async def world(database: Database, clock: ManualClock, tree: AuditTree) -> AsyncIterator[World]:
    async with opened(database, clock, tree) as made:
        yield made


def numbered(numbers: Sequence[int]) -> list[str]:
    return [f"key-{number}" for number in numbers]


async def test_newest_first_with_pages_and_an_honest_total(world: World) -> None:
    now_ms = world.clock.now_ms()
    await world.store(*(event(number, at_ms=now_ms - 1000 + number) for number in range(10)))
    assert await world.found() == numbered(range(9, -1, -1))
    reply = await world.query(limit=3, offset=2)
    assert [entry.resource_id for entry in reply.entries] == numbered([7, 6, 5])
    assert reply.total_count == 10
    reply = await world.query(limit=3, offset=20)
    assert (list(reply.entries), reply.total_count) == ([], 10)


async def test_rows_of_one_moment_are_in_order_too(world: World) -> None:
    await world.store(*(event(number, at_ms=500) for number in range(5)))
    assert await world.found() == numbered([4, 3, 2, 1, 0])
    assert [await world.found(limit=1, offset=number) for number in range(5)] == [[f"key-{4 - n}"] for n in range(5)]


@pytest.mark.parametrize(("asked", "given"), [(0, 100), (-5, 100), (7, 7), (500, 500), (501, 500), (100_000, 500)])
async def test_limits(world: World, asked: int, given: int) -> None:
    await world.store(*(event(number) for number in range(520)))
    reply = await world.query(limit=asked, offset=-1)
    assert (len(reply.entries), reply.total_count) == (given, 520)


async def test_large_rows_of_participants_leave_the_log_readable(world: World) -> None:
    await world.store(*(event(number, metadata={"note": "x" * (METADATA_BYTES - 20)}) for number in range(100)))
    found: list[str] = []
    while len(found) < 100:
        reply = await world.query(limit=500, offset=len(found))
        assert reply.entries
        assert reply.total_count == 100
        assert reply.ByteSize() <= CLIENT_MESSAGE_BYTES
        found += [entry.resource_id for entry in reply.entries]
    assert found == numbered(range(99, -1, -1))


async def test_queries_have_counts_written_at_a_bounded_rate(world: World) -> None:
    world.rows_of_settle = 300
    began_s = trio.current_time()
    for _ in range(4):
        await world.query()
    assert world.settled == 4
    assert trio.current_time() - began_s >= 0.9
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(world.query)
    assert world.settled == 5
    world.rows_of_settle = 10**6  # a query waits for a while only
    for _ in range(2):
        assert (await world.query()).success
    assert world.settled == 6


FILTERS = [
    ({"event_type": "task"}, [1]),
    ({"actor_type": "USER"}, [2]),
    ({"actor_id": "ag::w::b::1"}, [3]),
    ({"resource_type": "topic"}, [4]),
    ({"resource_id": "key-5"}, [5]),
    ({"operation": "kv_get"}, [6]),
    ({"workspace": "v"}, [7]),
    ({"only_failures": True}, [8]),
    ({"subject_type": "User", "subject_id": "alice"}, [9]),
    ({"authority_mode": "on_behalf_of"}, [9]),
    ({"authority_grant_id": "g-1"}, [9]),
    ({"exclude_actor_types": ["AGENT", "service"]}, [2]),
    ({"exclude_workspaces": ["w"]}, [7]),
    ({"exclude_service_direct": True, "exclude_actor_types": ["agent", "user"]}, []),
    ({"exclude_actor_types": ["agent", "user"]}, [10]),
    ({"actor_type": "agent", "workspace": "v"}, [7]),
    ({"actor_type": "user", "workspace": "v"}, []),
]


@pytest.mark.parametrize(("fields", "numbers"), FILTERS)
async def test_filters(world: World, fields: dict[str, Any], numbers: list[int]) -> None:
    delegated = {"authority_mode": "on_behalf_of", "authority_grant_id": "g-1"}
    await world.store(
        event(0),
        event(1, event_type=EventType.TASK),
        event(2, actor_type="user", actor_id="bob"),
        event(3, actor_id="ag::w::b::1"),
        event(4, resource_type="topic"),
        event(5),
        event(6, operation="kv_get"),
        event(7, workspace="v"),
        event(8, success=False),
        event(9, subject_type="user", subject_id="alice", **delegated),
        event(10, actor_type="service", actor_id="sv::s::1"),
    )
    assert await world.found(**fields) == numbered(numbers)
    assert (await world.query(**fields)).total_count == len(numbers)


async def test_times_are_whole_seconds_and_the_last_one_counts(world: World) -> None:
    second = world.clock.now_ms() // 1000 - 10
    await world.store(*(event(number, at_ms=1000 * second + 500 * number) for number in range(6)))
    assert await world.found(start_time=second + 1) == numbered([5, 4, 3, 2])
    assert await world.found(end_time=second) == numbered([1, 0])
    assert await world.found(start_time=second + 1, end_time=second + 1) == numbered([3, 2])
    assert await world.found(start_time=2**62, end_time=2**62) == []
    assert len(await world.found(start_time=-5, end_time=-1)) == 6


async def test_all_fields_of_an_entry(world: World) -> None:
    fields: dict[str, Any] = {name: f"the {name}" for name in (
        "operation", "actor_id", "resource_type", "resource_id", "workspace", "session_id", "gateway_id",
        "error_message", "subject_id", "root_subject_id", "authority_mode", "root_authority_grant_id",
        "authority_grant_id", "parent_authority_grant_id", "source",
    )}  # fmt: skip
    kinds = {"actor_type": "agent", "subject_type": "user", "root_subject_type": "user"}
    await world.store(event(1, at_ms=7_999, success=False, metadata={"n": 1}, **fields, **kinds))
    [entry] = (await world.query()).entries
    assert {name: getattr(entry, name) for name in [*fields, *kinds]} == fields | kinds
    assert (entry.audit_id, entry.timestamp, entry.success, entry.event_type) == (1, 7, False, "kv")
    assert json.loads(entry.metadata_json) == {"n": 1}


async def test_a_query_sees_what_was_done_before_it(world: World) -> None:
    world.writer.put(event(1))
    assert await world.found() == ["key-1"]
    assert world.settled == 1


# -- who may read ----------------------------------------------------------------------------------


async def three_rows(world: World) -> None:
    await world.store(
        event(1, actor_id=ME.text), event(2, actor_id=OTHER.text), event(3, actor_id=ME.text, workspace="v")
    )


async def test_read_of_the_category_shows_everything(world: World) -> None:
    await three_rows(world)
    assert await world.found() == numbered([3, 2, 1])
    assert world.rules.asked[0] == ("audit_query", Admin.AUDIT, "", AccessLevel.READ)


async def test_manage_of_a_workspace_shows_its_rows_and_read_ones_own(world: World) -> None:
    await three_rows(world)
    world.rules.levels = {"w": AccessLevel.MANAGE}
    assert await world.found(workspace="w") == numbered([2, 1])
    world.rules.levels = {"w": AccessLevel.READWRITE}
    assert await world.found(workspace="w") == numbered([1])
    assert (await world.query(workspace="w")).total_count == 1
    assert await world.found(workspace="w", actor_id=OTHER.text) == []
    for workspace in ("", "v"):
        reply = await world.query(workspace=workspace)
        assert (reply.success, list(reply.entries), reply.total_count) == (False, [], 0)
        assert "no READ of" in reply.error


async def test_a_credential_for_some_workspaces_reads_no_others(world: World) -> None:
    await three_rows(world)
    caller = Caller(workspaces=frozenset({"w"}))
    assert "all workspaces" in (await world.query(caller)).error
    assert await world.found(caller, workspace="w") == numbered([2, 1])
    assert "does not reach" in (await world.query(caller, workspace="v")).error


async def test_the_rows_of_a_user_are_of_all_his_windows(world: World) -> None:
    alice = Identity.user("alice", "window-1")
    await world.store(event(1, actor_type="user", actor_id="alice"), event(2, actor_type="user", actor_id="bob"))
    world.rules.levels = {"w": AccessLevel.READ}
    assert await world.found(Caller(alice), workspace="w") == numbered([1])


async def test_an_authority_that_is_not_there_is_refused(world: World) -> None:
    context = pb.AuthorizationContext(authority_mode="on_behalf_of", grant_id="g")
    assert not (await world.query(authorization=context)).success


@pytest.mark.parametrize(
    "fields",
    [
        {"workspace": "a\0b"},
        {"actor_id": "\x07"},
        {"operation": "x" * 5000},
        {"exclude_workspaces": ["a\0"]},
        {"exclude_actor_types": ["x"] * 101},
    ],
)
async def test_filters_that_are_none(world: World, fields: dict[str, Any]) -> None:
    reply = await world.query(**fields)
    assert not reply.success
    assert Code.INVALID_ARGUMENT in reply.error


# -- entries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("event_type", ["message", "kv", "task", "custom"])
async def test_an_entry_is_stored_with_who_and_when(world: World, event_type: str) -> None:
    reply = await world.submit(
        event_type=event_type,
        resource_type="invoice",
        resource_id="7",
        success=False,
        error_message="line one\nline two",
        metadata={"sum": "12", "api_key": "hunter2"},
    )
    assert reply.success, reply.error_message
    [entry] = (await world.query()).entries
    assert (entry.event_type, entry.operation, entry.source) == (event_type, "did", "principal")
    assert (entry.actor_type, entry.actor_id, entry.session_id) == ("agent", ME.text, "session-1")
    assert (entry.subject_id, entry.authority_mode, entry.gateway_id) == (ME.text, "direct", "node-1")
    assert (entry.workspace, entry.resource_type, entry.resource_id) == ("w", "invoice", "7")
    assert (entry.success, entry.error_message) == (False, "line one\nline two")
    assert json.loads(entry.metadata_json) == {"sum": "12", "api_key": "[REDACTED]"}


@pytest.mark.parametrize(
    "event_type", ["auth", "connection", "authorization", "authority_request", "admin", "acl", "", "CUSTOM", "x" * 99]
)
async def test_other_types_are_the_gateways(world: World, event_type: str) -> None:
    reply = await world.submit(event_type=event_type)
    assert (reply.success, reply.error_code) == (False, Code.AUDIT_TYPE_FORBIDDEN)
    assert await world.found() == []


@pytest.mark.parametrize(
    "fields",
    [
        {"operation": ""},
        {"operation": "a\0"},
        {"operation": "x" * 1025},
        {"resource_type": "a\nb"},
        {"resource_id": "7"},
        {"error_message": "but it succeeded"},
        {"success": False, "error_message": "a\0b"},
        {"metadata": {"a\0": "b"}},
        {"metadata": {"a": "\0"}},
        {"metadata": {str(number): "x" for number in range(101)}},
        {"metadata": {"a": "x" * METADATA_BYTES}},
        {"metadata": {"a": "ä" * (METADATA_BYTES // 4)}},
    ],
)
async def test_fields_are_checked(world: World, fields: dict[str, Any]) -> None:
    reply = await world.submit(**fields)
    assert (reply.success, reply.error_code) == (False, Code.INVALID_ARGUMENT)
    assert await world.found() == []


async def test_another_workspace_needs_a_capability_for_it(world: World) -> None:
    reply = await world.submit(workspace="v")
    assert (reply.success, reply.error_code) == (False, Code.PERMISSION_DENIED)
    assert world.rules.asked[-1] == ("submit_audit_event", Capability.AUDIT_SUBMIT, "v", AccessLevel.READ)
    world.rules.levels[Capability.AUDIT_SUBMIT] = AccessLevel.READ
    assert (await world.submit(workspace="v")).success
    [entry] = (await world.query()).entries
    assert entry.workspace == "v"
    reply = await world.submit(Caller(workspaces=frozenset({"w"})), workspace="v")
    assert reply.error_code == Code.PERMISSION_DENIED


async def test_a_hundred_entries_a_second_of_each_principal(world: World) -> None:
    async def attempt(caller: Caller, results: list[str]) -> None:
        results.append((await world.submit(caller)).error_code)

    mine: list[str] = []
    async with trio.open_nursery() as nursery:
        for _ in range(120):
            nursery.start_soon(attempt, Caller(), mine)
    assert mine.count("") == 100
    assert mine.count(Code.AUDIT_RATE_LIMITED) == 20
    assert (await world.submit(Caller(OTHER))).success
    world.clock.advance(10)
    assert (await world.submit()).success
    assert (await world.submit()).error_code == Code.AUDIT_RATE_LIMITED


async def test_a_type_that_is_not_recorded_is_refused(database: Database, clock: ManualClock, tree: AuditTree) -> None:
    async with opened(database, clock, tree, AuditPolicy(frozenset({EventType.TASK}))) as world:
        assert (await world.submit()).error_code == Code.AUDIT_DISABLED
        assert (await world.submit(event_type="task")).success


async def test_without_a_log_nothing_is_stored(database: Database, clock: ManualClock) -> None:
    service = AuditService(database, clock, Rules(), None, lambda: None, AsyncMock())
    request = pb.SubmitAuditEventRequest(event_type="custom", operation="did", success=True)
    [answer] = await service.submit(Caller(), request)  # type: ignore[arg-type]
    assert answer.submit_audit_event_response.error_code == Code.AUDIT_DISABLED


async def test_while_rows_cannot_be_written_entries_are_refused(world: World) -> None:
    world.writer.failing = True
    assert (await world.submit()).error_code == Code.CIRCUIT_OPEN


# -- decisions -------------------------------------------------------------------------------------


async def test_decisions_are_the_rows_of_access_checks(world: World) -> None:
    made = {"event_type": EventType.AUTHORIZATION, "resource_type": "workspace", "resource_id": "v"}
    await world.store(
        event(1),
        event(2, at_ms=5_000, operation="connect", metadata={
            "decision": "ALLOW", "access_level": 20, "rule_id": "r-1", "fallback_applied": False, "extra": 7,
        }, **made),
        event(3, at_ms=6_000, operation="connect", success=False, error_message="access denied",
              metadata={"decision": "DENY", "access_level": 0, "fallback_applied": True}, **made),
    )  # fmt: skip
    (denied, allowed), total = await world.service.decisions(pb.ACLAuditFilter())
    assert total == 2
    assert (allowed.decision, allowed.access_level, allowed.access_level_name) == ("ALLOW", 20, "READWRITE")
    assert (allowed.rule_id, allowed.fallback_applied, dict(allowed.metadata)) == ("r-1", False, {"extra": "7"})
    assert (allowed.principal_type, allowed.principal_id, allowed.timestamp) == ("agent", "ag::w::a::1", 5)
    assert (denied.decision, denied.access_level_name, denied.fallback_applied) == ("DENY", "NONE", True)
    for wanted, count in [
        (pb.ACLAuditFilter(decision="DENY"), 1),
        (pb.ACLAuditFilter(decision="allow"), 1),
        (pb.ACLAuditFilter(principal_type="AGENT", principal_id="ag::w::a::1"), 2),
        (pb.ACLAuditFilter(principal_id="x"), 0),
        (pb.ACLAuditFilter(resource_type="workspace", resource_id="v", workspace="w"), 2),
        (pb.ACLAuditFilter(start_time=6), 1),
        (pb.ACLAuditFilter(end_time=5), 1),
    ]:
        assert (await world.service.decisions(wanted))[1] == count
    entries, total = await world.service.decisions(pb.ACLAuditFilter(limit=1, offset=1))
    assert ([entry.audit_id for entry in entries], total) == ([2], 2)
    assert await world.service.forget(7) == 7
    with pytest.raises(RequestError, match="ALLOW or DENY"):
        await world.service.decisions(pb.ACLAuditFilter(decision="MAYBE"))


async def test_each_filter_has_an_index(database: Database, clock: ManualClock, tree: AuditTree) -> None:
    """The plan of the engine for a page of each filter reads no whole table."""
    if database.shared:
        pytest.skip("PostgreSQL chooses by its statistics, and these tables are small")
    rows = [event(number % 7, workspace=f"w{number % 5}") for number in range(100)]
    await database.run(lambda: append(tree.origin, rows, clock.now_ms()))
    columns = ["event_type", "operation", "actor_id", "resource_id", "workspace", "subject_id", "authority_grant_id"]
    wanted = [AuditFilter([(column, "x")]) for column in columns]
    wanted += [AuditFilter(), AuditFilter(success=False), AuditFilter([("authority_mode", "on_behalf_of")])]
    for one in wanted:
        page = find(one)
        statement = next(page)
        count = [[1]]
        for statement in (statement, page.send(count)):  # noqa: B020
            plan = await database.fetch(f"EXPLAIN QUERY PLAN {statement.sql}", *statement.args)  # type: ignore[union-attr]
            text = " ".join(str(row) for row in plan)
            assert "INDEX audit_log_" in text, (one, text)
            assert "TEMP B-TREE" not in text, (one, text)

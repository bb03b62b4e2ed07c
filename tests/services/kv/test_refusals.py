"""Shape and order of every refusal: clients act on the first reply with their id."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from aether_trio.model.identity import Identity
from aether_trio.model.limits import MIB, Limits
from aether_trio.services.access import AccessDecision, Actor
from aether_trio.services.kv import KvService
from aether_trio.services.kv.service import MAX_RESPONSE_BYTES
from aether_trio.storage.base import Database, StorageUnavailable
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.access import authorizer
from tests.helpers.clocks import ManualClock
from tests.services.kv.conftest import ALICE, Caller

OPS = pb.KVOperation.OpType.keys()


def shape(messages: list[pb.DownstreamMessage]) -> list[str]:
    assert all(not message.kv.success for message in messages)
    return [one.error.code if one.HasField("error") else str(one.WhichOneof("payload")) for one in messages]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "identity", [Identity.user("u", "w"), Identity.orchestrator("o", "1"), Identity.bridge("b", "1")], ids=str
)
async def test_users_orchestrators_and_bridges_may_not_use_it(alice: Caller, op: str, identity: Identity) -> None:
    assert "may not use" in await alice.as_(identity).refusal(op, key="k", target_identity=str(ALICE))


@pytest.mark.parametrize(
    "identity",
    [
        ALICE,
        Identity.unique_task("w1", "t", "1"),
        Identity.task("w1", "t", "uuid"),
        Identity.service("s", "1"),
        Identity.workflow_engine(),
        Identity.metrics_bridge(),
    ],
    ids=str,
)
async def test_the_others_may(alice: Caller, identity: Identity) -> None:
    caller = alice.as_(identity)
    await caller.PUT(key=identity.text, value=b"v")
    assert (await caller.GET(key=identity.text)).value == b"v"


async def test_without_a_request_id_only_the_error_is_sent(alice: Caller) -> None:
    caller = alice.as_(Identity.user("u", "w"), request_id="")
    assert shape(await caller.messages("GET", key="k")) == ["KV_ERROR"]


async def test_without_a_request_id_a_success_is_sent(alice: Caller) -> None:
    await alice.as_(ALICE, request_id="").PUT(key="k", value=b"v")


@pytest.mark.parametrize(
    "fields", [{"scope": 3}, {"scope": 4, "workspace": "w"}, {"scope": 7}, {"scope": 8}, {"scope": 77}]
)
async def test_scope_parameters_are_refused_by_the_error_alone(alice: Caller, fields: dict[str, Any]) -> None:
    (message,) = await alice.messages("GET", key="k", **fields)
    assert shape([message]) == ["KV_ERROR"]
    assert message.error.request_id == "r1"


@pytest.mark.parametrize("op", ["PUT", "SET_NX", "COMPARE_AND_SET", "SET_ADD"])
async def test_a_value_over_the_limit_is_a_quota_error_alone_and_final(alice: Caller, op: str) -> None:
    (message,) = await alice.messages(op, key="k", value=bytes(MIB + 1))
    assert shape([message]) == ["ERR_QUOTA_001"]
    assert (message.error.retryable, message.error.request_id) == (False, "r1")
    assert str(MIB) in message.error.message
    # Of bytes that do not compress: an index of PostgreSQL has room for some thousands.
    await getattr(alice, op)(key="k", value=random.Random(1).randbytes(MIB))


async def test_no_setting_allows_a_value_that_could_not_be_read_back(database: Database, clock: ManualClock) -> None:
    caller = Caller(KvService(database, clock, Limits(kv_value_bytes=100 * MIB), authorizer(shared_keys=True)), ALICE)
    assert shape(await caller.messages("PUT", key="k", value=bytes(MAX_RESPONSE_BYTES + 1))) == ["ERR_QUOTA_001"]
    await caller.PUT(key="k" * 256, value=bytes(MAX_RESPONSE_BYTES))
    for response in (await caller.GET(key="k" * 256), await caller.LIST()):
        assert response.ByteSize() < 4 * MIB - 4096


@pytest.mark.parametrize(
    "context",
    [
        pb.AuthorizationContext(authority_mode="on_behalf_of", grant_id="g"),
        pb.AuthorizationContext(authority_mode="direct", grant_id="g"),
        pb.AuthorizationContext(subject=pb.PrincipalRef(principal_id="u")),
        pb.AuthorizationContext(authority_mode="nonsense"),
    ],
)
async def test_an_authorization_context_that_does_not_hold(alice: Caller, context: pb.AuthorizationContext) -> None:
    messages = await alice.messages("GET", key="k", authorization=context)
    assert shape(messages) == ["ERR_PERMISSION_DENIED", "kv"]
    assert messages[0].error.request_id == messages[1].kv.request_id == "r1"


@pytest.mark.parametrize("mode", ["", "direct"])
async def test_a_direct_authorization_context_changes_nothing(alice: Caller, mode: str) -> None:
    await alice.PUT(key="k", value=b"v", authorization=pb.AuthorizationContext(authority_mode=mode))


async def test_an_unknown_operation_is_named(alice: Caller) -> None:
    messages = await alice.service.handle(ALICE, pb.KVOperation(op=99, key="k", request_id="r1"))  # type: ignore[arg-type]
    assert shape(messages) == ["kv", "KV_ERROR"]
    assert "99" in messages[1].error.message


DENIED = "ERR_PERMISSION_DENIED"


class Denying:
    """Denies shared scopes, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    async def check_kv(
        self, actor: Actor, scope: str, key: str, workspace: str, user_id: str, level: Any, *_: Any, exclusive: bool
    ) -> AccessDecision:
        if exclusive:
            return AccessDecision(True)
        self.asked.append((scope, workspace, level.name))
        return AccessDecision(False, f"no rule lets {actor.identity} use {scope}")


async def test_rules_are_asked_about_shared_scopes(database: Database, clock: ManualClock) -> None:
    rules = Denying()
    caller = Caller(KvService(database, clock, Limits(), rules), ALICE, user_id="u")  # type: ignore[arg-type]
    for scope in (3, 4, 5, 6):
        await caller.PUT(key="k", value=b"v", scope=scope)
        assert (await caller.LIST(scope=scope)).kv_map == {"k": b"v"}
    assert rules.asked == []
    for scope in (1, 2, 7, 8):
        assert "no rule" in await caller.refusal("PUT", DENIED, key="k", scope=scope)
        assert "no rule" in await caller.refusal("GET", DENIED, key="k", scope=scope, workspace="w2")
    assert rules.asked[:4] == [
        ("global", "w1", "READWRITE"),
        ("global", "w2", "READ"),
        ("workspace", "w1", "READWRITE"),
        ("workspace", "w2", "READ"),
    ]


class BrokenDatabase:
    shared = False

    async def run(self, program: Callable[[], Any]) -> Any:
        raise StorageUnavailable("database or disk is full")

    read = read_small = run_small = run


@pytest.mark.parametrize("op", OPS)
async def test_storage_that_does_not_answer_is_a_retryable_failure(clock: ManualClock, op: str) -> None:
    rules = authorizer("open", "capability/kv_purge_identity", shared_keys=True)
    caller = Caller(KvService(BrokenDatabase(), clock, Limits(), rules), ALICE)  # type: ignore[arg-type]
    messages = await caller.messages(op, key="k", target_identity=str(ALICE), scope=5)
    assert shape(messages) == ["kv", "KV_ERROR"]
    assert messages[1].error.retryable
    assert "full" in messages[1].error.message
    assert await caller.service.sweep() == 0

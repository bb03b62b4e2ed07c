"""A service on a real database, and a caller that speaks KV operations."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.model.identity import Identity
from aether_trio.model.limits import Limits
from aether_trio.services.access import Capability
from aether_trio.services.kv import KvService
from aether_trio.storage.base import Database
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.access import authorizer
from tests.helpers.clocks import ManualClock

ALICE = Identity.agent("w1", "alice", "1")
BOB = Identity.agent("w1", "bob", "1")


class Caller:
    """Performs `await caller.PUT(key="a", value=b"x")` and gives its `.kv`."""

    def __init__(self, service: KvService, identity: Identity, **defaults: Any) -> None:
        self.service = service
        self.identity = identity
        self.defaults = {"scope": pb.KVOperation.GLOBAL, "request_id": "r1", **defaults}

    def as_(self, identity: Identity, **defaults: Any) -> Caller:
        return Caller(self.service, identity, **(self.defaults | defaults))

    async def messages(self, op: str, **fields: Any) -> list[pb.DownstreamMessage]:
        number = pb.KVOperation.OpType.Value(op)
        return await self.service.handle(self.identity, pb.KVOperation(op=number, **(self.defaults | fields)))

    def __getattr__(self, op: str) -> Any:
        async def operate(**fields: Any) -> pb.KVResponse:
            (message,) = await self.messages(op, **fields)
            assert message.kv.success
            assert message.kv.request_id == (self.defaults | fields)["request_id"]
            return message.kv

        return operate

    async def refusal(self, op: str, code: str = "KV_ERROR", **fields: Any) -> str:
        """The text of an ordinary refusal; its shape is checked."""
        failure, error = await self.messages(op, **fields)
        assert failure.kv == pb.KVResponse(success=False, request_id="r1")
        assert (error.error.code, error.error.retryable, error.error.request_id) == (code, False, "r1")
        return error.error.message


@pytest.fixture
def service(database: Database, clock: ManualClock) -> KvService:
    return KvService(database, clock, Limits(), authorizer("open", Capability.KV_PURGE_IDENTITY, shared_keys=True))


@pytest.fixture
def alice(service: KvService) -> Caller:
    return Caller(service, ALICE)


@pytest.fixture
def bob(service: KvService) -> Caller:
    return Caller(service, BOB)

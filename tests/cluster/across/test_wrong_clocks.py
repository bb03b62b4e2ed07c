"""A node with a wrong clock ages and dates nothing shared wrongly."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from unittest import mock

import pytest
import trio

from aether_trio.gateway.core import open_core
from aether_trio.log.retention import Retention
from aether_trio.model.clock import SystemClock
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect, message_to, settings_for_tests
from tests.helpers.engines import PostgresEngine

LONG_S = 300.0
DAY_MS = 86_400_000


class Watched(Retention):
    swept: trio.Event

    async def sweep(self) -> int:
        gone = await super().sweep()
        self.swept.set()
        return gone


@pytest.mark.parametrize("days", [3, -3])
async def test_a_wrong_clock_deletes_and_expires_nothing(postgres_engine: PostgresEngine, days: int) -> None:
    storage = {"database": postgres_engine.server.dsn(), "schema": postgres_engine.schema}
    settings = settings_for_tests(storage=storage, log={"offset_flush_s": 0.05, "retention_sweep_s": 0.05})
    wrong = SystemClock(trio.current_time, lambda: time.time_ns() + days * DAY_MS * 1_000_000)
    Watched.swept = trio.Event()
    with trio.fail_after(LONG_S):
        async with AsyncExitStack() as stack:
            one = await stack.enter_async_context(open_core(settings))
            with mock.patch("aether_trio.gateway.core.Retention", Watched):
                two = await stack.enter_async_context(open_core(settings, clock=wrong))
            for core in (one, two):
                async with connect(core, agent("w", "s", "1")) as sender:
                    sender.send(
                        message_to("ag::w::away::1", b"kept"),
                        pb.UpstreamMessage(
                            kv_op=pb.KVOperation(
                                op=pb.KVOperation.PUT, scope=pb.KVOperation.GLOBAL, key="k", value=b"v", ttl=3600
                            )
                        ),
                    )
                    await barrier(sender)
                Watched.swept = trio.Event()
                await Watched.swept.wait()
                await two.kv.sweep()
            for core in (two, one):
                async with connect(core, agent("w", "reader", "1")) as reader:
                    op = pb.KVOperation(op=pb.KVOperation.GET, scope=pb.KVOperation.GLOBAL, key="k", request_id="g")
                    reader.send(pb.UpstreamMessage(kv_op=op))
                    assert (await reader.next("kv")).kv.value == b"v"
            async with connect(one, agent("w", "away", "1")) as away:
                assert [(await away.next("msg")).msg.payload for _ in range(2)] == [b"kept", b"kept"]
            [[spread_ms]] = postgres_engine.rows("SELECT max(ts_ms) - min(ts_ms) FROM messages")
            assert spread_ms < DAY_MS

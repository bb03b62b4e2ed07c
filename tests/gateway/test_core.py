"""The core keeps its promises on real files and threads, not only in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core, open_core
from aether_trio.model.errors import Status
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import (
    agent,
    barrier,
    connect,
    kv_get,
    message_to,
    open_world,
    payloads,
    service,
    settings_for_tests,
    task,
    user,
)
from tests.helpers.direct import Store

TOPIC = "ag::w::a::1"


@asynccontextmanager
async def on_files(directory: Path, **more: Any) -> AsyncIterator[Core]:
    settings = settings_for_tests(gateway={"ephemeral": False, "data_dir": str(directory)}, **more)
    with trio.fail_after(60):
        async with open_core(settings) as core:
            yield core


async def arrived(peer: MemoryLink, count: int) -> list[bytes]:
    return [(await peer.next("msg")).msg.payload for _ in range(count)]


async def test_everything_is_found_again_after_a_restart(tmp_path: Path) -> None:
    async with on_files(tmp_path) as core, connect(core, service("s", "1")) as sender:
        async with connect(core, agent("w", "a", "1"), wait_ack=False) as peer:
            first = (await peer.next("connection_ack")).connection_ack
            sender.send(message_to(TOPIC, b"read"))
            assert await arrived(peer, 1) == [b"read"]
        async with connect(core, user("u", "1")):
            pass
        sender.send(*(message_to(TOPIC, b"%d" % number) for number in range(500)))
        sender.send(message_to("tb::w::t", b"work"), message_to("uu::u", b"for u"))
        await barrier(sender)
    async with on_files(tmp_path) as core:
        hello = agent("w", "a", "1", resume_session_id=first.session_id)
        async with connect(core, hello, wait_ack=False) as peer:
            second = (await peer.next("connection_ack")).connection_ack
            assert (second.resumed, second.reconnection_count) == (True, 1)
            assert second.initial_connection_unix_ms == first.initial_connection_unix_ms
            assert await arrived(peer, 500) == [b"%d" % number for number in range(500)]
        async with connect(core, task("w", "t")) as worker:
            assert await arrived(worker, 1) == [b"work"]
        async with connect(core, user("u", "1")) as window:
            assert await arrived(window, 1) == [b"for u"]
    async with on_files(tmp_path) as core, connect(core, agent("w", "a", "1")) as peer:
        await barrier(peer)
        assert payloads(peer) == []


async def test_a_second_gateway_on_the_same_files_is_refused(tmp_path: Path) -> None:
    async with on_files(tmp_path):
        with pytest.raises(Exception, match=str(tmp_path)):
            async with on_files(tmp_path):
                pytest.fail("two gateways would write one log")


async def test_many_senders_and_receivers_while_some_reconnect(tmp_path: Path) -> None:
    got: dict[int, list[bytes]] = {number: [] for number in range(8)}
    finished = trio.Event()

    async def receive(core: Core, number: int) -> None:
        while not finished.is_set() or len(got[number]) < 400:
            async with connect(core, agent("w", "r", f"{number}")) as peer:
                for _ in range(20):
                    await barrier(peer)
            got[number] += payloads(peer)

    async def send(core: Core, number: int) -> None:
        async with connect(core, agent("w", "s", f"{number}")) as peer:
            for start in range(0, 400, 20):
                frames = [b"%d-%d" % (number, one) for one in range(start, start + 20)]
                peer.send(*(message_to(f"ag::w::r::{number}", frame) for frame in frames))
                await barrier(peer)

    async with on_files(tmp_path) as core, trio.open_nursery() as receivers:
        for number in got:
            receivers.start_soon(receive, core, number)
        async with trio.open_nursery() as senders:
            for number in got:
                senders.start_soon(send, core, number)
        finished.set()
    for number, frames in got.items():
        assert frames == [b"%d-%d" % (number, one) for one in range(400)]


async def test_ephemeral_means_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with trio.fail_after(60):
        async with open_core(settings_for_tests()) as core, connect(core, agent("w", "a", "1")) as peer:
            peer.send(pb.UpstreamMessage(send=pb.SendMessage(target_topic=TOPIC, payload=b"x")))
            await barrier(peer)
            assert payloads(peer) == [b"x"]
    assert list(tmp_path.iterdir()) == []


async def test_a_state_database_that_cannot_be_written_shows_until_it_can(store: Store) -> None:
    with open_world(store) as world:
        async with world.open() as core:
            core.health.serving()
            assert core.health.readiness().ready
            world.state.failing = True
            assert set(core.health.readiness().problems) == {"state"}
            looks = world.state.writes
            while world.state.writes == looks:  # the probe looks without a request
                await trio.sleep(0.01)
            world.state.failing = False
            assert core.health.readiness().ready


async def test_metrics_have_the_references_names_labels_and_words(tmp_path: Path) -> None:
    async with (
        on_files(tmp_path, ops={"workspace_label": True}) as core,
        connect(core, agent("w", "a", "1")) as peer,
        connect(core, user("u", "1")),
        connect(core, agent("w", "a", "1"), wait_ack=False) as second,
    ):
        assert (await second.wait_end()).status is Status.ALREADY_EXISTS
        peer.send(kv_get("k"), message_to(TOPIC, b"x"))
        await barrier(peer)
        _, body = core.metrics.render()
    lines = set(body.decode().splitlines())
    expected = {
        'aether_active_connections{workspace="w",principal_type="agent"} 1.0',
        'aether_active_connections{workspace="",principal_type="user"} 1.0',
        'aether_connection_attempts_total{workspace="w",principal_type="agent",status="success"} 1.0',
        'aether_connection_attempts_total{workspace="w",principal_type="agent",status="lock_failed"} 1.0',
        'aether_kv_operations_total{workspace="w",operation="GET",scope="GLOBAL",status="ok"} 1.0',
        'aether_checkpoint_operations_total{workspace="w",operation="LOAD"} 1.0',
        'aether_messages_routed_total{workspace="w",message_type="opaque"} 1.0',
        'aether_messages_routed_bytes_total{workspace="w",message_type="opaque"} 1.0',
        "aether_message_routing_latency_seconds_count 1.0",
        # Of the agent: its own topic, ga; of the window: its own, uu.
        "aether_topic_subscriptions_active 4.0",
        "aether_log_appended_total 1.0",
        "aether_log_expired_total 0.0",
    }
    assert expected - lines == set()
    assert not [line for line in lines if "ag::" in line or "us::" in line]


async def test_what_tasks_have_to_be_told_is_written_before_the_end(tmp_path: Path) -> None:
    async with on_files(tmp_path) as core:
        async with connect(core, task("w", "sum")), connect(core, agent("w", "a", "1")):
            pass
        writes = core.tasks.engine.writes
        told = writes.put(lambda _: iter(()))  # type: ignore[arg-type, return-value]
        assert not writes.is_written(told)
    assert writes.is_written(told)

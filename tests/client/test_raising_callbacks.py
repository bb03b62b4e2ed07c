"""Test what an exception in a program's callback costs."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import anyio
import pytest
import trio

from aether_trio.client import AgentClient, ClientClosed
from aether_trio.wire import framing
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import agent, with_gateway
from tests.client.peer import open_peer, scripted


class Mistake(Exception):
    """What the program's function raises."""


def raising(_argument: Any) -> bool:
    raise Mistake("of the program")


@with_gateway(schemes=["aether", "ws"])
async def test_a_match_that_raises_costs_its_own_feed(address: str) -> None:
    async with agent(address, "a") as a, agent(address, "b") as b:
        with a.open_feed("progress_update", match=raising) as broken, a.open_feed("progress_update") as sound:
            await b.progress.report("job", completion=0.5, confirm=True)
            with anyio.fail_after(300):
                assert (await anext(aiter(sound))).task_id == "job"
            with pytest.raises(Mistake):
                await anext(aiter(broken))
        await a.send(b.topic, b"still there")
        assert (await b.receive()).text == "still there"
        assert a.connections == 1


async def test_hooks_that_raise_are_logged_and_the_client_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def body(a: AgentClient) -> None:
        await a.send("ag::w::i::b", b"x")
        assert a.connections == 2

    async with scripted(body, on_connected=raising, on_disconnected=raising) as (peer, _):
        again = await peer.cut()
        await again.say(framing.Ack((await again.next(framing.Send)).seq))
    found = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage().rpartition(": ")[2] for record in found] == [
        "the callback on_connected raised an exception",
        "the callback on_disconnected raised an exception",
        "the callback on_connected raised an exception",
    ]
    assert all(record.exc_info is not None and record.exc_info[0] is Mistake for record in found)


async def test_a_defect_of_the_client_is_raised_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:
        broken = trio.Event()

        async def body() -> None:
            with pytest.raises(Mistake):
                async with agent(peer.address, "a") as a:
                    monkeypatch.setattr(a._dispatch, "downstream", raising)
                    broken.set()
                    with pytest.raises(ClientClosed):
                        await a.receive()

        nursery.start_soon(body)
        line = await peer.accept()
        await broken.wait()
        await line.tell(config=pb.ConfigSnapshot())
        with contextlib.suppress(trio.BrokenResourceError):  # the client does not say goodbye
            await line.end()

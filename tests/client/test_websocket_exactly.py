"""Test on WebSocket which message was refused, and how much is held unread."""

from __future__ import annotations

import anyio
import pytest

from aether_trio.client import AetherError, AgentClient, InvalidArgument, NotFound, Unavailable
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import agent, with_gateway
from tests.client.peer import scripted

everywhere = with_gateway(schemes=["ws", "aether"])


@everywhere
async def test_one_bad_topic_among_ten_is_the_only_one_refused(address: str) -> None:
    async with agent(address, "a") as a, agent(address, "b") as b:
        publications = [await a.publish("nowhere" if number == 4 else b.topic, str(number)) for number in range(10)]
        with pytest.raises(InvalidArgument, match="nowhere"):
            await a.flush()
        refused = [number for number, publication in enumerate(publications) if publication.error is not None]
        assert refused == [4]
        now = a.statistics()
        assert (now.committed, now.refused, now.in_doubt) == (9, 1, 0)
        assert [(await b.receive()).text for _ in range(9)] == [str(number) for number in range(10) if number != 4]


@everywhere
async def test_a_refusal_of_each_kind_is_that_of_its_message_alone(address: str) -> None:
    async with agent(address, "a") as a:
        good = [await a.publish(a.topic, b"x") for _ in range(300)]
        with pytest.raises(InvalidArgument):
            await a.tell_confirmed(pb.UpstreamMessage(send=pb.SendMessage(target_topic="nowhere", payload=b"x")))
        with pytest.raises(Unavailable):
            await a.send_to_service("absent", b"x")
        more = await a.publish(a.topic, b"x")
        with pytest.raises(AetherError):
            await a.tasks.create("t", b"", target="no such identity")
        good += [more, await a.publish(a.topic, b"x")]
        await a.progress.report("job", completion=0.5, confirm=True)
        for publication in good:
            await publication.committed()


@everywhere
async def test_what_is_not_read_is_bounded_while_answers_are_awaited(address: str) -> None:
    count = 3000
    busy = agent(address, "busy", credit_messages=64, credit_bytes=100_000)
    async with agent(address, "quick") as quick, busy:
        most = 0
        async with anyio.create_task_group() as group:

            async def keep_asking() -> None:
                nonlocal most
                while True:
                    await busy.send("ag::w::i::sink", b"x")
                    now = busy.statistics()
                    most = max(most, now.buffered)
                    assert now.held_bytes <= 110_000

            group.start_soon(keep_asking)
            for number in range(count):
                await quick.publish(busy.topic, f"{number} {'x' * 1000}")
            await quick.flush()
            for _ in range(20):
                await busy.kv.get("a request is answered, too")
            group.cancel_scope.cancel()
        assert 0 < most <= 100
        for number in range(count):
            message = await busy.receive()
            assert message.text.split()[0] == str(number)
            if number % 100 == 0:
                await busy.reply(message, b"an echo")
            message.ack()
        assert busy.statistics().buffered == 0


async def test_a_notice_refuses_nothing() -> None:
    """The gateway reports lost messages while the client awaits a confirmation."""

    async def body(a: AgentClient) -> None:
        await a.progress.report("job", completion=0.5, confirm=True)
        assert (await anext(a.errors)).code == "BACKPRESSURE"
        with pytest.raises(NotFound):
            await a.progress.report("job", completion=0.5, confirm=True)

    async with scripted(body) as (_, line):
        for refusal in ("", "ERR_NOT_FOUND"):
            while not (asked := await line.asked()).HasField("connection_status_request"):
                pass
            await line.tell(error=pb.ErrorResponse(code="BACKPRESSURE", message="3 messages are gone"))
            if refusal:
                await line.tell(error=pb.ErrorResponse(code=refusal))
            request_id = asked.connection_status_request.request_id
            await line.tell(connection_status_response=pb.ConnectionStatusResponse(request_id=request_id))

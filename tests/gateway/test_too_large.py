"""An answer too large for any client becomes a refusal, and ends nothing."""

from __future__ import annotations

import pytest
import trio

from aether_trio.gateway import Gateway
from aether_trio.model.errors import Code, Status, StatusError
from aether_trio.model.limits import CLIENT_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, MAX_TASK_PAYLOAD_BYTES, MIB, Limits
from aether_trio.testing.memory import agent, message_to
from aether_trio.wire.delivery import encode_delivery
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import open_test_gateway
from tests.gateway.sessions import session_of
from tests.helpers.participants import TRANSPORTS, participant

A, B = "ag::w::a::1", "ag::w::b::1"
WORKERS = "tb::w::job"


def kv(op: pb.KVOperation.OpType.ValueType, request_id: str, value: bytes = b"") -> pb.UpstreamMessage:
    wanted = pb.KVOperation(op=op, key="k", scope=pb.KVOperation.GLOBAL, request_id=request_id, value=value)
    return pb.UpstreamMessage(kv_op=wanted)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_long_request_id_behind_unread_answers_is_refused_and_nothing_ends(transport: str) -> None:
    size = (1 if transport == "websocket" else 5) * MIB  # WebSocket takes messages of 2 MiB
    async with (
        open_test_gateway() as gateway,
        participant("grpc", gateway.address, agent("w", "b", "1")) as bystander,
        participant(transport, gateway.address, agent("w", "a", "1")) as a,
    ):
        await a.send(kv(pb.KVOperation.PUT, "put", bytes(MIB)))
        assert (await a.next("kv")).kv.success

        async def ask() -> None:
            for request_id in ("0", "1", "2", "3", "x" * size):
                await a.send(kv(pb.KVOperation.GET, request_id))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)  # the gateway reads no further than it can answer
            await bystander.send(kv(pb.KVOperation.GET, "1"))
            assert (await bystander.next("kv")).kv.success
            for number in range(4):
                assert (await a.next("kv")).kv.request_id == str(number)
        error = (await a.next("error")).error
        assert error.code == Code.KV_ERROR
        assert error.message == f"request_id has {size} bytes; at most {Limits.name_bytes} are allowed"
        await a.send(kv(pb.KVOperation.GET, "after"))
        assert (await a.next("kv")).kv.request_id == "after"


def store(gateway: Gateway, topic: str, payload: bytes) -> None:
    """Put a message into the log that no sender could."""
    sender = session_of(gateway, A)
    frame = encode_delivery(sender.sender.prefix, payload, b"")
    sender.sender.last_append = gateway.core.log.append_nowait(gateway.core.log.topics.ensure(topic), frame, sender)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("when", ["live", "from the log"])
@pytest.mark.parametrize("topic", [B, WORKERS])
async def test_a_message_that_no_client_takes_does_not_hold_up_its_topic(transport: str, when: str, topic: str) -> None:
    receiver = agent("w", "b", "1")
    if topic == WORKERS:
        receiver = pb.UpstreamMessage(init=pb.InitConnection(task=pb.TaskIdentity(workspace="w", implementation="job")))
    async with open_test_gateway() as gateway, participant("grpc", gateway.address, agent("w", "a", "1")) as a:

        async def three() -> None:
            await a.send(message_to(topic, b"before"))
            await a.send(kv(pb.KVOperation.GET, "settled"))
            await a.next("kv")
            store(gateway, topic, bytes(CLIENT_MESSAGE_BYTES))
            await a.send(message_to(topic, b"behind"))
            await a.send(kv(pb.KVOperation.GET, "settled"))
            await a.next("kv")

        if when == "from the log":
            await three()
        async with participant(transport, gateway.address, receiver) as b:
            if when == "live":
                await three()
            got: list[bytes] = []
            told = ""
            while len(got) < 2 or not told:
                message = await b.receive()
                assert message is not None
                if message.HasField("msg"):
                    got.append(message.msg.payload)
                elif message.HasField("error"):
                    assert message.error.code == Code.BACKPRESSURE
                    told = message.error.message
            assert sorted(got) == [b"before", b"behind"]
            assert f"message 2 of {topic} has" in told


async def test_the_largest_payload_that_may_be_allowed_reaches_a_client_with_the_least_frame() -> None:
    limits = {"payload_bytes": MAX_PAYLOAD_BYTES, "task_payload_bytes": MAX_TASK_PAYLOAD_BYTES}
    async with (
        open_test_gateway(limits=limits) as gateway,
        participant("grpc", gateway.address, agent("w", "a", "1")) as a,
        participant("framed", gateway.address, agent("w", "b", "1")) as b,
    ):
        await a.send(message_to(B, bytes(MAX_PAYLOAD_BYTES)))
        assert len((await b.next("msg")).msg.payload) == MAX_PAYLOAD_BYTES
        params = {str(number): "x" * 1000 for number in range(200)}
        task = pb.CreateTaskRequest(
            task_type="t",
            workspace="w",
            request_id="1",
            assignment_mode=pb.TARGETED,
            target_agent_id=B,
            metadata=params,
            payload=bytes(MAX_TASK_PAYLOAD_BYTES),
        )
        await a.send(pb.UpstreamMessage(create_task=task))
        created = (await a.next("create_task")).create_task
        assert created.success, created.error_message
        assert len((await b.next("task_assignment")).task_assignment.payload) == MAX_TASK_PAYLOAD_BYTES


async def test_an_end_with_a_long_text_is_a_status_that_clients_can_read() -> None:
    async with open_test_gateway() as gateway, participant("grpc", gateway.address, agent("w", "b", "1")) as b:
        session = session_of(gateway, B)
        session.end(Status.CANCELLED, "because " + "ü" * MIB)
        with pytest.raises(StatusError, match="because ") as ended:
            while await b.receive() is not None:
                pass
        assert ended.value.status is Status.CANCELLED
        assert len(ended.value.message.encode()) <= Limits.status_text_bytes
        with trio.fail_after(300):
            await session.wait_detached()

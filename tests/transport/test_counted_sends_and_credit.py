"""Numbered sends and delivery credit, on transports without frames for them."""

from __future__ import annotations

import pytest
import trio

from aether_trio.delivery.receipts import CountedSends
from aether_trio.model.errors import Code, RequestError, Status, StatusError
from aether_trio.session.init_connection import DELIVERY_CREDIT, NUMBERED_SENDS
from aether_trio.testing.memory import agent, message_to
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import open_test_gateway
from tests.helpers.participants import Participant, participant

A, B = "ag::w::a::1", "ag::w::b::1"


def declared(who: str, uri: str, version: str = "") -> pb.UpstreamMessage:
    init = agent("w", who, "1")
    init.init.extensions.append(pb.ExtensionDeclaration(uri=uri, version=version, required=True))
    return init


def granted(text: str) -> pb.UpstreamMessage:
    return pb.UpstreamMessage(active_extensions=[text])


async def settled(one: Participant) -> pb.DownstreamMessage:
    """The next answer of a request, which comes behind everything else that is due."""
    await one.send(pb.UpstreamMessage(kv_op=pb.KVOperation(op=pb.KVOperation.GET, key="k", request_id="r")))
    return await one.next("kv")


@pytest.mark.parametrize("transport", ["grpc", "websocket"])
async def test_a_refusal_says_which_send_it_means(transport: str) -> None:
    async with (
        open_test_gateway() as gateway,
        participant(transport, gateway.address, declared("a", NUMBERED_SENDS)) as a,
    ):
        for topic in (A, "nowhere", A, "sv::unknown"):
            await a.send(message_to(topic, b"x"))
        await a.send(pb.UpstreamMessage(switch_workspace=pb.SwitchWorkspace(new_workspace_id="x")))
        found = [(await a.next("error")).error for _ in range(3)]
        assert [error.request_id for error in found] == ["send-2", "send-4", ""]
        assert [error.code for error in found[:2]] == [Code.INVALID_TOPIC, Code.SV_UNAVAILABLE]


@pytest.mark.parametrize("transport", ["grpc", "websocket"])
async def test_deliveries_wait_for_credit_and_answers_do_not(transport: str) -> None:
    async with (
        open_test_gateway() as gateway,
        participant("grpc", gateway.address, agent("w", "a", "1")) as a,
        participant(transport, gateway.address, declared("b", DELIVERY_CREDIT, "2/1000000")) as b,
    ):
        for number in range(500):
            await a.send(message_to(B, str(number).encode()))
        await settled(a)
        got: list[bytes] = []

        async def read_until_answered() -> None:
            await b.send(pb.UpstreamMessage(kv_op=pb.KVOperation(op=pb.KVOperation.GET, key="k", request_id="r")))
            while not (message := await b.receive()).HasField("kv"):  # type: ignore[union-attr]
                if message is not None and message.HasField("msg"):
                    got.append(message.msg.payload)

        await read_until_answered()
        while len(got) < 2:
            await read_until_answered()
        await read_until_answered()
        assert got == [b"0", b"1"]
        await b.send(granted(f"{DELIVERY_CREDIT}:3:1"))
        while len(got) < 5:
            await read_until_answered()
        await read_until_answered()
        assert got == [b"%d" % number for number in range(5)], "the bytes of the first credit are there still"
        await b.send(granted(f"{DELIVERY_CREDIT}:1000:1000000"))
        with trio.fail_after(300):
            while len(got) < 500:
                await read_until_answered()
        assert got == [b"%d" % number for number in range(500)]
        for wrong in (f"{DELIVERY_CREDIT}:1", f"{DELIVERY_CREDIT}:x:1", f"{DELIVERY_CREDIT}:-1:1", "urn:other:1:1"):
            await b.send(granted(wrong))
            assert (await b.next("error")).error.code == Code.NOT_IMPLEMENTED


@pytest.mark.parametrize(
    "version", ["", "64", "64/", "/64", "a/b", "-1/5", "1/2/3", f"1/{2**62 + 1}", f"{2**62 + 1}/1", f"1/{'9' * 5000}"]
)
async def test_a_credit_that_is_none_is_refused(version: str) -> None:
    async with open_test_gateway() as gateway:
        with pytest.raises(StatusError) as caught:
            async with participant("grpc", gateway.address, declared("b", DELIVERY_CREDIT, version)):
                pytest.fail("it was let in")
    assert caught.value.status is Status.INVALID_ARGUMENT


def test_what_the_log_refuses_later_has_its_number_and_settled_sends_are_forgotten() -> None:
    class Log:
        settled = 0

        def is_settled(self, number: int) -> bool:
            return number <= self.settled

    class Outbox:
        def __init__(self) -> None:
            self.said: list[pb.ErrorResponse] = []

        def put_control(self, frame: bytes) -> None:
            self.said.append(pb.DownstreamMessage.FromString(frame).error)

    log, outbox = Log(), Outbox()
    counted = CountedSends(log, outbox)  # type: ignore[arg-type]
    for number in (10, 20, 30):
        counted.count()
        counted.appended(number)
    counted.count()
    counted.refuse(RequestError(Code.INVALID_TOPIC, "no"))
    counted.refused(20, RequestError(Code.PUBLISH_FAILED, "full"))
    counted.refused(25, RequestError(Code.PUBLISH_FAILED, "full"))  # an append that was no send
    assert [error.request_id for error in outbox.said] == ["send-4", "send-2", ""]
    log.settled = 10
    counted.count()
    counted.appended(40)
    counted.refused(30, RequestError(Code.PUBLISH_FAILED, "full"))
    assert outbox.said[-1].request_id == "send-3", "it was not settled with the first one"
    log.settled = 40
    counted.count()
    counted.appended(50)
    assert dict(counted._waiting) == {50: 6}

"""Clients on both event loops and both transports, against a real gateway."""

from __future__ import annotations

import anyio
import pytest

from aether_trio.client import (
    AetherError,
    BridgeClient,
    Client,
    ClientClosed,
    DuplicateIdentity,
    InvalidArgument,
    MessageType,
    MetricsBridgeClient,
    OrchestratorClient,
    PayloadTooLarge,
    PermissionDenied,
    ServiceClient,
    State,
    TaskClient,
    Unavailable,
    UserClient,
    WorkflowEngineClient,
)
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import SCHEMES, agent, with_gateway

BACKENDS = ["trio", "asyncio"]
everywhere = pytest.mark.parametrize(("backend", "scheme"), [(b, s) for b in BACKENDS for s in SCHEMES])


@with_gateway(schemes=SCHEMES)
async def test_send_receive_reply(address: str) -> None:
    async with agent(address, "a") as a, agent(address, "b") as b:
        assert (a.topic, a.workspace, a.state, a.connections) == ("ag::w::i::a", "w", State.CONNECTED, 1)
        assert a.session_id
        assert not a.resumed
        await a.send(b.topic, b"hello", type=MessageType.CHAT)
        async for message in b:
            assert (message.source, message.payload, message.type) == (a.topic, b"hello", MessageType.CHAT)
            assert message.workspace == "w"
            await b.reply(message, "and back")
            break
        answer = await a.receive()
        assert (answer.source, answer.text, answer.type) == (b.topic, "and back", MessageType.CHAT)
        answer.ack()
        assert answer.acknowledged
    assert a.state is State.CLOSED
    with pytest.raises(ClientClosed):
        await a.send(b.topic, b"")


@with_gateway(schemes=SCHEMES)
async def test_many_messages_come_once_each_and_in_order(address: str) -> None:
    async with agent(address, "a") as a, agent(address, "b") as b, anyio.create_task_group() as group:

        async def publish() -> None:
            for number in range(3000):
                await a.publish(b.topic, str(number))
            await a.flush()

        group.start_soon(publish)
        expected = 0
        async for message in b:
            assert message.text == str(expected)
            expected += 1
            if expected == 3000:
                break


@with_gateway(schemes=SCHEMES)
async def test_refusals_are_typed_and_end_nothing(address: str) -> None:
    async with agent(address, "a") as a:
        with pytest.raises(InvalidArgument) as caught:
            await a.send("nonsense", b"")
        assert (caught.value.code, caught.value.retryable) == ("ERR_INVALID_TOPIC", False)
        with pytest.raises(PayloadTooLarge):
            await a.send("ag::w::i::b", bytes(1024 * 1024 + 1))
        with pytest.raises(Unavailable) as unavailable:
            await a.send_to_service("absent", b"")
        assert unavailable.value.retryable
        with pytest.raises(InvalidArgument, match="separates the parts"):
            await a.send_to_service("absent::1", b"")
        with pytest.raises(PermissionDenied):
            await a.send("uu::ann", b"")
        # Concurrent sends know which of them was refused.
        outcomes: dict[int, AetherError | None] = {}

        async def one(number: int) -> None:
            try:
                await a.send("ag::w::i::b" if number % 3 else "nonsense", b"")
            except AetherError as error:
                outcomes[number] = error
            else:
                outcomes[number] = None

        async with anyio.create_task_group() as group:
            for number in range(30):
                group.start_soon(one, number)
        assert {number for number, error in outcomes.items() if error} == set(range(0, 30, 3))
        assert len(outcomes) == 30
        await a.send("ag::w::i::b", b"still here")


@with_gateway(schemes=SCHEMES)
async def test_a_refusal_of_a_publication_is_not_lost(address: str) -> None:
    async with agent(address, "a") as a:
        good = await a.publish("ag::w::i::b", b"")
        await good.committed()
        bad = await a.publish("nonsense", b"")
        with pytest.raises(InvalidArgument):
            await bad.committed()
        await a.flush()  # the refusal was seen
        await a.publish("nonsense", b"")
        with pytest.raises(InvalidArgument):
            await a.flush()
        await a.flush()
    with pytest.raises(InvalidArgument):
        async with agent(address, "a") as a:
            await a.publish("nonsense", b"")


@with_gateway(schemes=SCHEMES)
async def test_a_second_one_of_the_same_name_is_refused(address: str) -> None:
    async with agent(address, "a") as a:
        with pytest.raises(DuplicateIdentity) as caught:
            async with agent(address, "a"):
                pytest.fail("it was let in")
        assert caught.value.code == "ALREADY_EXISTS"
        await a.send("ag::w::i::a", b"me")
    async with agent(address, "a") as a:  # free again at once
        # What was not acknowledged comes again; on WebSocket it has come.
        if address.startswith("aether:"):
            assert (await a.receive()).payload == b"me"


@with_gateway(schemes=SCHEMES)
async def test_every_kind_of_participant(address: str) -> None:
    clients: list[tuple[Client, str]] = [
        (agent(address, "a"), "ag::w::i::a"),
        (TaskClient(address, workspace="w", implementation="t", specifier="1"), "tu::w::t::1"),
        (TaskClient(address, workspace="w", implementation="t"), "ta::w::t::"),
        (UserClient(address, user_id="ann", window_id="w1"), "us::ann::w1"),
        (OrchestratorClient(address, implementation="o", profiles=["p"]), "orc::o::"),
        (OrchestratorClient(address, implementation="o", profiles=["p"], specifier="1"), "orc::o::1"),
        (WorkflowEngineClient(address), "wfe::shard0"),
        (MetricsBridgeClient(address), "metrics::shard0"),
        (BridgeClient(address, implementation="b", specifier="1"), "br::b::1"),
        (ServiceClient(address, implementation="s", specifier="1"), "sv::s::1"),
    ]
    for client, topic in clients:
        async with client:
            assert client.topic.startswith(topic)
            assert client.topic != topic or client.assigned_id == ""
            assert client.topic.removeprefix(topic) == client.assigned_id
            with pytest.raises(AetherError):  # its barrier is answered for every kind
                await client.send("nonsense", b"")


@with_gateway(schemes=SCHEMES)
async def test_a_user_moves_between_workspaces(address: str) -> None:
    async with UserClient(address, user_id="ann", window_id="w1") as ann, agent(address, "a") as a:
        assert ann.workspace == ""
        await ann.switch_workspace("w")
        assert ann.workspace == "w"
        await a.send_to_user("ann", "to the user")
        assert (await ann.receive()).text == "to the user"
        await a.send_to_users("to all")
        assert (await ann.receive()).text == "to all"
        await a.send_to_window("ann", "w1", "to the window")
        assert (await ann.receive()).text == "to the window"
        with pytest.raises(AetherError):
            await ann.switch_workspace("a::b")
        assert ann.workspace == "w"
        await ann.send_to_agent("i", "a", "to the agent")
        assert (await a.receive()).source == "us::ann::w1"


@with_gateway(schemes=SCHEMES)
async def test_events_metrics_and_progress(address: str) -> None:
    async with (
        agent(address, "a") as a,
        agent(address, "b") as b,
        WorkflowEngineClient(address) as engine,
        MetricsBridgeClient(address) as metrics,
    ):
        await a.send_event("something happened")
        assert (await engine.receive()).type is MessageType.EVENT
        await a.send_metric(pb.Metric(entries=[pb.MetricEntry(name="n", qty=1)]))
        assert pb.Metric.FromString((await metrics.receive()).payload).entries[0].name == "n"
        with pytest.raises(InvalidArgument):
            await a.send_metric(pb.Metric())
        await a.tell(pb.UpstreamMessage(progress=pb.ProgressReport(task_id="t", completion=0.5)))
        async for update in b.progress_updates:
            assert (update.task_id, update.completion) == ("t", 0.5)
            break
        await metrics.tell(pb.UpstreamMessage(progress=pb.ProgressReport(task_id="t")))
        async for error in metrics.errors:
            assert error.code == "ERR_INVALID_PRINCIPAL"
            break
        with pytest.raises(PermissionDenied):
            await metrics.tell_confirmed(pb.UpstreamMessage(progress=pb.ProgressReport(task_id="t")))


@with_gateway(schemes=SCHEMES)
async def test_requests_and_their_failures(address: str) -> None:
    async with agent(address, "a") as a:
        answer = await a.request(pb.UpstreamMessage(kv_op=pb.KVOperation(op=pb.KVOperation.PUT, key="k", value=b"v")))
        assert answer.success
        with pytest.raises(AetherError) as caught:
            await a.request(pb.UpstreamMessage(kv_op=pb.KVOperation(op=pb.KVOperation.PUT, key="", value=b"v")))
        assert caught.value.code == "KV_ERROR"
        assert "gave no reason" not in caught.value.message
        with pytest.raises(ValueError, match="is never answered"):
            await a.request(pb.UpstreamMessage(send=pb.SendMessage()))
        assert a.config is not None

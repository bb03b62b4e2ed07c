"""What a send is checked for, in which order, and what its sender is told."""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType

import pytest
import trio

from aether_trio.delivery import router
from aether_trio.gateway.core import Core
from aether_trio.model.errors import Code
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import (
    World,
    agent,
    barrier,
    connect,
    deadlock_is_an_error,
    errors,
    kv_get,
    message_to,
    metrics_bridge,
    orchestrator,
    payloads,
    pump,
    service,
    user,
)

ONE = "ag::w::a::1"


def send(topic: str = ONE, payload: bytes = b"x", **fields: object) -> pb.UpstreamMessage:
    return pb.UpstreamMessage(send=pb.SendMessage(target_topic=topic, payload=payload, **fields))  # type: ignore[arg-type]


def metric(*entries: tuple[str, float], keys: int = 0) -> bytes:
    message = pb.Metric(entries=[pb.MetricEntry(name=name, qty=qty) for name, qty in entries])
    for number in range(keys):
        message.metadata[f"{number}"] = "x"
    return message.SerializeToString()


def measured(payload: bytes) -> pb.UpstreamMessage:
    return send("metric::*", payload, message_type=pb.METRIC)


ON_BEHALF = pb.AuthorizationContext(authority_mode="on_behalf_of", grant_id="g")


def accepted(core: Core) -> int:
    return sum(count for count, _ in core.router.statistics().accepted.values())


REFUSED = {
    "unknown prefix": (send("zz::w"), Code.INVALID_TOPIC),
    "no parts": (send("ag"), Code.INVALID_TOPIC),
    "too many parts": (send("ga::w::x"), Code.INVALID_TOPIC),
    "no topic": (send(""), Code.INVALID_TOPIC),
    "a long topic": (send("ag::w::a::" + "x" * 300), Code.INVALID_TOPIC),
    "an orchestrator's identity": (send("orc::k8s::1"), Code.INVALID_TOPIC),
    "a large payload": (send(payload=b"x" * (1024 * 1024 + 1)), Code.PAYLOAD_TOO_LARGE),
    "no service": (send("sv::none"), Code.SV_UNAVAILABLE),
    "progress by hand": (send("pg::w"), Code.PERMISSION_DENIED),
    "a user everywhere": (send("uu::u"), Code.PERMISSION_DENIED),
    "task events by hand": (send("tk::w::t1::events"), Code.PERMISSION_DENIED),
    "no metric": (measured(b"\xff\xff"), Code.METRIC_INVALID),
    "too many keys": (measured(metric(("a", 1), keys=65)), Code.METRIC_INVALID),
    "no entries": (measured(metric()), Code.METRIC_EMPTY),
    "not a number": (measured(metric(("a", float("nan")))), Code.METRIC_INVALID_ENTRY),
    "a credit": (measured(metric(("a", -1))), Code.METRIC_NEGATIVE_FORBIDDEN),
    "on behalf of": (send(authorization=ON_BEHALF), Code.PERMISSION_DENIED),
    "direct with a grant": (send(authorization=pb.AuthorizationContext(grant_id="g")), Code.PERMISSION_DENIED),
    "an unknown mode": (send(authorization=pb.AuthorizationContext(authority_mode="as")), Code.PERMISSION_DENIED),
    "a bad app_workspace": (send(app_workspace="a b"), Code.INVALID_ARGUMENT),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_refused_and_with_which_code(core: Core, case: str) -> None:
    message, code = REFUSED[case]
    async with connect(core, agent("w", "a", "1")) as peer:
        peer.send(message, message_to(ONE, b"next"))
        error = (await peer.next("error")).error
        assert (error.code, error.request_id) == (code, "")
        assert error.retryable == (code == Code.SV_UNAVAILABLE)
        assert error.message
        await barrier(peer)
        # The stream goes on, and nothing of the refused one arrived.
        assert payloads(peer) == [b"next"]
        assert list(core.router.statistics().refused.items()) == [(("w", code), 1)]


@pytest.mark.parametrize(
    "message",
    [
        send(payload=b"x" * (1024 * 1024)),
        send(payload=b""),
        send(authorization=pb.AuthorizationContext(authority_mode="direct")),
        send(app_workspace="other"),
        measured(metric(*[("a", 1.5)] * 1024, keys=64)),
        send("metric::*", b"\xff\xff"),  # only the type METRIC makes a payload a metric
        send("tk::w::t1::msg"),
    ],
)
async def test_what_is_accepted(core: Core, message: pb.UpstreamMessage) -> None:
    async with connect(core, agent("w", "a", "1")) as peer:
        peer.send(message)
        await barrier(peer)
        assert errors(peer) == []
        assert accepted(core) == 1


async def test_types_that_may_not_send(core: Core) -> None:
    async with connect(core, metrics_bridge()) as silent, connect(core, orchestrator("k", "1")) as launcher:
        silent.send(send(ONE))
        launcher.send(send("us::u::1"), send("ga::w"), send(ONE))
        await barrier(silent, launcher)
        assert [error.code for error in errors(silent)] == [Code.PERMISSION_DENIED]
        assert [error.code for error in errors(launcher)] == [Code.PERMISSION_DENIED] * 2
        assert accepted(core) == 1


async def test_the_first_of_several_reasons_is_the_one_that_is_told(core: Core) -> None:
    """Topic, service, size, rate, permission, metric, authorization: in this order."""
    large = b"x" * (1024 * 1024 + 1)
    cases = [
        (send("zz::w", large), Code.INVALID_TOPIC),
        (send("sv::none", large), Code.SV_UNAVAILABLE),
        (send("pg::w", large), Code.PAYLOAD_TOO_LARGE),
        (send("uu::u", b"\xff", message_type=pb.METRIC), Code.PERMISSION_DENIED),
        (send("metric::*", b"\xff", message_type=pb.METRIC, authorization=ON_BEHALF), Code.METRIC_INVALID),
        (send("metric::*", metric(("a", -1)), message_type=pb.METRIC, authorization=ON_BEHALF), Code.PERMISSION_DENIED),
    ]
    async with connect(core, agent("w", "a", "1")) as peer:
        peer.send(*(message for message, _ in cases))
        await barrier(peer)
        assert [error.code for error in errors(peer)] == [code for _, code in cases]


# -- rates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "burst", "code", "retry_after_ms"),
    [
        ({"send_rate_per_s": 10, "send_burst": 20}, 20, Code.RATE_LIMITED, 100),
        ({"send_rate_per_s": 1000, "send_burst": 5}, 5, Code.RATE_LIMITED, 10),
        ({"workspace_rate_per_s": 10}, 10, Code.WORKSPACE_RATE_LIMITED, 100),
        ({"identity_rate_per_s": 10}, 10, Code.QUOTA, 1000),
    ],
)
async def test_rates(world: World, limits: dict[str, float], burst: int, code: Code, retry_after_ms: int) -> None:
    async with deadlock_is_an_error(), world.open(limits=limits) as core, connect(core, agent("w", "a", "1")) as peer:
        peer.send(*[send()] * (burst + 3))
        await barrier(peer)
        assert len(payloads(peer)) == burst
        assert [(error.code, error.retryable) for error in errors(peer)] == [(code, True)] * 3
        assert errors(peer)[0].retry_after_ms == retry_after_ms
        await trio.sleep(1)
        peer.send(send())
        await barrier(peer)
        assert len(payloads(peer)) == burst + 1


async def test_a_workspace_shares_its_rate_and_a_connection_does_not(world: World) -> None:
    limits = {"send_rate_per_s": 10, "send_burst": 6, "workspace_rate_per_s": 10}
    async with (
        deadlock_is_an_error(),
        world.open(limits=limits) as core,
        connect(core, agent("w", "a", "1")) as first,
        connect(core, agent("w", "a", "2")) as second,
        connect(core, agent("v", "a", "1")) as elsewhere,
    ):
        for peer in (first, second, elsewhere):
            peer.send(*[send("event::*")] * 6)
            await barrier(peer)
        codes = [[error.code for error in errors(peer)] for peer in (first, second, elsewhere)]
        assert codes == [[], [Code.WORKSPACE_RATE_LIMITED] * 2, []]


# -- the log as a barrier --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (kv_get("asked"), "kv"),
        (pb.UpstreamMessage(), "error"),
        (pb.UpstreamMessage(proxy_http_request=pb.ProxyHttpRequest(request_id="q")), "error"),
    ],
    ids=["an answer", "no request", "a refusal"],
)
async def test_an_answer_comes_after_the_commit_of_what_was_sent_before(
    core: Core, world: World, request_: pb.UpstreamMessage, answer: str
) -> None:
    async with connect(core, agent("w", "a", "1")) as peer:
        peer.send(send(), kv_get("warm"))
        await peer.next("kv")
        world.log.before_write.close()
        peer.send(send(payload=b"slow"), request_)
        await world.log.before_write.arrival()
        await pump(200)
        assert peer.waiting(answer) == []
        world.log.before_write.open()
        got = await peer.next(answer)
        assert got.kv.request_id == "asked" or got.error.code == Code.NOT_IMPLEMENTED
        assert world.log.query("SELECT COUNT(*) FROM messages") == [(2,)]


async def test_one_clients_wait_is_not_anothers(core: Core, world: World) -> None:
    async with connect(core, agent("w", "a", "1")) as slow, connect(core, agent("w", "a", "2")) as other:
        world.log.before_write.close()
        slow.send(send())
        await world.log.before_write.arrival()
        other.send(kv_get("quick"))
        assert (await other.next("kv")).kv.request_id == "quick"
        world.log.before_write.open()


async def test_a_full_log_stops_readers_and_not_the_gateway(world: World) -> None:
    log = {"pending_bytes": 10_000}
    async with deadlock_is_an_error(), world.open(log=log) as core, connect(core, agent("w", "a", "1")) as peer:
        world.log.before_write.close()
        for number in range(100):
            peer.send(send(payload=b"%04d" % number + b"x" * 1000))
            await pump(5)
        assert core.log.statistics().pending_messages < 15
        world.log.before_write.open()
        await barrier(peer)
        assert [payload[:4] for payload in payloads(peer)] == [b"%04d" % number for number in range(100)]


async def test_when_storage_fails_senders_are_told_and_the_gateway_recovers(core: Core, world: World) -> None:
    async with connect(core, agent("w", "a", "1")) as peer, connect(core, agent("w", "a", "2")) as receiver:
        peer.send(send("ag::w::a::2", b"before"))
        await barrier(peer)
        world.log.failing = True
        peer.send(send("ag::w::a::2", b"lost"), send("ag::w::a::2", b"lost too"))
        for _ in range(2):
            error = (await peer.next("error")).error
            assert (error.code, error.retryable) == (Code.PUBLISH_FAILED, True)
            assert error.retry_after_ms > 0
        statistics = core.log.statistics()
        assert (statistics.storage_failing, statistics.refused) == (True, 2)
        world.log.failing = False
        peer.send(send("ag::w::a::2", b"after"))
        await barrier(peer)
        assert errors(peer) == []
        assert payloads(receiver) == [b"before", b"after"]


async def test_a_failure_is_told_before_the_answer_behind_it(core: Core, world: World) -> None:
    async with connect(core, agent("w", "a", "1")) as peer:
        await barrier(peer)
        world.log.failing = True
        peer.send(send(), kv_get("behind"))
        kinds = [(await peer.receive_message()).WhichOneof("payload") for _ in range(2)]
        while "kv" not in kinds:
            kinds.append((await peer.receive_message()).WhichOneof("payload"))
        assert kinds.index("error") < kinds.index("kv")
        world.log.failing = False


# -- memory ----------------------------------------------------------------------------------------


def held_frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


async def test_a_sender_that_is_refused_again_and_again_costs_no_memory(core: Core) -> None:
    async with connect(core, agent("w", "a", "1")) as peer:
        for _ in range(50):
            peer.send(send("uu::u"))
            await barrier(peer)
        holder = core.registry.holder(ONE)
        assert holder is not None
        refusal = holder.sender.targets["uu::u"].refusal
        assert refusal is not None
        assert len(list(held_frames(refusal))) < 10


async def test_what_is_remembered_per_sender_is_bounded(core: Core) -> None:
    async with connect(core, agent("w", "a", "1")) as peer:
        for start in range(0, 3000, 300):
            for number in range(start, start + 300):
                peer.send(send(f"ag::w::b::{number}", b"x", app_workspace=f"app{number}"))
            await barrier(peer)
        sender = core.registry.holder(ONE).sender  # type: ignore[union-attr]
        assert len(sender.targets) <= 1024
        assert len(sender.suffixes) <= 64


async def test_flows_are_counted_by_pair_and_bounded(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "MAX_WORKSPACE_FLOWS", 3)
    monkeypatch.setattr(router, "MAX_FLOWS", 5)
    async with (
        connect(core, agent("w", "a", "1")) as one,
        connect(core, agent("v", "a", "1")) as other,
        connect(core, agent("u", "a", "1")) as late,
    ):
        one.send(*(send(f"ag::w::b::{number}") for number in range(6)), send("ag::w::b::1"), send("zz::w"))
        await barrier(one)
        other.send(send(), send())
        await barrier(other)
        late.send(send())
        await barrier(late)
        assert core.router.flows("w") == [
            (ONE, "ag::w::b::0", 1),
            (ONE, "ag::w::b::1", 2),
            (ONE, "ag::w::b::2", 1),
            (router.OTHER, router.OTHER, 3),
        ]
        assert core.router.flows("v") == [("ag::v::a::1", ONE, 2)]
        assert core.router.flows("u") == []
        assert core.router.flows(router.OTHER) == [(router.OTHER, router.OTHER, 1)]
        assert [core.router.messages(workspace) for workspace in "wvux"] == [7, 2, 1, 0]


async def offline_messages(core: Core, sender: MemoryLink, start: int, end: int) -> None:
    sender.send(*(send("ag::w::a::2", b"%d" % number) for number in range(start, end)))
    await barrier(sender)


async def test_offline_messages_come_in_order_exactly_once_across_reconnects(core: Core) -> None:
    got: list[bytes] = []
    async with connect(core, agent("w", "a", "1")) as sender:
        for round_ in range(10):
            await offline_messages(core, sender, round_ * 30, round_ * 30 + 15)
            async with connect(core, agent("w", "a", "2")) as receiver:
                await offline_messages(core, sender, round_ * 30 + 15, round_ * 30 + 30)
                if round_ % 2:
                    receiver.cut()
            got += payloads(receiver)
        async with connect(core, agent("w", "a", "2")) as receiver:
            await barrier(receiver)
        got += payloads(receiver)
    assert got == [b"%d" % number for number in range(300)]


async def test_who_was_never_here_gets_what_was_sent_to_it_and_a_broadcast_only_from_now_on(core: Core) -> None:
    async with connect(core, agent("w", "a", "1")) as sender:
        sender.send(send("ag::w::a::2", b"mine"), send("ga::w", b"all agents'"))
        await barrier(sender)
        async with connect(core, agent("w", "a", "2")) as receiver:
            await barrier(receiver)
            assert payloads(receiver) == [b"mine"]


async def test_a_user_hears_what_is_for_all_its_windows_from_its_first_connection_on(core: Core) -> None:
    async with connect(core, service("s", "1")) as sender:
        sender.send(send("uu::u", b"before"))
        await barrier(sender)
        async with connect(core, user("u", "1")) as window:
            await barrier(window)
            assert payloads(window) == []
        sender.send(send("uu::u", b"while away"))
        await barrier(sender)
        async with connect(core, user("u", "1")) as window:
            await barrier(window)
            assert payloads(window) == [b"while away"]


async def test_a_stuck_reader_costs_bounded_memory_and_gets_everything(world: World) -> None:
    log = {"outbox_bytes": 20_000}
    async with (
        deadlock_is_an_error(),
        world.open(log=log) as core,
        connect(core, agent("w", "a", "1")) as sender,
        connect(core, agent("w", "a", "2")) as stuck,
        connect(core, agent("w", "a", "3")) as other,
    ):
        stuck.pause()
        outbox = core.registry.holder("ag::w::a::2").outbox  # type: ignore[union-attr]
        highest = 0
        for start in range(0, 2000, 50):
            sender.send(*(send("ga::w", b"%04d" % number + b"x" * 500) for number in range(start, start + 50)))
            await barrier(sender)
            highest = max(highest, outbox.delivery_bytes)
        assert 0 < highest <= 20_000 + 600
        assert len(payloads(other)) == 2000
        assert payloads(stuck) == []
        stuck.resume()
        await barrier(stuck)
        await trio.sleep(1)
        assert [payload[:4] for payload in payloads(stuck)] == [b"%04d" % number for number in range(2000)]
        assert errors(stuck) == []

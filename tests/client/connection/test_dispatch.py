"""Test what a client keeps over its connections, and what it says first on each."""

from __future__ import annotations

import pytest

from aether_trio.client.connection.dispatch import MessageDispatch
from aether_trio.client.connection.outgoing_messages import OutgoingMessage, Publication
from aether_trio.client.connection.requests import PendingRequest, prepare
from aether_trio.client.errors import AetherError, ClientClosed, ConnectionLost
from aether_trio.client.options import settings_for
from aether_trio.wire.framing import Channel
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.peer import incoming

LIMIT = 256


class Wire:
    def __init__(self) -> None:
        self.envelopes: list[OutgoingMessage] = []

    def encode_publication(self, publication: Publication) -> bytes:
        return publication.payload

    def encode_upstream(self, upstream: OutgoingMessage) -> bytes:
        self.envelopes.append(upstream)
        return upstream.data


def make() -> MessageDispatch:
    return MessageDispatch(
        settings_for("aether://127.0.0.1:1", {}), "", lambda ack: pb.PrincipalRef(principal_id=ack.session_id)
    )


def asking(core: MessageDispatch, message: pb.UpstreamMessage, *, idempotent: bool = False) -> PendingRequest:
    asked, request_id = prepare(message, core.requests.new_id())
    pending = PendingRequest(request_id, asked, message.SerializeToString(), idempotent=idempotent)
    core.requests.add(pending)
    core.ask(pending)
    return pending


def get(key: str) -> pb.UpstreamMessage:
    return pb.UpstreamMessage(kv_op=pb.KVOperation(op=pb.KVOperation.GET, key=key))


def test_what_is_not_read_is_dropped_and_counted_and_the_latest_stays() -> None:
    core = make()
    for number in range(LIMIT + 2):
        core.downstream(pb.DownstreamMessage(progress_update=pb.ProgressUpdate(task_id=str(number))))
        core.downstream(pb.DownstreamMessage(signal=pb.Signal(reason=str(number))))
        core.downstream(pb.DownstreamMessage(error=pb.ErrorResponse(code="X", message=str(number))))
    assert [(len(feed), feed.dropped) for feed in (core.progress, core.signals, core.errors)] == [(LIMIT, 2)] * 3
    signal, error = core.signals.get_nowait(), core.errors.get_nowait()
    assert signal is not None
    assert signal.reason == "2"
    assert isinstance(error, AetherError)
    assert (error.message, error.request_id) == ("2", "")


def test_the_writer_is_told_of_what_is_to_be_said() -> None:
    core, told = make(), list[str]()
    core.attach(lambda: told.append("now"), lambda: told.append("soon"))
    asking(core, get("k"))
    assert told == ["now"]
    core.inbox.open_channel(Channel(1, "t", 0))
    core.inbox.deliver(1, 1, incoming(b"x"))
    core.inbox.deliver(1, 1, incoming(b"x"))
    assert told == ["now", "soon"], "the second one had come, and is acknowledged"


async def test_an_error_goes_to_who_has_asked_and_else_to_the_feed() -> None:
    core = make()
    asked = asking(core, get("k"))
    core.send_queue.pull(Wire(), 1000, starting=True)
    assert core.awaiting()
    core.downstream(pb.DownstreamMessage(error=pb.ErrorResponse(code="X", message="no", request_id=asked.request_id)))
    with pytest.raises(AetherError, match="no"):
        await asked.outcome(check=True)
    assert (len(core.errors), core.awaiting()) == (0, False)
    core.downstream(pb.DownstreamMessage(error=pb.ErrorResponse(code="X", message="no", request_id="send-1")))
    error = core.errors.get_nowait()
    assert error is not None
    assert error.request_id == "send-1"


def test_what_is_known_of_the_session() -> None:
    core = make()
    core.downstream(pb.DownstreamMessage())
    assert core.config is None
    core.downstream(pb.DownstreamMessage(config=pb.ConfigSnapshot()))
    assert core.config == pb.ConfigSnapshot()
    core.downstream(pb.DownstreamMessage(signal=pb.Signal(type=pb.Signal.GRACEFUL_DISCONNECT, reason="a drain")))
    assert not core.told_to_stay_away
    core.downstream(pb.DownstreamMessage(signal=pb.Signal(type=pb.Signal.FORCE_DISCONNECT, reason="shown out")))
    assert core.told_to_stay_away == "shown out"
    assert core.principal(pb.ConnectionAck(session_id="s1")).principal_id == "s1"


async def test_what_a_session_does_not_keep_is_said_first_and_asked_again_behind_it() -> None:
    core, wire = make(), Wire()
    again, lost = asking(core, get("again"), idempotent=True), asking(core, get("lost"))
    core.send_queue.pull(wire, 1000, starting=True)
    switch = pb.UpstreamMessage(switch_workspace=pb.SwitchWorkspace(new_workspace_id="other"))
    core.restore["workspace"] = switch
    core.cut()
    core.reopen(repeat=False)
    wire.envelopes.clear()
    frames = core.send_queue.pull(wire, 1000, starting=True)
    assert frames == [switch.SerializeToString(), again.data]
    assert [envelope.unanswered for envelope in wire.envelopes] == [True, False]
    with pytest.raises(ConnectionLost):
        await lost.outcome(check=True)


async def test_a_request_without_a_waiting_caller_is_not_written_any_more() -> None:
    core = make()
    written = asking(core, get("written"))
    core.send_queue.pull(Wire(), 1000, starting=True)
    waiting = asking(core, get("waiting"))
    core.forget(written)
    core.forget(waiting)
    assert (len(core.requests), core.send_queue.waiting) == (0, False)
    core.downstream(pb.DownstreamMessage(kv=pb.KVResponse(request_id=written.request_id)))
    core.close(ClientClosed())
    assert (written.answer, waiting.error) == (None, None)


async def test_a_cut_is_told_and_takes_what_a_group_may_have_given_to_others() -> None:
    core = make()
    with core.feeds.opened(type(core.errors)(9, lossy=True), "connection_lost") as feed:
        core.inbox.open_channel(Channel(1, "group", 0, shared=True))
        core.inbox.deliver(1, 1, incoming(b"x"))
        core.cut()
        lost = feed.get_nowait()
        assert isinstance(lost, ConnectionLost)
        assert lost.in_doubt
    assert len(core.inbox) == 0

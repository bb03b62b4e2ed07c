"""Refused clients are in the gateway's log, with the reason and no credential."""

from __future__ import annotations

from structlog.testing import capture_logs

from aether_trio.gateway.core import Core
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, connect


async def test_a_duplicate_is_in_the_log(core: Core) -> None:
    with capture_logs() as logs:
        async with (
            connect(core, agent("w", "a", "1")),
            connect(core, agent("w", "a", "1", credentials={"api_key": "secret"}), wait_ack=False) as second,
        ):
            ended = await second.wait_end()
    [entry] = [entry for entry in logs if entry["event"] == "connection refused"]
    assert entry["log_level"] == "info"
    assert (entry["status"], entry["identity"], entry["peer"]) == ("ALREADY_EXISTS", "ag::w::a::1", "memory:0")
    assert entry["reason"] == ended.message
    assert "secret" not in str(logs)


async def test_so_is_one_that_did_not_say_who_it_is(core: Core) -> None:
    with capture_logs() as logs:
        async with connect(core, pb.UpstreamMessage(), wait_ack=False) as peer:
            await peer.wait_end()
    assert [(entry["status"], entry["identity"]) for entry in logs] == [("INVALID_ARGUMENT", "unknown")]

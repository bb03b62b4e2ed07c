"""Operations that are not implemented fail at once, typed and with a code."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.model.errors import Code
from aether_trio.services.unimplemented import FAILURES
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect, open_world
from tests.helpers.direct import SqliteStore

DOWNSTREAM = pb.DownstreamMessage.DESCRIPTOR.oneofs_by_name["payload"].fields
ANSWERS = [field.name for field in DOWNSTREAM if field.name != "checkpoint"]
IDS = ("client_request_id", "request_id", "tunnel_id")
"""Fields that correlate; where a message has more than one, the first is the caller's."""

WITHOUT_A_CALLER = {"tunnel_ack", "tunnel_close", "proxy_http_body_chunk", "proxy_http_response"}


def request(case: str, identifier: str) -> pb.UpstreamMessage:
    """A message of this kind with every id field filled."""
    message = pb.UpstreamMessage()
    payload: Any = getattr(message, case)
    payload.SetInParent()
    names = [name for name in IDS if name in payload.DESCRIPTOR.fields_by_name]
    for name in names[1:]:
        setattr(payload, name, "what it is about")
    if names:
        setattr(payload, names[0], identifier)
    return message


async def answers_to(message: pb.UpstreamMessage) -> list[pb.DownstreamMessage]:
    with open_world(SqliteStore()) as world:
        async with world.open() as core, connect(core, agent("w", "asker", "1")) as peer:
            await peer.next("config")
            peer.send(message)
            await barrier(peer)
            return [one for case in ANSWERS for one in peer.waiting(case)]


def correlation(message: pb.DownstreamMessage) -> str:
    payload = getattr(message, str(message.WhichOneof("payload")))
    return next((str(getattr(payload, name)) for name in IDS if getattr(payload, name, "")), "")


@pytest.mark.parametrize("case", sorted(set(FAILURES) - WITHOUT_A_CALLER - {"admin_query"}))
async def test_a_caller_is_released_by_its_own_id(case: str) -> None:
    message = request(case, "mine")
    answers = await answers_to(message)
    typed = [one for one in answers if one.WhichOneof("payload") != "error"]
    assert [correlation(one) for one in typed] == ["mine"]
    payload: Any = getattr(typed[0], str(typed[0].WhichOneof("payload")))
    assert not getattr(payload, "success", False)
    assert not getattr(payload, "ok", False)
    errors = [one.error for one in answers if one.WhichOneof("payload") == "error"]
    assert [error.code for error in errors] == [Code.NOT_IMPLEMENTED]
    assert errors[0].request_id in {"", "mine"}
    assert not errors[0].retryable


@pytest.mark.parametrize("case", sorted((WITHOUT_A_CALLER - {"tunnel_close"}) | {"admin_query"}))
async def test_an_operation_without_a_reply_is_refused_all_the_same(case: str) -> None:
    message = request(case, "mine")
    assert [one.error.code for one in await answers_to(message)] == [Code.NOT_IMPLEMENTED]


async def test_a_goodbye_is_not_answered() -> None:
    message = request("tunnel_close", "mine")
    assert await answers_to(message) == []


async def test_an_error_names_the_request_and_not_what_it_is_about() -> None:
    op = pb.AuthorityRequestOperation(
        op=pb.AuthorityRequestOperation.CANCEL, request_id="the authority request", client_request_id="mine"
    )
    answers = await answers_to(pb.UpstreamMessage(authority_request_op=op))
    assert [one.error.request_id for one in answers if one.WhichOneof("payload") == "error"] == ["mine"]

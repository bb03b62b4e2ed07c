"""Test that every case and every operation of the protocol has a method."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.client.errors import AetherError
from aether_trio.client.operations import NAMESPACES, Operations
from aether_trio.client.operations.workflow import (
    APPLY,
    CHANGE_WEBHOOK,
    FORETELL,
    LIST_WEBHOOKS,
    PAUSE_SCHEDULE,
    REDRIVE,
    RUN,
    TIMELINE,
)
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.operations.calls import CALLS, PASSIVE, public_methods
from tests.client.operations.fake import FakeRequester

CASES = {field.name: field for field in pb.UpstreamMessage.DESCRIPTOR.oneofs_by_name["payload"].fields}

OF_THE_CORE = {"init"}
"""A client makes it when it connects."""

OURS = {*range(RUN, APPLY + 1), *range(PAUSE_SCHEDULE, REDRIVE + 1), LIST_WEBHOOKS, CHANGE_WEBHOOK, TIMELINE, FORETELL}
"""Operations on workflows that the open enum of the protocol does not name."""

ON_THE_WAY = {"proxy_http_body_chunk", "tunnel_data", "tunnel_ack", "tunnel_close"}
"""Parts of an exchange; test_proxy.py and test_tunnels.py make them."""


async def sent_by(name: str) -> list[pb.UpstreamMessage]:
    namespace, _, _ = name.partition(".")
    requester = FakeRequester()

    def answer(message: pb.UpstreamMessage) -> None:
        if message.HasField("proxy_http_request"):
            response = pb.ProxyHttpResponse(request_id=message.proxy_http_request.request_id, status_code=200)
            requester.publish(pb.DownstreamMessage(proxy_http_response=response))

    requester.on_tell = answer
    await CALLS[name](NAMESPACES[namespace](requester))
    return requester.sent


def test_the_table_of_calls_is_complete() -> None:
    assert set(CALLS) == public_methods()


def test_an_operations_mixin_has_every_namespace() -> None:
    for name, kind in NAMESPACES.items():
        assert type(getattr(Operations(), name)) is kind


@pytest.mark.parametrize("name", sorted(set(CALLS) - PASSIVE))
async def test_a_call_sends_something(name: str) -> None:
    assert await sent_by(name)


@pytest.mark.parametrize("name", sorted(PASSIVE - {"tunnels.accept"}))
async def test_who_only_listens_says_nothing(name: str) -> None:
    assert await sent_by(name) == []


async def test_every_case_of_the_protocol_has_a_method() -> None:
    made = {str(message.WhichOneof("payload")) for name in CALLS for message in await sent_by(name)}
    assert made | OF_THE_CORE | ON_THE_WAY == set(CASES)


async def test_every_operation_of_a_case_has_a_method() -> None:
    made: set[tuple[str, int]] = set()
    for name in CALLS:
        for message in await sent_by(name):
            case = str(message.WhichOneof("payload"))
            payload: Any = getattr(message, case)
            if "op" in payload.DESCRIPTOR.fields_by_name:
                made.add((case, payload.op))
    wanted = {
        (case, value.number)
        for case, field in CASES.items()
        if field.message_type is not None and "op" in field.message_type.fields_by_name
        for value in field.message_type.fields_by_name["op"].enum_type.values
        if not value.name.endswith("_UNSPECIFIED") and "_OP_UNSPECIFIED" not in value.name
    }
    assert made == wanted | {("workflow_op", number) for number in OURS}


READS = {"get", "list", "query", "members", "explain", "decisions", "health", "info", "stats", "check", "check_all"}


@pytest.mark.parametrize("name", sorted(name for name in CALLS if name.partition(".")[2] in READS))
async def test_reading_may_be_asked_again(name: str) -> None:
    requester = FakeRequester()
    await CALLS[name](NAMESPACES[name.partition(".")[0]](requester))
    assert requester.idempotent == [True]


async def test_what_has_a_key_may_be_asked_again_and_a_pause_not() -> None:
    requester = FakeRequester()
    workflow = NAMESPACES["workflow"](requester)
    for name in ("history", "run", "signal", "fork", "pause"):
        await CALLS[f"workflow.{name}"](workflow)
    assert requester.idempotent == [True, True, True, True, False]


@pytest.mark.parametrize(
    "name", ["kv.increment", "kv.put", "tasks.create", "tasks.fail", "grants.exchange", "rules.grant"]
)
async def test_writing_is_not_done_twice(name: str) -> None:
    requester = FakeRequester()
    await CALLS[name](NAMESPACES[name.partition(".")[0]](requester))
    assert requester.idempotent == [False]


async def test_a_time_limit_is_the_namespaces() -> None:
    requester = FakeRequester()
    kv = NAMESPACES["kv"](requester)
    await CALLS["kv.get"](kv.within(2.5))
    await CALLS["kv.get"](kv.within(None))
    await CALLS["kv.get"](kv)
    assert requester.timeouts[:2] == [2.5, None]
    assert requester.timeouts[2]


def test_errors_of_the_operations_are_the_clients() -> None:
    from aether_trio.client.operations.proxy import ProxyFailed
    from aether_trio.client.operations.tunnels import TunnelClosed

    assert issubclass(ProxyFailed, AetherError)
    assert issubclass(TunnelClosed, AetherError)


UNCONFIRMED = "not confirmed within 2 s by node-2"


@pytest.mark.parametrize(
    ("call", "case", "answer"),
    [
        ("grants.revoke", "authority_grant_op", pb.AuthorityGrantResponse(success=True, message=UNCONFIRMED)),
        ("tokens.revoke", "token_op", pb.TokenResponse(success=True, message=UNCONFIRMED)),
        ("tokens.delete", "token_op", pb.TokenResponse(success=True, message=UNCONFIRMED)),
        ("rules.revoke", "acl_op", pb.ACLResponse(success=True, message=UNCONFIRMED)),
        ("rules.revoke_matching", "acl_op", pb.ACLResponse(success=True, message=UNCONFIRMED)),
    ],
)
async def test_a_revocation_returns_which_nodes_have_not_confirmed_it(call: str, case: str, answer: Any) -> None:
    requester = FakeRequester()
    requester.answers[case] = answer
    namespace, _, _ = call.partition(".")
    assert await CALLS[call](NAMESPACES[namespace](requester)) == UNCONFIRMED

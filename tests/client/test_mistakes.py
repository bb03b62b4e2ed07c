"""A mistake of the program raises where it was made; the connection goes on."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aether_trio.client import (
    AgentClient,
    InvalidArgument,
    MessageType,
    PayloadTooLarge,
    RateLimited,
    State,
    UserClient,
)
from aether_trio.client.errors import from_code
from tests.client.gateways import QUICK, agent, open_test_gateway

Call = Callable[[Any], Awaitable[object]]

MISTAKES: list[tuple[str, Call, type[Exception], str]] = [
    ("topic", lambda a: a.send(7, b""), TypeError, "the topic is int, not a text such as 'ag::default::echo::1'"),
    ("no topic", lambda a: a.publish(None, b""), TypeError, "the topic is NoneType"),
    ("surrogate", lambda a: a.send("ag::w::i::\ud800", b""), InvalidArgument, "lone surrogate"),
    ("long topic", lambda a: a.send("ag::w::i::" + "ü" * 124, b""), InvalidArgument, "has 258 bytes, more than 256"),
    ("payload", lambda a: a.send(a.topic, 5), TypeError, "is int, not bytes or text"),
    ("payload dict", lambda a: a.send(a.topic, {"a": 1}), TypeError, "as with json.dumps"),
    ("type", lambda a: a.send(a.topic, b"", type="CHAT"), TypeError, "such as MessageType.CHAT"),
    ("type range", lambda a: a.send(a.topic, b"", type=2**40), ValueError, "from 0 to 65535"),
    ("place", lambda a: a.kv.increment("n", by=5), TypeError, "unknown argument 'by'; a key is found by scope, "),
    ("completion", lambda a: a.progress.report("t", completion=math.nan), ValueError, "it must be from 0 to 1"),
    ("too large", lambda a: a.send(a.topic, bytes(20 * 1024 * 1024)), PayloadTooLarge, "a (frame|message) of 2097"),
    ("checkpoint", lambda a: a.checkpoints.save(bytes(20 * 1024 * 1024)), PayloadTooLarge, "a (frame|message) of 2097"),
]  # fmt: skip


@pytest.mark.parametrize("transport", ["framed", "websocket"])
async def test_a_mistake_is_told_to_who_made_it_and_the_client_goes_on(transport: str) -> None:
    async with open_test_gateway() as gateway:
        address = f"aether://{gateway.address}" if transport == "framed" else f"ws://{gateway.address}"
        options: dict[str, Any] = {"max_unsettled_bytes": 64 * 1024 * 1024}
        client: AgentClient | UserClient = agent(address, "a", **options)
        async with client:
            for name, call, kind, why in MISTAKES:
                with pytest.raises(kind, match=why):
                    await call(client)
                assert client.state is State.CONNECTED, name
            for payload in (b"bytes", bytearray(b"bytearray"), memoryview(b"view"), "text"):
                await client.send(client.topic, payload, type=MessageType.CHAT)
            assert [(await client.receive()).text for _ in range(4)] == ["bytes", "bytearray", "view", "text"]
            assert client.connections == 1


@pytest.mark.parametrize(
    ("options", "kind", "why"),
    [
        ({"workspace": 7}, ValueError, "agent workspace is a text, not int"),
        ({"api_key": 7}, TypeError, "api_key must be str, not int"),
        ({"credentials": ["key"]}, TypeError, "credentials must be Mapping, not list"),
        ({"credentials": {"api_key": b"secret"}}, TypeError, r"credentials\['api_key'\] must be a text, not bytes"),
        ({"retry": 3}, TypeError, "retry must be Retry, not int"),
        ({"tls": "ca.pem"}, TypeError, "tls must be TlsOptions or SSLContext, not str"),
        ({"connect_timeout_s": "10"}, TypeError, "connect_timeout_s must be int or float, not str"),
        ({"connect_timeout_s": -1}, ValueError, "connect_timeout_s is -1 s"),
        ({"handshake_timeout_s": math.nan}, ValueError, "handshake_timeout_s is nan s"),
        ({"credit_messages": 1.5}, TypeError, "credit_messages must be int, not float"),
        ({"manual_acks": "no"}, TypeError, "manual_acks must be bool, not str"),
    ],
)
def test_an_option_of_another_kind_is_refused_at_once(options: dict[str, Any], kind: type[Exception], why: str) -> None:
    who = {"workspace": "w", "implementation": "i", "specifier": "1"}
    with pytest.raises(kind, match=why) as caught:
        AgentClient("aether://localhost", **{**who, **options})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", [None, 7, b"aether://localhost"])
def test_an_address_is_a_text(address: Any) -> None:
    with pytest.raises(TypeError, match="the address is no text such as 'aether://localhost:50051', but"):
        UserClient(address, user_id="ann", window_id="w1")


def test_none_is_an_option_that_was_not_given() -> None:
    """As in `api_key=os.environ.get("AETHER_API_KEY")`."""
    given: dict[str, Any] = {"api_key": None, "tls": None, "retry": None, "ping_interval_s": None}
    client = UserClient("aether://localhost", user_id="ann", window_id="w1", **given)
    assert client._settings.credentials == {}
    assert client._settings.ping_interval_s is None
    assert client._settings.retry.base_s > QUICK.base_s


def test_a_quota_that_waiting_does_not_help_is_a_size() -> None:
    assert isinstance(from_code("ERR_QUOTA_001", "too large", retryable=False), PayloadTooLarge)
    assert isinstance(from_code("ERR_QUOTA_001", "too many", retryable=True), RateLimited)

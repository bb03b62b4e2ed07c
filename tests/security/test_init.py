"""Every field of InitConnection is bounded and checked first, on each transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio
from google.protobuf.descriptor import FieldDescriptor

from aether_trio.gateway import Gateway, open_gateway
from aether_trio.model.errors import Status, StatusError
from aether_trio.testing.memory import agent
from aether_trio.wire.browser import CODECS
from aether_trio.wire.pb import aether_pb2 as pb
from tests.security.streams import TRANSPORTS, Ended, gateway_settings, open_stream

KIB = 1024


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with open_gateway(gateway_settings()) as opened:
        yield opened


def _texts(descriptor: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every text below a message; of a map, of its keys and its values."""
    for field in descriptor.fields:
        here = (*path, field.name)
        if field.message_type is not None:
            yield from _texts(field.message_type, here)
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield here


TEXTS = sorted(_texts(pb.InitConnection.DESCRIPTOR))
NAMED_BY_KIND = {  # where an identity's part is meant, the error says it in words
    "agent": "agent",
    "task": "task",
    "user": "user",
    "orchestrator": "orchestrator",
    "bridge": "bridge",
    "service": "service",
}


def init_with(path: tuple[str, ...], text: str) -> pb.UpstreamMessage:
    """The InitConnection of an agent in which one text is this one."""
    message = agent("w", "a", "1")
    init = message.init
    head, *rest = path
    match head:
        case "credentials":
            init.credentials[text if rest == ["key"] else "api_key"] = text if rest == ["value"] else "v"
        case "extensions":
            setattr(init.extensions.add(uri="urn:x"), rest[0], text)
        case "client_build_info":
            setattr(init.client_build_info, rest[0], text)
        case "client_sdk" | "client_version" | "resume_session_id":
            setattr(init, head, text)
        case "orchestrator" if rest == ["supported_profiles"]:
            init.orchestrator.implementation = "o"
            init.orchestrator.supported_profiles.extend(["fine", text])
        case _:
            part = getattr(init, head)
            part.SetInParent()
            for field in part.DESCRIPTOR.fields:
                if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
                    setattr(part, field.name, "fine")
            setattr(part, rest[0], text)
    return message


def names(path: tuple[str, ...], text: str) -> bool:
    """Whether an error's text says which field is meant."""
    head, *rest = path
    if head in NAMED_BY_KIND and rest != ["supported_profiles"]:
        word = {"user_id": "user id", "window_id": "window id", "unique_specifier": "specifier"}.get(rest[0], rest[0])
        return word in text and NAMED_BY_KIND[head] in text
    return head in text and all(step in text for step in rest if step not in {"key", "value"})


def test_every_text_of_init_is_covered() -> None:
    """A field of a later protocol has to be covered too: `init_with` fills each text."""
    for path in TEXTS:
        assert init_with(path, "needle").init != agent("w", "a", "1").init, path
    assert ("client_build_info", "os") in TEXTS
    assert ("credentials", "value") in TEXTS


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_zero_byte_in_any_text_is_refused_by_name(gateway: Gateway, transport: str) -> None:
    for path in TEXTS:
        async with open_stream(gateway.address, transport) as stream:
            await stream.send(init_with(path, "x\0y"))
            ended = await stream.ended()
        assert ended.status is Status.INVALID_ARGUMENT, (path, ended)
        assert names(path, ended.text), (path, ended)
    assert len(gateway.core.registry) == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_text_without_an_end_is_refused_by_name(gateway: Gateway, transport: str) -> None:
    for path in TEXTS:
        async with open_stream(gateway.address, transport) as stream:
            await stream.send(init_with(path, "x" * 100 * KIB))
            ended = await stream.ended()
        assert ended.status is Status.INVALID_ARGUMENT, (path, ended)
        assert names(path, ended.text), (path, ended)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_lone_surrogate_is_refused_by_name(gateway: Gateway, transport: str) -> None:
    for path in TEXTS:
        data = init_with(path, "needle").SerializeToString().replace(b"needle", b"ne\xed\xa0\x80e")
        async with open_stream(gateway.address, transport) as stream:
            await stream.send_bytes(data)
            ended = await stream.ended()
        assert ended.status is Status.INVALID_ARGUMENT, (path, ended)
        assert path[0] in ended.text, (path, ended)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("field", "hello"),
    [
        ("credentials", agent("w", "a", "1", credentials={f"k{number}": "v" for number in range(17)})),
        ("extensions", agent("w", "a", "1", extensions=[pb.ExtensionDeclaration(uri="u")] * 65)),
        (
            "supported_profiles",
            pb.UpstreamMessage(
                init=pb.InitConnection(
                    orchestrator=pb.OrchestratorIdentity(implementation="o", supported_profiles=["p"] * 65)
                )
            ),
        ),
        ("supported_profiles", init_with(("orchestrator", "supported_profiles"), "")),
        (
            "init has",
            agent(
                "w",
                "a",
                "1",
                extensions=[
                    pb.ExtensionDeclaration(uri=f"u{number}", json_schema="x" * 60 * KIB) for number in range(9)
                ],
            ),
        ),
    ],
    ids=["credentials", "extensions", "profiles", "empty-profile", "all-together"],
)
async def test_too_many_are_refused_by_name(
    gateway: Gateway, transport: str, field: str, hello: pb.UpstreamMessage
) -> None:
    async with open_stream(gateway.address, transport) as stream:
        try:
            await stream.send(hello)
        except (trio.BrokenResourceError, Ended):
            pass  # the gateway has read enough
        ended = await stream.ended()
    if field == "init has":
        # Each transport has another bound for messages before the acknowledgement, and does
        # not read that far.
        assert (ended.status or ended.number) == {"framed": 0x102, "websocket": 1009, "grpc": 3}[transport], ended
        assert str(512 * KIB) in ended.text
        return
    assert ended.status is Status.INVALID_ARGUMENT, ended
    assert field in ended.text


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_the_limits_allow_is_let_in(gateway: Gateway, transport: str) -> None:
    hello = agent(
        "w",
        "a",
        "1",
        credentials={f"key {number} ümläut": "x" * 16_000 for number in range(16)},
        extensions=[pb.ExtensionDeclaration(uri="u" * 1024, version="1.0", json_schema='{\n\t"type": "object"\r\n}')]
        * 64,
        client_sdk="python",
        client_version="1.2.3 (späte Fassung)",
        resume_session_id="0" * 36,
        client_build_info=pb.BuildInfo(commit="c" * 40, built_at="2026-01-01", runtime="py", os="linux"),
    )
    async with open_stream(gateway.address, transport) as stream:
        await stream.send(hello)
        await stream.acknowledged()


@pytest.mark.parametrize("subprotocol", ["aether.v1.json", "aether.v1.msgpack"])
def test_a_lone_surrogate_in_the_plain_codecs_is_a_mistake_of_the_client(subprotocol: str) -> None:
    texts = {
        "aether.v1.json": [rb'{"init":{"client_sdk":"a\ud800b"}}', rb'{"init":{"client_sdk":"a\udc00"}}'],
        "aether.v1.msgpack": [b"\x81\xa4init\x81\xaaclient_sdk\xa3\xed\xa0\x80"],
    }
    for data in texts[subprotocol]:
        with pytest.raises(StatusError) as refused:
            CODECS[subprotocol].decode(data if subprotocol.endswith("msgpack") else data.decode())
        assert refused.value.status is Status.INVALID_ARGUMENT


async def test_an_extension_in_the_metadata_is_bounded_too(gateway: Gateway) -> None:
    async with open_stream(gateway.address, "grpc", metadata={"aether-extensions": "u" * 1025}) as stream:
        await stream.send(agent("w", "a", "1"))
        ended = await stream.ended()
    assert ended.status is Status.INVALID_ARGUMENT
    assert "aether-extensions" in ended.text


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_init_of_nothing_but_parts_is_refused_before_it_is_made(gateway: Gateway, transport: str) -> None:
    hello = agent("w", "a", "1", extensions=[pb.ExtensionDeclaration()] * 200_000)
    async with open_stream(gateway.address, transport) as stream:
        await stream.send(hello)
        ended = await stream.ended()
    assert ended.status is Status.INVALID_ARGUMENT, ended
    assert "more than 8192 fields" in ended.text

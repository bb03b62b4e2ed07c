"""Every field of InitConnection is bounded and checked first, on each transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from aether_trio.gateway import Gateway
from aether_trio.model.errors import Status, StatusError
from aether_trio.testing.memory import agent
from aether_trio.wire.browser import CODECS
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.participants import TRANSPORTS, admission
from tests.security.clients import KIB, gateway_with
from tests.services.agents.ops import starter


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with gateway_with() as opened:
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
KINDS = ("agent", "task", "user", "orchestrator", "bridge", "service")
"""Where an identity's part is meant, the error says it in words."""


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
    if head in KINDS and rest != ["supported_profiles"]:
        word = {"user_id": "user id", "window_id": "window id", "unique_specifier": "specifier"}.get(rest[0], rest[0])
        return word in text and head in text
    return head in text and all(step in text for step in rest if step not in {"key", "value"})


def test_every_text_of_init_is_covered() -> None:
    """A field of a later protocol has to be covered too: `init_with` fills each text."""
    for path in TEXTS:
        assert init_with(path, "needle").init != agent("w", "a", "1").init, path
    assert ("client_build_info", "os") in TEXTS
    assert ("credentials", "value") in TEXTS


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("bad", [b"x\0y", b"x" * 100 * KIB, b"ne\xed\xa0\x80e"], ids=["zero", "no end", "surrogate"])
async def test_a_bad_text_in_any_field_is_refused_by_name(gateway: Gateway, transport: str, bad: bytes) -> None:
    surrogate = bad.startswith(b"ne")
    for path in TEXTS:
        # A text of six bytes makes room for the surrogate's, which no message can be made of.
        hello = init_with(path, "needle" if surrogate else bad.decode()).SerializeToString()
        status, text = await admission(transport, gateway.address, hello.replace(b"needle", bad))
        assert status is Status.INVALID_ARGUMENT, (path, text)
        assert path[0] in text if surrogate else names(path, text), (path, text)
    assert len(gateway.core.registry) == 0


TOO_MANY = {
    "credentials": ("credentials", agent("w", "a", "1", credentials={f"k{number}": "v" for number in range(17)})),
    "extensions": ("extensions", agent("w", "a", "1", extensions=[pb.ExtensionDeclaration(uri="u")] * 65)),
    "profiles": ("supported_profiles has 65 entries", starter("1", *["p"] * 65)),
    "empty-profile": ("supported_profiles[1] is empty", starter("1", "p", "")),
    "long-profile": ("supported_profiles[0] has 257 bytes", starter("1", "x" * 257)),
    "fields": ("more than 8192 fields", agent("w", "a", "1", extensions=[pb.ExtensionDeclaration()] * 200_000)),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("named", "hello"), TOO_MANY.values(), ids=TOO_MANY)
async def test_too_many_are_named(gateway: Gateway, transport: str, named: str, hello: pb.UpstreamMessage) -> None:
    status, text = await admission(transport, gateway.address, hello)
    assert (status, named in text) == (Status.INVALID_ARGUMENT, True), text


@pytest.mark.parametrize(
    ("transport", "code"), [("framed", 0x102), ("websocket", 1009), ("grpc", Status.INVALID_ARGUMENT)]
)
async def test_an_init_that_is_too_long_is_not_read_to_its_end(gateway: Gateway, transport: str, code: int) -> None:
    schemas = [pb.ExtensionDeclaration(uri=f"u{number}", json_schema="x" * 60 * KIB) for number in range(9)]
    status, text = await admission(transport, gateway.address, agent("w", "a", "1", extensions=schemas))
    assert (status, str(512 * KIB) in text) == (code, True), text


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_the_limits_allow_is_let_in(gateway: Gateway, transport: str) -> None:
    extension = pb.ExtensionDeclaration(uri="u" * 1024, version="1.0", json_schema='{\n\t"type": "object"\r\n}')
    hello = agent(
        "w",
        "a",
        "1",
        credentials={f"key {number} ümläut": "x" * 16_000 for number in range(16)},
        extensions=[extension] * 64,
        client_sdk="python",
        client_version="1.2.3 (späte Fassung)",
        resume_session_id="0" * 36,
        client_build_info=pb.BuildInfo(commit="c" * 40, built_at="2026-01-01", runtime="py", os="linux"),
    )
    assert await admission(transport, gateway.address, hello) == (Status.OK, "")


@pytest.mark.parametrize(
    ("subprotocol", "data"),
    [
        ("aether.v1.json", r'{"init":{"client_sdk":"a\ud800b"}}'),
        ("aether.v1.json", r'{"init":{"client_sdk":"a\udc00"}}'),
        ("aether.v1.msgpack", b"\x81\xa4init\x81\xaaclient_sdk\xa3\xed\xa0\x80"),
    ],
)
def test_a_lone_surrogate_in_the_plain_codecs_is_a_mistake_of_the_client(subprotocol: str, data: str | bytes) -> None:
    with pytest.raises(StatusError) as refused:
        CODECS[subprotocol].decode(data)
    assert refused.value.status is Status.INVALID_ARGUMENT


async def test_an_extension_in_the_metadata_is_bounded_too(gateway: Gateway) -> None:
    metadata = {"aether-extensions": "u" * 1025}
    status, text = await admission("grpc", gateway.address, agent("w", "a", "1"), metadata=metadata)
    assert (status, "aether-extensions" in text) == (Status.INVALID_ARGUMENT, True), text

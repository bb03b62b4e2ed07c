"""Admission by certificates, keys and tokens, together and alone, per transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from aether_trio.config import ApiKey
from aether_trio.gateway import Gateway, open_gateway
from aether_trio.model.errors import Status
from aether_trio.services.credentials import hash_api_key
from aether_trio.testing.memory import agent
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import orchestrator, user
from tests.security.certificates import Authority
from tests.security.streams import ALPN, TRANSPORTS, Ended, Stream, gateway_settings, open_stream

KEY = "aek_right"
RECORD = ApiKey(id="right", sha256=hash_api_key(KEY), principal="*")
EVERY_TRANSPORT = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def serving(authority: Authority | None = None, **auth: Any) -> AsyncIterator[Gateway]:
    """A gateway that asks for credentials."""
    tls: Mapping[str, Any] = {} if authority is None else authority.tls
    settings = gateway_settings(
        gateway={"ephemeral": True, "port": 0, "dev": False},
        tls=tls,
        auth={"api_keys": (RECORD,), "allow_anonymous": False, **auth},
    )
    async with open_gateway(settings) as gateway:
        yield gateway


async def outcome(
    gateway: Gateway,
    transport: str,
    hello: pb.UpstreamMessage,
    *,
    authority: Authority | None = None,
    certificate: Path | None = None,
) -> tuple[Status, str]:
    """Give OK for an acknowledged handshake, else the status and text of the refusal."""
    tls = None if authority is None else authority.context(certificate, alpn=ALPN[transport])
    async with open_stream(gateway.address, transport, tls=tls) as stream:
        await stream.send(hello)
        try:
            await stream.acknowledged()
        except Ended as ended:
            return ended.status or Status.UNKNOWN, ended.text
    return Status.OK, ""


# -- H2: a certificate with a name counts, whatever is shown beside it ----------------


async def make_token(stream: Stream, owner: str) -> str:
    await stream.send(
        pb.UpstreamMessage(create_task=pb.CreateTaskRequest(task_type="t", target_identity=owner, request_id="r"))
    )
    answer: pb.CreateTaskResponse = await stream.next("create_task")
    assert answer.task_token
    return answer.task_token


@EVERY_TRANSPORT
async def test_a_task_token_does_not_outweigh_a_certificate_with_another_name(
    authority: Authority, transport: str
) -> None:
    own, other = authority.issue("tu::red::worker::1"), authority.issue("tu::red::worker::2")
    async with serving(authority) as gateway:
        tls = authority.context(alpn=ALPN[transport])
        async with open_stream(gateway.address, transport, tls=tls) as creator:
            await creator.send(agent("red", "creator", "1", credentials={"api_key": KEY}))
            await creator.acknowledged()
            token = await make_token(creator, "tu::red::worker::1")
            identity = pb.TaskIdentity(workspace="red", implementation="worker", unique_specifier="1")
            hello = pb.UpstreamMessage(init=pb.InitConnection(task=identity, credentials={"token": token}))
            status, text = await outcome(gateway, transport, hello, authority=authority, certificate=other)
            assert (status, "identity mismatch" in text) == (Status.PERMISSION_DENIED, True), text
            assert (await outcome(gateway, transport, hello, authority=authority, certificate=own))[0] is Status.OK


@EVERY_TRANSPORT
async def test_a_key_does_not_outweigh_a_certificate_with_another_name(authority: Authority, transport: str) -> None:
    async with serving(authority) as gateway:
        hello = agent("red", "worker", "1", credentials={"api_key": KEY})
        other = authority.issue("ag::red::worker::2")
        status, _ = await outcome(gateway, transport, hello, authority=authority, certificate=other)
        assert status is Status.PERMISSION_DENIED


# -- H8: a name that is no identity ----------------------------------------------------------------


@EVERY_TRANSPORT
@pytest.mark.parametrize("name", ["laptop.example", "ag::red", "ag::red::worker", "", "_anonymous"])
@pytest.mark.parametrize(
    "hello",
    [agent("red", "worker", "1"), user("u", "w"), orchestrator("o", "1")],
    ids=["agent", "user", "orchestrator"],
)
async def test_a_certificate_without_an_identity_admits_no_client(
    authority: Authority, transport: str, name: str, hello: pb.UpstreamMessage
) -> None:
    certificate = authority.issue(*filter(None, [name]))
    async with serving(authority, client_cert_mode="relaxed") as gateway:
        status, text = await outcome(gateway, transport, hello, authority=authority, certificate=certificate)
        assert (status, "needs a credential" in text) == (Status.UNAUTHENTICATED, True), text
        with_key = pb.UpstreamMessage()
        with_key.CopyFrom(hello)
        with_key.init.credentials["api_key"] = KEY
        assert (await outcome(gateway, transport, with_key, authority=authority, certificate=certificate))[
            0
        ] is Status.OK


@EVERY_TRANSPORT
async def test_in_relaxed_mode_the_name_decides_the_kind(authority: Authority, transport: str) -> None:
    certificate = authority.issue("ag::red::worker::1")
    async with serving(authority, client_cert_mode="relaxed") as gateway:
        for hello, expected in (
            (agent("blue", "other", "1"), Status.OK),
            (orchestrator("o", "1"), Status.PERMISSION_DENIED),
        ):
            found = await outcome(gateway, transport, hello, authority=authority, certificate=certificate)
            assert found[0] is expected, found


# -- H18: which certificate is a client's ----------------------------------------------------------


@EVERY_TRANSPORT
async def test_an_authoritys_certificate_is_no_clients(authority: Authority, transport: str) -> None:
    certificate = authority.issue("ag::red::worker::1", authority=True)
    async with serving(authority) as gateway:
        for hello in (agent("red", "worker", "1"), agent("red", "worker", "1", credentials={"api_key": KEY})):
            status, text = await outcome(gateway, transport, hello, authority=authority, certificate=certificate)
            assert status is Status.UNAUTHENTICATED
            assert "invalid client certificate: it is an authority's" in text


@EVERY_TRANSPORT
async def test_a_certificate_with_two_names_is_no_clients(authority: Authority, transport: str) -> None:
    certificate = authority.issue("ag::red::worker::2", "ag::red::worker::1")
    async with serving(authority) as gateway:
        for specifier in "12":
            hello = agent("red", "worker", specifier)
            status, text = await outcome(gateway, transport, hello, authority=authority, certificate=certificate)
            assert (status, "several common names" in text) == (Status.UNAUTHENTICATED, True), text


@EVERY_TRANSPORT
async def test_a_servers_certificate_is_no_clients(authority: Authority, transport: str) -> None:
    """OpenSSL refuses it in the handshake.

    Were that to change, the gateway reads it as well
    (tests/transport/socket/test_client_certificates.py).
    """
    certificate = authority.issue("ag::red::worker::1", usages=[ExtendedKeyUsageOID.SERVER_AUTH])
    async with serving(authority) as gateway:
        # Whichever way the transport's client hears of a broken handshake.
        with pytest.raises(BaseException) as failed:
            await outcome(gateway, transport, agent("red", "worker", "1"), authority=authority, certificate=certificate)
        assert not isinstance(failed.value, AssertionError)
        assert len(gateway.core.registry) == 0


@EVERY_TRANSPORT
@pytest.mark.parametrize("usages", [None, [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]])
@pytest.mark.parametrize("constraints", [None, False])
async def test_a_leaf_is_a_clients(
    authority: Authority, transport: str, usages: list[Any] | None, constraints: bool | None
) -> None:
    certificate = authority.issue("ag::red::worker::1", authority=constraints, usages=usages)
    async with serving(authority) as gateway:
        found = await outcome(
            gateway, transport, agent("red", "worker", "1"), authority=authority, certificate=certificate
        )
        assert found == (Status.OK, "")


# -- H18: no part of an identity passes for another one --------------------------------------------


@EVERY_TRANSPORT
async def test_a_colon_in_a_part_makes_no_other_implementation_of_it(transport: str) -> None:
    narrow = ApiKey(id="narrow", sha256=hash_api_key("aek_narrow"), principal="agent", identity="ag::*::echo::*")
    async with serving(api_keys=(narrow,)) as gateway:
        for parts, expected in (
            (("red", "echo", "1"), Status.OK),
            (("red", ":echo", "1"), Status.PERMISSION_DENIED),
            (("red", "x", ":echo:1"), Status.PERMISSION_DENIED),
            ((":echo", "x", "1"), Status.PERMISSION_DENIED),
        ):
            found = await outcome(gateway, transport, agent(*parts, credentials={"api_key": "aek_narrow"}))
            assert found[0] is expected, (parts, found)


# -- H14: no pattern makes the gateway slow --------------------------------------------------------


@EVERY_TRANSPORT
async def test_a_pattern_of_many_stars_does_not_hold_up_the_gateway(transport: str) -> None:
    starry = ApiKey(
        id="starry", sha256=hash_api_key("aek_starry"), principal="agent", identity=f"ag::{'*a' * 13}*b::*::*"
    )
    async with serving(api_keys=(starry,)) as gateway:
        found = await outcome(gateway, transport, agent("a" * 128, "echo", "1", credentials={"api_key": "aek_starry"}))
        assert found[0] is Status.PERMISSION_DENIED


# -- H17: wrong keys lock out their own sender only ------------------------------------


@EVERY_TRANSPORT
async def test_wrong_keys_do_not_lock_out_the_one_that_was_let_in(transport: str) -> None:
    right = agent("red", "worker", "1", credentials={"api_key": KEY})
    wrong = agent("red", "worker", "1", credentials={"api_key": "aek_wrong"})
    async with serving() as gateway:
        assert (await outcome(gateway, transport, right))[0] is Status.OK
        for _ in range(8):
            assert (await outcome(gateway, transport, wrong))[0] is Status.UNAUTHENTICATED
        assert "throttled" in (await outcome(gateway, transport, wrong))[1]
        assert (await outcome(gateway, transport, right)) == (Status.OK, "")


@EVERY_TRANSPORT
async def test_wrong_keys_from_one_address_do_not_lock_out_another(transport: str) -> None:
    right = agent("red", "worker", "1", credentials={"api_key": KEY})
    wrong = agent("red", "worker", "1", credentials={"api_key": "aek_wrong"})
    async with serving() as gateway:
        for _ in range(8):
            found = await outcome(gateway, transport, wrong)
        assert "throttled" in found[1]
        assert "throttled" in (await outcome(gateway, transport, right))[1]
        async with open_stream(gateway.address, transport, local_host="127.0.0.2") as stream:
            await stream.send(right)
            await stream.acknowledged()


@EVERY_TRANSPORT
async def test_a_name_that_the_gateway_makes_up_is_no_way_around_the_throttle(transport: str) -> None:
    task = pb.TaskIdentity(workspace="red", implementation="worker")
    hello = pb.UpstreamMessage(init=pb.InitConnection(task=task, credentials={"api_key": "aek_wrong"}))
    async with serving() as gateway:
        for _ in range(6):
            found = await outcome(gateway, transport, hello)
        assert "throttled" in found[1]


@EVERY_TRANSPORT
async def test_unknown_task_tokens_are_throttled_too(transport: str) -> None:
    hello = agent("red", "worker", "1", credentials={"token": "att_unknown"})
    async with serving() as gateway:
        for _ in range(6):
            found = await outcome(gateway, transport, hello)
        assert "throttled" in found[1]

"""Admission by certificates, keys and tokens, together and alone, per transport."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from aether_trio.config import ApiKey
from aether_trio.gateway import Gateway
from aether_trio.model.errors import Status
from aether_trio.testing.memory import agent
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import let_manage, orchestrator, task, user
from tests.helpers.participants import TRANSPORTS, admission, participant
from tests.security.certificates import Authority
from tests.security.clients import gateway_with, talkers
from tests.security.tenants import auth, key_of, record

ALPN = {"grpc": ["h2"], "framed": [], "websocket": ["http/1.1"]}
EVERY_TRANSPORT = pytest.mark.parametrize("transport", TRANSPORTS)
KEY, WRONG = {"api_key": key_of("all")}, {"api_key": "aek_wrong"}
DENIED = Status.PERMISSION_DENIED
WORKER = agent("red", "worker", "1")
WITH_KEY = agent("red", "worker", "1", credentials=KEY)
WITH_WRONG_KEY = agent("red", "worker", "1", credentials=WRONG)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def serving(authority: Authority | None = None, *keys: ApiKey, **more: Any) -> AbstractAsyncContextManager[Gateway]:
    tls = {} if authority is None else authority.tls
    return gateway_with(gateway={"dev": False}, tls=tls, auth={**auth(*keys), **more})


async def outcome(
    gateway: Gateway,
    transport: str,
    hello: pb.UpstreamMessage,
    authority: Authority | None = None,
    certificate: Path | None = None,
) -> tuple[Status | int, str]:
    """Give OK for an acknowledged handshake, else the status and text of the refusal."""
    tls = None if authority is None else authority.context(certificate, alpn=ALPN[transport])
    return await admission(transport, gateway.address, hello, tls=tls)


# -- a certificate with a name counts, whatever is shown beside it ---------------------------------


@EVERY_TRANSPORT
async def test_a_token_does_not_outweigh_a_certificate_with_another_name(authority: Authority, transport: str) -> None:
    own, other = authority.issue("tu::red::worker::1"), authority.issue("tu::red::worker::2")
    creator, tls = agent("red", "creator", "1", credentials=KEY), authority.context(alpn=ALPN[transport])
    request = pb.CreateTaskRequest(task_type="t", target_identity="tu::red::worker::1", request_id="r")
    async with serving(authority) as gateway, participant(transport, gateway.address, creator, tls=tls) as one:
        let_manage(gateway.core)
        await one.send(pb.UpstreamMessage(create_task=request))
        made = (await one.next("create_task")).create_task
        assert made.task_token
        hello = task("red", "worker", "1", credentials={"token": made.task_token})
        status, text = await outcome(gateway, transport, hello, authority, other)
        assert (status, "identity mismatch" in text) == (DENIED, True), text
        assert (await outcome(gateway, transport, hello, authority, own))[0] is Status.OK


@EVERY_TRANSPORT
async def test_a_key_does_not_outweigh_a_certificate_with_another_name(authority: Authority, transport: str) -> None:
    other = authority.issue("ag::red::worker::2")
    async with serving(authority) as gateway:
        assert (await outcome(gateway, transport, WITH_KEY, authority, other))[0] is DENIED


# -- a name that is no identity --------------------------------------------------------------------


@EVERY_TRANSPORT
@pytest.mark.parametrize("name", ["laptop.example", "ag::red", "ag::red::worker", "", "_anonymous"])
@pytest.mark.parametrize("hello", [WORKER, user("u", "w"), orchestrator("o", "1")], ids=["agent", "user", "operator"])
async def test_a_certificate_without_an_identity_admits_no_client(
    authority: Authority, transport: str, name: str, hello: pb.UpstreamMessage
) -> None:
    certificate = authority.issue(*filter(None, [name]))
    async with serving(authority, client_cert_mode="relaxed") as gateway:
        status, text = await outcome(gateway, transport, hello, authority, certificate)
        assert (status, "needs a credential" in text) == (Status.UNAUTHENTICATED, True), text
        with_key = pb.UpstreamMessage(init=pb.InitConnection(credentials=KEY))
        with_key.MergeFrom(hello)
        assert (await outcome(gateway, transport, with_key, authority, certificate))[0] is Status.OK


@EVERY_TRANSPORT
async def test_in_relaxed_mode_the_name_decides_the_kind(authority: Authority, transport: str) -> None:
    certificate = authority.issue("ag::red::worker::1")
    async with serving(authority, client_cert_mode="relaxed") as gateway:
        for hello, expected in ((agent("blue", "other", "1"), Status.OK), (orchestrator("o", "1"), DENIED)):
            found = await outcome(gateway, transport, hello, authority, certificate)
            assert found[0] is expected, found


# -- which certificate is a client's ---------------------------------------------------------------


@EVERY_TRANSPORT
@pytest.mark.parametrize(
    ("names", "is_authority", "why"),
    [
        (["ag::red::worker::1"], True, "invalid client certificate: it is an authority's"),
        (["ag::red::worker::2", "ag::red::worker::1"], False, "several common names"),
    ],
    ids=["an authority's", "one with two names"],
)
async def test_a_certificate_that_is_no_clients(
    authority: Authority, transport: str, names: list[str], is_authority: bool, why: str
) -> None:
    certificate = authority.issue(*names, authority=is_authority)
    async with serving(authority) as gateway:
        for hello in (WORKER, WITH_KEY, agent("red", "worker", "2")):
            status, text = await outcome(gateway, transport, hello, authority, certificate)
            assert (status, why in text) == (Status.UNAUTHENTICATED, True), text


@EVERY_TRANSPORT
async def test_a_servers_certificate_is_no_clients(authority: Authority, transport: str) -> None:
    """OpenSSL refuses it; transport/socket/test_client_certificates.py has our check."""
    certificate = authority.issue("ag::red::worker::1", usages=[ExtendedKeyUsageOID.SERVER_AUTH])
    async with serving(authority) as gateway:
        # Whichever way the transport's client hears of a broken handshake.
        with pytest.raises(BaseException) as failed:
            await outcome(gateway, transport, WORKER, authority, certificate)
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
        assert await outcome(gateway, transport, WORKER, authority, certificate) == (Status.OK, "")


# -- no part of an identity passes for another one -------------------------------------------------


@EVERY_TRANSPORT
async def test_a_colon_in_a_part_makes_no_other_implementation_of_it(transport: str) -> None:
    narrow = record("narrow", principal="agent", identity="ag::*::echo::*")
    async with serving(None, narrow) as gateway:
        for parts, expected in (
            (("red", "echo", "1"), Status.OK),
            (("red", ":echo", "1"), DENIED),
            (("red", "x", ":echo:1"), DENIED),
            ((":echo", "x", "1"), DENIED),
        ):
            found = await outcome(gateway, transport, agent(*parts, credentials={"api_key": "aek_narrow"}))
            assert found[0] is expected, (parts, found)


# -- no pattern makes the gateway slow -------------------------------------------------------------


@EVERY_TRANSPORT
async def test_a_pattern_of_many_stars_does_not_hold_up_the_gateway(transport: str) -> None:
    starry = record("starry", principal="agent", identity=f"ag::{'*a' * 13}*b::*::*")
    hello = agent("a" * 128, "echo", "1", credentials={"api_key": "aek_starry"})
    async with serving(None, starry) as gateway:
        assert (await outcome(gateway, transport, hello))[0] is DENIED


# -- wrong keys lock out their own sender only -----------------------------------------------------


@EVERY_TRANSPORT
async def test_wrong_keys_do_not_lock_out_the_one_that_was_let_in(transport: str) -> None:
    async with serving() as gateway:
        assert (await outcome(gateway, transport, WITH_KEY))[0] is Status.OK
        for _ in range(8):
            assert (await outcome(gateway, transport, WITH_WRONG_KEY))[0] is Status.UNAUTHENTICATED
        assert "throttled" in (await outcome(gateway, transport, WITH_WRONG_KEY))[1]
        assert (await outcome(gateway, transport, WITH_KEY)) == (Status.OK, "")


@EVERY_TRANSPORT
async def test_wrong_keys_from_one_address_do_not_lock_out_another(transport: str) -> None:
    async with serving() as gateway, talkers(gateway) as clients:
        for _ in range(8):
            found = await outcome(gateway, transport, WITH_WRONG_KEY)
        assert "throttled" in found[1]
        assert "throttled" in (await outcome(gateway, transport, WITH_KEY))[1]
        elsewhere = await clients.dial(transport, host="127.0.0.2")
        await elsewhere.say(WITH_KEY)
        await elsewhere.answer("connection_ack")


@EVERY_TRANSPORT
@pytest.mark.parametrize(
    "hello",
    [task("red", "worker", credentials=WRONG), agent("red", "worker", "1", credentials={"token": "att_unknown"})],
    ids=["a name that the gateway makes up", "an unknown task token"],
)
async def test_no_hello_goes_around_the_throttle(transport: str, hello: pb.UpstreamMessage) -> None:
    async with serving() as gateway:
        for _ in range(6):
            found = await outcome(gateway, transport, hello)
        assert "throttled" in found[1]

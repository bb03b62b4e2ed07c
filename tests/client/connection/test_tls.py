"""TLS on both transports and both event loops, against a real gateway."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import trustme

from aether_trio.client import AddressError, AetherError, Retry, TlsOptions
from tests.client.gateways import agent, open_test_gateway, run_on
from tests.client.test_messaging import everywhere


class Files:
    """An authority, a server certificate for 127.0.0.1, and a client certificate."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.ca, self.server, self.client = (directory / f"{name}.pem" for name in ("ca", "server", "client"))
        authority.cert_pem.write_to_path(self.ca)
        leaves = (authority.issue_cert("127.0.0.1"), authority.issue_cert("client", common_name="ag::w::i::a"))
        for path, leaf in zip((self.server, self.client), leaves, strict=True):
            leaf.private_key_and_cert_chain_pem.write_to_path(path)
        self.expired, self.foreign = directory / "expired.pem", directory / "foreign.pem"
        past = datetime(2020, 1, 1, tzinfo=UTC)
        expired = authority.issue_cert("client", common_name="ag::w::i::a", not_after=past)
        expired.private_key_and_cert_chain_pem.write_to_path(self.expired)
        foreign = trustme.CA().issue_cert("client", common_name="ag::w::i::a")
        foreign.private_key_and_cert_chain_pem.write_to_path(self.foreign)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def talk(address: str, options: TlsOptions) -> None:
    async with agent(address, "a", tls=options) as a, agent(address, "b", tls=options) as b:
        await a.send(b.topic, b"secret")
        async for message in b:
            assert message.payload == b"secret"
            break
    async with agent(address, "b", tls=options) as b:
        assert b._dispatch.inbox.duplicates == 0
        await b.send(b.topic, b"next")
        if not address.startswith("wss"):
            # The acknowledgement of the first one was read before the connection ended.
            assert (await b.receive()).payload == b"next"


@everywhere
async def test_messages_over_tls(backend: str, scheme: str, files: Files) -> None:
    async with open_test_gateway(tls={"cert": str(files.server), "key": str(files.server)}) as gateway:
        await run_on(backend, talk, f"{scheme}s://{gateway.address}", TlsOptions(ca_file=files.ca))


async def refused(address: str, match: str, options: TlsOptions | None) -> None:
    arguments = {} if options is None else {"tls": options}
    with pytest.raises(AetherError, match=match):
        async with agent(address, "a", retry=Retry(max_attempts=0), **arguments):
            pytest.fail("it was let in")


@everywhere
async def test_who_is_not_trusted(backend: str, scheme: str, files: Files, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Files(tmp_path / "other")
    async with open_test_gateway(tls={"cert": str(files.server), "key": str(files.server)}) as gateway:
        run = partial(run_on, backend, refused)
        await run(f"{scheme}s://{gateway.address}", r"is not trusted: .*ca_file", TlsOptions(ca_file=other.ca))
        await run(f"{scheme}s://{gateway.address}", r"is not trusted: .*ca_file", None)
        wrong_name = TlsOptions(ca_file=files.ca, server_name="elsewhere.example")
        await run(f"{scheme}s://{gateway.address}", "is not trusted", wrong_name)
    async with open_test_gateway() as gateway:
        await run(f"{scheme}s://{gateway.address}", "is it plaintext", TlsOptions(ca_file=files.ca))


async def known_by_certificate(address: str, files: Files) -> None:
    options = TlsOptions(ca_file=files.ca, cert_file=files.client)
    async with agent(address, "a", tls=options) as a:
        assert a.topic == "ag::w::i::a"
    await refused(address, r"the gateway wants a client certificate: .*cert_file=", TlsOptions(ca_file=files.ca))
    await refused(address, "client certificate: it has expired", TlsOptions(ca_file=files.ca, cert_file=files.expired))
    await refused(address, "does not know its authority", TlsOptions(ca_file=files.ca, cert_file=files.foreign))


@everywhere
async def test_a_certificate_of_our_own(backend: str, scheme: str, files: Files) -> None:
    tls = {"cert": str(files.server), "key": str(files.server), "client_ca": str(files.ca), "require_client_cert": True}
    async with open_test_gateway(tls=tls) as gateway:
        await run_on(backend, known_by_certificate, f"{scheme}s://{gateway.address}", files)


def test_options_that_do_not_go_together(files: Files, tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="the encrypted scheme is aethers://"):
        agent("aether://localhost", "a", tls=TlsOptions(ca_file=files.ca))
    with pytest.raises(AddressError, match="the encrypted scheme is wss://"):
        agent("ws://localhost", "a", tls=ssl.create_default_context())
    with pytest.raises(AddressError, match="key_file but no cert_file"):
        agent("aethers://localhost", "a", tls=TlsOptions(key_file=files.client))
    with pytest.raises(AddressError, match="nothing cannot be used: No such file"):
        agent("aethers://localhost", "a", tls=TlsOptions(ca_file=tmp_path / "nothing"))
    with pytest.raises(AddressError, match=r"cert_file .*nothing cannot be used: No such file"):
        agent("aethers://localhost", "a", tls=TlsOptions(ca_file=files.ca, cert_file=tmp_path / "nothing"))

"""Scenarios 26 and 28: TLS with private authorities, and API keys."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import trustme
from scitrera_aether_client import Credentials

from tests.helpers.forwarder import Forwarder
from tests.helpers.gateway import GatewayProcess
from tests.helpers.identity_provider import AUDIENCE, ISSUER, claims, jwk, key_set, rsa_key, signed
from tests.helpers.sdk import LIMIT_S, World, run_async, sdk_log
from tests.interop.keys import SERVE, new_key, serve_arguments


class Certificates:
    """A private authority, a client's certificate, and a server's for 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        self.ca, self.foreign_ca = trustme.CA(), trustme.CA()
        server = self.ca.issue_cert("127.0.0.1")
        client = self.ca.issue_cert("client@example.test", common_name="client")
        foreign = self.foreign_ca.issue_cert("client@example.test", common_name="client")
        self.ca_pem, self.server_cert, self.server_key = directory / "ca", directory / "cert", directory / "key"
        self.ca.cert_pem.write_to_path(self.ca_pem)
        server.private_key_pem.write_to_path(self.server_key)
        for n, blob in enumerate(server.cert_chain_pems):
            blob.write_to_path(self.server_cert, append=n > 0)
        self.trust = {"tls_enabled": True, "tls_root_cert": self.ca.cert_pem.bytes()}
        self.client, self.foreign = (
            {
                "tls_client_cert": b"".join(pem.bytes() for pem in leaf.cert_chain_pems),
                "tls_client_key": leaf.private_key_pem.bytes(),
            }
            for leaf in (client, foreign)
        )

    @property
    def server_settings(self) -> list[str]:
        return ["--set", f"tls.cert={self.server_cert}", "--set", f"tls.key={self.server_key}"]

    @property
    def mutual_settings(self) -> list[str]:
        required = ["--set", f"tls.client_ca={self.ca_pem}", "--set", "tls.require_client_cert=true"]
        required += ["--set", "auth.client_cert_mode=relaxed"]
        return [*self.server_settings, *required]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


async def round_trip(world: World) -> None:
    a, b = await world.open(world.agent("a"), world.agent("b"))
    await a.client.send_message_to_agent(world.ws, world.impl, "b", b"hello")
    await b.message(b"hello")


def test_26_a_tls_with_a_private_ca(own_gateway: Callable[..., GatewayProcess], certificates: Certificates) -> None:
    gateway = own_gateway(ephemeral=True, extra_args=certificates.server_settings)

    async def scenario() -> None:
        async with World(gateway.address, **certificates.trust) as world:
            await round_trip(world)
        # Who trusts another authority, or speaks plaintext, must not get through.
        wrong = {"tls_enabled": True, "tls_root_cert": certificates.foreign_ca.cert_pem.bytes()}
        for settings in (wrong, {"tls_enabled": False}):
            async with World(gateway.address, **settings, auto_reconnect=True, max_retries=1) as world:
                agent = await world.agent("a").connect()
                await agent.client.wait_until_disconnected()
                assert agent.connects.empty()

    run_async(scenario)


def test_plaintext_on_a_tls_port_is_an_error_and_not_a_storm_of_connections(
    own_gateway: Callable[..., GatewayProcess], certificates: Certificates
) -> None:
    """A stream that grpcio takes for well ended is opened again at once, endlessly."""
    gateway = own_gateway(ephemeral=True, extra_args=certificates.server_settings)
    with grpc.insecure_channel(gateway.address) as channel, pytest.raises(grpc.RpcError) as failure:
        channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=LIMIT_S)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


def test_26_a_mutual_tls(own_gateway: Callable[..., GatewayProcess], certificates: Certificates) -> None:
    gateway = own_gateway(ephemeral=True, extra_args=certificates.mutual_settings)

    async def scenario() -> None:
        async with World(gateway.address, **certificates.trust, **certificates.client) as world:
            await round_trip(world)
        for settings in ({}, certificates.foreign):
            async with World(gateway.address, **certificates.trust, **settings) as world:
                agent = await world.agent("a", auto_reconnect=True, max_retries=1).connect()
                await agent.client.wait_until_disconnected()
                assert agent.connects.empty(), "connected without a certificate of the required authority"

    run_async(scenario)


def test_28_a_bad_api_key_is_refused_once(own_gateway: Callable[..., GatewayProcess], tmp_path: Path) -> None:
    key, record = new_key()
    gateway = own_gateway(command=SERVE, extra_args=serve_arguments(tmp_path, [record]))

    async def scenario() -> None:
        with Forwarder(gateway.address) as path:
            for bad in ({"x-api-key": key + "x"}, {"x-api-key": ""}, {}):
                before = path.client_streams
                async with World(path.address, credentials=bad or None) as world:
                    with sdk_log() as log:
                        agent = await world.agent("a", auto_reconnect=True, max_retries=5).connect()
                        await agent.refused()
                    assert "UNAUTHENTICATED" in log.text
                    assert key not in log.text
                assert path.client_streams == before + 1, "a refused client came back"
            async with World(path.address, credentials={"x-api-key": key}) as world:
                await round_trip(world)
        assert key not in gateway.output()

    run_async(scenario)


def test_a_token_of_an_identity_provider(own_gateway: Callable[..., GatewayProcess], tmp_path: Path) -> None:
    keys, settings = tmp_path / "keys.json", tmp_path / "aether.yaml"
    keys.write_bytes(key_set(jwk(rsa_key())))
    one = {"name": "idp", "issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(keys)}
    document = {"gateway": {"host": "127.0.0.1"}, "auth": {"jwt": {"providers": [one]}}}
    settings.write_text(json.dumps(document))
    gateway = own_gateway(command=SERVE, extra_args=["--config", str(settings)])
    token = signed(claims(int(time.time() * 1000), sub="u"))
    other = signed(claims(int(time.time() * 1000), sub="other"))

    async def scenario() -> None:
        async with World(gateway.address) as world:
            await world.open(world.user("w1", uid="u", credentials=Credentials.bearer_token(token)))
            with sdk_log() as log:
                second = await world.user("w2", uid="u", credentials=Credentials.bearer_token(other)).connect()
                await second.refused()
            assert "PERMISSION_DENIED" in log.text

    run_async(scenario)

"""Clients that show fresh credentials before their session ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from aether_trio.client import Unauthenticated, UserClient, connect_sync
from aether_trio.client.connection.reconnect import State
from aether_trio.config import JwtSettings
from aether_trio.gateway import Gateway
from tests.client.gateways import BACKENDS, QUICK, SCHEMES, open_test_gateway, run_on
from tests.helpers.identity_provider import claims, jwk, key_set, provider, rsa_key, signed

LIMIT_S = 300.0
WHO: dict[str, Any] = {"user_id": "alice", "window_id": "w1", "retry": QUICK}
BOTH = pytest.mark.parametrize("backend", BACKENDS)


@asynccontextmanager
async def gateway_of_a_provider(folder: Path) -> AsyncIterator[Gateway]:
    file = folder / "keys.json"
    file.write_bytes(key_set(jwk(rsa_key())))
    providers = (provider(jwks_url=None, jwks_file=str(file)),)
    async with open_test_gateway(auth={"allow_anonymous": False, "jwt": JwtSettings(providers=providers)}) as gateway:
        yield gateway


class Tokens:
    """The function that a program gives its client; each token lasts `lasts_s`."""

    def __init__(self, gateway: Gateway, lasts_s: int = 3) -> None:
        self._now_ms = gateway.core.clock.now_ms
        self.lasts_s = lasts_s
        self.asked = 0

    def fresh(self) -> Mapping[str, str]:
        self.asked += 1
        return {"bearer_token": signed(claims(0, exp=self._now_ms() // 1000 + self.lasts_s))}

    async def fresh_later(self) -> Mapping[str, str]:
        await anyio.sleep(0)
        return self.fresh()


@pytest.mark.parametrize("scheme", SCHEMES)
@BOTH
async def test_a_session_outlives_its_tokens(tmp_path: Path, backend: str, scheme: str) -> None:
    async with gateway_of_a_provider(tmp_path) as gateway:
        tokens = Tokens(gateway)

        async def body() -> None:
            address = f"{scheme}://{gateway.address}"
            async with UserClient(address, **WHO, credentials=tokens.fresh_later) as client:
                session = client.session_id
                while tokens.asked < 4:
                    await anyio.sleep(0.05)
                assert await client.sessions.connection_status("us::alice::w1")
                assert (client.connections, client.session_id) == (1, session)
                assert client.negotiated_extensions == ()

        await run_on(backend, body)


async def test_a_blocking_script_gives_a_plain_function(tmp_path: Path) -> None:
    async with gateway_of_a_provider(tmp_path) as gateway:
        tokens = Tokens(gateway)

        def body() -> None:
            with connect_sync(f"aether://{gateway.address}", UserClient, **WHO, credentials=tokens.fresh) as client:
                asked = tokens.asked
                while tokens.asked < asked + 2:
                    client.sessions.connection_status("us::alice::w1")
                assert client.statistics().connections == 1

        await run_on("thread", body)


@BOTH
async def test_credentials_that_come_too_late_cost_one_reconnection(tmp_path: Path, backend: str) -> None:
    """What fails is tried again; at the end the client comes back with what it has."""
    async with gateway_of_a_provider(tmp_path) as gateway:
        tokens = Tokens(gateway)
        failed = 0

        async def ask() -> Mapping[str, str]:
            nonlocal failed
            if tokens.asked == 1 and failed < 2:
                failed += 1
                raise OSError("the token service rests")
            if tokens.asked == 1:
                await anyio.sleep(0.5)
                return {"bearer_token": "no token"} if client.state is State.CONNECTED else tokens.fresh()
            return tokens.fresh()

        async def body() -> None:
            nonlocal client
            client = UserClient(f"aether://{gateway.address}", **WHO, credentials=ask)
            async with client:
                while client.connections < 2:
                    await anyio.sleep(0.05)
                assert failed == 2
                assert await client.sessions.connection_status("us::alice::w1")

        client: UserClient
        await run_on(backend, body)


async def test_a_client_whose_fresh_credentials_are_refused_ends(tmp_path: Path) -> None:
    async with gateway_of_a_provider(tmp_path) as gateway:
        tokens = Tokens(gateway, 2)
        good = iter([tokens.fresh()])
        client = UserClient(
            f"aether://{gateway.address}", **WHO, credentials=lambda: next(good, {"bearer_token": "no token"})
        )
        with trio.fail_after(LIMIT_S), pytest.raises(Unauthenticated):
            async with client:
                await trio.sleep_forever()


async def test_a_function_without_credentials_is_named(tmp_path: Path) -> None:
    async with gateway_of_a_provider(tmp_path) as gateway:
        for wrong, said in ((lambda: None, "returned NoneType"), (lambda: {"api_key": 1}, "must be a text")):
            ask: Any = wrong
            client = UserClient(f"aether://{gateway.address}", **WHO, credentials=ask, connect_timeout_s=0.5)
            with trio.fail_after(LIMIT_S), pytest.raises(Unauthenticated, match=said):
                async with client:
                    pass


async def test_a_gateway_without_ends_asks_for_no_more(tmp_path: Path) -> None:
    async with open_test_gateway() as gateway:
        asked = 0

        def ask() -> Mapping[str, str]:
            nonlocal asked
            asked += 1
            return {}

        with trio.fail_after(LIMIT_S):
            async with UserClient(f"aether://{gateway.address}", **WHO, credentials=ask) as client:
                assert await client.sessions.connection_status("us::alice::w1")
        assert asked == 1

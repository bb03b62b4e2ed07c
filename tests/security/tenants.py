"""Two tenants of one gateway: keys for the workspace "red" or "blue", one for all.

The gateway listens on a real port; `SCHEMES` are the transports of our client, and "memory" tests
go through `MemoryLink`. Agents and users may manage what their keys reach.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from aether_trio.client import AgentClient, OrchestratorClient, UserClient
from aether_trio.config import ApiKey
from aether_trio.gateway import Gateway
from aether_trio.services.credentials.checker import hash_api_key
from tests.client.gateways import QUICK, open_test_gateway
from tests.helpers.core import let_manage

LIMIT_S: Final = 300.0
SCHEMES: Final = ("aether", "ws")
KEYS: Final = {"red": ("red",), "blue": ("blue",), "both": ("red", "blue"), "all": ("*",)}


def key_of(name: str) -> str:
    return f"aek_{name}"


def record(name: str, **fields: Any) -> ApiKey:
    """The record of the key of this name, for all principals unless `fields` say less."""
    return ApiKey(**{"id": name, "sha256": hash_api_key(key_of(name)), "principal": "*", **fields})


def auth(*more: ApiKey) -> dict[str, Any]:
    records = [record(name, workspaces=reach) for name, reach in KEYS.items()]
    return {"api_keys": (*records, *more), "allow_anonymous": False}


@asynccontextmanager
async def open_tenants(*more: ApiKey) -> AsyncIterator[Gateway]:
    """A gateway with the two tenants, for a limited time."""
    with trio.fail_after(LIMIT_S):
        async with open_test_gateway(auth=auth(*more)) as gateway:
            let_manage(gateway.core, "agent", "user")
            yield gateway


def agent_of(
    gateway: Gateway,
    workspace: str,
    implementation: str = "worker",
    specifier: str = "1",
    *,
    key: str = "",
    **options: Any,
) -> AgentClient:
    """An agent with its tenant's key; `scheme` is one of SCHEMES."""
    if "token" not in options:
        options.setdefault("api_key", key_of(key or workspace))
    scheme = options.pop("scheme", "aether")
    return AgentClient(
        f"{scheme}://{gateway.address}",
        workspace=workspace,
        implementation=implementation,
        specifier=specifier,
        retry=QUICK,
        **options,
    )


def user_of(gateway: Gateway, key: str, user_id: str = "eve", *, scheme: str = "aether") -> UserClient:
    """A window of a user, in no workspace yet."""
    return UserClient(f"{scheme}://{gateway.address}", user_id=user_id, window_id="1", api_key=key_of(key), retry=QUICK)


def orchestrator_of(gateway: Gateway, *profiles: str, specifier: str = "1") -> OrchestratorClient:
    """An orchestrator of the operator."""
    return OrchestratorClient(
        f"aether://{gateway.address}",
        implementation="o",
        specifier=specifier,
        profiles=list(profiles),
        api_key=key_of("all"),
        retry=QUICK,
    )

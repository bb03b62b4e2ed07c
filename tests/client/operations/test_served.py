"""Test the operations that a real gateway serves, on each transport."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from aether_trio.client import AgentClient, OrchestratorClient, PermissionDenied, Refused, ServiceClient, UserClient
from aether_trio.client.operations.enums import PrincipalKind, ProgressKind, Scope
from aether_trio.client.operations.kv import SetAddResult, SwapResult
from aether_trio.client.operations.principals import Principal, on_behalf_of
from aether_trio.client.operations.progress import ProgressStep
from tests.client.gateways import SCHEMES, agent, open_test_gateway, run_on, with_gateway
from tests.helpers.core import let_share_keys

LIMIT_S = 300


@asynccontextmanager
async def two_agents(scheme: str) -> AsyncIterator[tuple[AgentClient, AgentClient]]:
    async with open_test_gateway() as gateway:
        let_share_keys(gateway.core)
        address = f"{scheme}://{gateway.address}"
        async with agent(address, "a") as a, agent(address, "b") as b:
            yield a, b


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_keys_and_their_scopes(scheme: str) -> None:
    async with two_agents(scheme) as (a, b):
        blob = bytes(range(256))
        assert await a.kv.get("none") == b""
        await a.kv.put("k", blob)
        assert await b.kv.get("k") == await b.kv.get("k", scope=Scope.WORKSPACE, workspace="w") == blob
        assert await b.kv.get("k", scope=Scope.GLOBAL) == b""
        for scope in Scope:
            place = {"scope": scope, "user_id": "ann"} if "USER" in scope.name else {"scope": scope}
            await a.kv.put("k", scope.name.encode(), **place)  # type: ignore[arg-type]
            assert await a.kv.get("k", **place) == scope.name.encode()  # type: ignore[arg-type]
        assert await b.kv.get("k", scope=Scope.GLOBAL_EXCLUSIVE) == b""
        await a.kv.delete("k")
        await a.kv.delete("k")
        assert await b.kv.get("k") == b""
        with pytest.raises(Refused, match="256"):
            await a.kv.put("k" * 257, b"")


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_pages_of_keys(scheme: str) -> None:
    async with two_agents(scheme) as (a, _):
        wanted = {f"p/{n:02}": b"%d" % n for n in range(25)}
        async with anyio.create_task_group() as group:
            for key, value in wanted.items():
                group.start_soon(a.kv.put, key, value)
        await a.kv.put("q", b"")
        first = await a.kv.list("p/", limit=10)
        assert list(first.entries) == sorted(wanted)[:10]
        last = await a.kv.list("p/", limit=20, cursor=first.next_cursor)
        assert {**first.entries, **last.entries} == wanted
        assert last.next_cursor == ""
        assert [entry async for entry in a.kv.items("p/", page_size=4)] == sorted(wanted.items())
        assert [entry async for entry in a.kv.items("none")] == []


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_counters_sets_and_comparisons(scheme: str) -> None:
    async with two_agents(scheme) as (a, b):
        assert [await a.kv.increment("n"), await b.kv.increment("n"), await a.kv.decrement("n")] == [1, 2, 1]
        up = await a.kv.increment_if("n", ceiling=5, delta=4)
        assert (up.value, up.applied) == (5, True)
        stopped = await a.kv.increment_if("n", ceiling=5)
        assert (stopped.value, stopped.applied) == (5, False)
        assert (await a.kv.decrement_if("n", floor=0, delta=9)).applied is False
        with pytest.raises(Refused):
            await a.kv.increment_if("n", ceiling=9, delta=-1)
        assert await a.kv.put_if_absent("once", b"1")
        assert not await b.kv.put_if_absent("once", b"2")
        assert await a.kv.compare_and_set("once", b"no", b"2") == SwapResult(applied=False, value=b"1")
        assert await a.kv.compare_and_set("once", b"1", b"2") == SwapResult(applied=True, value=b"")
        assert await a.kv.compare_and_delete("once", b"1") == SwapResult(applied=False, value=b"2")
        assert await a.kv.compare_and_delete("once", b"2") == SwapResult(applied=True, value=b"")
        assert await a.kv.set_add("s", b"m") == SetAddResult(applied=True, size=1)
        assert await b.kv.set_add("s", b"m") == SetAddResult(applied=False, size=1)
        assert await a.kv.set_size("s") == 1
        with pytest.raises(PermissionDenied, match="kv_purge_identity"):
            await a.kv.purge_identity(b.topic)
        with pytest.raises(PermissionDenied):
            await a.kv.get("n", authorization=on_behalf_of("us::ann", grant="none"))


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_checkpoints(scheme: str) -> None:
    async with two_agents(scheme) as (a, b):
        before = datetime.now(UTC) - timedelta(seconds=2)
        saved = await a.checkpoints.save(b"state", "c")
        assert saved is not None
        assert saved >= before
        loaded = await a.checkpoints.load("c")
        assert loaded is not None
        assert (loaded.data, loaded.saved_at) == (b"state", saved)
        await a.checkpoints.save(b"", ttl_s=0)
        empty = await a.checkpoints.load()
        assert empty is not None
        assert empty.data == b""
        assert await a.checkpoints.list() == ("c", "default")
        assert await b.checkpoints.list() == ()
        await a.checkpoints.delete("c")
        assert await a.checkpoints.load("c") is None
        with pytest.raises(Refused, match="256"):
            await a.checkpoints.save(b"", "c" * 257)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_progress(scheme: str) -> None:
    async with two_agents(scheme) as (a, b):
        await a.progress.report(
            "t",
            state="running",
            completion=0.5,
            summary="half",
            step=ProgressStep(name="fetch", sequence=1, total_steps=2),
            metadata={"k": "v"},
            kind=ProgressKind.APP,
            confirm=True,
        )
        update = await anext(b.progress_updates)
        assert (update.source, update.task_id, update.completion, update.summary) == (a.topic, "t", 0.5, "half")
        assert update.step == ProgressStep(name="fetch", sequence=1, total_steps=2)
        assert (update.kind, dict(update.metadata), update.workspace) == (ProgressKind.APP, {"k": "v"}, "w")
        assert update.timestamp is not None
        assert datetime.now(UTC) - update.timestamp < timedelta(minutes=5)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_who_may_not_report(scheme: str) -> None:
    async with open_test_gateway() as gateway:
        address = f"{scheme}://{gateway.address}"
        async with UserClient(address, user_id="ann", window_id="1") as ann:
            for request_id in ("", "mine"):
                with pytest.raises(PermissionDenied, match="ERR_INVALID_PRINCIPAL"):
                    await ann.progress.report("t", request_id=request_id, confirm=True)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_sessions(scheme: str) -> None:
    async with open_test_gateway() as gateway:
        address = f"{scheme}://{gateway.address}"
        async with (
            OrchestratorClient(address, implementation="o", profiles=["p"], specifier="1") as admin,
            ServiceClient(address, implementation="s", specifier="1") as service,
            agent(address, "a") as a,
        ):
            page = await admin.sessions.list(principal_type=PrincipalKind.AGENT)
            assert (page.total, [one.identity for one in page.sessions]) == (1, [a.topic])
            (info,) = page.sessions
            assert (info.session_id, info.workspace, info.principal_type) == (a.session_id, "w", PrincipalKind.AGENT)
            assert info.connected_at is not None
            assert await admin.sessions.get(a.session_id) == info
            presence = await admin.sessions.connection_status(a.topic)
            assert presence.connected
            assert presence.last_seen is not None
            assert (await a.sessions.connection_status(a.topic)).connected
            assert not (await admin.sessions.connection_status(Principal.user("absent"))).connected
            with pytest.raises((Refused, PermissionDenied)):
                await a.sessions.disconnect(service.session_id)
            with pytest.raises(Refused, match="no session"):
                await admin.sessions.get("none")
            around = await a.sessions.list(workspace="w")
            assert [(one.identity, one.session_id) for one in around.sessions] == [(a.topic, "")]


@with_gateway(schemes=SCHEMES)
async def test_switching(address: str) -> None:
    async with UserClient(address, user_id="ann", window_id="1") as ann, agent(address, "a") as a:
        await ann.workspaces.switch("w")
        assert ann.workspace == "w"
        await a.send_to_users("hello")
        assert (await ann.receive()).text == "hello"
        await ann.workspaces.switch("")
        assert ann.workspace == ""
        with pytest.raises(PermissionDenied):
            await a.workspaces.switch("elsewhere")
        assert a.workspace == "w"


async def _asyncio_too(address: str) -> None:
    async with agent(address, "a") as a:
        await a.kv.within(LIMIT_S).put("k", b"v", ttl_s=60)
        assert [entry async for entry in a.kv.items()] == [("k", b"v")]
        await a.checkpoints.save(b"c")
        assert await a.checkpoints.list() == ("default",)


async def test_operations_on_asyncio() -> None:
    async with open_test_gateway() as gateway:
        await run_on("asyncio", _asyncio_too, f"aether://{gateway.address}")

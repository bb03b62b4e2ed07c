"""Forks of runs of durable functions, in workers of real gateways."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from aether_trio.client.operations import TaskStatus
from aether_trio.client.workflows import Flow, StepFailed, workflow
from aether_trio.gateway import Gateway
from aether_trio.services.workflows.executions import function_forks
from aether_trio.testing.workflows import replay
from tests.client.gateways import open_test_gateway
from tests.helpers.engines import Engine
from tests.services.workflows.executions.test_functions import Boss, answering, boss_of, kept_in, serving

FORK = 114
RETRY = 104


@pytest.fixture
async def gateway(engine: Engine) -> AsyncIterator[Gateway]:
    """A gateway with the embedded workflow engine, on SQLite or PostgreSQL."""
    async with open_test_gateway(**kept_in(engine)) as opened:
        yield opened


async def fork(boss: Boss, execution_id: str, step: str, key: str = "", **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = await boss.do(FORK, execution_id, key, {"from": step, **more})
    return found


async def test_a_fork_has_what_was_done_before_its_step(gateway: Gateway) -> None:
    done: list[str] = []

    async def work(what: str) -> str:
        done.append(what)
        return f"{what} {len(done)}"

    async def price(payload: Any) -> Any:
        done.append("price")
        return len(done)

    @workflow
    async def trip(flow: Flow, where: str) -> list[Any]:
        first = await flow.step(work, "plan")
        async with flow.nursery() as branches:
            both = [branches.start(flow.call, "seller", "price", {"of": one}) for one in ("train", "hotel")]
        go = await flow.wait("go")
        last = await flow.step(work, "book")
        return [where, first, sorted(one.result for one in both), go, last, await flow.wait("more")]

    address = gateway.address
    async with boss_of(address) as boss, answering(address, "seller", price), serving(address, trip):
        old = await boss.run("trip", where="rome")
        await boss.until_step(old, "wait:go", "waiting")
        await boss.do(101, old, "more", data="kept")
        await boss.do(101, old, "go", data="now")
        assert await boss.result(old) == ["rome", "plan 1", [2, 3], "now", "book 4", "kept"]
        made = await fork(boss, old, "work#2")
        assert sorted(made["kept"]) == ["1.1/seller.price", "1.2/seller.price", "wait:go", "work"]
        new = made["execution_id"]
        # The signal "more" was taken behind the step, and so it is there again.
        assert await boss.result(new) == ["rome", "plan 1", [2, 3], "now", "book 5", "kept"]
        assert done == ["plan", "price", "price", "book", "book"]
        shown = await boss.execution(new)
        assert shown["execution"]["Metadata"] == {
            **shown["execution"]["Metadata"],
            "forked_from": old,
            "forked_at": "work#2",
        }
        [of_old] = (await boss.execution(old))["execution"]["Metadata"]["forks"]
        assert of_old == {"execution_id": new, "step": "work#2"}
        await replay(trip, await boss.history(new))
        # A fork of a fork, from the first step: nothing is kept but the input.
        again = await fork(boss, new, "work")
        assert again["kept"] == []
        await boss.do(101, again["execution_id"], "go", data="late")
        await boss.do(101, again["execution_id"], "more", data="more")
        assert (await boss.result(again["execution_id"]))[3:] == ["late", "book 9", "more"]


async def test_steps_that_were_open_or_had_failed_begin_again(gateway: Gateway) -> None:
    tries: list[str] = []

    async def shaky() -> str:
        tries.append("shaky")
        if len(tries) == 1:
            raise ValueError("not yet")
        return "steady"

    @workflow
    async def walk(flow: Flow) -> Any:
        try:
            first = await flow.step(shaky, retry=None)
        except StepFailed:
            first = "failed"
        async with flow.nursery() as branches:
            branches.start(flow.sleep, 0.01)
            slow = branches.start(flow.wait, "slow")
        return [first, await flow.wait("end"), slow.result]

    async with boss_of(gateway.address) as boss, serving(gateway.address, walk):
        old = await boss.run("walk")
        await boss.until_step(old, "1.2/wait:slow", "waiting")
        # Before the branches the first step alone was done, and it had failed.
        made = await fork(boss, old, "1.1/sleep")
        new = made["execution_id"]
        assert made["kept"] == []
        for one in (old, new):
            await boss.do(101, one, "slow", data="s")
            await boss.do(101, one, "end", data="e")
        assert await boss.result(old) == ["failed", "e", "s"]
        assert await boss.result(new) == ["steady", "e", "s"]


async def test_a_fork_is_made_once_and_may_wait_for_its_turn(gateway: Gateway) -> None:
    @workflow(max_executions=1)
    async def one(flow: Flow, word: str) -> str:
        said: str = await flow.wait("first")
        return f"{word} {said} {await flow.wait('second')}"

    async with boss_of(gateway.address) as boss, serving(gateway.address, one):
        old = await boss.run("one", word="a")
        await boss.do(101, old, "first", data="b")
        await boss.until_step(old, "wait:second", "waiting")
        new = (await fork(boss, old, "wait:second", "key", input={"word": "z"}))["execution_id"]
        assert (await fork(boss, old, "wait:second", "key", input={"word": "z"}))["execution_id"] == new
        assert (await boss.execution(new))["execution"]["Status"] == "queued"
        await boss.do(101, old, "second", data="c")
        assert await boss.result(old) == "a b c"
        await boss.until(new, "running")
        await boss.do(101, new, "second", data="d")
        assert await boss.result(new) == "z b d"


async def test_signals_that_no_step_has_taken_outlive_a_retry(gateway: Gateway) -> None:
    fails = [True]

    async def work() -> None:
        if fails:
            raise ValueError("broken")

    @workflow
    async def job(flow: Flow) -> Any:
        await flow.wait("begin")
        await flow.step(work)
        return await flow.wait("kept")

    async with boss_of(gateway.address) as boss, serving(gateway.address, job):
        execution_id = await boss.run("job")
        await boss.do(101, execution_id, "kept", data=7)
        await boss.do(101, execution_id, "begin")
        await boss.until(execution_id, "failed")
        fails.clear()
        await boss.client.tasks.retry(execution_id)
        assert await boss.result(execution_id) == 7
        assert (await boss.client.tasks.get(execution_id)).status is TaskStatus.COMPLETED


async def test_what_cannot_be_forked_is_said(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    @workflow
    async def naps(flow: Flow) -> None:
        for _ in range(3):
            await flow.sleep(0.01)
        await flow.wait("end")

    async with boss_of(gateway.address) as boss, serving(gateway.address, naps):
        old = await boss.run("naps")
        await boss.until_step(old, "wait:end", "waiting")
        assert "no step 'slep': did you mean 'sleep'?" in await boss.refusal(FORK, old, "", {"from": "slep"})
        monkeypatch.setattr(function_forks, "MOST_ENTRIES", 3)
        assert "a fork keeps no more" in await boss.refusal(FORK, old, "", {"from": "wait:end"})

"""Flow control and budgets of durable functions, in workers of real gateways."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest
import trio

from aether_trio.client import Job, Refused
from aether_trio.client.workflows import Flow, workflow
from aether_trio.client.workflows.serving import FunctionRequests
from aether_trio.gateway import Gateway
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import open_test_gateway
from tests.helpers.engines import Engine
from tests.services.workflows.executions.test_functions import LIMIT_S, Boss, agent, boss_of, kept_in, serving

Op = pb.WorkflowOperation


@pytest.fixture
async def gateway(engine: Engine) -> AsyncIterator[Gateway]:
    """A gateway with the embedded workflow engine, on SQLite or PostgreSQL."""
    async with open_test_gateway(**kept_in(engine)) as opened:
        yield opened


async def status(boss: Boss, execution_id: str) -> str:
    found: str = (await boss.execution(execution_id))["execution"]["Status"]
    return found


async def test_runs_of_one_key_follow_each_other(gateway: Gateway) -> None:
    @workflow(flow={"key": "inputs.order", "concurrency": 1})
    async def pack(flow: Flow, order: str, part: int) -> str:
        await flow.wait(f"go {part}")
        return f"{order} {part}"

    async with boss_of(gateway.address) as boss, serving(gateway.address, pack):
        first = await boss.run("pack", order="tea", part=1)
        second = await boss.run("pack", order="tea", part=2)
        other = await boss.run("pack", order="ink", part=3)
        assert await status(boss, second) == "queued"
        await boss.do(101, other, "go 3")  # another key does not wait
        assert await boss.result(other) == "ink 3"
        await boss.do(101, first, "go 1")
        assert await boss.result(first) == "tea 1"
        await boss.until(second, "running")
        await boss.do(101, second, "go 2")
        assert await boss.result(second) == "tea 2"


async def test_a_newer_run_replaces_the_older_one(gateway: Gateway) -> None:
    @workflow(flow={"key": "inputs.page", "concurrency": {"limit": 1, "on_limit": "replace"}}, max_executions=5)
    async def render(flow: Flow, page: str) -> str:
        await flow.wait("go")
        return page

    async with boss_of(gateway.address) as boss, serving(gateway.address, render):
        old = await boss.run("render", page="home")
        new = await boss.run("render", page="home")
        assert (await boss.until(old, "cancelled"))["execution"]["ErrorMessage"]
        await boss.do(101, new, "go")
        assert await boss.result(new) == "home"


async def test_a_function_runs_at_most_so_often_at_once(gateway: Gateway) -> None:
    @workflow(max_executions=2)
    async def one(flow: Flow, number: int) -> int:
        await flow.wait("go")
        return number

    async with boss_of(gateway.address) as boss, serving(gateway.address, one):
        runs = [await boss.run("one", number=number) for number in range(3)]
        assert [await status(boss, one) for one in runs] == ["running", "running", "queued"]
        for number, execution_id in enumerate(runs):
            await boss.until(execution_id, "running")
            await boss.do(101, execution_id, "go")
            assert await boss.result(execution_id) == number


async def test_the_budget_of_steps_asks_a_person(gateway: Gateway) -> None:
    done: list[int] = []

    @workflow(budget={"steps": 3})
    async def count(flow: Flow, most: int) -> int:
        async def note(number: int) -> int:
            done.append(number)
            return number

        total = 0
        for number in range(most):
            total += await flow.step(note, number)
            await flow.sleep(0.01)
        return total

    async with boss_of(gateway.address) as boss, serving(gateway.address, count):
        execution_id = await boss.run("count", most=4)  # eight steps
        for _ in range(2):
            found = await boss.until(execution_id, "paused")
            assert found["execution"]["ErrorMessage"] == "the budget of 3 steps is used up"
            await boss.answer(execution_id, "budget", choice="go on")
            await boss.until(execution_id, "running", "completed")
        assert await boss.result(execution_id) == 6
        assert done == [0, 1, 2, 3]  # what was recorded is not done again


async def test_a_function_that_is_within_its_budget_is_not_asked_about(gateway: Gateway) -> None:
    @workflow(budget={"steps": 2})
    async def nap(flow: Flow) -> str:
        await flow.sleep(0.01)
        await flow.sleep(0.01)
        return "rested"

    async with boss_of(gateway.address) as boss, serving(gateway.address, nap):
        assert await boss.result(await boss.run("nap")) == "rested"


@pytest.mark.parametrize("choice", ["go on", "end it"])
async def test_the_budget_of_usage_asks_a_person(gateway: Gateway, choice: str) -> None:
    @workflow(budget={"usage": {"tokens": 10}})
    async def talk(flow: Flow) -> str:
        for _ in range(2):
            await flow.call("writer", "write", {})
        return "said"

    async def write(job: Job) -> str:
        await job.progress(0.5, "half", metadata={"usage.tokens": "10"})
        return "text"

    address = gateway.address
    async with (
        boss_of(address) as boss,
        serving(address, talk),
        agent(address, "writer") as worker,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(worker.run_tasks, write))
        execution_id = await boss.run("talk")
        found = await boss.until(execution_id, "paused")
        assert "the budget of 10 tokens is used up" in found["execution"]["ErrorMessage"]
        await boss.answer(execution_id, "budget", choice=choice)
        if choice == "go on":
            await boss.until(execution_id, "running", "completed")
            while (found := await boss.until(execution_id, "paused", "completed"))["execution"]["Status"] == "paused":
                with suppress(Refused):
                    await boss.do(106, execution_id, "budget", {"choice": choice})
            assert await boss.result(execution_id) == "said"
        else:
            found = await boss.until(execution_id, "failed")
            assert "has ended the execution" in found["execution"]["ErrorMessage"]
        nursery.cancel_scope.cancel()


async def test_the_budget_of_runs_an_hour_asks_a_person(gateway: Gateway) -> None:
    @workflow(budget={"runs_per_hour": 1})
    async def once(flow: Flow) -> str:
        await flow.wait("go")
        return "done"

    async with boss_of(gateway.address) as boss, serving(gateway.address, once):
        first, second = await boss.run("once"), await boss.run("once")
        await boss.do(101, first, "go")
        assert await boss.result(first) == "done"
        assert (
            "the budget of 1 executions of once an hour"
            in (await boss.until(second, "paused"))["execution"]["ErrorMessage"]
        )
        await boss.answer(second, "budget", choice="go on")
        await boss.until(second, "running")
        await boss.do(101, second, "go")
        assert await boss.result(second) == "done"


async def test_a_run_that_ends_withdraws_the_question_of_its_budget(gateway: Gateway) -> None:
    @workflow(budget={"steps": 1})
    async def long(flow: Flow) -> None:
        await flow.sleep(0.01)
        await flow.sleep(0.01)

    async with boss_of(gateway.address) as boss, serving(gateway.address, long):
        execution_id = await boss.run("long")
        await boss.until(execution_id, "paused")
        await boss.client.tasks.cancel(execution_id)
        await boss.ended(execution_id)
        with anyio.fail_after(LIMIT_S):
            while "asks nothing" not in await boss.refusal(106, execution_id, "budget", {"choice": "go on"}):
                await anyio.sleep(0.02)


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"flow": {"debounce": {"period": "10s"}}}, "debounce and batch gather inputs"),
        ({"flow": {"concurrency": 0}}, "/flow/concurrency"),
        ({"flow": {"key": "inputs.oder", "concurrency": 1}}, "did you mean 'order'"),
        ({"flow": {"speed": 1}}, "speed"),
        ({"budget": {"steps": -1}}, "/budget/steps"),
        ({"budget": 7}, "/budget"),
        ({"max_executions": "many"}, "/max_executions"),
    ],
)
async def test_wrong_terms_are_refused(gateway: Gateway, terms: dict[str, Any], says: str) -> None:
    schema = {"type": "object", "properties": {"order": {"type": "string"}}, "additionalProperties": False}
    async with agent(gateway.address, "hand") as worker:
        requests = FunctionRequests(worker, timeout_s=LIMIT_S)
        with pytest.raises(Exception, match="function pack") as caught:
            await requests.register("pack", {"input": schema, **terms}, "w")
        assert says in str(caught.value)

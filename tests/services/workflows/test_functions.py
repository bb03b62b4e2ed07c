"""Durable functions in workers of real gateways, on both storage engines."""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from aether_trio.client import AgentClient, Job
from aether_trio.client.operations.workflow import Workflow
from aether_trio.client.workflows import Flow, workflow
from aether_trio.gateway import Gateway
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import BACKENDS, QUICK, open_test_gateway, run_on
from tests.helpers.engines import Engine, PostgresEngine

Op = pb.WorkflowOperation
LIMIT_S = 120.0
ROOT = Path(__file__).parents[3]
WORKER = str(Path(__file__).with_name("function_worker.py"))


@pytest.fixture
async def gateway(engine: Engine) -> AsyncIterator[Gateway]:
    """A gateway with the embedded workflow engine, on SQLite or PostgreSQL."""
    changes: dict[str, Any] = {"workflow": {"engine": "embedded"}}
    if isinstance(engine, PostgresEngine):
        changes["storage"] = {"database": engine.server.dsn(), "schema": engine.schema}
        changes["gateway"] = {"ephemeral": False}
    async with open_test_gateway(**changes) as opened:
        yield opened


def agent(address: str, name: str, specifier: str = "1") -> AgentClient:
    return AgentClient(f"aether://{address}", workspace="w", implementation=name, specifier=specifier, retry=QUICK)


class Boss:
    """Asks for operations on executions."""

    def __init__(self, client: AgentClient) -> None:
        self.client = client
        self.workflow = Workflow(client, timeout_s=LIMIT_S)

    async def do(self, op: int, about: str = "", second: str = "", data: Any = None) -> Any:
        encoded = b"" if data is None else json.dumps(data).encode()
        answer = await self.workflow._do(op, about, second, data=encoded)  # type: ignore[arg-type]
        return json.loads(answer.data) if answer.data else answer.message

    async def run(self, name: str, **given: Any) -> str:
        while True:
            try:
                started: str = (await self.do(100, name, data=given))["execution_id"]
                return started
            except Exception as error:
                if "not found" not in str(error):
                    raise
                await anyio.sleep(0.02)

    async def execution(self, execution_id: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.do(Op.GET_EXECUTION, execution_id)
        return found

    async def until(self, execution_id: str, *statuses: str) -> dict[str, Any]:
        while True:
            found = await self.execution(execution_id)
            if found["execution"]["Status"] in statuses:
                return found
            await anyio.sleep(0.02)

    async def ended(self, execution_id: str) -> dict[str, Any]:
        return await self.until(execution_id, "completed", "failed", "cancelled")

    async def result(self, execution_id: str) -> Any:
        found = await self.ended(execution_id)
        assert found["execution"]["Status"] == "completed", found
        return json.loads((await self.client.tasks.get(execution_id)).metadata["_result"])

    async def history(self, execution_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self.do(105, execution_id)
        return found


@asynccontextmanager
async def serving(address: str, *functions: Any, specifier: str = "1", **options: Any) -> AsyncIterator[AgentClient]:
    """A worker of the pool "hand" that serves these functions in the block."""
    async with agent(address, "hand", specifier) as worker, anyio.create_task_group() as group:
        group.start_soon(partial(worker.serve_workflows, functions, **options))
        yield worker
        group.cancel_scope.cancel()


@asynccontextmanager
async def answering(address: str, name: str, handler: Any) -> AsyncIterator[None]:
    """An agent that does tasks with `handler(payload)`."""

    async def handle(job: Job) -> Any:
        return await handler(json.loads(job.payload))

    async with agent(address, name) as worker, anyio.create_task_group() as group:
        group.start_soon(partial(worker.run_tasks, handle, concurrency=10))
        yield
        group.cancel_scope.cancel()


@asynccontextmanager
async def boss_of(gateway_address: str) -> AsyncIterator[Boss]:
    with anyio.fail_after(LIMIT_S):
        async with agent(gateway_address, "boss") as client:
            yield Boss(client)


async def search(payload: Any) -> Any:
    return f"found {payload['arguments']['topic']}"


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_function_does_steps_calls_and_branches(gateway: Gateway, backend: str) -> None:
    async def make_plan(topic: str) -> list[str]:
        return [f"{topic} {number}" for number in range(3)]

    @workflow
    async def report(flow: Flow, topic: str) -> dict[str, Any]:
        plan = await flow.step(make_plan, topic)
        async with flow.nursery() as branches:
            hits = [branches.start(flow.call, "searcher", "search", {"topic": one}) for one in plan]
        await flow.sleep(0.01)
        return {"hits": [one.result for one in hits]}

    async def body() -> None:
        address = gateway.address
        async with boss_of(address) as boss, answering(address, "searcher", search), serving(address, report):
            execution_id = await boss.run("report", topic="tea")
            assert await boss.result(execution_id) == {"hits": ["found tea 0", "found tea 1", "found tea 2"]}
            found = await boss.ended(execution_id)
            names = {one["StepID"] for one in found["steps"]}
            assert names == {
                "make_plan", "1.1/searcher.search", "1.2/searcher.search", "1.3/searcher.search", "sleep",
            }  # fmt: skip

    await run_on(backend, body)


@asynccontextmanager
async def worker_processes(address: str, directory: Path, count: int = 1) -> AsyncIterator[None]:
    """Processes of function_worker.py, each followed by another one when it has died."""
    processes = [
        await anyio.open_process([sys.executable, WORKER, address, str(number), str(directory)], stdout=None, cwd=ROOT)
        for number in range(count)
    ]
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            for process in processes:
                process.terminate()
            for process in processes:
                await process.aclose()


async def test_a_worker_is_killed_at_every_step(gateway: Gateway, tmp_path: Path) -> None:
    booked: list[str] = []

    async def book(payload: Any) -> Any:
        booked.append(payload["arguments"]["what"])
        return f"{booked[-1]} booked"

    async with boss_of(gateway.address) as boss, answering(gateway.address, "booker", book):
        async with worker_processes(gateway.address, tmp_path, count=2):
            execution_id = await boss.run("trip", where="rome")
            await boss.do(101, execution_id, "go", data="now")
            assert await boss.result(execution_id) == {
                "first": "PLAN-ROME", "booked": ["train booked", "hotel booked"], "packed": "PACK", "go": "now",
                "last": "LEAVE",
            }  # fmt: skip
        deaths = (tmp_path / "deaths").read_text().splitlines()
        assert deaths == [str(-signal.SIGKILL)] * 13
        effects = (tmp_path / "effects").read_text().splitlines()
        # A worker that dies behind an effect and before its record does it again, and no other one.
        assert Counter(effects) == {"plan-rome": 2, "pack": 2, "leave": 2}
        assert sorted(booked) == ["hotel", "train"]
        kinds = Counter(one["type"] for one in await boss.history(execution_id))
        assert kinds == {"Started": 1, "StepOpened": 4, "StepClosed": 7, "SignalReceived": 1, "Ended": 1}

"""Durable functions in workers of real gateways, on both storage engines."""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
import trio

from aether_trio.client import AetherError, AgentClient, Job, Jobs, Refused
from aether_trio.client.operations import TaskPriority, TaskStatus
from aether_trio.client.operations.workflow import Workflow
from aether_trio.client.workflows import Flow, StepFailed, workflow
from aether_trio.client.workflows.serving import FunctionRequests
from aether_trio.devtools.fault_proxy import FaultProxy, open_fault_proxy
from aether_trio.gateway import Gateway
from aether_trio.storage.base import CommitUnknown, StorageUnavailable
from aether_trio.testing.workflows import replay
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import BACKENDS, QUICK, open_test_gateway, run_on
from tests.helpers.engines import Engine, PostgresEngine
from tests.helpers.gateway import open_gateway_process

Op = pb.WorkflowOperation
LIMIT_S = 120.0
ROOT = Path(__file__).parents[4]
WORKER = str(Path(__file__).with_name("function_worker.py"))


@pytest.fixture
async def gateway(engine: Engine) -> AsyncIterator[Gateway]:
    """A gateway with the embedded workflow engine, on SQLite or PostgreSQL."""
    async with open_test_gateway(**kept_in(engine)) as opened:
        yield opened


def kept_in(engine: Engine, directory: Path | None = None) -> dict[str, Any]:
    """Settings of a gateway with an embedded engine; `directory` is for SQLite."""
    changes: dict[str, Any] = {"workflow": {"engine": "embedded"}}
    if isinstance(engine, PostgresEngine):
        changes["storage"] = {"database": engine.server.dsn(), "schema": engine.schema}
        changes["gateway"] = {"ephemeral": False}
    elif directory is not None:
        changes["gateway"] = {"ephemeral": False, "data_dir": directory}
    return changes


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

    async def run(self, name: str, /, **given: Any) -> str:
        while True:
            try:
                started: str = (await self.do(100, name, data=given))["execution_id"]
                return started
            except Exception as error:
                if "not found" not in str(error):
                    raise
                await anyio.sleep(0.02)

    async def event(self, name: str, **data: Any) -> None:
        await self.client.send_event(json.dumps({"event_names": [name], "data": data}))

    async def answer(self, execution_id: str, step: str, **answer: Any) -> None:
        while True:
            with suppress(Refused):
                await self.do(106, execution_id, step, answer)
                return
            await anyio.sleep(0.05)

    async def refusal(self, op: int, about: str, second: str = "", data: Any = None) -> str:
        with pytest.raises(AetherError) as caught:
            await self.do(op, about, second, data)
        return str(caught.value)

    async def until_step(self, execution_id: str, step: str, status: str) -> None:
        while {one["StepID"]: one["Status"] for one in (await self.execution(execution_id))["steps"]}.get(
            step
        ) != status:
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
            for where, sum_ in (("oslo", 5), ("rome", 7), ("rome", 8)):
                await boss.event("paid", where=where, sum=sum_)
            # Of what is done once, each death lets a person say whether it was.
            await boss.answer(execution_id, "mail?1", choice="again")
            await boss.answer(execution_id, "mail?2", choice="done", text="by hand")
            assert await boss.result(execution_id) == {
                "first": "PLAN-ROME", "booked": ["train booked", "hotel booked"], "packed": "PACK", "go": "now",
                "paid": 7, "mailed": "by hand", "last": "LEAVE",
            }  # fmt: skip
        deaths = (tmp_path / "deaths").read_text().splitlines()
        assert deaths == [str(-signal.SIGKILL)] * 16
        effects = (tmp_path / "effects").read_text().splitlines()
        # A worker that dies behind an effect and before its record does it again, and no other one.
        assert Counter(effects) == {"plan-rome": 2, "pack": 2, "leave": 2, "mail": 1}
        assert sorted(booked) == ["hotel", "train"]
        kinds = Counter(one["type"] for one in await boss.history(execution_id))
        assert kinds == {"Started": 1, "StepOpened": 9, "StepClosed": 11, "SignalReceived": 1, "Ended": 1}


async def test_a_worker_that_stops_gives_its_run_to_another_one_at_once(gateway: Gateway) -> None:
    begun = [anyio.Event(), anyio.Event()]

    @workflow(grace_s=24 * 3600)
    async def patient(flow: Flow) -> str:
        begun[begun[0].is_set()].set()
        await flow.wait("go")
        return "gone"

    async with boss_of(gateway.address) as boss:
        async with serving(gateway.address, patient, hibernate_after=24 * 3600):
            execution_id = await boss.run("patient")
            await begun[0].wait()
        async with serving(gateway.address, patient, specifier="2", hibernate_after=24 * 3600):
            await begun[1].wait()
            await boss.do(101, execution_id, "go")
            assert await boss.result(execution_id) == "gone"


async def test_a_function_waits_asks_and_begins_others(gateway: Gateway) -> None:
    @workflow
    async def below(flow: Flow, n: int) -> int:
        await flow.sleep(0.01)
        return n + len(range(n)) - n + 1

    @workflow
    async def above(flow: Flow) -> list[Any]:
        found: list[Any] = [await flow.run("below", {"n": 1}), await flow.run("graph")]
        answer = await flow.ask("Pay?", choices=["now", "later"], form={"type": "object"}, text="why")
        found += [answer.choice, answer.data, answer.text, answer.by, await flow.wait("paid")]
        late = partial(flow.wait, "never", timeout=0.01), partial(flow.ask, "Well?", timeout=0.01)
        for step in (*late, partial(flow.run, "missing")):
            try:
                await step()
            except StepFailed as error:
                found.append(error.error_type)
        return found

    address = gateway.address
    async with boss_of(address) as boss, serving(address, below, above, hibernate_after=0.05):
        steps = [{"id": "one", "workflow": "below", "input": {"n": {"$expr": "41"}}}]
        document = {"name": "graph", "steps": steps, "outputs": {"n": {"$expr": "steps.one.result"}}}
        await boss.run("below", n=3)
        await boss.do(Op.CREATE_WORKFLOW, data={"ID": "graph", "Version": 1, "Workspace": "w", "Definition": document})
        execution_id = await boss.run("above")
        while True:
            with suppress(Exception):
                await boss.do(106, execution_id, "ask", {"choice": "now", "data": {"sum": 7}, "text": "due"})
                break
            await anyio.sleep(0.05)
        await boss.do(101, execution_id, "paid", data=[5.5, 3])
        assert str(await boss.result(execution_id)) == str([
            2, {"n": 42}, "now", {"sum": 7}, "due", "ag::w::boss::1", [5.5, 3], "TIMEOUT", "TIMEOUT", "UNKNOWN_WORKFLOW",
        ])  # fmt: skip
        refused = await boss.refusal(100, "below", data={"n": "one", "m": 1})
        assert "not as declared" in refused


async def test_a_function_runs_workflows_that_end_at_once(gateway: Gateway) -> None:
    """Their ends come while the step begins."""

    @workflow
    async def above(flow: Flow) -> list[Any]:
        async with flow.nursery() as branches:
            both = [branches.start(flow.run, "sums", {"n": n}) for n in (1, 2)]
        found: list[Any] = [one.result for one in both]
        try:
            await flow.run("fails")
        except StepFailed as error:
            found.append([error.error, error.error_type])
        return found

    sums = {
        "name": "sums",
        "steps": [{"id": "s", "output": {"$expr": "trigger.n + 1"}}],
        "outputs": {"$expr": "steps.s.result"},
    }
    fails = {"name": "fails", "steps": [{"id": "f", "fail": {"message": "no seat", "error_type": "SOLD_OUT"}}]}
    async with boss_of(gateway.address) as boss, serving(gateway.address, above):
        await boss.do(107, data={"documents": [sums, fails]})
        execution_id = await boss.run("above")
        assert await boss.result(execution_id) == [2, 3, ["step f: no seat", "SOLD_OUT"]]
        steps = (await boss.execution(execution_id))["steps"]
        assert [(one["StepID"], one["Status"], one["Kind"]) for one in steps] == [
            ("1.1/sums", "completed", "run"), ("1.2/sums", "completed", "run"), ("fails", "failed", "run"),
        ]  # fmt: skip
        assert [one["type"] for one in await boss.history(execution_id)].count("StepClosed") == 3


async def test_a_function_waits_for_events_by_key(gateway: Gateway) -> None:
    @workflow(events={"paid": "input.order", "closed": ""})
    async def order(flow: Flow, number: str) -> list[Any]:
        await flow.wait("go")
        found = [await flow.wait(event="paid", equals=number) for _ in range(2)]
        async with flow.nursery() as branches:  # each branch takes for itself
            others = [branches.start(partial(flow.wait, event="paid", equals=number)) for _ in range(2)]
        found += [one.result for one in others]
        await flow.wait("on")
        found.append(await flow.wait(event="closed"))
        for wrong in ({"event": "opened"}, {"event": "paid"}, {"event": "closed", "equals": 1}, {}):
            with pytest.raises(ValueError):
                await flow.wait(**wrong)
        try:
            await flow.wait(event="closed", timeout=0.05)
        except StepFailed as error:
            found.append(error.error_type)
        return found

    address = gateway.address
    async with boss_of(address) as boss:
        async with serving(address, order, hibernate_after=0.1):
            first, second = await boss.run("order", number="a"), await boss.run("order", number="b")
            for name, number in (("a", 1), ("b", 10), ("a", 2)):
                await boss.event("paid", order=name, sum=number)
            for execution_id in (first, second):
                await boss.until_step(execution_id, "wait:go", "waiting")
                await boss.do(101, execution_id, "go")
            await boss.until_step(second, "wait:paid#2", "waiting")
            waits = [one.get("WaitsFor") for one in (await boss.execution(second))["steps"]]
            assert waits[-1] == {"for": "event", "event": "paid"}
            while (await boss.client.tasks.get(second)).status is not TaskStatus.HIBERNATED:
                await anyio.sleep(0.02)
            await boss.event("paid", order="b", sum=20)
            for execution_id in (first, second):
                await boss.until_step(execution_id, "wait:on", "waiting")
                await boss.do(101, execution_id, "on")
                await boss.until_step(execution_id, "wait:closed", "waiting")
            await boss.event("closed")
            results = [await boss.result(each) for each in (first, second)]
            sums = [[one["sum"] for one in each[:4]] for each in results]
            assert sums == [[1, 2, 1, 1], [10, 20, 10, 10]]
            assert [each[4:] for each in results] == [[{}, "TIMEOUT"]] * 2
            later = await boss.run("order", number="a")  # what came before it began is not for it
            await boss.do(101, later, "go")
            await boss.until_step(later, "wait:paid", "waiting")
        requests = FunctionRequests(boss.client)
        for events, text in (
            ([], "events is an object"),
            ({"": "input"}, "the name of an event"),
            ({"x": 1}, "is an expression"),
            ({"x": "input."}, "the key of event 'x': "),
        ):
            with pytest.raises(AetherError, match=text):
                await requests.register("f", {"events": events}, "")


async def test_a_cancelled_graph_ends_its_function_at_once(engine: Engine, tmp_path: Path) -> None:
    @workflow(events={"paid": "input.order"})
    async def waiting(flow: Flow) -> None:
        try:
            async with flow.nursery() as branches:
                branches.start(flow.call, "absent", "book", {})
                branches.start(partial(flow.wait, event="paid", equals=1))
                branches.start(flow.wait, "go")
                branches.start(flow.sleep, hours=1)
                branches.start(flow.ask, "Well?")
                branches.start(flow.run, "inner")
        finally:
            await flow.sleep(hours=1)

    @workflow
    async def inner(flow: Flow) -> None:
        await flow.sleep(hours=1)

    async def quick() -> str:
        return "free"

    @workflow
    async def next_one(flow: Flow) -> Any:
        return await flow.step(quick)

    steps = ("absent.book", "wait:paid", "wait:go", "sleep", "ask", "inner")
    functions = waiting, inner, next_one
    async with open_test_gateway(**kept_in(engine, tmp_path)) as gateway:
        address = gateway.address
        for hibernate_after in (3600, 0.1):  # with its worker at it, and asleep
            async with (
                boss_of(address) as boss,
                serving(address, *functions, hibernate_after=hibernate_after, concurrency=4),
            ):
                document = {"name": "graph", "steps": [{"id": "one", "workflow": "waiting"}]}
                await boss.do(107, data={"documents": [{**document, "id": "graph"}]})
                await boss.run("next_one")  # its worker has registered them all
                graph = await boss.run("graph")
                while not (found := (await boss.execution(graph))["steps"]) or not found[0]["TaskID"]:
                    await anyio.sleep(0.02)
                function = found[0]["TaskID"]
                for number, step in enumerate(steps, 1):
                    await boss.until_step(function, f"1.{number}/{step}", "running" if number in (1, 6) else "waiting")
                found = (await boss.execution(function))["steps"]
                below = {one["StepID"]: one["TaskID"] for one in found if one["TaskID"]}
                await boss.until_step(below["1.6/inner"], "sleep", "waiting")
                while (
                    hibernate_after < 1 and (await boss.client.tasks.get(function)).status is not TaskStatus.HIBERNATED
                ):
                    await anyio.sleep(0.02)
                await boss.do(Op.CANCEL_EXECUTION, graph)
                assert (await boss.execution(function))["execution"]["Status"] == "cancelled"
                assert {one["Status"] for one in (await boss.execution(function))["steps"]} == {"cancelled"}
                for task_id in below.values():
                    assert (await boss.client.tasks.get(task_id)).status is TaskStatus.CANCELLED
                assert (await boss.execution(below["1.6/inner"]))["execution"]["Status"] == "cancelled"
                assert (await boss.execution(graph))["execution"]["Status"] == "cancelled"
                for table in ("waits", "interests", "kept_events", "timers"):
                    assert rows_of(engine, tmp_path, f"workflow_{table}") == [], table
                assert await boss.result(await boss.run("next_one")) == "free"


def rows_of(engine: Engine, directory: Path, table: str) -> list[Any]:
    """Return the rows of a table of the tasks database, as another process sees them."""
    sql = f"SELECT * FROM {table}"
    if isinstance(engine, PostgresEngine):
        return engine.rows(sql)
    with closing(sqlite3.connect(directory / "tasks.db")) as database:
        return list(database.execute(sql))


async def test_many_branches_and_a_function_that_never_ends() -> None:
    async def square(number: int) -> int:
        return number * number

    @workflow
    async def squares(flow: Flow, count: int) -> int:
        async with flow.nursery() as branches:
            found = [branches.start(flow.step, square, number) for number in range(count)]
            called = [branches.start(flow.call, "searcher", "search", {"topic": n}) for n in range(count)]
        assert [one.result for one in called] == [f"found {n}" for n in range(count)]
        return sum(one.result for one in found)

    @workflow
    async def endless(flow: Flow) -> None:
        while True:
            await flow.step(square, 1)

    @workflow
    async def pages(flow: Flow, page: int = 0, total: int = 0) -> Any:
        for _ in range(40):
            total += await flow.step(square, 1)
        return flow.continue_as(page=page + 1, total=total) if page < 3 else total

    @workflow
    async def wrong(flow: Flow) -> Any:
        return flow.continue_as(pages=1)

    @workflow
    async def too_many(flow: Flow) -> str:
        async with flow.nursery() as branches:
            for _ in range(1_001):
                branches.start(flow.wait, "never")
        return ""

    functions = squares, endless, pages, wrong, too_many
    async with open_test_gateway(workflow={"engine": "embedded", "history_entries": 2_500}) as gateway:
        address = gateway.address
        async with boss_of(address) as boss, answering(address, "searcher", search), serving(address, *functions):
            assert await boss.result(await boss.run("squares", count=150)) == sum(n * n for n in range(150))
            found = (await boss.ended(await boss.run("endless")))["execution"]
            assert found["Status"] == "failed"
            assert "at most 2500 and " in found["ErrorMessage"]
            assert "flow.continue_as" in found["ErrorMessage"]
            execution_id = await boss.run("pages")
            seen = [execution_id]
            while isinstance(result := await boss.result(execution_id), dict):
                execution_id = result["continued_as"]
                seen.append(execution_id)
            assert result == 160
            assert len(seen) == 4
            assert (await replay(pages, await boss.history(seen[0]))).outcome == "continued"
            assert (await boss.client.tasks.get(seen[1])).metadata["continues"] == seen[0]
            found = (await boss.ended(await boss.run("wrong")))["execution"]
            assert "it cannot go on as a new execution: the input of workflow wrong" in found["ErrorMessage"]
            found = (await boss.ended(await boss.run("too_many")))["execution"]
            assert "1000 steps of the function are open" in found["ErrorMessage"]


async def test_a_cancelled_function_undoes_its_work(gateway: Gateway) -> None:
    undone: list[str] = []

    async def undo(what: str) -> None:
        undone.append(what)

    @workflow
    async def book(flow: Flow) -> None:
        try:
            async with flow.nursery() as branches:
                branches.start(flow.call, "absent", "book", {})
                branches.start(flow.sleep, hours=1)
        finally:
            await flow.step(undo, "hotel")

    @workflow(cleanup_s=0.2)
    async def endless(flow: Flow) -> None:
        try:
            await flow.sleep(hours=1)
        finally:
            await flow.sleep(hours=1)

    address = gateway.address
    async with boss_of(address) as boss, serving(address, book, endless, hibernate_after=0.1):
        first, second = await boss.run("book"), await boss.run("endless")
        await boss.until_step(first, "1.1/absent.book", "running")
        await boss.until_step(second, "sleep", "waiting")
        child = next(one["TaskID"] for one in (await boss.execution(first))["steps"] if one["TaskID"])
        for execution_id in (first, second):
            await boss.do(Op.CANCEL_EXECUTION, execution_id)
        assert (await boss.ended(first))["execution"]["Status"] == "cancelled"
        assert undone == ["hotel"]
        assert (await boss.client.tasks.get(child)).status is TaskStatus.CANCELLED
        found = (await boss.ended(second))["execution"]
        assert found["Status"] == "cancelled"


async def test_code_that_does_not_fit_pauses_until_it_is_mended(gateway: Gateway) -> None:
    async def one() -> int:
        return 1

    async def two() -> int:
        return 2

    def made(*steps: Any) -> Any:
        @workflow(name="changing", grace_s=0.1)
        async def changing(flow: Flow) -> list[int]:
            found = [await flow.step(steps[0])]
            await flow.wait("go")
            return [*found, *[await flow.step(each) for each in steps[1:]]]

        return changing

    address = gateway.address
    async with boss_of(address) as boss:
        async with serving(address, made(one), hibernate_after=0.05):
            execution_id = await boss.run("changing")
            await boss.until_step(execution_id, "wait:go", "waiting")
            waits = [one.get("WaitsFor") for one in (await boss.execution(execution_id))["steps"]]
            assert waits == [None, {"for": "signal", "signal": "go"}]
        async with serving(address, made(two), specifier="2"):
            await boss.do(101, execution_id, "go")
            found = (await boss.until(execution_id, "paused"))["execution"]
            assert "recorded step 'one' at test_functions.py:" in found["ErrorMessage"]
            assert "got step 'two' at test_functions.py:" in found["ErrorMessage"]
        async with serving(address, made(one, two), specifier="3"):
            await boss.do(103, execution_id)
            assert await boss.result(execution_id) == [1, 2]
        history = await boss.history(execution_id)
        assert (await replay(made(one, two), history)).outcome == "completed"
        again = await replay(made(two), history)
        assert again.outcome == "diverged"
        assert again.error.startswith("the code does not fit the history: recorded step 'one'")


async def test_a_step_of_which_nothing_is_known_is_decided_by_a_person(gateway: Gateway) -> None:
    hangs: list[anyio.Event] = []

    async def mail() -> str:
        if not hangs:
            hangs.append(anyio.Event())
            await anyio.sleep_forever()
        return "sent again"

    @workflow(grace_s=0.1)
    async def mailing(flow: Flow) -> Any:
        try:
            return await flow.step(mail, once=True)
        except StepFailed as error:
            return [error.error, error.error_type]

    address = gateway.address
    said = {"done": "by hand", "again": "sent again", "failed": ["by hand", "IN_DOUBT"]}
    async with boss_of(address) as boss:
        for number, (choice, result) in enumerate(said.items()):
            hangs.clear()
            async with serving(address, mailing, specifier=f"a{number}"):
                execution_id = await boss.run("mailing")
                await boss.until_step(execution_id, "mail", "running")
                while not hangs:
                    await anyio.sleep(0.01)
            async with serving(address, mailing, specifier=f"b{number}"):
                await boss.until_step(execution_id, "mail?1", "waiting")
                await boss.do(106, execution_id, "mail?1", {"choice": choice, "text": "by hand"})
                assert await boss.result(execution_id) == result


async def test_a_failed_function_is_retried_from_its_failed_step(gateway: Gateway) -> None:
    luck: list[int] = []

    async def first() -> int:
        luck.append(1)
        return 1

    async def second() -> Any:
        luck.append(2)
        if luck.count(2) == 1:
            raise ValueError("no luck")
        return "x" * 600_000 if luck.count(2) == 2 else object() if luck.count(2) == 3 else 2

    @workflow
    async def lucky(flow: Flow) -> list[int]:
        return [await flow.step(first), await flow.step(second)]

    address = gateway.address
    async with boss_of(address) as boss, serving(address, lucky):
        execution_id = await boss.run("lucky")
        texts = ["StepFailed: step second: no luck", "at most 524288 are allowed: keep it elsewhere", "is not JSON"]
        for text in texts:
            found = (await boss.ended(execution_id))["execution"]
            assert found["Status"] == "failed"
            assert text in found["ErrorMessage"]
            await boss.do(104, execution_id)
        assert await boss.result(execution_id) == [1, 2]
        assert luck == [1, 2, 2, 2, 2]
        assert (await replay(lucky, await boss.history(execution_id))).outcome == "completed"


async def test_a_paused_function_holds_no_worker_and_goes_on(gateway: Gateway) -> None:
    @workflow
    async def patient(flow: Flow) -> list[Any]:
        return [await flow.wait("go"), flow.patched("new"), flow.random(), str(flow.uuid())]

    address = gateway.address
    async with boss_of(address) as boss, serving(address, patient) as worker:
        execution_id = await boss.run("patient")
        await boss.until_step(execution_id, "wait:go", "waiting")
        await boss.do(102, execution_id, "a rest")
        assert (await boss.execution(execution_id))["execution"]["Status"] == "paused"
        while (await boss.client.tasks.get(execution_id)).status is not TaskStatus.HIBERNATED:
            await anyio.sleep(0.02)
        await boss.do(101, execution_id, "go", data=1)
        assert (await boss.execution(execution_id))["execution"]["Status"] == "paused"
        await boss.do(103, execution_id)
        assert (await boss.result(execution_id))[:2] == [1, True]
        # What is no worker of the run, or is not any more, changes nothing.
        for client, number in ((boss.client, 1), (worker, 1), (worker, 99)):
            asked = {"assignment": number, "after": 0, "do": [{"do": "end", "outcome": "failed"}]}
            with pytest.raises(AetherError, match="this assignment is over"):
                await FunctionRequests(client).advance(execution_id, asked)


async def test_what_a_worker_may_not_ask_for_is_refused(gateway: Gateway) -> None:
    async with boss_of(gateway.address) as boss:
        requests = FunctionRequests(boss.client)
        for name, about, text in (
            ("a b", {}, "name of a function"),
            ("f", {"input": []}, "JSON Schema"),
            ("f", {"grace_ms": 0}, "grace_ms"),
            ("f", {"speed": 1}, "unknown keys: 'speed'"),
        ):
            with pytest.raises(AetherError, match=text):
                await requests.register(name, about, "")
        await requests.register("f", {}, "")
        execution_id = await boss.run("f")
        job = await anext_run(boss.client)
        async with job:
            number = int(job.assignment.number)
            for command, text in (
                ({"do": "fly"}, "unknown command 'fly'"),
                ({"do": "open", "step": "", "kind": "sleep"}, "step is a text"),
                ({"do": "open", "step": "a\0b", "kind": "sleep"}, "zero bytes"),
                ({"do": "open", "step": "a", "kind": "dance"}, "kind is one of"),
                ({"do": "open", "step": "a", "kind": "sleep", "for_ms": -1}, "for_ms is a number"),
                ({"do": "close", "step": "a", "outcome": "odd"}, "outcome is one of"),
                ({"do": "close", "step": "a", "outcome": "completed", "result": "x" * 600_000}, "at most 524288"),
            ):
                with pytest.raises(AetherError, match=text):
                    await requests.advance(execution_id, {"assignment": number, "do": [command]})
            command = {"do": "open", "step": "a", "kind": "call", "agent": "x", "tool": "y", "workspace": "no such"}
            answer = await requests.advance(execution_id, {"assignment": number, "do": [command, command]})
            entries = [one["entry"]["type"] for one in json.loads(answer.data)["entries"]]
            assert entries == ["Started", "StepOpened", "StepClosed"]
            await requests.advance(execution_id, {"assignment": number, "do": [{"do": "end", "outcome": "completed"}]})
            await requests.advance(execution_id, {"assignment": number, "do": [{"do": "end", "outcome": "completed"}]})
        assert await boss.result(execution_id) is None


async def anext_run(client: AgentClient) -> Job:
    manager = client._WorkerMethods__manager  # type: ignore[attr-defined]
    return await anext(Jobs(manager, 1, runs=True))


async def test_cut_connections_repeat_nothing(gateway: Gateway) -> None:
    done: Counter[str] = Counter()
    called: Counter[str] = Counter()

    async def effect(name: str) -> str:
        done[name] += 1
        await anyio.sleep(0.01)
        return name

    async def book(payload: Any) -> Any:
        called[payload["arguments"]["what"]] += 1
        return payload["arguments"]["what"]

    @workflow
    async def trip(flow: Flow, name: str) -> list[str]:
        found = [await flow.step(effect, f"{name} plan")]
        async with flow.nursery() as branches:
            parts = [branches.start(flow.call, "booker", "book", {"what": f"{name} {one}"}) for one in range(3)]
            parts += [branches.start(flow.step, effect, f"{name} {one}") for one in range(3)]
        await flow.sleep(0.05)
        return [*found, *[one.result for one in parts], await flow.step(effect, f"{name} end")]

    random = Random(7)

    async def cut(proxy: FaultProxy) -> None:
        while True:
            await anyio.sleep(random.uniform(0.02, 0.2))
            proxy.cut_all()

    async with (
        boss_of(gateway.address) as boss,
        answering(gateway.address, "booker", book),
        open_fault_proxy(gateway.address) as proxy,
        serving(proxy.address, trip),
    ):
        await boss.result(await boss.run("trip", name="first"))
        runs: dict[str, str] = {}
        async with anyio.create_task_group() as group:
            group.start_soon(cut, proxy)
            while proxy.statistics().connections < 10:
                names = [f"trip{len(runs) + one}" for one in range(4)]
                runs |= {name: await boss.run("trip", name=name) for name in names}
                for name in names:
                    parts = [f"{name} {one}" for one in range(3)]
                    assert await boss.result(runs[name]) == [f"{name} plan", *parts, *parts, f"{name} end"]
            group.cancel_scope.cancel()
        assert set(done.values()) == set(called.values()) == {1}
        assert len(done) == 5 * (len(runs) + 1)
        assert len(called) == 3 * (len(runs) + 1)


async def test_the_task_of_a_call_has_its_metadata_and_priority(gateway: Gateway) -> None:
    @workflow
    async def calls(flow: Flow, priority: int) -> None:
        await flow.call("absent", "book", metadata={"case": 7}, priority=priority)

    async with boss_of(gateway.address) as boss, serving(gateway.address, calls):
        execution_id = await boss.run("calls", priority=TaskPriority.HIGH)
        await boss.until_step(execution_id, "absent.book", "running")
        [step] = (await boss.execution(execution_id))["steps"]
        task = await boss.client.tasks.get(step["TaskID"])
        assert (task.metadata["case"], task.priority) == ("7", TaskPriority.HIGH)
        refused = await boss.run("calls", priority=1_001)
        found = await boss.until(refused, "failed")
        assert "priority is a number from -1000 to 1000" in found["execution"]["ErrorMessage"]


@pytest.mark.parametrize("fault", [StorageUnavailable, CommitUnknown])
async def test_a_storage_that_is_away_fails_no_step(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, fault: type[StorageUnavailable]
) -> None:
    """What a step has come to is recorded when storage answers again, or does know."""
    engine = gateway.core.tasks.engine
    run_program, failures, done = engine.run_program, 0, 0

    async def fail_or_run(*args: Any, **options: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise fault("away")
        return await run_program(*args, **options)

    async def act() -> int:
        nonlocal failures, done
        failures, done = 1, done + 1
        return done

    @workflow
    async def acts(flow: Flow) -> list[int]:
        return [await flow.step(act), await flow.step(act, once=True)]

    monkeypatch.setattr(engine, "run_program", fail_or_run)
    async with boss_of(gateway.address) as boss, serving(gateway.address, acts):
        assert await boss.result(await boss.run("acts")) == [1, 2]


async def test_a_stopped_worker_gives_its_runs_to_one_on_another_node(postgres_engine: PostgresEngine) -> None:
    seen: list[str] = []

    def made(name: str) -> Any:
        async def where() -> str:
            seen.append(name)
            return name

        @workflow(grace_s=60.0)
        async def tour(flow: Flow) -> list[Any]:
            found = [await flow.step(where), await flow.call("searcher", "search", {"topic": "x"})]
            return [*found, await flow.wait("go"), await flow.step(where)]

        return tour

    storage = {"database": postgres_engine.server.dsn(), "schema": postgres_engine.schema}
    changes: dict[str, Any] = {"storage": storage, "gateway": {"ephemeral": False}, "workflow": {"engine": "embedded"}}
    async with open_test_gateway(**changes) as one, open_test_gateway(**changes) as two:
        async with boss_of(one.address) as boss, answering(one.address, "searcher", search):
            async with serving(two.address, made("first")):
                execution_id = await boss.run("tour")
                await boss.until_step(execution_id, "wait:go", "waiting")
            async with serving(one.address, made("second"), specifier="2"):
                await boss.do(101, execution_id, "go", data=1)
                assert await boss.result(execution_id) == ["first", "found x", 1, "second"]
        assert seen == ["first", "second"]


async def test_a_long_history_is_read_in_pages(gateway: Gateway) -> None:
    lives: list[int] = []

    async def large(number: int) -> str:
        return str(number) * 400_000

    @workflow
    async def long(flow: Flow) -> list[int]:
        lives.append(1)
        found = [await flow.step(large, number) for number in range(5)]
        await flow.wait("go")
        return [len(one) for one in found]

    async with boss_of(gateway.address) as boss, serving(gateway.address, long, hibernate_after=0.05):
        execution_id = await boss.run("long")
        while (await boss.client.tasks.get(execution_id)).status is not TaskStatus.HIBERNATED:
            await anyio.sleep(0.02)
        await boss.do(101, execution_id, "go")
        assert await boss.result(execution_id) == [400_000] * 5
        assert len(lives) == 2
        assert len(await boss.history(execution_id)) == 3
        found = await boss.execution(execution_id)
        assert [(one["StepID"], one["Kind"]) for one in found["steps"]] == [
            *((f"large{f'#{number}' if number > 1 else ''}", "step") for number in range(1, 6)), ("wait:go", "wait"),
        ]  # fmt: skip


async def test_many_waiting_runs_leave_their_worker_and_wake(gateway: Gateway) -> None:
    @workflow
    async def waiting(flow: Flow, n: int) -> int:
        if n % 2:
            await flow.sleep(1)
        else:
            await flow.wait("go")
        return n

    async with boss_of(gateway.address) as boss, serving(gateway.address, waiting, concurrency=4, hibernate_after=3600):
        ids = [await boss.run("waiting", n=number) for number in range(12)]
        asleep = 0
        while asleep < 4:  # a worker keeps half of its places for runs that only wait
            tasks = [await boss.client.tasks.get(execution_id) for execution_id in ids[::2]]
            asleep = sum(task.status is TaskStatus.HIBERNATED for task in tasks)
            await anyio.sleep(0.02)
        for execution_id in ids[::2]:
            await boss.do(101, execution_id, "go")
        assert [await boss.result(execution_id) for execution_id in ids] == list(range(12))


async def test_a_killed_gateway_interrupts_no_function() -> None:
    done: Counter[str] = Counter()
    called: Counter[str] = Counter()

    async def effect(name: str) -> str:
        done[name] += 1
        return name

    async def book(payload: Any) -> Any:
        called[payload["arguments"]["what"]] += 1
        return payload["arguments"]["what"]

    @workflow(grace_s=120.0)
    async def trip(flow: Flow, name: str) -> list[str]:
        found = [await flow.step(effect, f"{name} plan")]
        for number in range(4):
            async with flow.nursery() as branches:
                call = branches.start(flow.call, "booker", "book", {"what": f"{name} {number}"})
                branches.start(flow.sleep, 0.2)
            found += [call.result, await flow.step(effect, f"{name} {number}")]
        return found

    async with open_gateway_process(extra_args=["--set", "workflow.engine=embedded"]) as gateway:
        address = gateway.address
        async with boss_of(address) as boss, answering(address, "booker", book), serving(address, trip):
            runs = {f"trip{one}": await boss.run("trip", name=f"trip{one}") for one in range(8)}
            for _ in range(2):
                await anyio.sleep(0.3)
                await trio.to_thread.run_sync(gateway.kill)
                await trio.to_thread.run_sync(gateway.restart)
            for name, execution_id in runs.items():
                parts = [f"{name} {one}" for one in range(4) for _ in range(2)]
                assert await boss.result(execution_id) == [f"{name} plan", *parts]
    assert set(done.values()) == {1}
    assert set(called.values()) == {1}

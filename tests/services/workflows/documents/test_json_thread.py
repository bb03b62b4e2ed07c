"""Large JSON of operations is read and written beside the event loop."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
import trio

from aether_trio.services.workflows.documents.json_thread import MOST_AT_ONCE, SMALL_BYTES, in_json_thread
from aether_trio.services.workflows.documents.json_values import write_json
from aether_trio.services.workflows.executions import advancing as executions
from aether_trio.services.workflows.executions import replay
from aether_trio.services.workflows.operations import diagram_operations
from aether_trio.services.workflows.operations import workflow_operations as operations
from aether_trio.services.workflows.requests import asked
from aether_trio.services.workflows.rules import foretelling
from aether_trio.services.workflows.rules import rule_operations as rules
from aether_trio.services.workflows.schedules import schedule_operations
from tests.helpers.core import World
from tests.services.workflows.helpers import Client, Op, client

TEXT = "x" * (2 * SMALL_BYTES)


async def test_large_json_is_handled_in_few_threads_and_small_json_at_once() -> None:
    assert await in_json_thread(threading.get_ident, SMALL_BYTES) == threading.get_ident()
    release = threading.Event()
    running: list[int] = []
    most = 0

    def work() -> int:
        nonlocal most
        running.append(1)
        most = max(most, len(running))
        assert release.wait(30)
        running.pop()
        return threading.get_ident()

    threads: list[int] = []

    async def one() -> None:
        threads.append(await in_json_thread(work, SMALL_BYTES + 1))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(MOST_AT_ONCE + 2):
                nursery.start_soon(one)
            while len(running) < MOST_AT_ONCE:
                await trio.sleep(0.001)
            release.set()
    assert most == MOST_AT_ONCE
    assert threading.get_ident() not in threads


class Watched:
    """Notes the threads in which functions of modules are called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.threads: dict[str, set[bool]] = {}

    def watch(self, module: Any, name: str) -> None:
        """Watch a function; True: it was called in the thread of the event loop."""
        original: Callable[..., Any] = getattr(module, name)
        loop = threading.get_ident()

        def noting(*args: Any, **options: Any) -> Any:
            self.threads.setdefault(name, set()).add(threading.get_ident() == loop)
            return original(*args, **options)

        self._monkeypatch.setattr(module, name, noting)


@pytest.fixture
async def boss(world: World) -> AsyncIterator[Client]:
    async with world.open(workflow={"engine": "embedded"}) as core, client(core) as opened:
        yield opened


async def test_large_requests_and_answers_are_no_work_of_the_event_loop(
    boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    watched.watch(asked, "read_json")
    watched.watch(asked, "read_document")
    watched.watch(diagram_operations, "graph_diagram")
    watched.watch(replay, "_next_need")
    watched.watch(rules, "shown_rule")
    watched.watch(schedule_operations, "answer_of")
    document = {"steps": [{"id": "a", "output": TEXT}]}
    await boss.create(document)
    given = {"text": TEXT}
    execution_id = await boss.run(given)
    found = await boss.execution(execution_id)
    assert found["execution"]["TriggerData"] == given
    assert found["execution"]["Result"] == {"a": TEXT}
    assert (await boss.do(Op.GET_WORKFLOW, "flow"))["Definition"]["steps"][0]["output"] == TEXT
    drawn = await boss.do(115, "flow")
    assert [node["id"] for node in drawn["nodes"]] == ["a"]
    assert drawn["workspace"] == "w"
    replayed = await boss.do(113, execution_id, data={"document": {"id": "flow", **document}})
    assert replayed == {"entries": 1, "version": 0, "divergence": None}
    rule = {"rule_name": "r", "source_event": "e", "destination_template": {"agent": "x", "arguments": {"t": TEXT}}}
    made = await boss.do(Op.CREATE_RULE, data=rule)
    assert made["DestinationTemplate"]["arguments"] == {"t": TEXT}
    assert [one["RuleName"] for one in await boss.do(Op.LIST_RULES)] == ["r"]
    schedule = {"id": "s", "schedule_type": "interval", "schedule_expr": "1h", "workflow_id": "flow", "input": TEXT}
    assert (await boss.do(Op.CREATE_SCHEDULE, data=schedule))["input"] == TEXT
    assert [one["id"] for one in await boss.do(Op.LIST_SCHEDULES)] == ["s"]
    assert watched.threads == {
        "read_json": {False},
        "read_document": {False},
        "graph_diagram": {False},
        "_next_need": {False},
        "shown_rule": {False},
        "answer_of": {False},
    }


async def test_a_large_input_is_written_once_and_beside_the_event_loop(
    boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    watched.watch(operations, "request_hash")
    loop = threading.get_ident()
    large: list[tuple[str, bool]] = []

    def noting(name: str, value: Any) -> bytes:
        if len(data := write_json(value)) > SMALL_BYTES:
            large.append((name, threading.get_ident() == loop))
        return data

    monkeypatch.setattr(operations, "write_json", partial(noting, "request"))
    monkeypatch.setattr(executions, "write_json", partial(noting, "transaction"))
    await boss.create({"steps": [{"id": "a", "wait": {"signal": "go"}}]})
    given = {"text": TEXT, "numbers": [1.0, 2.5], "é": None}
    started = [await boss.do(100, "flow", "key", data=given) for _ in range(2)]
    assert started[0] == started[1]
    found = await boss.execution(started[0]["execution_id"])
    assert found["execution"]["TriggerData"] == given
    assert "other" in (await boss.ask(100, "flow", "key", data={**given, "more": 1})).error
    assert watched.threads == {"request_hash": {False}}
    assert large == [("request", False)] * 3


async def test_an_input_that_is_nested_too_deep_is_refused_whatever_its_size(boss: Client) -> None:
    await boss.create({"steps": [{"id": "a", "output": 1}]})
    for size in (0, SMALL_BYTES):
        deep = b'{"a":' * 900 + b'"' + b"x" * size + b'"' + b"}" * 900
        for key in ("", "key"):
            answer = await boss.raw(100, "flow", deep, key)
            assert not answer.success
            assert "nested deeper" in answer.error


async def test_what_is_foretold_is_computed_beside_the_event_loop(
    boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    watched.watch(foretelling, "_does")
    await boss.emit("e", data={"n": 1})
    rule = {"rule_name": "r", "source_event": "e", "destination_template": {"type": "emit_event", "event_name": "f"}}
    told = await boss.do(119, data={"documents": [rule], "since_ms": 0, "after": 0})
    assert [one["id"] for one in told["foretold"]] == ["r"]
    assert watched.threads == {"_does": {False}}


async def test_data_that_json_cannot_write_is_refused_whatever_its_size(boss: Client) -> None:
    for size in (0, SMALL_BYTES):
        for text, problem in ((rb"\ud800", "/a: a text has a lone surrogate"), (b"1e999", "/a: inf is not a number")):
            value = b'"' + text + b'"' if text.startswith(b"\\") else text
            data = b'{"b":"' + b"x" * size + b'","a":' + value + b"}"
            for op in (100, 107):
                answer = await boss.raw(op, "flow", data)
                assert answer.error.startswith(f"data is not JSON: {problem}"), answer.error
    await boss.create({"steps": [{"id": "a", "output": json.loads('"é"')}]})

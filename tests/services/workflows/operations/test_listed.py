"""Lists come in pages: each entry once, in the order of the list."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.gateway.core import Core
from aether_trio.services.workflows.executions import execution_rows
from aether_trio.services.workflows.requests import asked
from aether_trio.services.workflows.stored import listed_rows
from aether_trio.storage.base import Program, Row
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import Client, all_taken, client

Op = pb.WorkflowOperation
NAMES = [f"n{number}" for number in range(5)]


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


async def pages(boss: Client, op: int, about: str = "", *, limit: int = 2, **fields: Any) -> list[list[Any]]:
    """Read a list page by page, as long as the answers say that more follows."""
    found = []
    data: dict[str, Any] = {"limit": limit}
    while True:
        answer = await boss.ask(op, about, data=data, **fields)
        assert answer.success, answer.error
        found.append(json.loads(answer.data))
        assert answer.total_count == len(found[-1])
        if not answer.message:
            return found
        begin, place = answer.message.split("after ", 1)
        assert begin == "more "
        data = {"limit": limit, "after": place}


def rule(name: str, destination: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "rule_name": name,
        "source_event": "made",
        "workspace": "w",
        "destination_template": destination or {"agent": "hand", "tool_name": "use"},
        **more,
    }


FLOW = {"steps": [{"id": "a", "output": {"$expr": "1"}}]}
PAUSE = {"steps": [{"id": "a", "wait": "1h"}]}
MACHINE = {"initial_state": "open", "states": {"open": {}}}


async def test_definitions_come_in_pages(core: Core) -> None:
    async with client(core) as boss:
        for name in NAMES:
            await boss.do(Op.CREATE_RULE, data=rule(name))
            await boss.create(FLOW, name)
            await boss.create({**FLOW, "description": "newer"}, name, version=2)
            await boss.do(Op.CREATE_STATE_MACHINE, data={"id": name, "workspace": "w", "definition": MACHINE})
            schedule = {"id": name, "schedule_type": "interval", "schedule_expr": "1h", "workflow_id": name}
            await boss.do(Op.CREATE_SCHEDULE, data=schedule)
        for op, key in (
            (Op.LIST_RULES, "RuleName"),
            (Op.LIST_WORKFLOWS, "ID"),
            (Op.LIST_SCHEDULES, "id"),
            (Op.LIST_STATE_MACHINES, "id"),
        ):
            found = await pages(boss, op)
            assert [[one[key] for one in page] for page in found] == [NAMES[:2], NAMES[2:4], NAMES[4:]], op
            assert await pages(boss, op, limit=5) == [[*found[0], *found[1], *found[2]]]


async def test_executions_come_in_pages_by_status_and_workflow(core: Core) -> None:
    async with client(core) as boss:
        await boss.create(FLOW, "flow")
        await boss.create(PAUSE, "rest")
        ids = [await boss.run({}, "rest" if number % 2 else "flow") for number in range(9)]
        newest = ids[::-1]
        for filters, about, wanted in (
            ({"status_filter": "all"}, "", newest),
            ({"status_filter": "all"}, "rest", newest[1::2]),
            ({"status_filter": "completed"}, "", newest[::2]),
            ({}, "", newest[1::2]),
            ({"status_filter": "failed"}, "", []),
        ):
            found = await pages(boss, Op.LIST_EXECUTIONS, about, **filters)
            listed = [one["ExecutionID"] for page in found for one in page]
            assert sorted(listed) == sorted(wanted)
            moments = [one["StartedAt"].rstrip("Z") for page in found for one in page]
            assert moments == sorted(moments, reverse=True)
            assert all(len(page) <= 2 for page in found)


async def test_a_page_goes_on_behind_a_forgotten_execution(core: Core, world: World) -> None:
    async with client(core) as boss:
        await boss.create(FLOW, "flow")
        ids = [await boss.run() for _ in range(3)]
        whole = [one["ExecutionID"] for one in await boss.do(Op.LIST_EXECUTIONS, status_filter="all")]
        assert sorted(whole) == sorted(ids)
        await core.tasks.engine.database.run(lambda: execution_rows.delete(whole[1]))
        rest = await boss.do(Op.LIST_EXECUTIONS, status_filter="all", data={"after": whole[1]})
        assert {one["ExecutionID"] for one in rest} <= {whole[2]}
        answer = await boss.ask(Op.LIST_EXECUTIONS, data={"after": "nothing"})
        assert "after is what the message of a list ends with" in answer.error


async def test_instances_and_joins_come_in_pages(core: Core, world: World) -> None:
    async with client(core) as boss:
        await boss.do(Op.CREATE_STATE_MACHINE, data={"id": "m", "workspace": "w", "definition": MACHINE})
        join = {"name": "j", "correlation_key": "input.job", "expected_count": 2}
        destination = {"type": "join", "join": {**join, "on_complete": {"agent": "hand", "tool_name": "use"}}}
        await boss.do(Op.CREATE_RULE, data=rule("join", destination))
        for name in NAMES:
            await boss.do(Op.CREATE_SM_INSTANCE, "m", data={"instance_id": f"with space {name}"})
            await boss.emit("made", data={"job": name})
        await all_taken(core, world)
        for about in ("", "m"):
            found = await pages(boss, Op.LIST_SM_INSTANCES, about)
            assert [len(page) for page in found] == [2, 2, 1]
            assert {one["instance_id"] for page in found for one in page} == {f"with space {name}" for name in NAMES}
        for status in ("", "open"):
            found = await pages(boss, Op.LIST_JOINS, status_filter=status)
            assert [len(page) for page in found] == [2, 2, 1]
            assert {one["correlation_key"] for page in found for one in page} == set(NAMES)


async def test_a_page_has_a_bounded_size(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "PAGE_BYTES", 2_000)
    monkeypatch.setattr(execution_rows, "PAGE_BYTES", 2_000)
    monkeypatch.setattr(listed_rows, "PAGE_BYTES", 2_000)
    monkeypatch.setattr(listed_rows, "ROWS_AT_ONCE", 2)
    text = "x" * 1_200
    async with client(core) as boss:
        await boss.create(FLOW, "flow")
        for number in range(4):
            await boss.do(Op.CREATE_RULE, data=rule(f"r{number}", {"agent": "hand", "text": text}))
            await boss.create({**FLOW, "description": text}, f"g{number}")
            machine = {"id": f"m{number}", "workspace": "w", "definition": {**MACHINE, "description": text}}
            await boss.do(Op.CREATE_STATE_MACHINE, data=machine)
            await boss.do(Op.CREATE_SM_INSTANCE, "m0", data={"instance_id": f"i{number}", "data": {"text": text}})
            await boss.run({"text": text})
        for op in (Op.LIST_RULES, Op.LIST_EXECUTIONS, Op.LIST_STATE_MACHINES, Op.LIST_SM_INSTANCES):
            found = await pages(boss, op, limit=100, status_filter="all")
            assert [len(page) for page in found] == [1, 1, 1, 1], op
        [first, *rest] = await pages(boss, Op.LIST_WORKFLOWS, limit=100)
        assert [one["ID"] for one in first] == ["flow", "g0"]
        assert [[one["ID"] for one in page] for page in rest] == [["g1"], ["g2"], ["g3"]]


def read_by(part: Any, limit: int) -> tuple[list[Row], int]:
    """Read rows of a table in memory; return them, and how many were read in all."""
    asked_for = 0

    def counted(last: Row | None, count: int) -> Program[list[Row]]:
        nonlocal asked_for
        rows: list[Row] = part(last, count)
        asked_for += len(rows)
        return rows
        yield

    try:
        next(listed_rows.page_of_rows(counted, limit))
    except StopIteration as end:
        return end.value, asked_for
    raise AssertionError("page_of_rows has asked for a statement")


@given(st.lists(st.sampled_from([1, 100, 5_000, 500_000, 1_500_000]), max_size=400), st.integers(1, 300))
def test_what_is_read_of_a_list_is_bounded(sizes: list[int], limit: int) -> None:
    rows: list[Row] = [(number, b"x" * size) for number, size in enumerate(sizes)]

    def part(last: Row | None, count: int) -> list[Row]:
        first = 0 if last is None else int(last[0]) + 1
        return rows[first : first + count]

    found, count = read_by(part, limit)
    assert found == rows[: len(found)]
    assert count == len(found)
    whole = sum(sizes[: len(found)])
    assert len(found) in (limit, len(rows)) or (whole > listed_rows.PAGE_BYTES and len(found) > 1)
    rest = len(found) - listed_rows.ROWS_AT_ONCE
    assert rest <= 1 or sum(sizes[:rest]) <= listed_rows.PAGE_BYTES


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"limit": 0}, "limit is a whole number from 1 to 1000, and not 0"),
        ({"limit": 1_001}, "limit is a whole number"),
        ({"limit": "5"}, "limit is a whole number"),
        ({"limit": True}, "limit is a whole number"),
        ({"after": 5}, "after is a text"),
        ({"after": "a\0b"}, "after is a text without zero bytes"),
        ({"after": "\u202ex"}, "after is what the message of a list ends with, and not '\\u202ex'"),
    ],
)
async def test_wrong_pages_are_refused(core: Core, data: Any, error: str) -> None:
    async with client(core) as boss:
        for op in (
            Op.LIST_RULES, Op.LIST_WORKFLOWS, Op.LIST_SCHEDULES, Op.LIST_EXECUTIONS, Op.LIST_STATE_MACHINES,
            Op.LIST_SM_INSTANCES, Op.LIST_JOINS,
        ):  # fmt: skip
            assert error in (await boss.ask(op, data=data)).error

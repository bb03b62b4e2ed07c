"""What no database stores is refused with what is wrong, on both engines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

import pytest

from aether_trio.gateway.core import Core
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import client

Op = pb.WorkflowOperation
ASKS: Final = {"steps": [{"id": "a", "ask": {"question": "?", "of": "ag::w::boss::1"}}]}
HALF: Final = rb'{"KEY": "a\ud800"}'
RUN, SIGNAL, HISTORY, ANSWER, FORK, REDRIVE, TIMELINE, FUNCTION, ADVANCE = 100, 101, 105, 106, 114, 116, 118, 120, 121


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


TEXTS: Final[Sequence[tuple[int, bytes, str]]] = (
    (RUN, rb'{"b": [1, "\ud800"]}', "/b/1: a text has a lone surrogate"),
    (RUN, b'{"b": 1e999}', "/b: inf is not a number of JSON"),
    (SIGNAL, rb'"\udfff"', "/: a text has a lone surrogate"),
    (ANSWER, HALF.replace(b"KEY", b"data"), "/data: a text has a lone surrogate"),
    (ANSWER, b'{"data": -1e999}', "/data: -inf is not a number of JSON"),
    (ANSWER, b'{"data": NaN}', "/data: nan is not a number of JSON"),
    (Op.LIST_WORKFLOWS, rb'{"after": "w \ud800"}', "/after: a text has a lone surrogate"),
    (REDRIVE, rb'{"all": true, "until": "\ud800"}', "/until: a text has a lone surrogate"),
    (FUNCTION, rb'{"events": {"\ud800": ""}}', "/events: a key has a lone surrogate"),
)
PLACES: Final = ("9" * 30, "-1", "²", "x")
POSITIONS: Final = ("9" * 30 + " 0  0", "0 " + "9" * 30 + "  0", "0 0 a " + "9" * 30, "0 0", "-1 0  0", "² 0  0")


async def test_deep_data_of_any_operation_is_answered(core: Core) -> None:
    async with client(core) as boss:
        await boss.create(ASKS)
        execution = await boss.run()
        for depth in (190, 900):
            deep = b"[" * depth + b"]" * depth
            for op, about, second, data in (
                (RUN, "flow", "key", b'{"a": %s}'),
                (SIGNAL, execution, "go", b"%s"),
                (ANSWER, execution, "a", b'{"data": %s}'),
                (FORK, execution, "key", b'{"from": "a", "input": {"a": %s}}'),
                (FUNCTION, "f", "", b'{"inputs": %s}'),
            ):
                answer = await boss.raw(op, about, data % deep, second)
                assert ("deeper than 200 levels" in answer.error) is (depth == 900), (op, depth, answer.error)


async def test_no_operation_takes_what_no_database_stores(core: Core) -> None:
    async with client(core) as boss:
        await boss.create(ASKS)
        execution = await boss.run()
        for op, data, text in TEXTS:
            about = execution if op in (SIGNAL, ANSWER) else "flow"
            answer = await boss.raw(op, about, data, "a" if op in (SIGNAL, ANSWER) else "")
            assert text in answer.error, (op, data)
        for place in PLACES:
            assert "the number of the entry" in (await boss.ask(HISTORY, execution, place)).error, place
        for place in POSITIONS:
            assert "`next` of the page before" in (await boss.ask(TIMELINE, execution, place)).error, place
        answer = await boss.ask(ADVANCE, execution, data={"assignment": 1, "after": 10**30})
        assert "after is a whole number" in answer.error
        for about, second, status in (("\0", "", ""), ("", "\0", ""), ("", "", "\0")):
            answer = await boss.raw(Op.LIST_EXECUTIONS, about, b"", second, status_filter=status)
            assert "has a zero byte" in answer.error, (about, second, status)
        assert (await boss.ask(HISTORY, execution)).success
        assert (await boss.ask(TIMELINE, execution)).success

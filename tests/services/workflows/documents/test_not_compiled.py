"""Large documents are compiled outside of transactions, and few are kept."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aether_trio.gateway.core import Core
from aether_trio.services.workflows.documents import reader as documents
from aether_trio.services.workflows.documents.not_compiled import LARGE_BYTES, NotCompiledError
from aether_trio.services.workflows.machines import moves as machines
from aether_trio.services.workflows.stored import definitions
from aether_trio.services.workflows.stored.definitions import Definitions, StoredDefinition
from aether_trio.services.workflows.stored.stored_graphs import compile_stored
from tests.helpers.core import World
from tests.services.workflows.helpers import Client, Op, all_taken, client

TEXT = "x" * LARGE_BYTES


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    async with world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads in which stored documents are compiled."""
    found: list[str] = []
    compile_document = documents.compile_document

    def noting(*args: Any, **options: Any) -> Any:
        found.append(threading.current_thread().name)
        return compile_document(*args, **options)

    monkeypatch.setattr(documents, "compile_document", noting)
    return found


def is_apart(name: str) -> bool:
    """Return whether a thread runs neither transactions nor the event loop."""
    return name != threading.current_thread().name and "writer" not in name and "reader" not in name


async def applied(boss: Client, *of: dict[str, Any]) -> None:
    await boss.do(107, data={"documents": of}, workspace="w")


async def test_a_large_graph_is_compiled_before_its_transaction(core: Core, threads: list[str]) -> None:
    async with client(core) as boss:
        await applied(
            boss, {"id": "flow", "steps": [{"id": "a", "output": TEXT}, {"id": "b", "wait": {"signal": "go"}}]}
        )
        threads.clear()
        execution_id = await boss.run()
        await boss.do(101, execution_id, "go")
        assert (await boss.ended(execution_id))["execution"]["Result"] == {"a": TEXT, "b": None}
        assert len(threads) == 1
        assert is_apart(threads[0]), threads


async def test_a_large_rule_is_compiled_before_its_transaction(core: Core, world: World, threads: list[str]) -> None:
    action = {"type": "create_task", "task_type": "t", "target_implementation": "hand", "payload": TEXT}
    flow = {"debounce": {"period": "1s"}}
    async with client(core) as boss:
        rules = [
            {"rule_name": name, "source_event": "e", "destination_template": action, **more}
            for name, more in (("at_once", {}), ("later", {"flow": flow}))
        ]
        await applied(boss, *rules)
        threads.clear()
        await boss.emit("e", data={})
        await all_taken(core, world)
        while len(await boss.tasks(task_type="t")) < 2:
            await boss.do(Op.LIST_RULES)
        assert threads
        assert all(map(is_apart, threads)), threads


async def test_more_large_machines_than_are_kept_act_too(
    core: Core, world: World, threads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "KEPT", 1)
    machine = {
        "initial_state": "a",
        "states": {"a": {"on": {"go": "b"}}, "b": {}},
        "description": TEXT,
        "bus": [{"event": "e", "key": "input.id", "creates": True}],
    }
    async with client(core) as boss:
        for name in ("m", "n"):
            await applied(boss, {"id": name, **machine})
        threads.clear()
        await boss.emit("e", data={"id": "one"})
        await all_taken(core, world)
        for name in ("m", "n"):
            assert (await boss.do(Op.GET_SM_INSTANCE, f"{name}/one"))["current_state"] == "a"
        assert any(map(is_apart, threads)), threads


def no_function(one: StoredDefinition) -> Any:
    raise AssertionError(one.id)


def stored(name: str, size: int) -> StoredDefinition:
    document = b'{"steps":[{"id":"a","output":"%s"}]}' % (b"x" * size)
    return StoredDefinition("w", name, 1, document, b"", "us::me", True, 1, 1)


def test_graphs_are_kept_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definitions, "KEPT_GRAPH_BYTES", 10_000)
    kept = Definitions(compile_stored, no_function)
    for name, size in (("a", 4_000), ("b", 4_000), ("c", 4_000)):
        kept._keep_graph(("w", name, 1), stored(name, size))
    assert [name for name in "abc" if kept.compiled("w", name, 1) is not None] == ["b", "c"]
    assert kept.compiled("w", "b", 1) is not None  # used last
    kept._keep_graph(("w", "d", 1), stored("d", 4_000))
    assert [name for name in "abcd" if kept.compiled("w", name, 1) is not None] == ["b", "d"]
    kept._keep_graph(("w", "large", 1), stored("large", 40_000))
    assert [name for name in ("b", "d", "large") if kept.compiled("w", name, 1) is not None] == ["large"]
    kept._keep_graph(("w", "large", 1), stored("large", 4_000))
    kept._keep_graph(("w", "b", 1), stored("b", 4_000))
    assert kept.compiled("w", "large", 1) is not None


def test_a_large_graph_that_is_not_kept_is_said() -> None:
    kept = Definitions(compile_stored, no_function)
    large, small = stored("large", LARGE_BYTES), stored("small", 10)
    for one in (large, small):
        program = kept.graph("w", one.id, 1)
        next(program)
        row = ("w", one.id, 1, one.document, b"", "us::me", 1, 1, 1)
        if one is large:
            with pytest.raises(NotCompiledError):
                program.send([row])
        else:
            with pytest.raises(StopIteration) as done:
                program.send([row])
            assert done.value.value.id == "small"

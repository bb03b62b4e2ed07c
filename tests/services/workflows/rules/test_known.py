"""What is in memory of rules: loaded in pages, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.workflows.definition import RuleDefinition
from aether_trio.services.workflows.rules import compiled_rules
from aether_trio.services.workflows.rules import known as module
from aether_trio.services.workflows.rules import rule_operations as rules
from aether_trio.services.workflows.rules.known import KnownRules, NotLoadedError
from aether_trio.services.workflows.stored import rule_rows
from aether_trio.services.workflows.stored.rule_rows import StoredRule
from aether_trio.storage.base import Database, Program
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import Client, client

Op = pb.WorkflowOperation


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def rule(name: str, **more: Any) -> dict[str, Any]:
    return {
        "rule_name": name,
        "source_event": "made",
        "workspace": "w",
        "trigger_condition": f'input.kind == "{name}" && input.size in [1, 2.5]',
        "destination_template": {"agent": "hand", "tool_name": "use"},
        **more,
    }


async def create(boss: Client, *names: str) -> list[str]:
    """Create rules; return their ids."""
    return [str((await boss.do(Op.CREATE_RULE, data=rule(name)))["ID"]) for name in names]


def found(known: KnownRules, kind: str) -> list[str]:
    env = {"input": {"kind": kind, "size": 2.5}, "source": {}}
    return [one.name for one in known.candidates("made", "a", "w", env)]


class WatchedReads:
    """A database that does something before one of its reads."""

    def __init__(self, database: Database, number: int, act: Callable[[], Awaitable[object]]) -> None:
        self._database, self._left, self._act = database, number, act

    async def read(self, program: Callable[[], Program[Any]]) -> Any:
        self._left -= 1
        if not self._left:
            await self._act()
        return await self._database.read(program)


async def test_rules_are_loaded_in_pages_without_compilation(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOAD_PAGE", 3)
    monkeypatch.setattr(module, "COLLECTED", 2)
    database = core.tasks.engine.database
    async with client(core) as boss:
        await create(boss, *(f"r{number}" for number in range(7)))
        monkeypatch.setattr(compiled_rules, "compile_rule", lambda _: pytest.fail("compiled"))
        known = KnownRules()
        await known.load(database)
        assert (len(known.index), found(known, "r6"), found(known, "r7")) == (7, ["r6"], [])
        await database.run(known.refresh)  # nothing is left
        assert len(known.index) == 7


async def test_changes_while_rules_are_loaded_are_not_missed(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each of the reads; also deletions of which nothing is left by then."""
    monkeypatch.setattr(module, "LOAD_PAGE", 2)
    monkeypatch.setattr(rule_rows, "LATEST_DELETED", 1)
    database = core.tasks.engine.database
    async with client(core) as boss:
        for number in range(1, 8):
            ids = await create(boss, "a", "b", "c", "d", "e")

            async def change(ids: list[str] = ids) -> None:
                for id in (ids[0], ids[1], ids[4]):  # noqa: A001
                    await boss.do(Op.DELETE_RULE, id)
                await boss.do(Op.UPDATE_RULE, ids[2], data=rule("c", active=False))
                await boss.do(Op.UPDATE_RULE, ids[3], data=rule("new"))

            known = KnownRules()
            await known.load(WatchedReads(database, number, change))  # type: ignore[arg-type]
            while True:
                try:
                    await database.run(known.refresh)
                    break
                except NotLoadedError as error:
                    await error.load(database)
            names = ("a", "b", "c", "d", "e", "new")
            assert [found(known, name) for name in names] == [[], [], [], [], [], ["new"]], number
            assert len(known.index) == 1
            for id in ids[2:4]:  # noqa: A001
                await boss.do(Op.DELETE_RULE, id)


async def test_what_a_transaction_has_read_is_in_doubt_until_it_is_committed(core: Core) -> None:
    database = core.tasks.engine.database
    async with client(core) as boss:
        known = KnownRules()
        await known.load(database)
        [first] = await create(boss, "first")

        def undone() -> Program[None]:
            yield from known.refresh()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await database.run(undone)
        assert found(known, "first") == ["first"]
        await boss.do(Op.DELETE_RULE, first)
        await create(boss, "second")
        with pytest.raises(NotLoadedError) as caught:
            await database.run(known.refresh)
        await caught.value.load(database)
        await database.run(known.refresh)
        assert (found(known, "first"), found(known, "second")) == ([], ["second"])


async def test_compiled_rules_are_bounded(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_RULES", 2)
    compiled: list[str] = []

    def compile_rule(stored: StoredRule) -> RuleDefinition:
        compiled.append(stored.name)
        return rules.compile_rule(stored)

    monkeypatch.setattr(compiled_rules, "compile_rule", compile_rule)
    database = core.tasks.engine.database
    async with client(core) as boss:
        ids = await create(boss, "a", "b", "c")
        known = KnownRules()
        await known.load(database)
        for name in ("a", "b", "c", "a", "c"):
            [one] = known.candidates("made", "a", "w", {"input": {"kind": name, "size": 1.0}, "source": {}})
            definition = await database.read(lambda one=one: known.definition(one))
            assert definition is not None
            assert definition.name == name
        assert compiled == ["a", "b", "c", "a"]
        [old] = known.candidates("made", "a", "w", {"input": {"kind": "b", "size": 1.0}, "source": {}})
        await boss.do(Op.DELETE_RULE, ids[1])
        assert await database.read(lambda: known.definition(old)) is None


async def test_the_number_of_rules_is_bounded(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_RULES", 3)
    async with client(core) as boss:
        ids = await create(boss, "a", "b", "c")
        error = "there are 3 rules already: delete some first"
        assert (await boss.ask(Op.CREATE_RULE, data=rule("d"))).error == error
        assert error in (await boss.ask(107, data={"documents": [rule("d")]})).error
        await boss.do(107, data={"documents": [rule("c", priority=1)]})
        for _ in range(2):
            await boss.ask(Op.DELETE_RULE, ids[0])  # the second time it is gone
        assert await boss.do(107, data={"documents": [rule("d")]})
        assert (await boss.ask(Op.CREATE_RULE, data=rule("e"))).error == error

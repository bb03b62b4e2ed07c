"""Operations on rules: what follows an event.

A rule acts for the participant that has written it last. Its name is unique in its workspace; a
rule of workspace * acts on events of all workspaces that its owner may read.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.text import shown
from aether_trio.model.workflows.definition import Condition, RuleDefinition
from aether_trio.model.workflows.go_names import rule_answer
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.workflows.documents.compilation_thread import compile_in_thread
from aether_trio.services.workflows.documents.json_thread import in_json_thread
from aether_trio.services.workflows.documents.json_values import write_json
from aether_trio.services.workflows.documents.reader import read_json
from aether_trio.services.workflows.flow import flow_rows
from aether_trio.services.workflows.flow.flow_stops import stop_queued
from aether_trio.services.workflows.requests.applying import CREATED, UNCHANGED, UPDATED, AppliedRow, ConflictError
from aether_trio.services.workflows.requests.asked import (
    OperationAnswer,
    OperationAsked,
    OperationError,
    WorkspaceAccess,
    page_answer,
)
from aether_trio.services.workflows.requests.reach import EVERYTHING, within_reach
from aether_trio.services.workflows.stored import changes, rule_rows
from aether_trio.services.workflows.stored.definitions import EVERYWHERE
from aether_trio.services.workflows.stored.rule_rows import StoredRule
from aether_trio.storage.base import Program
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.WorkflowOperation

MAX_RULES: Final = 100_000
MAX_ID: Final = 2**63 - 1
RULE: Final = "rule"


class RuleOperations:
    """Performs operations on rules; `table` has them by number."""

    def __init__(self, engine: Engine, access: WorkspaceAccess) -> None:
        self._engine = engine
        self._access = access
        self.table: Final[Mapping[int, Callable[[OperationAsked], Awaitable[OperationAnswer]]]] = MappingProxyType(
            {
                Op.LIST_RULES: self._list,
                Op.GET_RULE: self._get,
                Op.CREATE_RULE: self._create,
                Op.UPDATE_RULE: self._update,
                Op.DELETE_RULE: self._delete,
            }
        )

    async def _list(self, asked: OperationAsked) -> OperationAnswer:
        """List rules by id; `id`: only those of this name."""
        workspaces, page = await self._access.visible(asked), await asked.page()
        after = page.number()
        if asked.id:
            found = await self._engine.database.read(lambda: rule_rows.all_named(workspaces, asked.id))
        else:
            found = await self._engine.database.read(lambda: rule_rows.of_workspaces(workspaces, after, page.limit + 1))
        return await in_json_thread(
            lambda: page_answer(found, page, shown_rule, lambda rule: str(rule.id)),
            sum(len(rule.document) for rule in found),
        )

    async def _get(self, asked: OperationAsked) -> OperationAnswer:
        return await _answer(await self._find(asked, rule_id(asked.id)))

    async def _create(self, asked: OperationAsked) -> OperationAnswer:
        definition, ignored = await self._read(asked, {"active": True})
        now_ms, owner = self._engine.clock.now_ms(), asked.session.identity.text

        def program() -> Program[tuple[StoredRule, str]]:
            changed = yield from changes.begin(changes.RULE)
            made = _stored(definition, changed, owner, now_ms, now_ms, changed)
            there = yield from rule_rows.named(made.workspace, made.name)
            if there is not None:
                same = there.digest == made.digest and there.owner == owner
                return there, "" if same else _taken(there)
            if (yield from rule_rows.count()) >= MAX_RULES:
                return made, f"there are {MAX_RULES} rules already: delete some first"
            yield from rule_rows.insert(made)
            return made, ""

        return await self._write(program, ignored)

    async def _update(self, asked: OperationAsked) -> OperationAnswer:
        document = await asked.document()
        given = asked.id or next((value for key, value in document.items() if key.lower() == "id"), "")
        before = await self._find(asked, rule_id(given), AccessLevel.READWRITE)
        definition, ignored = await self._read(asked, {})
        now_ms, owner = self._engine.clock.now_ms(), asked.session.identity.text

        def program() -> Program[tuple[StoredRule, str]]:
            changed = yield from changes.begin(changes.RULE)
            current = yield from rule_rows.load(before.id)
            if current is None or current.workspace != before.workspace:
                return before, f"rule {before.id} was changed meanwhile: ask again"
            made = _stored(definition, before.id, owner, current.created_ms, now_ms, changed)
            there = yield from rule_rows.named(made.workspace, made.name)
            if there is not None and there.id != made.id:
                return there, _taken(there)
            yield from rule_rows.update(made)
            return made, ""

        return await self._write(program, ignored)

    async def _delete(self, asked: OperationAsked) -> OperationAnswer:
        found = await self._find(asked, rule_id(asked.id), AccessLevel.READWRITE)

        def page(tx: TaskTransaction) -> Program[None]:
            yield from rule_rows.delete(found.id)
            yield from stop_queued(tx, flow_rows.RULE, found.workspace, str(found.id))

        await self._engine.result(page)
        return OperationAnswer(message=f"rule {found.id} is deleted")

    async def _write(
        self, program: Callable[[], Program[tuple[StoredRule, str]]], ignored: list[str]
    ) -> OperationAnswer:

        def page(tx: TaskTransaction) -> Program[tuple[StoredRule, str]]:
            stored, problem = yield from program()
            if not problem and not stored.active:
                yield from stop_queued(tx, flow_rows.RULE, stored.workspace, str(stored.id))
            return stored, problem

        stored, problem = await self._engine.result(page)
        if problem:
            raise OperationError(problem)
        message = f"rule {stored.id}"
        if ignored:
            message += f"; unknown keys were ignored: {', '.join(map(shown, ignored))}"
        return await _answer(stored, message)

    async def _read(self, asked: OperationAsked, forced: Mapping[str, Any]) -> tuple[RuleDefinition, list[str]]:
        """Compile the document of an operation, with these values.

        Raises OperationError, also if the caller may not act where the rule does.
        """
        left_out = {*forced, "owner"}  # an answer that is sent back has the owner in it
        given = await asked.document()
        document = {key: value for key, value in given.items() if key.lower() not in left_out}
        document |= forced
        if asked.workspace and "workspace" not in {key.lower() for key in document}:
            document["workspace"] = asked.workspace
        try:
            definition, ignored = await compile_in_thread(partial(read_json, RULE, document), len(asked.data))
        except ValueError as error:
            raise OperationError(str(error)) from None
        definition = await within_reach(self._access, asked.session, definition)
        assert isinstance(definition, RuleDefinition)
        return definition, ignored

    async def _find(self, asked: OperationAsked, id: int, level: AccessLevel = AccessLevel.READ) -> StoredRule:  # noqa: A002
        """Find a rule that the caller may use at a level. Raises OperationError."""
        found = await self._engine.database.read_small(lambda: rule_rows.load(id))
        if found is None or await self._access.problem(asked.session, found.workspace, AccessLevel.READ):
            raise OperationError(f"rule {id} not found")
        if level > AccessLevel.READ:
            await self._access.need(asked.session, found.workspace, level)
        return found


def rule_id(given: object) -> int:
    """Read the id of a rule: an integer, or its text. Raises OperationError."""
    if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 20:
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int) or not 0 < given <= MAX_ID:
        raise OperationError(f"the id of a rule is a positive integer, and not {shown(given)}")
    return given


def _taken(there: StoredRule) -> str:
    where = "of all workspaces" if there.workspace == EVERYWHERE else f"of workspace {there.workspace}"
    return (
        f"rule {there.id} {where} is named {shown(there.name)} already: update or delete that one, or take another name"
    )


def _stored(
    definition: RuleDefinition,
    id: int,  # noqa: A002
    owner: str,
    created_ms: int,
    now_ms: int,
    changed: int,
) -> StoredRule:
    return StoredRule(
        id,
        definition.workspace,
        definition.name,
        write_json(definition.source),
        definition.digest,
        definition.active,
        owner,
        created_ms,
        now_ms,
        changed,
        definition.source_event,
        definition.source_agent,
        definition.priority,
        json.dumps(equalities_of(definition.condition)),
        definition.reach,
    )


def equalities_of(condition: Condition | None) -> Sequence[Any]:
    """Return what must be equal for a condition to hold, as far as it is known."""
    find = getattr(condition, "equalities", None)
    return () if find is None else tuple(find())


async def _answer(stored: StoredRule, message: str = "") -> OperationAnswer:
    return OperationAnswer(await in_json_thread(partial(shown_rule, stored), len(stored.document)), message)


def shown_rule(stored: StoredRule) -> bytes:
    """Return a rule with the names of the reference."""
    answer = rule_answer(
        json.loads(stored.document),
        number=stored.id,
        owner=stored.owner,
        created_ms=stored.created_ms,
        updated_ms=stored.updated_ms,
        active=stored.active,
    )
    return write_json(answer)


def put_rule(tx: TaskTransaction, definition: RuleDefinition, owner: str) -> Program[AppliedRow]:
    """Write a rule that is applied, in the place of the one with its name."""
    place = definition.workspace, definition.name
    there = yield from rule_rows.named(*place)
    wider = there is not None and there.reach not in (EVERYTHING, definition.reach)
    if there is not None and there.digest == definition.digest and not wider:
        return AppliedRow(RULE, *place, 0, UNCHANGED)
    if there is None and (yield from rule_rows.count()) >= MAX_RULES:
        raise ConflictError(f"there are {MAX_RULES} rules already: delete some first")
    now_ms = tx.context.now_ms
    changed = yield from changes.begin(changes.RULE)
    id, created_ms = (changed, now_ms) if there is None else (there.id, there.created_ms)  # noqa: A001
    made = _stored(definition, id, owner, created_ms, now_ms, changed)
    yield from rule_rows.insert(made) if there is None else rule_rows.update(made)
    if there is not None and not definition.active:
        yield from stop_queued(tx, flow_rows.RULE, definition.workspace, str(id))
    return AppliedRow(RULE, *place, 0, CREATED if there is None else UPDATED)


def compile_rule(stored: StoredRule) -> RuleDefinition:
    """Compile the document of a stored rule. Raises DefinitionErrors."""
    definition, _ = read_json(RULE, json.loads(stored.document))
    assert isinstance(definition, RuleDefinition)
    return replace(definition, active=stored.active, reach=stored.reach)

"""Operations of workers with durable functions: REGISTER and ADVANCE_FUNCTION.

docs/wire.md says what a worker sends and gets, so that any language can have such functions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.identity import IdentityError, Kind, check_token
from aether_trio.model.text import shown
from aether_trio.model.workflows.reading import DefinitionErrors
from aether_trio.model.workflows.start_terms import TERM_KEYS
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction.interface import Context
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.workflows.documents.reader import read_terms
from aether_trio.services.workflows.documents.schemas import schema_problems
from aether_trio.services.workflows.executions import execution_rows
from aether_trio.services.workflows.executions.advancing import Executions
from aether_trio.services.workflows.executions.functions import (
    FUNCTION,
    MAX_COMMANDS,
    MAX_KEY_CHARS,
    MAX_SOURCE_CHARS,
    Advanced,
    CommandError,
    Functions,
    document_of,
)
from aether_trio.services.workflows.executions.waits import key_problem
from aether_trio.services.workflows.requests.asked import (
    OperationAnswer,
    OperationAsked,
    OperationError,
    WorkspaceAccess,
)
from aether_trio.services.workflows.stored import definitions
from aether_trio.services.workflows.stored.definitions import EVERYWHERE, StoredDefinition
from aether_trio.storage.base import Program

REGISTER_FUNCTION: Final = 120
ADVANCE_FUNCTION: Final = 121
MAX_NAME_CHARS: Final = 128
MAX_EVENTS: Final = 100
MAX_MS: Final = 24 * 3600 * 1000
DRAFT: Final = {"type": ["object", "boolean"]}


class FunctionOperations:
    """Performs what workers ask for about their functions."""

    def __init__(self, engine: Engine, functions: Functions, executions: Executions, access: WorkspaceAccess) -> None:
        self._engine = engine
        self._functions = functions
        self._executions = executions
        self._access = access
        self.table: Final[Mapping[int, Callable[[OperationAsked], Awaitable[OperationAnswer]]]] = MappingProxyType(
            {REGISTER_FUNCTION: self._register, ADVANCE_FUNCTION: self._advance}
        )

    async def _register(self, request: OperationAsked) -> OperationAnswer:
        """Store a function of the caller's implementation; `id` is its name."""
        identity = request.session.identity
        if identity.kind not in (Kind.AGENT, Kind.SERVICE):
            raise OperationError("only agents and services have functions: others are assigned no tasks of a pool")
        workspace, name, given = request.own_workspace, request.id, await request.document()
        if workspace == EVERYWHERE:
            raise OperationError("a function belongs to one workspace: name it")
        try:
            check_token(name, "the name of a function")
        except IdentityError as error:
            raise OperationError(str(error)) from None
        await self._access.need(request.session, workspace)
        unknown = sorted(set(given) - {"input", "grace_ms", "cleanup_ms", "source", "events", *TERM_KEYS})
        if unknown:
            raise OperationError(f"unknown keys: {', '.join(map(shown, unknown))}")
        about: dict[str, Any] = {"worker": identity.implementation}
        for key in ("grace_ms", "cleanup_ms"):
            if key in given:
                number = given[key]
                if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MAX_MS:
                    raise OperationError(f"{key} is a whole number of milliseconds from 1 to {MAX_MS}")
                about[key] = number
        schema = given.get("input")
        if schema is not None:
            if not isinstance(schema, dict):
                raise OperationError("input is a JSON Schema, an object")
            try:
                schema_problems(schema, {})
            except ValueError as error:
                raise OperationError(f"input is no JSON Schema: {error}") from None
            about["input"] = schema
        if events := _checked_events(given.get("events")):
            about["events"] = events
        terms = {key: given[key] for key in TERM_KEYS if key in given}
        if terms:
            try:
                read_terms(terms, schema)
            except DefinitionErrors as error:
                raise OperationError(f"function {name}: {'; '.join(error.problems)}") from None
            about |= terms
        document = document_of(name, about)
        now_ms = self._engine.clock.now_ms()
        stored = StoredDefinition(
            workspace,
            name,
            1,
            document,
            hashlib.sha256(document).digest(),
            identity.text,
            True,
            now_ms,
            now_ms,
        )
        made, problem = await self._engine.result(lambda _: _register(stored), known=True)
        if problem:
            raise OperationError(problem)
        return OperationAnswer({"name": name, "version": made.version}, f"function {name} version {made.version}")

    async def _advance(self, request: OperationAsked) -> OperationAnswer:
        """Move on a run that the caller has been assigned; `id` is its execution."""
        given = await request.document()
        number, after, commands = given.get("assignment"), given.get("after", 0), given.get("do", [])
        for name, value in (("assignment", number), ("after", after)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
                raise OperationError(f"{name} is a whole number of at least 0")
        if not isinstance(commands, list) or not all(isinstance(one, dict) for one in commands):
            raise OperationError("do is a list of objects")
        if len(commands) > MAX_COMMANDS:
            raise OperationError(f"do has {len(commands)} commands; at most {MAX_COMMANDS} are allowed at once")
        for one in commands:
            if not isinstance(one.get("step", ""), str):
                raise OperationError("step is a text")
        for workspace in {str(one["workspace"]) for one in commands if one.get("workspace")}:
            await self._access.need(request.session, workspace)
        caller, execution_id = request.session.identity.text, request.id

        def program(context: Context) -> Program[tuple[TaskTransaction, Advanced | str]]:
            tx = TaskTransaction(context)
            found = yield from self._functions.advance(
                tx, caller, execution_id, number or 0, after, commands, self._executions.start
            )
            return tx, found

        try:
            if commands:
                _, found = await self._engine.run_program(program, lambda result: result[0])
            else:  # only the history is read, as at each begin of a run
                _, found = await self._engine.database.read_small(lambda: program(self._engine.context()))
        except CommandError as error:
            raise OperationError(str(error)) from None
        if isinstance(found, str):
            raise OperationError(await self._refusal(request, found))
        entries = b",".join(b'{"number":%d,"at_ms":%d,"entry":%s}' % one for one in found.entries)
        more = b"true" if found.more else b"false"
        data = b'{"status":%s,"more":%s,"entries":[%s]}' % (json.dumps(found.status).encode(), more, entries)
        return OperationAnswer(data, total=len(found.entries))

    async def _refusal(self, request: OperationAsked, reason: str) -> str:
        """Return why a run is not moved on, for those who may know that there is one."""
        row = await self._engine.database.read_small(lambda: execution_rows.load(request.id))
        if row is None or await self._access.problem(request.session, row.workspace, AccessLevel.READ):
            return f"execution {shown(request.id)} is no run of a function"
        return reason


def _checked_events(given: Any) -> dict[str, str]:
    """Check the keys of events, by their names. Raises OperationError."""
    if given is None:
        return {}
    if not isinstance(given, dict) or len(given) > MAX_EVENTS:
        raise OperationError(f"events is an object with the key of each event, of {MAX_EVENTS} at most")
    for name, key in given.items():
        if not 1 <= len(name) <= MAX_KEY_CHARS or "\0" in name:
            raise OperationError(f"the name of an event has 1 to {MAX_KEY_CHARS} characters, and no zero byte")
        if not isinstance(key, str) or len(key) > MAX_SOURCE_CHARS:
            raise OperationError(
                f"the key of event {shown(name)} is an expression of at most {MAX_SOURCE_CHARS} characters, such as "
                'input.id, or "" for any event'
            )
        if key and (problem := key_problem(key)):
            raise OperationError(f"the key of event {shown(name)}: {problem}")
    return dict(given)


def _register(stored: StoredDefinition) -> Program[tuple[StoredDefinition, str]]:
    """Store a function, as a new version if it is new; return it, or the problem."""
    newest = yield from definitions.newest(stored.workspace, stored.id, also_inactive=True)
    if newest is None or newest.workspace != stored.workspace:
        yield from definitions.insert(stored)
        return stored, ""
    if newest.active and not newest.is_function:
        return stored, f"workflow {stored.id} is a graph: a function needs another name"
    old, new = (json.loads(one.document).get(FUNCTION, {}).get("worker") for one in (newest, stored))
    if newest.active and old != new:
        return stored, f"workflow {stored.id} is a function of the workers {old}: give it another name"
    if newest.digest == stored.digest and newest.active:
        return newest, ""
    made = StoredDefinition(
        stored.workspace,
        stored.id,
        newest.version + 1,
        stored.document,
        stored.digest,
        stored.owner,
        True,
        stored.created_ms,
        stored.updated_ms,
    )
    yield from definitions.insert(made)
    return made, ""

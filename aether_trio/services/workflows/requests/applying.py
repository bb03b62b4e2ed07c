"""Applies documents of workflows and what belongs to them: all or none.

    documents ──▶ read: every error of every document ──▶ one transaction: an applier for each kind

An applier writes what has changed and says what that was. Equal content changes nothing, so that a
file can be applied again. What is wrong with several documents is told at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

from aether_trio.model.text import shown
from aether_trio.model.workflows.compiling import Tools
from aether_trio.model.workflows.definition import CallWorkflow, ContinueAs, Definition, Graph, ScheduleDefinition
from aether_trio.model.workflows.documents import KINDS, WORKFLOW, compile_document, kind_of_document
from aether_trio.model.workflows.reading import DefinitionErrors, pointer
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction.interface import ChangeRefused, Context, LargeError
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.workflows.documents.compilation_thread import compile_in_thread
from aether_trio.services.workflows.documents.json_values import write_json
from aether_trio.services.workflows.documents.not_compiled import LARGE_BYTES
from aether_trio.services.workflows.documents.reader import identity_of, in_workspace
from aether_trio.services.workflows.documents.tools import TOOLS
from aether_trio.services.workflows.requests.asked import (
    OperationAnswer,
    OperationAsked,
    OperationError,
    WorkspaceAccess,
)
from aether_trio.services.workflows.requests.reach import within_reach
from aether_trio.services.workflows.stored import definitions
from aether_trio.services.workflows.stored.definitions import EVERYWHERE, StoredDefinition
from aether_trio.storage.base import Program

MAX_DOCUMENTS: Final = 1_000
CREATED: Final = "created"
UPDATED: Final = "updated"
UNCHANGED: Final = "unchanged"
_SMALL: Final = 8
"""More definitions are not applied while the event loop waits."""


APPLY: Final = 107


class ConflictError(ChangeRefused, ValueError):
    """A definition cannot be applied to what is stored; the text says why."""


@dataclass(frozen=True, slots=True)
class AppliedRow:
    """What an applier has done: `change` is CREATED, UPDATED or UNCHANGED."""

    kind: str
    workspace: str
    id: str
    version: int
    change: str
    warning: str = ""
    secret: str = field(default="", repr=False)
    """Of a new webhook: the secret that the gateway has made, which is shown once."""

    def document(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Return it as an answer shows it."""
        names = ("kind", "workspace", "id", "version", "change")
        shown: dict[str, Any] = {name: getattr(self, name) for name in names}
        return shown | {"secret": self.secret} if self.secret and not dry_run else shown


class AppliedRows(NamedTuple):
    """What applying documents has done, in their order, and what to look at."""

    rows: list[AppliedRow]
    warnings: list[str]


PutDefinition: TypeAlias = Callable[[TaskTransaction, Any, str], Program[AppliedRow]]
"""Writes a definition for its owner. Raises ConflictError, and has written nothing then."""


class DryRunDone(Exception):
    """Undoes the transaction of a dry run, and carries its result."""

    def __init__(self, applied: AppliedRows) -> None:
        super().__init__()
        self.applied = applied


class Appliers:
    """Reads and applies documents; `others` apply kinds but workflows."""

    def __init__(self, others: Mapping[str, PutDefinition] | None = None, tools: Tools = TOOLS) -> None:
        self._tools = tools
        self._table: Final[Mapping[str, PutDefinition]] = {WORKFLOW: put_workflow, **(others or {})}

    def read(self, documents: Sequence[Any], workspace: str = "") -> list[Definition]:
        """Compile documents; `workspace` is that of those that name none.

        Raises DefinitionErrors with all that is wrong, a line for each error.
        """
        if len(documents) > MAX_DOCUMENTS:
            raise DefinitionErrors([f"there are {len(documents)} documents; at most {MAX_DOCUMENTS} are allowed"])
        found: list[Definition] = []
        problems: list[str] = []
        seen: dict[tuple[str, str, str], int] = {}
        for number, document in enumerate(documents, start=1):
            kind = kind_of_document(document)
            label = _label(number, kind, document)
            if kind not in KINDS:
                problems.append(f"{label}: it is not clear what this is; write kind: and one of {', '.join(KINDS)}")
                continue
            if kind not in self._table:
                can = ", ".join(self._table)
                problems.append(f"{label}: a {kind} cannot be applied to this gateway, only: {can}")
                continue
            definition, findings = compile_document(kind, in_workspace(document, workspace), self._tools)
            problems += (f"{label}: {pointer(one.path)}: {one.text()}" for one in findings.errors)
            if findings.more:
                problems.append(f"{label}: there are {findings.more} more errors")
            if definition is None:
                continue
            identity = identity_of(definition)
            if identity in seen:
                problems.append(f"{label}: document {seen[identity]} is the same {kind}")
                continue
            seen[identity] = number
            found.append(definition)
        if problems:
            raise DefinitionErrors(problems)
        return found

    def apply(
        self, tx: TaskTransaction, found: Sequence[Definition], owner: str, *, dry_run: bool
    ) -> Program[AppliedRows]:
        """Apply definitions in a transaction, which is undone when this raises.

        Raises DefinitionErrors with every conflict, and DryRunDone.
        """
        if tx.context.small and len(found) > _SMALL:
            raise LargeError
        rows: list[AppliedRow] = []
        problems: list[str] = []
        for one in found:
            kind, _, name = identity_of(one)
            try:
                rows.append((yield from self._table[kind](tx, one, owner)))
            except ConflictError as error:
                problems.append(f"{kind} {name}: {error}")
        if problems:
            raise DefinitionErrors(problems)
        warnings = [row.warning for row in rows if row.warning]
        for one in found:
            if isinstance(one, Graph):
                warnings += yield from _unknown_workflows(one)
            elif isinstance(one, ScheduleDefinition):
                warnings += yield from _unknown_workflow(one)
        applied = AppliedRows(rows, warnings)
        if dry_run:
            raise DryRunDone(applied)
        return applied


class ApplyOperations:
    """Performs APPLY; `table` has it by its number."""

    def __init__(self, engine: Engine, access: WorkspaceAccess, appliers: Appliers) -> None:
        self._engine = engine
        self._access = access
        self._appliers = appliers
        self.table: Final[Mapping[int, Callable[[OperationAsked], Awaitable[OperationAnswer]]]] = MappingProxyType(
            {APPLY: self._apply}
        )

    async def _apply(self, asked: OperationAsked) -> OperationAnswer:
        """Apply the documents of `data` in one transaction, which `dry_run` undoes."""
        fields = await asked.document()
        documents, dry_run = fields.get("documents"), fields.get("dry_run", False)
        if not isinstance(documents, list) or not isinstance(dry_run, bool) or fields.keys() - {"documents", "dry_run"}:
            raise OperationError('data is {"documents": [DOCUMENT, ...], "dry_run": BOOL}')
        owner = asked.session.identity.text
        try:
            found = await compile_in_thread(partial(self._appliers.read, documents, asked.workspace), len(asked.data))
            found = [await within_reach(self._access, asked.session, one) for one in found]

            before: list[AppliedRow] = []

            def program(context: Context) -> Program[tuple[TaskTransaction, AppliedRows]]:
                tx = TaskTransaction(context)
                if context.small and len(asked.data) > LARGE_BYTES:
                    raise LargeError
                applied = yield from self._appliers.apply(tx, found, owner, dry_run=dry_run)
                if context.again and before:
                    # What an earlier run has committed is unchanged; only it knows the secret.
                    pairs = zip(before, applied.rows, strict=True)
                    applied.rows[:] = [old if new.change == UNCHANGED else new for old, new in pairs]
                before[:] = applied.rows
                return tx, applied

            _, applied = await self._engine.run_program(program, lambda result: result[0])
        except DefinitionErrors as error:
            raise OperationError(str(error)) from None
        except DryRunDone as done:
            applied = done.applied
        rows = [row.document(dry_run=dry_run) for row in applied.rows]
        return OperationAnswer({"applied": rows, "warnings": applied.warnings}, total=len(rows))


def put_workflow(tx: TaskTransaction, graph: Graph, owner: str) -> Program[AppliedRow]:
    """Write a new version of a workflow unless its newest one has the same content."""
    place = graph.workspace, graph.id
    digest = bytes.fromhex(graph.digest)
    active = yield from definitions.newest_active(*place)
    highest = yield from definitions.highest_version(*place)
    change = CREATED if active is None else UPDATED
    warning = ""
    version = highest + 1
    if "version" in graph.source:
        version = graph.version
        known = yield from definitions.load(*place, version)
        if known is not None:
            if known.digest != digest:
                raise ConflictError(
                    f"version {version} exists with other content: leave version out, or give one above {highest}"
                )
            if not known.active:
                yield from definitions.activate(*place, version, owner, tx.context.now_ms)
            return AppliedRow(WORKFLOW, *place, version, UNCHANGED if known.active else change)
        if active is not None and version < active.version:
            warning = f"workflow {graph.id}: version {version} is not run, as version {active.version} is newer"
    elif active is not None and active.digest == digest:
        return AppliedRow(WORKFLOW, *place, active.version, UNCHANGED)
    now_ms = tx.context.now_ms
    document = write_json(graph.source)
    yield from definitions.insert(StoredDefinition(*place, version, document, digest, owner, True, now_ms, now_ms))
    return AppliedRow(WORKFLOW, *place, version, change, warning)


def _unknown_workflow(schedule: ScheduleDefinition) -> Program[list[str]]:
    """Warn of the workflow that a schedule starts, if it is not there yet."""
    name, place = schedule.workflow_id, schedule.workspace
    if not name or place == EVERYWHERE or (yield from definitions.newest(place, name)) is not None:
        return []
    return [f"schedule {schedule.id} starts workflow {name}, which is not in workspace {place}"]


def _unknown_workflows(graph: Graph) -> Program[list[str]]:
    """Warn of the workflows that steps call, and which are not there yet."""
    called: Iterable[tuple[str, str]] = (
        (step.id, step.work.workflow)
        for step in graph.steps.values()
        if isinstance(step.work, CallWorkflow | ContinueAs) and step.work.workflow not in ("", graph.id)
    )
    if graph.workspace == EVERYWHERE:
        return []
    found: list[str] = []
    for step, name in called:
        if (yield from definitions.newest(graph.workspace, name)) is None:
            found.append(
                f"workflow {graph.id}: step {step} calls workflow {name}, which is not in workspace {graph.workspace}"
            )
    return found


def _label(number: int, kind: str, document: Any) -> str:
    """Return which document is meant: its number, kind and name."""
    found: dict[str, Any] = document if isinstance(document, dict) else {}
    given = (found.get(key) for key in ("id", "name", "rule_name"))
    names = [one for one in given if isinstance(one, str) and one]
    return f"document {number}" + (f" ({kind} {shown(names[0])})" if names and kind in KINDS else "")

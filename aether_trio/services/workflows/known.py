"""Rules and triggers of workflows in memory, found by the events that they take.

    transaction: version in the table == version in memory?  ─▶ candidates(event)
                              │ no: rows that were changed since

Invariants: `refresh` runs in the transaction that uses the index, so what it finds is what was
committed before, on any node. A transaction that has changed the index and was not committed for
certain (`confirm`) makes the next one read all rows: it may have read what was undone with it.
Compiled rows are kept beside, so that this costs no compilation. Not for concurrent use.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Protocol, TypeVar

import structlog
import trio

from aether_trio.model.limits import KIB
from aether_trio.model.workflows.definition import BusEvent, Condition, Environment, RuleDefinition, Trigger
from aether_trio.model.workflows.rule_index import ANY, EventFilter, RuleIndex
from aether_trio.services.workflows import changes, definitions, machine_rows, rule_rows
from aether_trio.services.workflows.definitions import StoredDefinition
from aether_trio.services.workflows.json_values import write_json
from aether_trio.services.workflows.machine_rows import StoredMachine
from aether_trio.services.workflows.machines import Machines
from aether_trio.services.workflows.rule_rows import StoredRule
from aether_trio.services.workflows.rules import compile_rule
from aether_trio.services.workflows.stored_graphs import compile_stored
from aether_trio.services.workflows.tools import TOOLS
from aether_trio.storage.base import Database, Program

logger = structlog.get_logger("aether.workflows")

K = TypeVar("K")
S = TypeVar("S", bound="StoredDocument")
V = TypeVar("V")

_NAMES: Final = frozenset({"input", "source"})
COMPILED_WITHIN: Final = 20
"""How many changed rows a transaction compiles; more are compiled before it."""
LARGE_BYTES: Final = 16 * KIB
"""The size of a document from which on it is compiled in a thread."""


class KnownRule:
    """A rule that is active, and for whom it acts; compiled when it is first needed.

    To know which events it takes costs a tenth of that.
    """

    __slots__ = ("_definition", "_stored", "id", "name", "owner", "priority")

    def __init__(self, stored: StoredRule, priority: int = 0) -> None:
        self.id = stored.id
        self.name = stored.name
        self.owner = stored.owner
        self.priority = priority
        self._stored = stored
        self._definition: RuleDefinition | None = None

    @property
    def definition(self) -> RuleDefinition:
        """The compiled rule. Raises DefinitionErrors for what another release has stored."""
        if self._definition is None:
            self._definition = compile_rule(self._stored)
        return self._definition


@dataclass(frozen=True, slots=True)
class KnownTrigger:
    """The trigger of a workflow's newest active version."""

    stored: StoredDefinition
    trigger: Trigger


@dataclass(frozen=True, slots=True)
class KnownMachine:
    """An entry of the `bus` of an active machine, by its index."""

    stored: StoredMachine
    index: int
    bus: BusEvent


class StoredDocument(Protocol):
    """A row with a document, as JSON."""

    @property
    def document(self) -> bytes: ...


class NotCompiledError(Exception):
    """Many rows were changed: `compile` is to be called outside the transaction."""

    def __init__(self, known: KnownDefinitions[Any, Any, Any], since: int) -> None:
        super().__init__()
        self._known = known
        self._since = since

    async def compile(self, database: Database) -> None:
        """Compile what was changed, while other tasks run. Raises StorageUnavailable."""
        await self._known.compile(database, self._since)


class KnownDefinitions(Generic[K, S, V]):
    """Definitions of one kind in memory: keys K, rows S, compiled ones V.

    Subclasses say which rows were changed, and compile them.
    """

    kind: str

    def __init__(self) -> None:
        self.index: RuleIndex[Any, V] = RuleIndex()
        self._rows: dict[K, tuple[S, tuple[EventFilter, V] | None]] = {}
        self._version = 0
        self._sure = True

    def _changed_since(self, version: int) -> Program[list[tuple[K, S | None]]]:
        """Read the keys that were changed after a version, and their rows; None: deleted."""
        raise NotImplementedError

    def _compiled(self, key: K, row: S) -> tuple[EventFilter, V] | None:
        """Compile a row; None if no event matters to it."""
        raise NotImplementedError

    def candidates(self, name: str, agent: str, workspace: str, env: Environment) -> list[V]:
        """Return what an event may start, in order; the conditions are to be evaluated."""
        return self.index.candidates(name, agent, workspace, env)

    def refresh(self) -> Program[None]:
        """Compare memory with the table, in the transaction that uses it.

        Raises NotCompiledError.
        """
        now = yield from changes.current(self.kind)
        if self._sure and now.version == self._version:
            return
        whole = not self._sure or self._version < now.floor or self._version > now.version
        since = 0 if whole else self._version
        found = yield from self._changed_since(since)
        new = [row for key, row in found if row is not None and not self._is_known(key, row)]
        if len(new) > COMPILED_WITHIN or any(len(row.document) > LARGE_BYTES for row in new):
            raise NotCompiledError(self, since)
        self._sure = False
        if whole:
            self.index = RuleIndex()
            gone = self._rows.keys() - {key for key, _ in found}
            for key in gone:
                del self._rows[key]
        for key, row in found:
            self._set(key, row)
        self._version = now.version

    def confirm(self) -> None:
        """Note that the transaction of the last `refresh` is committed."""
        self._sure = True

    async def compile(self, database: Database, since: int) -> None:
        """Compile what was changed after a version. Raises StorageUnavailable."""
        for key, row in await database.read(lambda: self._changed_since(since)):
            if row is not None and not self._is_known(key, row):
                if len(row.document) > LARGE_BYTES:
                    compiled = await trio.to_thread.run_sync(self._try, key, row)
                else:
                    compiled = self._try(key, row)
                    await trio.lowlevel.checkpoint()
                self._rows[key] = row, compiled

    def _is_known(self, key: K, row: S) -> bool:
        known = self._rows.get(key)
        return known is not None and known[0] == row

    def _set(self, key: K, row: S | None) -> None:
        self.index.remove(key)
        if row is None:
            self._rows.pop(key, None)
            return
        if not self._is_known(key, row):
            self._rows[key] = row, self._try(key, row)
        compiled = self._rows[key][1]
        if compiled is not None:
            self.index.add(key, *compiled)

    def _try(self, key: K, row: S) -> tuple[EventFilter, V] | None:
        try:
            return self._compiled(key, row)
        except ValueError as error:  # it was right when it was stored, by another release
            logger.warning("a stored definition is not understood", kind=self.kind, key=key, reason=str(error))
            return None


class KnownRules(KnownDefinitions[int, StoredRule, KnownRule]):
    """The active rules."""

    kind = changes.RULE

    def _changed_since(self, version: int) -> Program[list[tuple[int, StoredRule | None]]]:
        found = yield from rule_rows.changed_since(version)
        return [(row.id, row if row.document else None) for row in found]

    def _compiled(self, key: int, row: StoredRule) -> tuple[EventFilter, KnownRule] | None:
        if not row.active:
            return None
        document = json.loads(row.document)
        condition = document.get("trigger_condition")
        equalities: Iterable[Any] = ()
        if isinstance(condition, str) and condition.strip():
            equalities = TOOLS.languages.expression(condition, _NAMES).equalities()
        takes = EventFilter(
            event=document["source_event"],
            agent=document.get("source_agent") or ANY,
            workspace=row.workspace or ANY,
            equalities=tuple(equalities),
            priority=document.get("priority", 0),
        )
        return takes, KnownRule(row, takes.priority)


class KnownTriggers(KnownDefinitions[tuple[str, str], StoredDefinition, KnownTrigger]):
    """The triggers of the newest active versions of workflows."""

    kind = changes.WORKFLOW

    def _changed_since(self, version: int) -> Program[list[tuple[tuple[str, str], StoredDefinition | None]]]:
        found: list[tuple[tuple[str, str], StoredDefinition | None]] = []
        for workspace, id in (yield from definitions.changed_since(version)):  # noqa: A001
            found.append(((workspace, id), (yield from definitions.newest_active(workspace, id))))
        return found

    def _compiled(self, key: tuple[str, str], row: StoredDefinition) -> tuple[EventFilter, KnownTrigger] | None:
        trigger = trigger_of(row)
        if trigger is None:
            return None
        takes = EventFilter(
            event=trigger.event,
            agent=trigger.source_agent or ANY,
            workspace=row.workspace,
            equalities=tuple(equalities_of(trigger.condition)),
        )
        return takes, KnownTrigger(row, trigger)


class KnownMachines(KnownDefinitions[tuple[str, str, int], StoredMachine, KnownMachine]):
    """The events of the bus of active machines."""

    kind = changes.MACHINE

    def __init__(self, machines: Machines) -> None:
        super().__init__()
        self._machines = machines
        self._sizes: dict[tuple[str, str], int] = {}
        """How many entries the `bus` of a machine had."""

    def _changed_since(self, version: int) -> Program[list[tuple[tuple[str, str, int], StoredMachine | None]]]:
        found: list[tuple[tuple[str, str, int], StoredMachine | None]] = []
        for row in (yield from machine_rows.changed_since(version)):
            bus = json.loads(row.document).get("bus") if row.active else None
            size = len(bus) if isinstance(bus, list) else int(bool(bus))
            place = row.workspace, row.id
            known = self._sizes[place] = max(size, self._sizes.get(place, 0))
            found += [((*place, index), row if index < size else None) for index in range(known)]
        return found

    def _compiled(self, key: tuple[str, str, int], row: StoredMachine) -> tuple[EventFilter, KnownMachine] | None:
        bus = self._machines.definition(row).bus[key[2]]
        takes = EventFilter(event=bus.event, agent=bus.source_agent or ANY, workspace=row.workspace)
        return takes, KnownMachine(row, key[2], bus)


def trigger_of(stored: StoredDefinition) -> Trigger | None:
    """Compile the trigger of a workflow alone; None without one."""
    given = json.loads(stored.document).get("trigger")
    if not given:
        return None
    alone = write_json({"trigger": given, "steps": [{"id": "step", "output": 1}]})
    trigger = compile_stored(replace(stored, document=alone)).trigger
    return trigger if trigger is not None and trigger.event else None


def equalities_of(condition: Condition | None) -> Iterable[Any]:
    """Return what must be equal for a condition to hold, as far as it is known."""
    find = getattr(condition, "equalities", None)
    return () if find is None else find()

"""Rules and triggers of workflows in memory, found by the events that they take.

    transaction: version in the table == version in memory?  ─▶ candidates(event)
                              │ no: rows that were changed since

Invariants: `refresh` runs in the transaction that uses the index, so what it finds is what was
committed before, on any node. It takes in a few changes; many are read outside the transaction, in
pages, and the event loop goes on meanwhile (`load`). What it has read may be undone with its
transaction: until `confirm`, these keys are in doubt, and are read again from what is committed.

A rule needs no compilation to be known: what its condition requires is in its row. Its document is
compiled when an event comes that may fit, and the latest used ones are kept. Not for concurrent
use.
"""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Generic, TypeVar

import structlog
import trio

from aether_trio.model.workflows.definition import BusEvent, Environment, RuleDefinition, Trigger
from aether_trio.model.workflows.rule_index import ANY, EventFilter, RuleIndex
from aether_trio.services.workflows.documents.json_values import write_json
from aether_trio.services.workflows.documents.not_compiled import LARGE_BYTES
from aether_trio.services.workflows.machines.moves import Machines
from aether_trio.services.workflows.rules.compiled_rules import CompiledRules
from aether_trio.services.workflows.rules.rule_operations import equalities_of
from aether_trio.services.workflows.stored import changes, definitions, machine_rows, rule_rows
from aether_trio.services.workflows.stored.definitions import StoredDefinition
from aether_trio.services.workflows.stored.machine_rows import StoredMachine
from aether_trio.services.workflows.stored.rule_rows import RuleHead, StoredRule
from aether_trio.services.workflows.stored.stored_graphs import compile_stored
from aether_trio.storage.base import Database, Program

logger = structlog.get_logger("aether.workflows")

K = TypeVar("K")
S = TypeVar("S")
V = TypeVar("V")

TAKEN_WITHIN: Final = 20
"""How many changed rows a transaction takes in; more are loaded before it."""
LOAD_PAGE: Final = 500
LOAD_SLICE: Final = 20
"""Rows that are taken in while the event loop waits."""
COLLECTED: Final = 5_000
"""Rows between two passes of the cycle collector, which would stop the event loop for long else.

Its usual passes are rare (cli/running.py), and the next one would walk along all that is loaded.
"""
KEPT_RULES: Final = 16_384
"""Compiled rules in memory, of some KiB each; the least recently used one is dropped."""


@dataclass(frozen=True, slots=True)
class KnownRule:
    """A rule that is active, and for whom it acts. `changed` says which version of it."""

    id: int
    name: str
    owner: str
    changed: int


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


@dataclass(frozen=True, slots=True)
class ChangedRow(Generic[K, S]):
    """What a version has changed: the row of a key, None if it is gone."""

    version: int
    key: K
    row: S | None


class NotLoadedError(Exception):
    """Memory lacks what was changed: `load` is to be called outside the transaction."""

    def __init__(self, known: KnownDefinitions[Any, Any, Any]) -> None:
        super().__init__()
        self._known = known

    async def load(self, database: Database) -> None:
        """Load what was changed, while other tasks run. Raises StorageUnavailable."""
        await self._known.load(database)


class KnownDefinitions(Generic[K, S, V]):
    """Definitions of one kind in memory: keys K, rows S, compiled ones V.

    Subclasses say which rows were changed, and compile them.
    """

    kind: str

    def __init__(self) -> None:
        self.index: RuleIndex[Any, V] = RuleIndex()
        self._version = 0
        self._sure = 0
        """Up to which version memory has what is committed for certain."""
        self._doubtful: set[K] = set()
        """Keys that were changed by versions behind that one."""

    def _changed_since(self, version: int, limit: int) -> Program[list[ChangedRow[K, S]]]:
        """Read what was changed after a version, in order: of `limit` rows."""
        raise NotImplementedError

    def _current(self, key: K) -> Program[S | None]:
        """Read the row of a key."""
        raise NotImplementedError

    def _compiled(self, key: K, row: S) -> tuple[EventFilter, V] | None:
        """Compile a row; None if no event matters to it."""
        raise NotImplementedError

    def _is_large(self, row: S) -> bool:
        """Return whether it takes long to compile a row."""
        return False

    def candidates(self, name: str, agent: str, workspace: str, env: Environment) -> list[V]:
        """Return what an event may start, in order; the conditions are to be evaluated."""
        return self.index.candidates(name, agent, workspace, env)

    def refresh(self) -> Program[None]:
        """Compare memory with the table, in the transaction that uses it.

        Raises NotLoadedError.
        """
        now = yield from changes.current(self.kind)
        if self._version == self._sure == now.version:
            return
        if self._version != self._sure or not now.floor <= self._sure <= now.version:
            raise NotLoadedError(self)
        found = yield from self._changed_since(self._sure, TAKEN_WITHIN + 1)
        if len(found) > TAKEN_WITHIN or any(one.row is not None and self._is_large(one.row) for one in found):
            raise NotLoadedError(self)
        self._version = now.version
        self._doubtful.update(one.key for one in found)
        for one in found:
            self._set(one.key, self._try(one.key, one.row))

    def confirm(self) -> None:
        """Note that the transaction of the last `refresh` is committed."""
        self._sure = self._version
        self._doubtful.clear()

    async def load(self, database: Database) -> None:
        """Take in what is committed; may be called again when it raises.

        Raises StorageUnavailable.
        """
        now = await database.read(partial(changes.current, self.kind))
        while True:
            if not now.floor <= self._sure <= now.version:
                self.index, self._sure = RuleIndex(), 0
                self._doubtful.clear()
            await self._load_doubtful(database)
            await self._load_changed(database)
            floor, now = now.floor, await database.read(partial(changes.current, self.kind))
            if floor == now.floor:
                break
            self._sure = -1  # deletions were forgotten meanwhile: read all again

    async def _load_doubtful(self, database: Database) -> None:
        for key in list(self._doubtful):
            row = await database.read(partial(self._current, key))
            self._set(key, await self._try_apart(key, row))
            self._doubtful.discard(key)
        self._version = self._sure

    async def _load_changed(self, database: Database) -> None:
        # Deletions that have left nothing may be the last changes.
        last = await database.read(partial(changes.current, self.kind))
        young = 0
        while found := await database.read(partial(self._changed_since, self._sure, LOAD_PAGE)):
            young += len(found)
            if young > COLLECTED:
                gc.collect(1)
                young = 0
            for number, one in enumerate(found):
                self._set(one.key, await self._try_apart(one.key, one.row))
                if number % LOAD_SLICE == 0:
                    await trio.lowlevel.checkpoint()
            self._version = self._sure = found[-1].version
        self._version = self._sure = max(self._sure, last.version)

    async def _try_apart(self, key: K, row: S | None) -> tuple[EventFilter, V] | None:
        if row is not None and self._is_large(row):
            return await trio.to_thread.run_sync(self._try, key, row)
        return self._try(key, row)

    def _set(self, key: K, compiled: tuple[EventFilter, V] | None) -> None:
        if compiled is None:
            self.index.remove(key)
        else:
            self.index.add(key, *compiled)

    def _try(self, key: K, row: S | None) -> tuple[EventFilter, V] | None:
        if row is None:
            return None
        try:
            return self._compiled(key, row)
        except ValueError as error:  # it was right when it was stored, by another release
            logger.warning("a stored definition is not understood", kind=self.kind, key=key, reason=str(error))
            return None


class KnownRules(KnownDefinitions[int, RuleHead, KnownRule]):
    """The active rules, and the latest used of them compiled."""

    kind = changes.RULE

    def __init__(self) -> None:
        super().__init__()
        self._definitions = CompiledRules(KEPT_RULES)
        self.compiled_bytes = 0
        """The sizes of all documents that transactions have compiled, since start."""

    def definition(self, rule: KnownRule) -> Program[RuleDefinition | None]:
        """Compile a rule; None if it was changed meanwhile.

        Raises DefinitionErrors for what another release has stored, and NotCompiledError.
        """
        found = self._definitions.find(rule.id, rule.changed)
        if found is not None:
            return found
        stored = yield from rule_rows.load(rule.id)
        if stored is None or stored.changed != rule.changed:
            return None
        self.compiled_bytes += len(stored.document)
        return self._definitions.compiled(stored)

    def _changed_since(self, version: int, limit: int) -> Program[list[ChangedRow[int, RuleHead]]]:
        found = yield from rule_rows.changed_since(version, limit)
        return [ChangedRow(row.changed, row.id, row if row.active else None) for row in found]

    def _current(self, key: int) -> Program[RuleHead | None]:
        row = yield from rule_rows.head(key)
        return row if row is not None and row.active else None

    def _compiled(self, key: int, row: RuleHead) -> tuple[EventFilter, KnownRule] | None:
        takes = EventFilter(
            event=row.source_event,
            agent=row.source_agent or ANY,
            workspace=row.workspace or ANY,
            equalities=tuple(
                (tuple(path), tuple(wanted) if isinstance(wanted, list) else wanted)
                for path, wanted in json.loads(row.equalities)
            ),
            priority=row.priority,
        )
        return takes, known_rule(row)


def known_rule(row: RuleHead | StoredRule) -> KnownRule:
    """Return what reactions need of a rule's row."""
    return KnownRule(row.id, row.name, row.owner, row.changed)


class KnownTriggers(KnownDefinitions[tuple[str, str], StoredDefinition, KnownTrigger]):
    """The triggers of the newest active versions of workflows."""

    kind = changes.WORKFLOW

    def _changed_since(self, version: int, limit: int) -> Program[list[ChangedRow[tuple[str, str], StoredDefinition]]]:
        found = []
        for changed, *place in (yield from definitions.changed_since(version, limit)):
            key = place[0], place[1]
            found.append(ChangedRow(changed, key, (yield from definitions.newest_active(*key))))
        return found

    def _current(self, key: tuple[str, str]) -> Program[StoredDefinition | None]:
        return definitions.newest_active(*key)

    def _is_large(self, row: StoredDefinition) -> bool:
        return len(row.document) > LARGE_BYTES

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

    def _changed_since(
        self, version: int, limit: int
    ) -> Program[list[ChangedRow[tuple[str, str, int], StoredMachine]]]:
        found: list[ChangedRow[tuple[str, str, int], StoredMachine]] = []
        for changed, row in (yield from machine_rows.changed_since(version, limit)):
            place = row.workspace, row.id
            size = _size_of_bus(row)
            known = self._sizes[place] = max(size, self._sizes.get(place, 1))
            found += [ChangedRow(changed, (*place, index), row if index < size else None) for index in range(known)]
        return found

    def _current(self, key: tuple[str, str, int]) -> Program[StoredMachine | None]:
        row = yield from machine_rows.load(key[0], key[1])
        return row if row is not None and key[2] < _size_of_bus(row) else None

    def _is_large(self, row: StoredMachine) -> bool:
        return len(row.document) > LARGE_BYTES

    def _compiled(self, key: tuple[str, str, int], row: StoredMachine) -> tuple[EventFilter, KnownMachine] | None:
        bus = self._machines.definition(row).bus[key[2]]
        takes = EventFilter(event=bus.event, agent=bus.source_agent or ANY, workspace=row.workspace)
        return takes, KnownMachine(row, key[2], bus)


def _size_of_bus(row: StoredMachine) -> int:
    """Return how many entries the `bus` of a machine has while it is active."""
    bus = json.loads(row.document).get("bus") if row.active else None
    return len(bus) if isinstance(bus, list) else int(bool(bus))


def trigger_of(stored: StoredDefinition) -> Trigger | None:
    """Compile the trigger of a workflow alone; None without one."""
    given = json.loads(stored.document).get("trigger")
    if not given:
        return None
    alone = write_json({"trigger": given, "steps": [{"id": "step", "output": 1}]})
    trigger = compile_stored(replace(stored, document=alone)).trigger
    return trigger if trigger is not None and trigger.event else None

"""Stored definitions of workflows, and the graphs compiled from them.

A version never changes, so a compiled graph is kept in memory by its name and version. Which
version is the newest is read in the transaction that starts an execution.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final, TypeVar

from aether_trio.model.limits import KIB, MIB
from aether_trio.model.workflows.definition import FunctionTerms, Graph, StartTerms
from aether_trio.model.workflows.sources import trigger_sources, wait_sources
from aether_trio.services.tasks.transaction.interface import LargeError
from aether_trio.services.workflows.documents.not_compiled import LargeDocuments
from aether_trio.services.workflows.stored import changes, sources
from aether_trio.services.workflows.stored.listed_rows import rows_by_id
from aether_trio.storage.base import Deferred, Execute, Fetch, FetchOne, Program, Row

KEPT_GRAPHS: Final = 2048
KEPT_GRAPH_BYTES: Final = 16 * MIB
"""Compiled graphs in memory, and the bytes of their documents.

The least recently used one is dropped.
"""
EVERYWHERE: Final = "*"
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class StoredDefinition:
    """A version of a workflow as stored; times are Unix ms."""

    workspace: str
    id: str
    version: int
    document: bytes
    digest: bytes
    owner: str
    active: bool
    created_ms: int
    updated_ms: int

    @property
    def is_function(self) -> bool:
        """Whether it is that of a durable function, and not of a graph."""
        return self.document.startswith(b'{"function":')


KEPT_NEWEST: Final = 512
"""Newest versions in memory, of documents of at most KEPT_BYTES."""
KEPT_BYTES: Final = 64 * KIB
_IS_NEWEST: Final = """SELECT 1 FROM workflow_definitions WHERE CAST($1 AS TEXT) <> ''
    AND workspace = $2 AND id = $3 AND version = $4 AND owner = $5 AND updated_ms = $6 AND active = 1
    AND NOT EXISTS (SELECT 1 FROM workflow_definitions n WHERE n.id = $3 AND n.active = 1
    AND (n.workspace = $2 AND n.version > $4 OR n.workspace = $7 AND n.workspace <> $2))"""
_FIELDS: Final = "workspace, id, version, document, digest, owner, active, created_ms, updated_ms"


class Definitions:
    """Reads, writes and compiles definitions of workflows.

    `compile_graph` and `compile_terms` compile the stored document of a graph, and of a function.
    """

    def __init__(
        self,
        compile_graph: Callable[[StoredDefinition], Graph],
        compile_terms: Callable[[StoredDefinition], FunctionTerms],
    ) -> None:
        self._compile = compile_graph
        self._compile_terms = compile_terms
        self._graphs: OrderedDict[tuple[str, str, int], Graph] = OrderedDict()
        self._functions: OrderedDict[tuple[str, str, int], FunctionTerms] = OrderedDict()
        self._newest: OrderedDict[tuple[str, str], StoredDefinition] = OrderedDict()
        """By the workspace in which they are asked for, and id."""
        self._large = LargeDocuments()
        self._sizes: dict[tuple[str, str, int], int] = {}
        self._bytes = 0
        self._lock = Lock()
        """Large graphs are made in other threads."""

    def compiled(self, workspace: str, id: str, version: int) -> Graph | None:  # noqa: A002
        """Return the graph of a version if it is in memory."""
        key = workspace, id, version
        with self._lock:
            found = self._graphs.get(key)
            if found is not None:
                self._graphs.move_to_end(key)
        return found

    def remembered(self, workspace: str, id: str) -> StoredDefinition | None:  # noqa: A002
        """Return which version of a workflow was the newest one when it was read last."""
        return self._newest.get((workspace, id))

    def remember(self, workspace: str, id: str, found: StoredDefinition) -> None:  # noqa: A002
        """Remember the newest version of a workflow, as it is asked for in a workspace."""
        if len(found.document) <= KEPT_BYTES:
            self._newest[workspace, id] = found
            if len(self._newest) > KEPT_NEWEST:
                self._newest.popitem(last=False)

    def forget(self, workspace: str, id: str) -> None:  # noqa: A002
        """Forget what was remembered of a workflow."""
        self._newest.pop((workspace, id), None)

    def graph(self, workspace: str, id: str, version: int, *, small: bool = False) -> Program[Graph | None]:  # noqa: A002
        """Return the graph of a version; None if there is none.

        `small`: raise LargeError instead of compiling it while the event loop waits. Raises
        NotCompiledError for a large one.
        """
        key = workspace, id, version
        found = self.compiled(workspace, id, version)
        if found is not None:
            return found
        if small:
            raise LargeError
        stored = yield from load(workspace, id, version)
        if stored is None:
            return None
        self._large.ask(key, len(stored.document), lambda: self._keep_graph(key, stored))
        return self._keep_graph(key, stored)

    def _keep_graph(self, key: tuple[str, str, int], stored: StoredDefinition) -> Graph:
        made, size = self._compile(stored), len(stored.document)
        with self._lock:
            self._bytes += size - self._sizes.get(key, 0)
            self._graphs[key], self._sizes[key] = made, size
            while len(self._graphs) > KEPT_GRAPHS or (self._bytes > KEPT_GRAPH_BYTES and len(self._graphs) > 1):
                dropped, _ = self._graphs.popitem(last=False)
                self._bytes -= self._sizes.pop(dropped)
        return made

    def terms(self, workspace: str, id: str, version: int, *, small: bool = False) -> Program[StartTerms | None]:  # noqa: A002
        """Return the terms of a version, of a graph or a function; None if there is none.

        `small` is that of `graph`.
        """
        key = workspace, id, version
        found: StartTerms | None = self.compiled(workspace, id, version) or self._functions.get(key)
        if found is not None:
            return found
        stored = yield from load(workspace, id, version)
        if stored is None or stored.is_function:
            return None if stored is None else self.terms_of_function(stored)
        return (yield from self.graph(workspace, id, version, small=small))

    def terms_of_function(self, stored: StoredDefinition) -> FunctionTerms:
        """Return the terms of a stored function."""
        key = stored.workspace, stored.id, stored.version
        found = self._functions.get(key)
        if found is None:
            found = self._compile_terms(stored)
            _keep(self._functions, key, found)
        else:
            self._functions.move_to_end(key)
        return found


def _keep(cache: OrderedDict[K, V], key: K, value: V) -> None:
    """Put a value into a cache of the last used ones."""
    cache[key] = value
    while len(cache) > KEPT_GRAPHS:
        cache.popitem(last=False)


def _stored(row: Row) -> StoredDefinition:
    return StoredDefinition(row[0], row[1], row[2], bytes(row[3]), bytes(row[4]), row[5], bool(row[6]), row[7], row[8])


def load(workspace: str, id: str, version: int) -> Program[StoredDefinition | None]:  # noqa: A002
    """Load one version of a workflow."""
    rows: list[Row] = yield Fetch(
        f"SELECT {_FIELDS} FROM workflow_definitions WHERE workspace = $1 AND id = $2 AND version = $3",  # noqa: S608
        (workspace, id, version),
    )
    return _stored(rows[0]) if rows else None


def newest(workspace: str, id: str, *, also_inactive: bool = False) -> Program[StoredDefinition | None]:  # noqa: A002
    """Load the newest active version of a workflow of a workspace, or else of all."""
    where = "" if also_inactive else "AND active = 1"
    for place in dict.fromkeys((workspace, EVERYWHERE)):
        rows: list[Row] = yield FetchOne(
            f"SELECT CAST($1 AS TEXT), {_FIELDS} FROM workflow_definitions "  # noqa: S608
            f"WHERE workspace = $2 AND id = $3 {where} ORDER BY version DESC LIMIT 1",
            (f"{len(place)} {place} {id}", place, id),  # no other workflow has the first one
        )
        if rows:
            return _stored(rows[0][1:])
    return None


def check_newest(found: StoredDefinition, workspace: str, task_id: str) -> Program[None]:
    """Have a commit fail if this is not the newest version that a workspace has.

    It fails with MissedWriteError, and on a shared database only. `task_id`: the task that is to
    run it.
    """
    args = task_id, found.workspace, found.id, found.version, found.owner, found.updated_ms, workspace
    yield Deferred("workflow_definitions", _IS_NEWEST, args, returns_row=True)


def newest_active(workspace: str, id: str) -> Program[StoredDefinition | None]:  # noqa: A002
    """Load the newest active version of a workflow of this workspace alone."""
    rows: list[Row] = yield Fetch(
        f"SELECT {_FIELDS} FROM workflow_definitions WHERE workspace = $1 AND id = $2 AND active = 1 "  # noqa: S608
        "ORDER BY version DESC LIMIT 1",
        (workspace, id),
    )
    return _stored(rows[0]) if rows else None


def highest_version(workspace: str, id: str) -> Program[int]:  # noqa: A002
    """Return the highest version that a workflow has or had; 0 without one."""
    rows: list[Row] = yield Fetch(
        "SELECT version FROM workflow_definitions WHERE workspace = $1 AND id = $2 ORDER BY version DESC LIMIT 1",
        (workspace, id),
    )
    return int(rows[0][0]) if rows else 0


def activate(workspace: str, id: str, version: int, owner: str, now_ms: int) -> Program[None]:  # noqa: A002
    """Activate a version again, for a new owner."""
    changed = yield from changes.begin(changes.WORKFLOW)
    yield Execute(
        "UPDATE workflow_definitions SET active = 1, owner = $4, updated_ms = $5, changed = $6 "
        "WHERE workspace = $1 AND id = $2 AND version = $3",
        (workspace, id, version, owner, now_ms, changed),
    )
    yield from _note_sources(workspace, id)


def newest_of_workspaces(
    workspaces: Sequence[str], limit: int, behind: tuple[str, str] | None = None
) -> Program[list[StoredDefinition]]:
    """Load the newest active version of each workflow, by workspace and id."""
    select = (
        f"SELECT {_FIELDS} FROM workflow_definitions d WHERE workspace = $1 AND active = 1 AND version = "  # noqa: S608
        "(SELECT MAX(version) FROM workflow_definitions n WHERE n.workspace = $1 AND n.id = d.id)"
    )
    found = yield from rows_by_id(select, workspaces, limit, behind)
    return list(map(_stored, found))


def insert(stored: StoredDefinition) -> Program[bool]:
    """Insert a version; return False if there is one with this number."""
    changed = yield from changes.begin(changes.WORKFLOW)
    count: int = yield Execute(
        f"INSERT INTO workflow_definitions ({_FIELDS}, changed) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) "  # noqa: S608
        "ON CONFLICT (workspace, id, version) DO NOTHING",
        (
            stored.workspace, stored.id, stored.version, stored.document, stored.digest, stored.owner,
            int(stored.active), stored.created_ms, stored.updated_ms, changed,
        ),
    )  # fmt: skip
    yield from _note_sources(stored.workspace, stored.id)
    return bool(count)


def deactivate(workspace: str, id: str, now_ms: int) -> Program[int]:  # noqa: A002
    """Deactivate all versions of a workflow; return how many were active."""
    changed = yield from changes.begin(changes.WORKFLOW)
    count: int = yield Execute(
        "UPDATE workflow_definitions SET active = 0, updated_ms = $3, changed = $4 "
        "WHERE workspace = $1 AND id = $2 AND active = 1",
        (workspace, id, now_ms, changed),
    )
    yield from _note_sources(workspace, id)
    return count


def _note_sources(workspace: str, id: str) -> Program[None]:  # noqa: A002
    """Write which events of the gateway the newest active version of a workflow takes."""
    stored = yield from newest_active(workspace, id)
    document = {} if stored is None else json.loads(stored.document)
    yield from sources.note(sources.TRIGGER, f"{workspace} {id}", workspace, trigger_sources(document))
    yield from sources.note_waits(workspace, id, wait_sources(document))


def changed_since(version: int, limit: int) -> Program[list[tuple[int, str, str]]]:
    """List (version, workspace, id) of what was changed after a version, in order.

    A change of several versions of a workflow is one; the limit counts rows.
    """
    rows: list[Row] = yield Fetch(
        "SELECT changed, workspace, id FROM workflow_definitions WHERE changed > $1 ORDER BY changed LIMIT $2",
        (version, limit),
    )
    return list(dict.fromkeys((row[0], row[1], row[2]) for row in rows))

"""Finds rows of the audit log: filters, pages, honest totals.

Rows come newest first. A page and its total are read in one snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from aether_trio.model.audit import TEXTS
from aether_trio.services.audit.trees import COLUMNS
from aether_trio.storage.base import Fetch, Program, Row, Value

_NAMES: Final = ("audit_id", "at_ms", "success", *TEXTS)
_SELECT: Final = f"SELECT {', '.join(_NAMES)} FROM audit_log"  # noqa: S608
assert set(_NAMES) < set(COLUMNS)


class AuditRow(NamedTuple):
    """A row of the audit log, without its place in a tree."""

    audit_id: int
    at_ms: int
    success: int
    event_type: str
    operation: str
    actor_type: str
    actor_id: str
    resource_type: str
    resource_id: str
    workspace: str
    session_id: str
    gateway_id: str
    error_message: str
    source: str
    authority_mode: str
    subject_type: str
    subject_id: str
    root_subject_type: str
    root_subject_id: str
    authority_grant_id: str
    root_authority_grant_id: str
    parent_authority_grant_id: str
    metadata: str


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which rows are meant; what is empty does not restrict.

    `equal` are pairs of column and value. `start_ms` is the first moment that counts, `end_ms` the
    first that does not.
    """

    equal: Sequence[tuple[str, str]] = ()
    start_ms: int = 0
    end_ms: int = 0
    success: bool | None = None
    exclude_actor_types: Sequence[str] = ()
    exclude_workspaces: Sequence[str] = ()
    exclude_service_direct: bool = False
    limit: int = 100
    offset: int = 0


@dataclass(frozen=True, slots=True)
class RowPage:
    """A page of rows, newest first, and how many there are in all."""

    rows: Sequence[AuditRow]
    total: int


@dataclass(slots=True)
class RowCondition:
    """The condition of a query, and its parameters."""

    terms: list[str] = field(default_factory=list)
    args: list[Value] = field(default_factory=list)

    def add(self, term: str, *values: Value) -> None:
        """Add a term with a `?` for each value."""
        for value in values:
            self.args.append(value)
            term = term.replace("?", f"${len(self.args)}", 1)
        self.terms.append(term)

    @property
    def text(self) -> str:
        return f" WHERE {' AND '.join(self.terms)}" if self.terms else ""


def _where(wanted: AuditFilter) -> RowCondition:
    where = RowCondition()
    for column, value in wanted.equal:
        assert column in TEXTS
        where.add(f"{column} = ?", value)
        if column == "authority_grant_id" and value:
            where.add("authority_grant_id <> ''")  # the condition of its index
        if column == "authority_mode" and value != "direct":
            where.add("authority_mode <> 'direct'")
    if wanted.start_ms > 0:
        # A row is stored when it happens, or later: partitions from before are not looked at.
        where.add("at_ms >= ? AND ts_ms >= ?", wanted.start_ms, wanted.start_ms)
    if wanted.end_ms > 0:
        where.add("at_ms < ?", wanted.end_ms)
    if wanted.success is not None:
        where.add("success = 1" if wanted.success else "success = 0")
    for kind in wanted.exclude_actor_types:
        where.add("actor_type <> ?", kind)
    for workspace in wanted.exclude_workspaces:
        where.add("workspace <> ?", workspace)
    if wanted.exclude_service_direct:
        where.add("NOT (actor_type = 'service' AND authority_mode = 'direct')")
    return where


def find(wanted: AuditFilter) -> Program[RowPage]:
    """Read a page of rows, newest first, and their total."""
    where = _where(wanted)
    [[total]] = yield Fetch(f"SELECT COUNT(*) FROM audit_log{where.text}", tuple(where.args))  # noqa: S608
    rows: list[Row] = []
    if wanted.offset < total and wanted.limit > 0:
        count = len(where.args)
        rows = yield Fetch(
            f"{_SELECT}{where.text} ORDER BY at_ms DESC, audit_id DESC LIMIT ${count + 1} OFFSET ${count + 2}",
            (*where.args, wanted.limit, wanted.offset),
        )
    return RowPage([AuditRow(*row) for row in rows], int(total))

"""Handles `task_query`: GET a task, and LIST tasks in pages (tasks.md 6.2).

Order: latest change first, then by id. A page token names the last row of its page. A task that
changes between two pages moves to the front, so it is never listed twice.

A participant in no workspace (a service, an orchestrator, a user's window) that names none is
listed the tasks of all workspaces that it may read, and those that it has created or works on. Each
workspace is read in that order and no further than the page needs.

A LIST with a `task_id` is of the tasks whose ids begin with it.
"""

from __future__ import annotations

import base64
import binascii
import enum
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Final

import trio

from aether_trio.model.access import AccessLevel
from aether_trio.model.identity import Identity, IdentityError
from aether_trio.model.limits import KIB
from aether_trio.model.tasks import TaskRow
from aether_trio.model.tasks.status import priority_of, stored_as
from aether_trio.model.tasks.task import COLUMNS
from aether_trio.model.text import storable
from aether_trio.services.access import Authorizer
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.handlers import details
from aether_trio.services.tasks.handlers.permissions import MANAGE, NOT_FOUND, Caller, load_visible, may
from aether_trio.services.tasks.handlers.sanitize import number_of
from aether_trio.services.tasks.handlers.sessions import TaskSessions
from aether_trio.services.tasks.protobuf import show
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.services.tasks.transaction.dead_messages import DEAD_MESSAGE
from aether_trio.session.session import Session
from aether_trio.storage.base import Fetch, Program, Row, StorageUnavailable, Value
from aether_trio.storage.outages import outage
from aether_trio.wire.pb import aether_pb2 as pb

NO_PAYLOAD: Final = "the payload of a dead message needs MANAGE on its workspace"
DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
MAX_TIME_US: Final = 2**62
MAX_DESCENDANTS: Final = 10_000
"""Descendants of one task that a filter may ask for; more are an error."""
MAX_PAGE_BYTES: Final = 3 * 1024 * 1024
"""Size of the rows of a page: clients refuse messages over 4 MiB."""
MAX_WORKSPACES: Final = 1_000
"""Workspaces with tasks that one list may be of; with more a filter has to name one."""
SLICE: Final = 64
"""Workspaces that are decided on in one step."""
BEHIND: Final = "\U0010ffff"
"""Sorts a prefix with it behind all ids that begin with the prefix."""
FEW: Final = 1000
"""Tasks of one beginning that are looked at one by one; with more the workspace's index is read."""
ROW_BYTES: Final = 600
"""Size of a row without the texts of its client."""
STEP_BYTES: Final = 64 * KIB
"""Size of the rows that are shown in one step of the event loop: a few milliseconds."""

_DESCENDANTS: Final = f"""task_id IN (
    WITH RECURSIVE below(task_id) AS (
        SELECT task_id FROM tasks WHERE parent_task_id = {{0}}
        UNION
        SELECT t.task_id FROM tasks t JOIN below b ON t.parent_task_id = b.task_id WHERE t.parent_task_id <> ''
    ) SELECT task_id FROM below LIMIT {MAX_DESCENDANTS + 1})"""  # noqa: S608

_IN_TROUBLE: Final = (
    "(status = 'dlq' OR status = 'failed' OR status = 'hibernated' OR status = 'waiting_authority' "
    "OR status = 'waiting_dependency' OR status = 'waiting_input')"
)
"""The condition of a partial index (storage/schema/tasks.py), word for word."""
_TROUBLES: Final = frozenset(_IN_TROUBLE[len("(status = '") : -len("')")].split("' OR status = '"))
_TOGETHER: Final = ("context_id", "correlation_id")
"""Columns with an index in the order of pages."""
_EQUAL: Final = (
    "task_type", "subject_id", "authority_mode", "authority_grant_id", "root_authority_grant_id", *_TOGETHER,
)  # fmt: skip
"""Fields of a filter that a listed task has equally."""

_OF_ROOT: Final = "(root_task_id = {0} AND root_task_id <> task_id OR task_id = {0} AND root_task_id = {0})"
"""The condition for two indexes: that of roots has no task that is its own root."""

_TASK_CLASSES: Final = frozenset(int(number) for number in pb.TaskClass.values())
_SIZE: Final = f"LENGTH(spec) + LENGTH(wait) + LENGTH(error) + {ROW_BYTES}"
_SIZES: Final = f"SELECT {_SIZE} FROM tasks WHERE {{0}}"  # noqa: S608
_PAGE: Final = f"""WITH found AS (SELECT task_id, updated_ms, {_SIZE} AS size FROM tasks WHERE {{0}}), summed AS (
        SELECT task_id, ROW_NUMBER() OVER w AS number, SUM(size) OVER w AS total
        FROM found WINDOW w AS (ORDER BY updated_ms DESC, task_id DESC)
    ) SELECT {", ".join(f"t.{name}" for name in COLUMNS)} FROM summed JOIN tasks t ON t.task_id = summed.task_id
    WHERE summed.number = 1 OR summed.total <= {MAX_PAGE_BYTES} ORDER BY summed.number"""  # noqa: S608
"""The rows of a condition that fit in a message: clients choose the sizes of rows."""


_KEYS: Final = "SELECT updated_ms, task_id FROM tasks WHERE {0}"
_WORKSPACES: Final = f"""WITH RECURSIVE names(name) AS (
        SELECT MIN(workspace) FROM tasks
        UNION ALL
        SELECT (SELECT MIN(workspace) FROM tasks WHERE workspace > names.name) FROM names WHERE names.name IS NOT NULL
    ) SELECT name FROM names WHERE name IS NOT NULL LIMIT {MAX_WORKSPACES + 1}"""  # noqa: S608
"""Workspaces that have tasks: an index look-up for each."""


@dataclass(frozen=True, slots=True)
class IdPrefix:
    """What ids begin with, and whether few do, of all workspaces."""

    text: str
    few: bool


class TokenError(ValueError):
    """The page token of a task list is not one that a query has returned."""


@dataclass(frozen=True, slots=True)
class QueryPage:
    """A page of listed tasks, and the token of the next page, "" at the end."""

    tasks: list[TaskRow]
    token: str = ""


@dataclass(slots=True)
class _Where:
    """A WHERE clause of a task list and its arguments, built condition by condition."""

    parts: list[str] = field(default_factory=list)
    args: list[Value] = field(default_factory=list)

    def mark(self, value: Value) -> str:
        self.args.append(storable(value) if isinstance(value, str) else value)
        return f"${len(self.args)}"

    def add(self, condition: str, *values: Value) -> None:
        marks = [self.mark(value) for value in values]
        self.parts.append(condition.format(*marks))

    def among(self, column: str, values: Iterable[Value], *, no: bool = False) -> None:
        marks = ", ".join(self.mark(value) for value in sorted(values, key=str))
        self.parts.append(f"{column} {'NOT ' if no else ''}IN ({marks})" if marks else ("1 = 1" if no else "1 = 0"))


class TaskReader:
    """Handles `task_query`: GET a task by its id, and LIST tasks by a filter."""

    def __init__(
        self,
        engine: Engine,
        sessions: TaskSessions,
        authorizer: Authorizer,
        may_read: Callable[[Session, str], bool],
    ) -> None:
        self._may_read = may_read
        self._database = engine.database
        self._context = engine.context
        self._audit = engine.audit
        self._sessions = sessions
        self._authorizer = authorizer
        self._large_page = trio.Lock()
        """Many clients with large pages cost others as much as one."""

    async def handle(self, session: Session, asked: pb.TaskQuery) -> Sequence[pb.DownstreamMessage]:
        """Answer a `task_query`. A refusal is a sentence in the typed response."""
        message = pb.DownstreamMessage(task_query=pb.TaskQueryResponse(request_id=asked.request_id))
        response = message.task_query  # in its place: a copy of a large page takes long
        try:
            await self._sessions.wait_written(session)
            if asked.op == pb.TaskQuery.GET:
                await self._get(session, asked, response)
            elif asked.op == pb.TaskQuery.LIST:
                await self._list(session, asked.filter, asked.task_id, response)
            else:
                response.error = f"unknown task query {asked.op}"
        except StorageUnavailable as error:
            response.error = str(outage(error))
        except TokenError as error:
            response.error = str(error)
        return [message]

    async def _get(self, session: Session, asked: pb.TaskQuery, response: pb.TaskQueryResponse) -> None:
        task = await load_visible(
            self._database, self._authorizer, session, asked.task_id, operation="task_query", audit=self._audit
        )
        if task is None:
            response.error = NOT_FOUND
            return
        wants_payload = asked.filter.page_token == details.PAYLOAD_PAGE
        if wants_payload and not await self._may_see_payload(session, task):
            response.error = NO_PAYLOAD
            if self._audit is not None:
                self._audit.denied(session, "task_query", task.task_id, task.workspace)
            return
        response.success = True
        show(response.task, task, numbered=session.numbered)
        if details.has_details(task):
            read, context = self._database.read_small, self._context()
            if not details.are_small(task):
                read = self._database.read
            response.task.metadata.update(await read(lambda: details.read(task, context)))
        if wants_payload:
            offset = asked.filter.offset
            response.task.metadata.update(await self._database.read(lambda: details.read_payload(task, offset)))

    async def _may_see_payload(self, session: Session, task: TaskRow) -> bool:
        """Return whether a reader of a task may read its payload.

        A dead message was for its receiver alone, and not for the readers of its workspace.
        """
        caller = Caller.of(session)
        return (
            task.category != DEAD_MESSAGE
            or caller.name == task.target
            or await may(self._authorizer, caller, task.workspace, MANAGE)
        )

    async def _list(self, session: Session, wanted: pb.TaskFilter, prefix: str, response: pb.TaskQueryResponse) -> None:
        """Add a page of a workspace's tasks: all for a reader of it, else the caller's."""
        workspace = wanted.workspace or session.workspace
        if not workspace and wanted.parent_task_id:
            parent = await self._database.read_small(lambda: task_rows.load(storable(wanted.parent_task_id)))
            workspace = parent.workspace if parent is not None else ""
            if parent is None:
                response.success = True
                return
        if not workspace:
            await self._list_everywhere(session, wanted, prefix, response)
            return
        caller = Caller.of(session)
        if await may(self._authorizer, caller, workspace, "task_query", AccessLevel.READ):
            part = Part.ANY
        else:
            part = Part.OWN if caller.can_reach(workspace) else Part.GIVEN
        beginning = await self._beginning(prefix)
        where, args = condition(wanted, workspace, session.identity.text, part, beginning)
        if wanted.parent_task_id and wanted.include_descendants:
            below = await self._database.read(
                lambda: descendants(storable(wanted.parent_task_id), workspace, MAX_DESCENDANTS + 1)
            )
            if len(below) > MAX_DESCENDANTS:
                response.error = f"task {wanted.parent_task_id} has more than {MAX_DESCENDANTS} tasks below it"
                return
        page = await self._database.read(lambda: list_page(where, args, limit_of(wanted)))
        await self._show(session, page, response)

    async def _list_everywhere(
        self, session: Session, wanted: pb.TaskFilter, prefix: str, response: pb.TaskQueryResponse
    ) -> None:
        """Add a page of the tasks of all workspaces that the caller may read, and its own."""
        _add_filter(_Where(), wanted)  # a bad token is an error before anything is read
        caller = Caller.of(session)
        found: list[Row] = await self._database.fetch(_WORKSPACES)
        if len(found) > MAX_WORKSPACES:
            response.error = f"filter.workspace is required: more than {MAX_WORKSPACES} workspaces have tasks"
            return
        readable, others = [], []
        for number, (workspace,) in enumerate(found, 1):
            if number % SLICE == 0:
                await trio.lowlevel.checkpoint()
            # What it may not read it has not asked for: such a refusal is no decision to record.
            if self._may_read(session, workspace) and await may(
                self._authorizer, caller, workspace, "task_query", AccessLevel.READ
            ):
                readable.append(workspace)
            elif caller.can_reach(workspace):
                others.append(workspace)
        beginning = await self._beginning(prefix)
        page = await self._database.read(lambda: everywhere(wanted, readable, others, session.identity.text, beginning))
        await self._show(session, page, response)

    async def _beginning(self, prefix: str) -> IdPrefix | None:
        """Look how many ids begin with a prefix; None for no prefix."""
        return IdPrefix(prefix, await self._database.read(lambda: are_few(prefix))) if prefix else None

    async def _show(self, session: Session, page: QueryPage, response: pb.TaskQueryResponse) -> None:
        """Write a page into the response: a large one in steps, one page at a time."""
        response.success = True
        sizes = [ROW_BYTES + len(task.spec) + len(task.wait) for task in page.tasks]
        async with self._large_page if sum(sizes) > STEP_BYTES else nullcontext():
            step = 0
            for task, size in zip(page.tasks, sizes, strict=True):
                step += size
                if step > STEP_BYTES:
                    step = size
                    await trio.lowlevel.checkpoint()
                show(response.tasks.add(), task, numbered=session.numbered)
        response.total_count = len(page.tasks)
        response.next_page_token = page.token


def encode_token(task: TaskRow) -> str:
    """Make a page token as the reference gateway does: base64url `<micros>|<task_id>`."""
    return base64.urlsafe_b64encode(f"{task.updated_ms * 1000}|{task.task_id}".encode()).rstrip(b"=").decode()


def decode_token(token: str) -> tuple[int, str]:
    """Return (updated_ms, task_id) of a list's page token. Raises TokenError."""
    try:
        raw = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True).decode()
        micros, separator, task_id = raw.partition("|")
        updated_us = number_of(micros, MAX_TIME_US) if separator else None
        if updated_us is not None:
            return updated_us // 1000, task_id
    except (binascii.Error, UnicodeError):
        pass
    raise TokenError("page_token is not one that a query has returned")


def _statuses(numbers: Iterable[int]) -> set[Value]:
    return {status.value for number in set(numbers) for status in stored_as(number)}


class Part(enum.Enum):
    """Which tasks of a workspace a participant is shown in a list."""

    ANY = "any"
    OWN = "own"
    """Tasks that it has created or works on."""
    GIVEN = "given"
    """Tasks of other participants that it works on."""


def condition(
    wanted: pb.TaskFilter, workspace: str, party: str = "", of: Part = Part.ANY, beginning: IdPrefix | None = None
) -> tuple[str, Sequence[Value]]:
    """Make the WHERE clause of a task filter, with order and limit. Raises TokenError."""
    where = _in_workspace(wanted, workspace, party, of, beginning)
    _add_filter(where, wanted, beginning)
    return _ordered(where, wanted), where.args


def _in_workspace(
    wanted: pb.TaskFilter, workspace: str, party: str, of: Part, beginning: IdPrefix | None = None
) -> _Where:
    where = _Where()
    # As an expression, the workspace is not chosen where another index finds fewer rows.
    found_otherwise = wanted.context_id or wanted.correlation_id or (beginning is not None and beginning.few)
    where.add("workspace || '' = {0}" if found_otherwise else "workspace = {0}", workspace)
    if of is Part.OWN:
        where.add("(creator = {0} OR assigned_to = {0})", party)
    elif of is Part.GIVEN:
        where.add("assigned_to = {0} AND creator <> {0}", party)
    return where


def _add_filter(where: _Where, wanted: pb.TaskFilter, beginning: IdPrefix | None = None) -> None:
    if beginning is not None:
        # As an expression, many ids are not looked up one by one: they would be of all workspaces.
        column = "task_id" if beginning.few else "task_id || ''"
        where.add(f"{column} >= {{0}} AND {column} < {{1}}", beginning.text, beginning.text + BEHIND)
    statuses = _statuses(wanted.statuses or ([wanted.status] if wanted.status else []))
    if wanted.statuses or wanted.status:
        where.among("status", statuses)
    if statuses and statuses <= _TROUBLES:
        where.parts.append(_IN_TROUBLE)
    if wanted.exclude_statuses:
        where.among("status", _statuses(wanted.exclude_statuses), no=True)
    for name in _EQUAL:
        if getattr(wanted, name):
            where.add(f"{name} = {{0}}", getattr(wanted, name))
            if name in _TOGETHER:
                where.parts.append(f"{name} <> ''")
    if wanted.root_task_id:
        where.add(_OF_ROOT, wanted.root_task_id)
    if wanted.subject_type:
        where.add("lower(subject_type) = {0}", wanted.subject_type.lower())
    if wanted.task_class:
        where.add("task_class = {0}", wanted.task_class)
    if wanted.exclude_task_classes:
        known = _TASK_CLASSES & {int(number) for number in wanted.exclude_task_classes}
        where.among("task_class", known, no=True)
    if wanted.priority:
        where.add("priority = {0}", priority_of(wanted.priority))
    if wanted.min_priority:
        where.add("priority >= {0}", priority_of(wanted.min_priority))
    if wanted.HasField("creator_actor") and wanted.creator_actor.principal_id:
        where.add("creator = {0}", _creator(wanted.creator_actor.principal_id))
    if wanted.parent_task_id:
        where.add(_DESCENDANTS if wanted.include_descendants else "parent_task_id = {0}", wanted.parent_task_id)
    if wanted.status_timestamp_after_unix_ms:
        where.add("updated_ms >= {0}", wanted.status_timestamp_after_unix_ms)
    if wanted.page_token:
        updated_ms, task_id = decode_token(wanted.page_token)
        where.add("(updated_ms, task_id) < ({0}, {1})", updated_ms, task_id)


def _ordered(where: _Where, wanted: pb.TaskFilter) -> str:
    order = f"ORDER BY updated_ms DESC, task_id DESC LIMIT {limit_of(wanted) + 1:d}"
    return f"{' AND '.join(where.parts)} {order}"


def _creator(name: str) -> str:
    try:
        return Identity.parse(name, strict=False).text
    except IdentityError:
        return name


def limit_of(wanted: pb.TaskFilter) -> int:
    """Return the maximum number of tasks in a page of this filter."""
    return min(wanted.limit, MAX_PAGE) if wanted.limit > 0 else DEFAULT_PAGE


def list_page(where: str, args: Sequence[Value], limit: int) -> Program[QueryPage]:
    """Read a page of a task list; fewer than `limit` tasks when their rows are large."""
    sizes: list[Row] = yield Fetch(_SIZES.format(where), args)
    if sum(size for (size,) in sizes) <= MAX_PAGE_BYTES:
        tasks = yield from task_rows.select(where, args)
    else:
        found: list[Row] = yield Fetch(_PAGE.format(where), args)
        tasks = [TaskRow.from_row(row) for row in found]
    more = min(limit, len(tasks)) < len(sizes)
    tasks = tasks[:limit]
    return QueryPage(tasks, encode_token(tasks[-1]) if tasks and more else "")


def everywhere(
    wanted: pb.TaskFilter,
    readable: Sequence[str],
    others: Sequence[str],
    party: str,
    beginning: IdPrefix | None = None,
) -> Program[QueryPage]:
    """Read a page of the tasks of readable workspaces, and of those of `party`.

    Tasks that it has created are listed of `others`, too, and tasks that it works on of any
    workspace. Raises TokenError.
    """
    limit = limit_of(wanted)
    places = [_in_workspace(wanted, workspace, party, Part.ANY, beginning) for workspace in readable]
    created, given = _Where(), _Where()
    created.add("creator = {0}", party)
    created.among("workspace", others)
    given.add("holder = {0}", party)
    keys: set[tuple[int, str]] = set()
    oldest: tuple[int, str] | None = None
    for where in (*places, created, given):
        _add_filter(where, wanted, beginning)
        if oldest is not None:
            where.add("(updated_ms, task_id) > ({0}, {1})", *oldest)
        found: list[Row] = yield Fetch(_KEYS.format(_ordered(where, wanted)), where.args)
        keys.update((updated_ms, task_id) for updated_ms, task_id in found)
        if len(keys) > limit:
            keys = set(sorted(keys)[-limit - 1 :])
            oldest = min(keys)
    if not keys:
        return QueryPage([])
    page = _Where()
    page.among("task_id", [task_id for _, task_id in keys])
    return (yield from list_page(_ordered(page, wanted), page.args, limit))


def are_few(prefix: str) -> Program[bool]:
    """Whether the ids of at most FEW tasks, of all workspaces, begin with a prefix."""
    where = _Where()
    where.add("task_id >= {0} AND task_id < {1}", prefix, prefix + BEHIND)
    more: list[Row] = yield Fetch(
        f"SELECT 1 FROM tasks WHERE {where.parts[0]} ORDER BY task_id LIMIT 1 OFFSET {FEW}",  # noqa: S608
        where.args,
    )
    return not more


def descendants(task_id: str, workspace: str, limit: int) -> Program[list[str]]:
    """Find the ids of at most `limit` tasks below a task in its workspace."""
    found: list[Row] = yield Fetch(
        f"SELECT task_id FROM tasks WHERE {_DESCENDANTS.format('$1')} AND workspace = $2 LIMIT $3",  # noqa: S608
        (task_id, workspace, limit),
    )
    return [row[0] for row in found]

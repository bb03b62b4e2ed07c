"""What operations on workflows share: request, answer and check of access."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from aether_trio.model.access import AccessLevel
from aether_trio.model.text import shown
from aether_trio.model.workflows.keys import place_of
from aether_trio.services.access import Authorizer
from aether_trio.services.tasks.transaction.interface import ChangeRefused
from aether_trio.services.workflows.documents.json_thread import in_json_thread
from aether_trio.services.workflows.documents.json_values import read_document, read_json, unwritable, write_list
from aether_trio.services.workflows.events.taken_events import is_deep
from aether_trio.services.workflows.stored.definitions import EVERYWHERE
from aether_trio.services.workflows.stored.listed_rows import PAGE_BYTES
from aether_trio.session.session import Session

T = TypeVar("T")

MAX_LISTED: Final = 1_000
"""Most entries of a page of a list."""
"""Most bytes of such a page, unless its first entry has more."""
MAX_LEVELS: Final = 200
"""How deep the data of an operation may be nested: what is written deeper has no stack for more."""
MORE: Final = "more after "
"""How the message of a list begins whose end is not reached; where it goes on follows."""


class OperationError(ChangeRefused):
    """An operation on workflows is refused; the text is the answer's error."""


class OperationAnswer(NamedTuple):
    """The answer to an operation: a small JSON value, JSON as bytes, or a message."""

    data: Any = None
    message: str = ""
    total: int = 0


class PageAsked(NamedTuple):
    """Which part of a list is asked for: entries behind a place, "" for the begin."""

    limit: int
    after: str = ""

    def number(self) -> int:
        """Read the place as a number; 0 for the begin. Raises OperationError."""
        if self.after and not is_number(self.after):
            raise self.wrong()
        return int(self.after or 0)

    def place(self) -> tuple[str, str] | None:
        """Read the place as a workspace and an id; None for the begin.

        Raises OperationError.
        """
        if not self.after:
            return None
        try:
            return place_of(self.after)
        except ValueError:
            raise self.wrong() from None

    def changed(self) -> tuple[int, str] | None:
        """Read the place as a moment (Unix ms) and an id; None for the begin.

        Raises OperationError.
        """
        if not self.after:
            return None
        moment, space, id = self.after.partition(" ")  # noqa: A001
        if not space or not is_number(moment):
            raise self.wrong()
        return int(moment), id

    def wrong(self) -> OperationError:
        """Return the error for a place that is none of this list."""
        return OperationError(f"after is what the message of a list ends with, and not {shown(self.after)}")


def is_number(text: str) -> bool:
    """Return whether a text is a whole number that a database can hold."""
    return text.isascii() and text.isdigit() and len(text) < 19


def page_answer(
    found: Sequence[T], page: PageAsked, show: Callable[[T], bytes], place: Callable[[T], str]
) -> OperationAnswer:
    """Return a page of a list; more follow if `found` has more than its limit.

    `show(entry)` is its JSON, and `place(entry)` where the list goes on behind it.
    """
    parts: list[bytes] = []
    size = 0
    for one in found[: page.limit]:
        encoded = show(one)
        size += len(encoded) + 1
        if parts and size > PAGE_BYTES:
            break
        parts.append(encoded)
    message = MORE + place(found[len(parts) - 1]) if len(parts) < len(found) else ""
    return OperationAnswer(write_list(parts), message, len(parts))


def _read(read: Callable[[bytes], Any], data: bytes) -> Any:
    found = read(data)
    if data.count(b"[") + data.count(b"{") > MAX_LEVELS and is_deep(found, MAX_LEVELS):
        raise OperationError(f"data is nested deeper than {MAX_LEVELS} levels")
    if problem := unwritable(found, data):
        raise OperationError(f"data is not JSON: {problem}")
    return found


@dataclass(frozen=True, slots=True)
class OperationAsked:
    """An operation as asked for; `workspace` "" is that of the caller."""

    session: Session
    op: int
    id: str = ""
    secondary_id: str = ""
    workspace: str = ""
    data: bytes = b""
    status: str = ""

    async def json(self, default: Any) -> Any:
        """Return the JSON that came with it, numbers as floats. Raises OperationError."""
        if not self.data:
            return default
        try:
            return await in_json_thread(partial(_read, read_json, self.data), len(self.data))
        except (ValueError, RecursionError) as error:
            raise OperationError(f"data is not JSON: {shown(str(error))}") from None

    async def document(self) -> dict[str, Any]:
        """Return the JSON object that came with it; {} without any. Raises OperationError."""
        if not self.data:
            return {}
        try:
            found = await in_json_thread(partial(_read, read_document, self.data), len(self.data))
        except (ValueError, RecursionError) as error:
            raise OperationError(f"data is not JSON: {shown(str(error))}") from None
        if not isinstance(found, dict):
            raise OperationError("data is not a JSON object")
        return found

    async def page(self, usual: int = MAX_LISTED) -> PageAsked:
        """Return which part of a list it asks for. Raises OperationError.

        `usual` is how many entries there are without `limit` in its data.
        """
        document = await self.document()
        limit, after = document.get("limit", usual), document.get("after", "")
        if isinstance(limit, bool) or not isinstance(limit, int) or not 0 < limit <= MAX_LISTED:
            raise OperationError(f"limit is a whole number from 1 to {MAX_LISTED}, and not {shown(limit)}")
        if not isinstance(after, str) or "\0" in after:
            raise OperationError("after is a text without zero bytes")
        return PageAsked(limit, after)

    @property
    def own_workspace(self) -> str:
        """The workspace that it names, or that of the caller."""
        return self.workspace or self.session.workspace or EVERYWHERE


class WorkspaceAccess:
    """Checks what the caller of an operation may do in a workspace."""

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    async def problem(self, session: Session, workspace: str, level: AccessLevel) -> str:
        """Return why a session may not act in a workspace at a level; "" if it may."""
        reached = session.reaches_everything if workspace == EVERYWHERE else session.allows_workspace(workspace)
        if not reached:
            return f"this credential does not reach workspace {workspace}"
        decision = await self._authorizer.check_workspace(session, workspace, level, "workflow_op")
        return "" if decision.allowed else decision.reason

    async def may_read_key(self, session: Session, workspace: str, key: str) -> bool:
        """Return whether a session may read a key of the scope of a workspace."""
        return (await self._authorizer.check_kv(session, "workspace", key, workspace, "", AccessLevel.READ)).allowed

    async def need(self, session: Session, workspace: str, level: AccessLevel = AccessLevel.READWRITE) -> None:
        """Raise OperationError if a session may not act in a workspace at a level."""
        if problem := await self.problem(session, workspace, level):
            raise OperationError(f"ERR_PERMISSION_DENIED: {problem}")

    async def visible(self, asked: OperationAsked) -> tuple[str, ...]:
        """Return the workspaces whose things a list shows: the one that is named, and *."""
        workspace = asked.own_workspace
        await self.need(asked.session, workspace, AccessLevel.READ)
        if workspace == EVERYWHERE:
            return (EVERYWHERE,)
        others = await self.problem(asked.session, EVERYWHERE, AccessLevel.READ)
        return (workspace,) if others else (workspace, EVERYWHERE)

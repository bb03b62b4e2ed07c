"""Signs the head of this node's tree each minute, and when the gateway stops.

A head is a promise about rows, so the signer does not trust the hashes in the database: it keeps
the frontier of its last head, reads the rows behind it, computes their leaves from the stored
columns, and signs only what it has computed. If that is not what `audit_trees` says, something has
changed a row within the last minute; then nothing is signed any more, which `problem` tells.

After a start the last signed head is read from the database and counts if this node's key has
signed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

import structlog
import trio

from aether_trio.model.access.merkle import EMPTY, Frontier
from aether_trio.model.audit import audit_id
from aether_trio.model.clock import Clock
from aether_trio.services.audit.checkpoints import (
    PublicKey,
    SigningKey,
    TreeCheckpoint,
    TreeHead,
    check_note,
    floor_text,
    parse_note,
)
from aether_trio.services.audit.trees import COLUMNS, LEAF_HASH, AuditTree, row_leaf
from aether_trio.storage.base import Database, Execute, Fetch, Program, Row, StorageUnavailable

logger = structlog.get_logger("aether.audit")

HEAD_S: Final = 60.0
PAGE: Final = 2000
THIN_AFTER_MS: Final = 7 * 24 * 3600 * 1000
THIN_TO_MS: Final = 3600 * 1000
"""Of heads that are older than a week, one an hour is kept."""

_ROWS: Final = (
    f"SELECT {', '.join(COLUMNS)} FROM audit_log WHERE audit_id >= $1 AND audit_id < $2 "  # noqa: S608
    "ORDER BY audit_id LIMIT $3"
)
_NEWEST: Final = """SELECT tree, size, frontier, note FROM audit_heads WHERE tree = $1
    ORDER BY size DESC, at_ms DESC LIMIT $2"""
FORGED: Final = 20
"""Newest heads of another tree that are looked through for one that its key has signed."""
DAY_MS: Final = 24 * 3600 * 1000


class TamperedError(Exception):
    """Raised when stored rows are not those that were written; says which."""


@dataclass(frozen=True, slots=True)
class TreeLook:
    """One look at the trees: the own frontier with the new rows, and all newest heads."""

    frontier: Frontier
    heads: Sequence[Row]


def look(tree: AuditTree, known: Frontier | None, *, fresh: bool = False) -> Program[TreeLook]:
    """Read the rows behind `known` and compute the frontier. Raises TamperedError.

    Without `known` it is the frontier of the last head that the tree's key has signed. `fresh`:
    `known` is so new that retention has deleted nothing behind it. Of the other trees the newest
    heads count that their keys have signed, so that no head which was made up gets a signature.
    """
    found: list[Row] = yield Fetch(
        "SELECT size, frontier, floor_size, floor_frontier FROM audit_trees WHERE origin = $1", (tree.origin,)
    )
    if not found:
        raise TamperedError(f"the tree {tree.origin} is not in the database any more")
    size, stored, floor_size, floor_frontier = found[0]
    heads: list[Row] = []
    for number, origin, public_key in (yield Fetch("SELECT tree, origin, public_key FROM audit_trees ORDER BY tree")):
        newest: list[Row] = yield Fetch(_NEWEST, (number, 1 if number == tree.number else FORGED))
        heads += newest if number == tree.number else _signed_by(origin, public_key, newest)
    if known is None:
        known = _last_signed(tree, heads)
    if known.size < floor_size:
        if fresh:
            raise TamperedError("rows that no head covers were deleted")
        known = Frontier.decode(floor_size, floor_frontier)
    if known.size > size:
        raise TamperedError(f"the tree has {size} rows, and a head of {known.size} was signed")
    while known.size < size:
        rows: list[Row] = yield Fetch(
            _ROWS, (audit_id(tree.number, known.size), audit_id(tree.number, size), min(PAGE, size - known.size))
        )
        known = known.extend(_leaves(tree, known.size, rows))
    if known.encode() != stored:
        raise TamperedError("the rows behind the last head do not have the root of their tree")
    return TreeLook(known, heads)


def _leaves(tree: AuditTree, first: int, rows: Sequence[Row]) -> list[bytes]:
    if not rows:
        raise TamperedError(f"the row {audit_id(tree.number, first)} is missing")
    leaves = []
    for leaf, row in enumerate(rows, first):
        if row[0] != audit_id(tree.number, leaf):
            raise TamperedError(f"the row {audit_id(tree.number, leaf)} is missing")
        hashed = row_leaf(row)
        if hashed != row[LEAF_HASH]:
            raise TamperedError(f"the row {row[0]} was changed")
        leaves.append(hashed)
    return leaves


def _last_signed(tree: AuditTree, heads: Sequence[Row]) -> Frontier:
    own = next((row for row in heads if row[0] == tree.number), None)
    if own is None:
        return EMPTY
    _, size, encoded, note = own
    key = PublicKey(tree.origin, tree.public_key)
    try:
        checkpoint, signed = check_note(note, {tree.origin: key})
        frontier = Frontier.decode(size, encoded)
    except ValueError as error:
        raise TamperedError(f"the last head of {tree.origin} cannot be read: {error}") from error
    if not signed or checkpoint.head != TreeHead(tree.origin, size, frontier.root()):
        raise TamperedError(f"the last head of {tree.origin} was changed")
    return frontier


def _signed_by(origin: str, public_key: bytes, newest: Sequence[Row]) -> list[Row]:
    """Return the first of these heads that its tree's key has signed; [] for none."""
    for row in newest:
        if _signed_head(origin, public_key, row[3]) == (origin, row[1]):
            return [row]
        logger.error("a head of another tree is not signed by its key", tree=origin, size=row[1])
    return []


@lru_cache(maxsize=1024)
def _signed_head(origin: str, public_key: bytes, note: str) -> tuple[str, int] | None:
    """Return origin and size of a head that a key has signed, else None."""
    try:
        checkpoint, signed = check_note(note, {origin: PublicKey(origin, public_key)})
    except (ValueError, TypeError):
        return None
    return (checkpoint.head.origin, checkpoint.head.size) if signed else None


@lru_cache(maxsize=1024)
def _head_of(note: str) -> TreeHead:
    return parse_note(note).checkpoint.head


def _store(tree: AuditTree, checkpoint: TreeCheckpoint, frontier: Frontier, note: str) -> Program[None]:
    yield Execute(
        "INSERT INTO audit_heads (tree, size, at_ms, frontier, note) VALUES ($1, $2, $3, $4, $5) "
        "ON CONFLICT (tree, size, at_ms) DO NOTHING",
        (tree.number, checkpoint.head.size, checkpoint.at_ms, frontier.encode(), note),
    )


def thin_heads(tree: AuditTree, now_ms: int) -> Program[int]:
    """Delete old heads of a tree but one an hour; return how many."""
    rows: list[Row] = yield Fetch(
        "SELECT size, at_ms FROM audit_heads WHERE tree = $1 AND at_ms < $2 ORDER BY at_ms, size LIMIT $3",
        (tree.number, now_ms - THIN_AFTER_MS, PAGE),
    )
    newest = {at_ms // THIN_TO_MS: (size, at_ms) for size, at_ms in rows}
    kept = set(newest.values())
    gone = [row for row in rows if tuple(row) not in kept]
    for size, at_ms in gone:
        yield Execute(
            "DELETE FROM audit_heads WHERE tree = $1 AND size = $2 AND at_ms = $3", (tree.number, size, at_ms)
        )
    return len(gone)


class HeadSigner:
    """Signs the heads of this node's tree; writes them to the database and to a file."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        tree: AuditTree,
        key: SigningKey,
        *,
        file: Path | None = None,
        every_s: float = HEAD_S,
    ) -> None:
        self._database = database
        self._clock = clock
        self._tree = tree
        self._key = key
        self._file = file
        self._every_s = every_s
        self._known: Frontier | None = None
        self._known_ms = 0
        """When `_known` was read: retention deletes no row that is younger than a day."""
        self._said: tuple[TreeHead, tuple[TreeHead, ...]] | None = None
        self._signing = trio.Lock()
        self.signed = 0
        """How many heads were signed since the start."""
        self.problem: str | None = None
        """Why nothing is signed any more: the stored rows were tampered with."""

    async def run(self) -> None:
        """Sign every `every_s` seconds until cancelled."""
        while True:
            await trio.sleep(self._every_s)
            try:
                await self.sign()
            except StorageUnavailable as error:
                logger.warning("the head of the audit log is signed later, as storage fails", reason=str(error))

    async def sign(self) -> str | None:
        """Sign the head if any head is new; return the note. Raises StorageUnavailable."""
        async with self._signing:
            try:
                began_ms = self._clock.now_ms()
                fresh = self._known is not None and began_ms < self._known_ms + DAY_MS
                seen = await self._database.read(partial(look, self._tree, self._known, fresh=fresh))
            except TamperedError as error:
                if self.problem is None:
                    logger.error("the audit log was tampered with; its head is not signed", reason=str(error))
                self.problem = str(error)
                return None
            self.problem = None
            frontier = seen.frontier
            head = TreeHead(self._tree.origin, frontier.size, frontier.root())
            others = self._others(seen.heads)
            self._known, self._known_ms = frontier, began_ms
            if (head, others) == self._said or not frontier.size:
                return None
            checkpoint = TreeCheckpoint(head, self._clock.now_ms(), others)
            note = self._key.sign(checkpoint)
            await self._database.run(lambda: _store(self._tree, checkpoint, frontier, note))
            self._said = (head, others)
            self.signed += 1
            if self._file is not None:
                await trio.to_thread.run_sync(_append, self._file, note)
            return note

    def _others(self, heads: Sequence[Row]) -> tuple[TreeHead, ...]:
        return tuple(_head_of(note) for number, _, _, note in heads if number != self._tree.number)

    def sign_floor(self, origin: str, size: int, root: bytes) -> str:
        """Sign that retention deletes the first `size` rows of a tree, with this root."""
        return self._key.sign_text(self._tree.origin, floor_text(TreeHead(origin, size, root)))

    async def thin(self) -> int:
        """Delete old heads but one an hour. Raises StorageUnavailable."""
        total = 0
        while gone := await self._database.run(partial(thin_heads, self._tree, self._clock.now_ms())):
            total += gone
        return total


def _append(path: Path, note: str) -> None:
    """Append a note to a file, with an empty line behind it; log a failure."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{note}\n")
            file.flush()
    except OSError as error:
        logger.error("a signed head could not be appended to audit.heads_file", file=str(path), reason=str(error))

"""Checks an audit log against its trees and their signed heads.

| finding | what it says |
|---|---|
| row_changed | a row is not the one whose hash is stored with it |
| row_removed | rows are missing between others, or at the end of a tree |
| row_inserted | a row has a number that its tree does not have, or has twice |
| row_moved | a row was stored before the row in front of it: rows were swapped |
| rows_differ | rows do not have the signed root, and no single one of them shows why |
| tail_cut | a signed head covers rows that are not there |
| tree_missing | rows or heads are of a tree that is not there |
| tree_differs | the tree's own row does not fit its rows |
| head_forged | a head is not signed by its tree's key, or says what its columns do not |
| head_missing | rows of many minutes have no signed head behind them |
| floor_unattested | the oldest rows are gone, and no signed row of retention says that it deleted them |
| key_changed | the key of a tree is not the one that is trusted |

A head binds its own tree and all trees that it names, so each tree is checked against the heads of
all nodes, and against notes that were kept elsewhere. Every row's hash is computed from its stored
columns. At a head with the right root checking starts anew, so a damage is reported with the rows
between two heads that it lies in.

All of this is a function of its input: no database, no clock. Rows come in blocks, whose leaves may
be computed by several processes (sources.py).
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from aether_trio.model.access.merkle import EMPTY, HASH_BYTES, Frontier
from aether_trio.model.audit import LEAF_BITS, MAX_LEAVES, TEXTS, audit_id
from aether_trio.services.audit.checkpoints import (
    NoteError,
    PublicKey,
    TreeCheckpoint,
    TreeHead,
    check_note,
    floor_text,
    parse_note,
)
from aether_trio.services.audit.trees import LEAF_HASH, TEXT_COLUMNS, row_leaf

UNSIGNED_MS: Final = 5 * 60_000
"""Rows stored over more than this, with no head behind the first of them, are a finding."""
_OPERATION: Final = TEXT_COLUMNS.start + TEXTS.index("operation")
_METADATA: Final = TEXT_COLUMNS.start + TEXTS.index("metadata")
_RETENTION: Final = "audit_retention"

LOWEST_ID: Final = -(2**63)
MAX_TREES: Final = 2**63 >> LEAF_BITS
NO_LEAF: Final = bytes(HASH_BYTES)

RawRow: TypeAlias = tuple[Any, ...]
"""The columns of a row (trees.COLUMNS)."""


class TreeRecord(NamedTuple):
    """A row of audit_trees."""

    number: int
    origin: str
    node: str
    public_key: bytes
    size: int
    frontier: bytes
    floor_size: int
    floor_frontier: bytes


class StoredHead(NamedTuple):
    """A row of audit_heads."""

    tree: int
    size: int
    at_ms: int
    frontier: bytes
    note: str


class Finding(NamedTuple):
    """Something that does not fit: its kind, tree, rows (audit ids), a sentence."""

    kind: str
    tree: str
    first: int
    last: int
    text: str


class RowBlock(NamedTuple):
    """What the check needs of some rows of a tree, in order of their ids.

    `ids` is None if they are `first`, `first + 1`, ... `leaves` are the hashes of all leaves, one
    after another, computed from the columns; `changed` are the places of rows that are stored with
    another hash. `retention` has the metadata of rows that say what retention deleted.
    """

    first: int
    ids: Sequence[int] | None
    times: array[int]
    leaves: bytes
    changed: Sequence[int]
    retention: Sequence[str]


def block_of(rows: Sequence[RawRow]) -> RowBlock:
    """Compute the leaves of rows, of which there is at least one."""
    try:
        leaves = list(map(row_leaf, rows))
    except Exception:  # the columns have other types than they should
        leaves = [_leaf_or_none(row) for row in rows]
    ids = [row[0] for row in rows]
    first = ids[0]
    stored = [row[LEAF_HASH] for row in rows]
    changed = () if leaves == stored else [place for place in range(len(rows)) if leaves[place] != stored[place]]
    retention = []
    if _RETENTION in [row[_OPERATION] for row in rows]:
        retention = [row[_METADATA] for row in rows if row[_OPERATION] == _RETENTION]
    return RowBlock(
        first,
        None if ids == list(range(first, first + len(rows))) else ids,
        array("q", [row[2] if isinstance(row[2], int) else 0 for row in rows]),
        b"".join(leaves),
        changed,
        retention,
    )


class AuditSource(Protocol):
    """One snapshot of an audit log."""

    trees: Sequence[TreeRecord]
    heads: Sequence[StoredHead]

    def tree_numbers(self) -> Sequence[int]:
        """Return the numbers of all trees that have rows."""

    def ends(self, first: int, last: int) -> tuple[int, int] | None:
        """Return the lowest and the highest id of the rows from `first` to `last`."""

    def blocks(self, first: int, last: int) -> Iterable[RowBlock]:
        """Return the rows with ids from `first` to `last`, in order."""


@dataclass(frozen=True, slots=True)
class _Demand:
    """A root that a tree has to have at a size, says a head."""

    size: int
    root: bytes
    says: str
    own: bool
    frontier: Frontier | None = None


@dataclass(slots=True)
class Verification:
    """The check of one source. `run` yields the findings; the counts are those so far."""

    source: AuditSource
    notes: Sequence[str] = ()
    trusted: Sequence[PublicKey] = ()
    rows: int = 0
    heads: int = 0
    _demands: dict[str, list[_Demand]] = field(default_factory=dict)
    _attested: set[str] = field(default_factory=set)
    _keys: dict[str, PublicKey] = field(default_factory=dict)

    def run(self) -> Iterator[Finding]:
        """Check everything; yield what does not fit."""
        sound = [(tree, _sound(tree)) for tree in self.source.trees]
        for stored, repaired in sound:
            if repaired != stored:
                text = "the row of the tree has columns of other types, or numbers, than a tree's"
                yield Finding("tree_differs", str(stored.origin), 0, 0, text)
        all_trees = [tree for _, tree in sound if tree is not None]
        trees = {tree.origin: tree for tree in all_trees}
        keys = self._keys
        for tree in all_trees:
            yield from self._check_key(tree, keys)
        for key in self.trusted:
            if key.name not in trees:
                yield Finding("tree_missing", key.name, 0, 0, "the tree of a trusted key is not in the database")
        keys.update((key.name, key) for key in self.trusted)
        numbers = {tree.number: tree for tree in all_trees}
        for head in self.source.heads:
            yield from self._check_head(head, numbers, keys)
        for note in self.notes:
            yield from self._check_note(note, keys)
        for number in self.source.tree_numbers():
            if number not in numbers:
                first = audit_id(number, 0)
                text = f"there are rows of a tree {number}, which is not in audit_trees"
                yield Finding("tree_missing", f"tree {number}", first, first + MAX_LEAVES, text)
        for origin, demands in self._demands.items():
            if origin not in trees:
                newest = max(demands, key=lambda one: one.size)
                text = f"{newest.says} has a tree of {newest.size} rows, which is not in the database"
                yield Finding("tree_missing", origin, 0, 0, text)
        yield from self._strays("", LOWEST_ID, -1, "no tree has rows with such numbers")
        for tree in all_trees:
            first, floor = audit_id(tree.number, 0), audit_id(tree.number, tree.floor_size)
            yield from self._strays(tree.origin, first - 1, first - 1, "a tree has no row with such a number")
            yield from self._strays(tree.origin, first, floor - 1, "the tree says that retention has deleted them")
            yield from _TreeCheck(tree, self).run()
        for tree in all_trees:
            if tree.floor_size and _floor_text(tree) not in self._attested:
                yield Finding(
                    "floor_unattested",
                    tree.origin,
                    audit_id(tree.number, 0),
                    audit_id(tree.number, tree.floor_size - 1),
                    f"the rows before number {tree.floor_size} are gone, and no row of retention says so",
                )

    def _strays(self, origin: str, first: int, last: int, why: str) -> Iterator[Finding]:
        ends = self.source.ends(first, last) if first <= last else None
        if ends is not None:
            yield Finding("row_inserted", origin, *ends, f"there are rows from {ends[0]} to {ends[1]}: {why}")

    def demands(self, origin: str) -> list[_Demand]:
        """Return the roots that heads demand of a tree, in order of size."""
        return sorted(self._demands.get(origin, ()), key=lambda one: one.size)

    def attest(self, metadata: str) -> None:
        """Note what a row of retention says, if a tree's key has signed it."""
        try:
            note = parse_note(json.loads(metadata)["note"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        if any(key.has_signed(note) for key in self._keys.values()):
            self._attested.add(note.text)

    def _check_key(self, tree: TreeRecord, keys: dict[str, PublicKey]) -> Iterator[Finding]:
        try:
            key = PublicKey(tree.origin, tree.public_key)
        except NoteError as error:
            yield Finding("tree_differs", tree.origin, 0, 0, f"the tree has no public key: {error}")
            return
        keys[tree.origin] = key
        trusted = [one for one in self.trusted if one.name == tree.origin]
        if self.trusted and key not in trusted:
            what = "not the trusted one" if trusted else "not among the trusted ones"
            yield Finding("key_changed", tree.origin, 0, 0, f"the key {key} of the tree is {what}")

    def _check_head(
        self, head: StoredHead, numbers: dict[int, TreeRecord], keys: dict[str, PublicKey]
    ) -> Iterator[Finding]:
        tree = numbers.get(head.tree)
        origin = tree.origin if tree is not None else f"tree {head.tree}"
        self.heads += 1
        if [type(one) for one in (head.size, head.note, head.frontier)] != [int, str, bytes]:
            yield Finding("head_forged", origin, 0, 0, "a head has columns of other types than the table's")
            return

        def forged(why: str) -> Finding:
            row = audit_id(head.tree, max(head.size - 1, 0))
            return Finding("head_forged", origin, row, row, f"the head of {head.size} rows, {head.at_ms}: {why}")

        try:
            checkpoint, signed = check_note(head.note, keys)
            frontier = Frontier.decode(head.size, head.frontier)
        except ValueError as error:
            yield forged(str(error))
            return
        said = checkpoint.head
        if not signed and said.origin in keys:
            yield forged("the tree's key has not signed it")
        elif (said.size, checkpoint.at_ms) != (head.size, head.at_ms) or frontier.root() != said.root:
            yield forged("its columns do not say what was signed")
        elif tree is None or said.origin != tree.origin:
            yield forged(f"it is a head of {said.origin}")
            self._demand(checkpoint, None)
        else:
            self._demand(checkpoint, frontier)

    def _check_note(self, note: str, keys: dict[str, PublicKey]) -> Iterator[Finding]:
        try:
            checkpoint, signed = check_note(note, keys)
        except NoteError as error:
            yield Finding("head_forged", "", 0, 0, f"a note that was kept elsewhere cannot be read: {error}")
            return
        self.heads += 1
        head = checkpoint.head
        if signed or head.origin not in keys:
            # Without a tree there is no key: that it is missing is the finding.
            self._demand(checkpoint, None)
            return
        names = ", ".join(f"{name} {data[:4].hex()}" for name, data in parse_note(note).signatures)
        text = f"a note of {head.size} rows that was kept elsewhere is signed by {names}, not by the tree's key"
        yield Finding("head_forged", head.origin, 0, 0, text)

    def _demand(self, checkpoint: TreeCheckpoint, frontier: Frontier | None) -> None:
        head = checkpoint.head
        says = f"the head that {head.origin} signed at {checkpoint.at_ms}"
        self._add(head, says, own=True, frontier=frontier)
        for other in checkpoint.others:
            self._add(other, says, own=False, frontier=None)

    def _add(self, head: TreeHead, says: str, *, own: bool, frontier: Frontier | None) -> None:
        self._demands.setdefault(head.origin, []).append(_Demand(head.size, head.root, says, own, frontier))


class _TreeCheck:
    """The check of one tree: its rows in order, against all roots that heads demand."""

    def __init__(self, tree: TreeRecord, verification: Verification) -> None:
        self._tree = tree
        self._verification = verification
        self._demands = [one for one in verification.demands(tree.origin) if one.size >= tree.floor_size]
        self._sizes = [one.size for one in self._demands]
        self._frontier: Frontier | None = EMPTY
        """Of the rows so far; None behind a damage, until the next head."""
        self._next = tree.floor_size
        self._checked = tree.floor_size
        """The size at which the rows last had a signed root."""
        self._damaged = False
        """Whether a finding of a row explains that the next root differs."""
        self._last_ts: int | None = None
        self._signed = max((one.size for one in self._demands if one.own), default=tree.floor_size)
        self._unsigned_since: int | None = None

    def run(self) -> Iterator[Finding]:
        tree = self._tree
        try:
            self._frontier = Frontier.decode(tree.floor_size, tree.floor_frontier)
        except ValueError:
            yield self._finding(
                "tree_differs", 0, tree.floor_size, "the hashes of the rows that retention deleted are damaged"
            )
            self._frontier = None
        yield from self._at_size(tree.floor_size)
        first = audit_id(tree.number, tree.floor_size)
        for block in self._verification.source.blocks(first, audit_id(tree.number, MAX_LEAVES - 1)):
            yield from self._block(block)
        yield from self._end()

    def _finding(self, kind: str, first: int, end: int, text: str) -> Finding:
        number = self._tree.number
        return Finding(kind, self._tree.origin, audit_id(number, first), audit_id(number, max(end - 1, first)), text)

    def _block(self, block: RowBlock) -> Iterator[Finding]:
        times, changed = block.times, frozenset(block.changed)
        self._verification.rows += len(times)
        for metadata in block.retention:
            self._verification.attest(metadata)
        leaves = [block.leaves[start : start + HASH_BYTES] for start in range(0, len(block.leaves), HASH_BYTES)]
        first = audit_id(self._tree.number, 0)
        if block.ids is None and block.first == first + self._next:
            yield from self._run_of_rows(times, leaves, changed)
            return
        ids = block.ids if block.ids is not None else range(block.first, block.first + len(times))
        begun = 0
        for place, row_id in enumerate(ids):
            leaf, expected = row_id - first, self._next + place - begun
            if leaf == expected:
                continue
            yield from self._run_of_rows(times[begun:place], leaves[begun:place], _within(changed, begun, place))
            begun = place
            if leaf < expected:
                yield self._finding("row_inserted", leaf, leaf + 1, f"there are two rows with the number {row_id}")
                begun += 1
                continue
            yield self._finding("row_removed", expected, leaf, f"rows are missing before the row {row_id}")
            # Roots at the missing sizes cannot be checked; the next head with a frontier can.
            self._damaged, self._frontier, self._next = True, None, leaf
        yield from self._run_of_rows(times[begun:], leaves[begun:], _within(changed, begun, len(times)))

    def _run_of_rows(self, times: array[int], leaves: list[bytes], changed: frozenset[int]) -> Iterator[Finding]:
        """Check rows that follow those before them; `changed` are places in `leaves`."""
        if not leaves:
            return
        start = self._next
        end = start + len(leaves)
        yield from self._in_order(times)
        if self._unsigned_since is None and end > self._signed:
            self._unsigned_since = times[max(self._signed - start, 0)]
        self._last_ts = times[-1]
        found = sorted(changed)
        done = 0
        place = bisect_right(self._sizes, start)
        while True:
            size = self._sizes[place] if place < len(self._sizes) else end + 1
            upto = min(size, end) - start
            while found and found[0] < upto:
                leaf = start + found.pop(0)
                row_id = audit_id(self._tree.number, leaf)
                yield self._finding("row_changed", leaf, leaf + 1, f"the row {row_id} was changed")
                self._damaged = True
            if self._frontier is not None and upto > done:
                self._frontier = self._frontier.extend(leaves[done:upto])
            done, self._next = upto, start + upto
            if size > end:
                return
            yield from self._at_size(size)
            place = bisect_right(self._sizes, size)

    def _in_order(self, times: array[int]) -> Iterator[Finding]:
        listed = times.tolist()
        if listed == sorted(listed) and (self._last_ts is None or listed[0] >= self._last_ts):
            return
        last = self._last_ts
        for leaf, ts_ms in enumerate(listed, self._next):
            if last is not None and ts_ms < last:
                text = f"the row {audit_id(self._tree.number, leaf)} was stored before the row in front of it"
                yield self._finding("row_moved", leaf, leaf + 1, text)
                self._damaged = True
            last = ts_ms

    def _at_size(self, size: int) -> Iterator[Finding]:
        """Compare the root at a size with what the heads of that size say."""
        demands = self._demands[bisect_right(self._sizes, size - 1) : bisect_right(self._sizes, size)]
        if not demands:
            return
        root = self._frontier.root() if self._frontier is not None else None
        differs = [one for one in demands if one.root != root]
        if differs and root is not None and not self._damaged:
            text = f"the rows up to {size} do not have the root of {differs[0].says}"
            yield self._finding("rows_differ", self._checked, size, text)
        if not differs:
            self._checked, self._damaged = size, False
            return
        self._damaged = True
        for one in demands:
            if one.frontier is not None:
                self._frontier, self._checked, self._damaged = one.frontier, size, False

    def _end(self) -> Iterator[Finding]:
        tree, end = self._tree, self._next
        beyond = [one for one in self._demands if one.size > end]
        if beyond:
            text = f"{beyond[-1].says} covers {beyond[-1].size} rows, and {end} are there"
            yield self._finding("tail_cut", end, beyond[-1].size, text)
        elif tree.size > end:
            yield self._finding("row_removed", end, tree.size, f"the tree has {tree.size} rows, and {end} are there")
        if tree.size < end:
            yield self._finding("row_inserted", tree.size, end, f"the tree has {tree.size} rows, and {end} are there")
        elif tree.size == end and not self._damaged and self._frontier and self._frontier.encode() != tree.frontier:
            text = "the rows behind the last head do not have the root of their tree"
            yield self._finding("rows_differ", self._checked, end, text)
        if self._unsigned_since is not None and self._last_ts is not None:
            span_ms = self._last_ts - self._unsigned_since
            if span_ms > UNSIGNED_MS:
                text = f"rows of {span_ms // 60_000} minutes have no signed head behind them"
                yield self._finding("head_missing", self._signed, end, text)


def _sound(tree: RawRow) -> TreeRecord | None:
    """Return a tree's row with what cannot be checked replaced; None for no tree."""
    number, origin, node, public_key, size, frontier, floor_size, floor_frontier = tree
    if not isinstance(number, int) or not 0 <= number < MAX_TREES or not isinstance(origin, str):
        return None
    return TreeRecord(
        number,
        origin,
        str(node),
        public_key if isinstance(public_key, bytes) else b"",
        size if isinstance(size, int) else -1,
        frontier if isinstance(frontier, bytes) else b"",
        floor_size if isinstance(floor_size, int) and 0 <= floor_size <= MAX_LEAVES else 0,
        floor_frontier if isinstance(floor_frontier, bytes) else b"",
    )


def _floor_text(tree: TreeRecord) -> str:
    """Return what a key has to have signed if retention deleted a tree's first rows."""
    try:
        root = Frontier.decode(tree.floor_size, tree.floor_frontier).root()
    except ValueError:
        return ""
    return floor_text(TreeHead(tree.origin, tree.floor_size, root))


def _within(places: frozenset[int], first: int, end: int) -> frozenset[int]:
    """Return the places from `first` to before `end`, counted from there."""
    return frozenset(place - first for place in places if first <= place < end)


def _leaf_or_none(row: RawRow) -> bytes:
    """Return the hash of a row's leaf; a wrong one for columns of which there is none."""
    try:
        return row_leaf(row)
    except Exception:
        return NO_LEAF

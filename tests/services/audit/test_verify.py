"""Every way to change a log is found, with the row where a row can be named."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.model.access.merkle import EMPTY
from aether_trio.model.audit import audit_id, place_of
from aether_trio.services.audit.checkpoints import PublicKey, SigningKey, TreeCheckpoint, TreeHead, floor_text
from aether_trio.services.audit.heads import TamperedError, look, thin_heads
from aether_trio.services.audit.trees import (
    COLUMNS,
    LEAF_HASH,
    AuditTree,
    append,
    begin_tree,
    forget_page,
    row_leaf,
)
from aether_trio.services.audit.verify import (
    Finding,
    RowBlock,
    StoredHead,
    TreeRecord,
    Verification,
    block_of,
)
from aether_trio.storage.base import Execute, Fetch, Program, ProgramFactory, Row
from tests.helpers.direct import SqliteDirect
from tests.services.audit.conftest import event

T = TypeVar("T")

ORIGINS = ("audit/one", "audit/two")
KEYS = [SigningKey.from_seed(bytes([number] * 32)) for number in range(3)]
MINUTE_MS = 60_000


@dataclass
class Log:
    """A log in memory: what is read of the database, free to be changed."""

    trees: list[TreeRecord] = field(default_factory=list)
    heads: list[StoredHead] = field(default_factory=list)
    stored: list[Row] = field(default_factory=list)
    block: int = 5

    def tree_numbers(self) -> Sequence[int]:
        return sorted({place_of(row[0])[0] for row in self.stored})

    def ends(self, first: int, last: int) -> tuple[int, int] | None:
        found = [row[0] for row in self.stored if first <= row[0] <= last]
        return (min(found), max(found)) if found else None

    def blocks(self, first: int, last: int) -> Iterator[RowBlock]:
        rows = sorted((row for row in self.stored if first <= row[0] <= last), key=lambda row: row[0])
        for start in range(0, len(rows), self.block):
            yield block_of(rows[start : start + self.block])

    def findings(self, notes: Sequence[str] = (), trusted: Sequence[PublicKey] = ()) -> list[Finding]:
        return list(Verification(self, notes, trusted).run())

    def kinds(self, notes: Sequence[str] = (), trusted: Sequence[PublicKey] = ()) -> set[str]:
        return {found.kind for found in self.findings(notes, trusted)}

    def change(self, row_id: int, **columns: Any) -> None:
        place = self.place(row_id)
        row = dict(zip(COLUMNS, self.stored[place], strict=True))
        self.stored[place] = tuple((row | columns).values())

    def place(self, row_id: int) -> int:
        return next(place for place, row in enumerate(self.stored) if row[0] == row_id)

    def hashed(self, row_id: int) -> None:
        """Store the right hash of a changed row, as a thief would."""
        place = self.place(row_id)
        row = self.stored[place]
        self.stored[place] = (*row[:LEAF_HASH], row_leaf(row))

    def regrow(self, number: int) -> None:
        """Make the tree's own row that of the rows, as a thief would."""
        rows = sorted(row for row in self.stored if place_of(row[0])[0] == number)
        tree = self.trees[number]
        frontier = EMPTY.extend([row[LEAF_HASH] for row in rows])
        self.trees[number] = tree._replace(size=frontier.size, frontier=frontier.encode())


class Gateway:
    """Two nodes on one database, which append and sign."""

    def __init__(self) -> None:
        self.direct = SqliteDirect("tasks")
        weakref.finalize(self, self.direct.close)
        self.now_ms = 1000
        self.trees = [
            self.run(lambda number=number: begin_tree(f"n{number}", ORIGINS[number], KEYS[number].public_raw, 1))  # type: ignore[misc]
            for number in range(2)
        ]
        self.notes: list[str] = []

    def run(self, program: ProgramFactory[T]) -> T:
        return self.direct.drive(program)

    def append(self, which: int, count: int) -> None:
        events = [event(number, at_ms=self.now_ms - 1, metadata={"n": self.now_ms}) for number in range(count)]
        self.run(lambda: append(self.trees[which].origin, events, self.now_ms))
        self.now_ms += 1

    def sign(self, which: int) -> str:
        tree = self.trees[which]
        seen = self.run(lambda: look(tree, None))
        head = TreeHead(tree.origin, seen.frontier.size, seen.frontier.root())
        others = tuple(
            TreeHead(ORIGINS[row[0]], row[1], self.root(row[0], row[1])) for row in seen.heads if row[0] != which
        )
        checkpoint = TreeCheckpoint(head, self.now_ms, others)
        note = KEYS[which].sign(checkpoint)

        def store() -> Program[None]:
            yield Execute(
                "INSERT INTO audit_heads VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
                (tree.number, head.size, self.now_ms, seen.frontier.encode(), note),
            )

        self.run(store)
        self.now_ms += 1
        self.notes.append(note)
        return note

    def root(self, which: int, size: int) -> bytes:
        rows = [row[LEAF_HASH] for row in self.log().stored if place_of(row[0])[0] == which]
        return EMPTY.extend(rows[:size]).root()

    def log(self) -> Log:
        def read() -> Program[Log]:
            trees = yield Fetch(
                "SELECT tree, origin, node, public_key, size, frontier, floor_size, floor_frontier FROM audit_trees"
            )
            heads = yield Fetch("SELECT tree, size, at_ms, frontier, note FROM audit_heads ORDER BY tree, size, at_ms")
            rows = yield Fetch(f"SELECT {', '.join(COLUMNS)} FROM audit_log ORDER BY audit_id")
            return Log([TreeRecord(*one) for one in trees], [StoredHead(*one) for one in heads], list(rows))

        return self.run(read)


def usual() -> Gateway:
    """Each tree has 20 rows: heads at 8 and 16 of the first one, at 16 of the second."""
    gateway = Gateway()
    for number in range(5):
        gateway.append(0, 4)
        gateway.append(1, 4)
        if number in {1, 3}:
            gateway.sign(0)
        if number == 3:
            gateway.sign(1)
    return gateway


@pytest.fixture
def gateway() -> Gateway:
    return usual()


@pytest.fixture
def log(gateway: Gateway) -> Log:
    return gateway.log()


def test_a_log_that_was_not_touched_is_right(gateway: Gateway, log: Log) -> None:
    assert log.findings() == []
    assert log.findings(gateway.notes) == []
    keys = [PublicKey(origin, key.public_raw) for origin, key in zip(ORIGINS, KEYS, strict=False)]
    verification = Verification(log, gateway.notes, keys)
    assert list(verification.run()) == []
    assert (verification.rows, verification.heads) == (40, 6)


def test_an_empty_log_is_right() -> None:
    assert Log().findings() == []
    assert Gateway().log().findings() == []


@pytest.mark.parametrize("column", [name for name in COLUMNS if name not in {"audit_id", "leaf_hash"}])
@pytest.mark.parametrize("careful", [False, True])
def test_row_changed(log: Log, column: str, careful: bool) -> None:
    old = log.stored[2][COLUMNS.index(column)]
    log.change(3, **{column: old + 1 if isinstance(old, int) else f"{old}x"})
    if careful:
        log.hashed(3)
        assert "rows_differ" in log.kinds() or (column == "ts_ms" and "row_moved" in log.kinds())
    else:
        found = next(one for one in log.findings() if one.kind == "row_changed")
        assert (found.tree, found.first, found.last) == (ORIGINS[0], 3, 3)


def test_row_changed_behind_the_last_head(log: Log) -> None:
    log.change(18, actor_id="someone")
    assert log.kinds() == {"row_changed"}
    log.hashed(18)
    assert log.kinds() == {"rows_differ"}
    log.regrow(0)
    assert log.kinds() == set(), "what no head covers yet can be written anew by a thief of the database"


def test_a_changed_row_is_reported_between_its_heads(log: Log) -> None:
    log.change(10, operation="kv_get")
    log.hashed(10)
    [found] = log.findings()
    assert (found.kind, found.first, found.last) == ("rows_differ", 9, 16)


def test_every_changed_row_is_named(log: Log) -> None:
    for row_id in (2, 10, 19):
        log.change(row_id, workspace="elsewhere")
    assert [(one.kind, one.first) for one in log.findings()] == [
        ("row_changed", 2),
        ("row_changed", 10),
        ("row_changed", 19),
    ]


@pytest.mark.parametrize("row_id", [1, 2, 5, 8, 9, 16, 17])
def test_row_removed(log: Log, row_id: int) -> None:
    del log.stored[log.place(row_id)]
    [found] = log.findings()
    assert (found.kind, found.first, found.last) == ("row_removed", row_id, row_id)


def test_rows_removed_and_the_rest_moved_up(log: Log) -> None:
    """All later rows take a smaller number, and the tree's own row is made to fit."""
    del log.stored[log.place(5)]
    log.stored = [(row[0] - 1, *row[1:]) if 5 < row[0] <= 20 else row for row in log.stored]
    log.regrow(0)
    kinds = log.kinds()
    assert "rows_differ" in kinds


def test_row_inserted(log: Log) -> None:
    row = log.stored[log.place(20)]
    log.stored.insert(20, (21, *row[1:]))
    [found] = log.findings()
    assert (found.kind, found.first) == ("row_inserted", 21)


def test_row_inserted_twice_under_one_number(log: Log) -> None:
    """PostgreSQL's key has the time too, so two rows may have one number."""
    log.stored.insert(3, log.stored[2])
    log.block = 100
    [found] = log.findings()
    assert (found.kind, found.first) == ("row_inserted", 3)


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_row_inserted_in_the_middle(log: Log, block: int) -> None:
    row = log.stored[log.place(5)]
    log.stored = [(one[0] + 1, *one[1:]) if 5 < one[0] <= 20 else one for one in log.stored]
    log.stored.append((6, *row[1:]))
    log.block = block
    log.regrow(0)
    assert "rows_differ" in log.kinds()


@pytest.mark.parametrize(("one", "other"), [(2, 3), (1, 16), (7, 10), (4, 5)])
@pytest.mark.parametrize("block", [1, 5, 100])
def test_row_swapped(log: Log, one: int, other: int, block: int) -> None:
    first, second = log.place(one), log.place(other)
    log.stored[first], log.stored[second] = (one, *log.stored[second][1:]), (other, *log.stored[first][1:])
    log.block = block
    log.regrow(0)
    assert log.kinds() & {"row_moved", "rows_differ"}


def test_tail_cut(gateway: Gateway, log: Log) -> None:
    """The last rows and the tree's own row; then its heads; then other nodes'."""
    log.stored = [row for row in log.stored if not 10 < row[0] <= 20]
    assert log.kinds() == {"tail_cut"}
    log.regrow(0)
    [found] = log.findings()
    assert (found.kind, found.first, found.last) == ("tail_cut", 11, 16)
    assert "covers 16 rows" in found.text
    log.heads = [head for head in log.heads if head.tree != 0 or head.size < 10]
    [found] = log.findings()
    assert found.kind == "tail_cut"
    assert "audit/two signed" in found.text
    log.heads = [head for head in log.heads if head.tree == 0]
    assert log.kinds() == set(), "with all heads gone that cover it, the database alone says nothing"
    [found] = log.findings(gateway.notes)
    assert found.kind == "tail_cut", "a file that was kept elsewhere does"


def test_tail_cut_of_what_no_head_covers_yet(log: Log) -> None:
    log.stored = [row for row in log.stored if row[0] != 20]
    [found] = log.findings()
    assert (found.kind, found.first) == ("row_removed", 20)


def test_tree_missing(gateway: Gateway, log: Log) -> None:
    log.trees = log.trees[1:]
    assert log.kinds() == {"tree_missing", "head_forged"}
    log.stored = [row for row in log.stored if place_of(row[0])[0] == 1]
    log.heads = [head for head in log.heads if head.tree == 1]
    [found] = log.findings()
    assert (found.kind, found.tree) == ("tree_missing", ORIGINS[0])
    log.heads = []
    assert log.kinds() == set()
    assert log.kinds(gateway.notes) == {"tree_missing"}


def test_head_forged(log: Log) -> None:
    head = log.heads[1]
    thief = KEYS[2]
    forged = thief.sign(TreeCheckpoint(TreeHead(ORIGINS[0], head.size, bytes(32)), head.at_ms))
    for changed in (
        head._replace(note=head.note.replace(str(head.at_ms), str(head.at_ms + 1))),
        head._replace(note=forged),
        head._replace(note="nothing"),
        head._replace(size=head.size - 1),
        head._replace(at_ms=head.at_ms + 1),
        head._replace(frontier=bytes(32)),
        head._replace(frontier=b"x"),
        head._replace(tree=1),
    ):
        log.heads[1] = changed
        assert "head_forged" in log.kinds(), changed


@pytest.mark.parametrize("columns", [{"note": b"x"}, {"note": None}, {"size": "9"}, {"frontier": None}])
def test_a_head_with_columns_of_other_types(log: Log, columns: dict[str, Any]) -> None:
    log.heads[0] = log.heads[0]._replace(**columns)
    assert log.kinds() == {"head_forged"}


def test_a_forged_head_demands_nothing(log: Log) -> None:
    size = 1000
    note = KEYS[2].sign(TreeCheckpoint(TreeHead(ORIGINS[0], size, bytes(32)), 1))
    log.heads.append(StoredHead(0, size, 1, EMPTY.extend([bytes(32)] * size).encode(), note))
    assert log.kinds() == {"head_forged"}


def test_a_note_of_another_key_was_kept_elsewhere(log: Log) -> None:
    note = KEYS[2].sign(TreeCheckpoint(TreeHead(ORIGINS[0], 8, bytes(32)), 1))
    assert log.kinds([note]) == {"head_forged"}
    assert log.kinds(["no note"]) == {"head_forged"}


def test_key_changed_and_everything_signed_anew(log: Log) -> None:
    """A thief of the database has no key of the node, so he needs another one."""
    forged = usual()
    trusted = [PublicKey(origin, key.public_raw) for origin, key in zip(ORIGINS, KEYS, strict=False)]
    log.trees[0] = log.trees[0]._replace(public_key=KEYS[2].public_raw)
    log.heads = [head for head in log.heads if head.tree == 1]
    assert log.kinds() == set()
    assert log.kinds(trusted=trusted) == {"key_changed"}
    assert log.kinds(trusted=trusted[:1]) == {"key_changed"}
    assert log.kinds(forged.notes) == {"head_forged"}


def test_rows_without_heads_for_minutes(gateway: Gateway) -> None:
    for _ in range(7):
        gateway.append(0, 1)
        gateway.now_ms += MINUTE_MS
    [found] = gateway.log().findings()
    assert (found.kind, found.tree) == ("head_missing", ORIGINS[0])
    gateway.sign(0)
    assert gateway.log().findings() == []


def test_columns_of_other_types(log: Log) -> None:
    for number, value in enumerate([None, b"kv_put", 5, 2.5], 1):
        log.change(number, operation=value)
    log.change(5, ts_ms="text")
    log.change(6, success=None)
    found = log.findings()
    assert {one.first for one in found if one.kind == "row_changed"} == set(range(1, 7))


def test_damaged_trees(log: Log) -> None:
    log.trees[0] = log.trees[0]._replace(frontier=b"")
    assert log.kinds() == {"rows_differ"}
    log.trees[0] = log.trees[0]._replace(size=19)
    assert log.kinds() == {"row_inserted"}
    log.trees[0] = log.trees[0]._replace(public_key=b"")
    assert "tree_differs" in log.kinds()


# -- retention -------------------------------------------------------------------------------------


def signed_floor(origin: str, size: int, root: bytes) -> str:
    return KEYS[0].sign_text(ORIGINS[0], floor_text(TreeHead(origin, size, root)))


def test_what_retention_deleted_is_not_missed(gateway: Gateway) -> None:
    tree = gateway.trees[0]
    before = gateway.log()
    cut = next(row for row in before.stored if row[0] == 11)[2]
    assert gateway.run(lambda: forget_page(0, cut, tree, gateway.now_ms, signed_floor, keeps_rows=False)) == 8
    log = gateway.log()
    assert log.findings() == []
    assert log.findings(gateway.notes) == []
    log.change(12, operation="other")
    log.hashed(12)
    assert log.kinds() == {"rows_differ"}


def test_rows_that_retention_has_not_deleted(gateway: Gateway) -> None:
    """A thief deletes the oldest rows, and has the tree say that retention did."""
    log = gateway.log()
    frontier = EMPTY.extend([row[LEAF_HASH] for row in log.stored[:10]])
    log.stored = log.stored[10:]
    log.trees[0] = log.trees[0]._replace(floor_size=10, floor_frontier=frontier.encode())
    [found] = log.findings()
    assert (found.kind, found.first, found.last) == ("floor_unattested", 1, 10)
    log.trees[0] = log.trees[0]._replace(floor_frontier=b"x")
    assert "tree_differs" in log.kinds()


def test_a_row_of_retention_that_a_thief_has_added_while_the_gateway_ran(gateway: Gateway) -> None:
    """It is a leaf, and heads cover it; what it says is signed by no key of a tree."""
    tree = gateway.trees[0]
    rows = gateway.log().stored[:8]
    root = EMPTY.extend([row[LEAF_HASH] for row in rows]).root()
    head = TreeHead(tree.origin, 8, root)
    forged = (
        {},
        {"note": "x"},
        {"note": [["x"]]},
        {"note": KEYS[2].sign_text(tree.origin, floor_text(head))},
        {"note": KEYS[0].sign(TreeCheckpoint(head, 5))},  # a head of these rows, as there is
        {"note": signed_floor(tree.origin, 7, root)},
    )
    for metadata in forged:
        said = event(0, operation="audit_retention", resource_id=tree.origin, metadata={"kept_from": 8, **metadata})
        gateway.run(lambda said=said: append(tree.origin, [said], gateway.now_ms))  # type: ignore[misc]
    gateway.sign(0)
    gateway.sign(1)
    log = gateway.log()
    log.stored = log.stored[8:]
    log.trees[0] = log.trees[0]._replace(
        floor_size=8, floor_frontier=EMPTY.extend([r[LEAF_HASH] for r in rows]).encode()
    )
    assert log.kinds(gateway.notes) == {"floor_unattested"}


# -- the signer's look -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tamper",
    [
        "UPDATE audit_log SET actor_id = 'x' WHERE audit_id = 18",
        "DELETE FROM audit_log WHERE audit_id = 18",
        "DELETE FROM audit_log WHERE audit_id = 20",
        "UPDATE audit_log SET audit_id = 99 WHERE audit_id = 20",
        "UPDATE audit_trees SET size = 19 WHERE tree = 0",
        "UPDATE audit_trees SET size = 3 WHERE tree = 0",
        "DELETE FROM audit_trees WHERE tree = 0",
        "UPDATE audit_heads SET note = 'x' WHERE tree = 0",
        "UPDATE audit_heads SET frontier = x'00' WHERE tree = 0",
    ],
)
def test_the_signer_signs_no_changed_rows(gateway: Gateway, tamper: str) -> None:
    def program() -> Program[None]:
        yield Execute(tamper)

    gateway.run(lambda: look(gateway.trees[0], None))
    gateway.run(program)
    with pytest.raises(TamperedError):
        gateway.run(lambda: look(gateway.trees[0], None))


def test_a_look_goes_on_from_what_is_known(gateway: Gateway) -> None:
    tree: AuditTree = gateway.trees[0]
    known = gateway.run(lambda: look(tree, None)).frontier
    gateway.append(0, 3)
    later = gateway.run(lambda: look(tree, known)).frontier
    assert later.size == known.size + 3
    assert later == gateway.run(lambda: look(tree, None)).frontier


def test_a_head_that_was_made_up_for_another_tree_is_not_passed_on(gateway: Gateway) -> None:
    [wanted] = [row for row in gateway.run(lambda: look(gateway.trees[0], None)).heads if row[0] == 1]
    forged = KEYS[2].sign(TreeCheckpoint(TreeHead(ORIGINS[1], 10**6, bytes(32)), gateway.now_ms))

    def program() -> Program[None]:
        for size, note in ((10**6, forged), (10**6 + 1, wanted[3]), (10**6 + 2, "x"), (10**6 + 3, b"x")):
            yield Execute("INSERT INTO audit_heads VALUES (1, $1, 5, x'', $2)", (size, note))

    gateway.run(program)
    assert [row for row in gateway.run(lambda: look(gateway.trees[0], None)).heads if row[0] == 1] == [wanted]


def test_rows_behind_the_last_head_are_not_said_to_have_been_deleted(gateway: Gateway) -> None:
    tree = gateway.trees[0]
    known = gateway.run(lambda: look(tree, None)).frontier
    gateway.append(0, 4)

    def program() -> Program[None]:
        yield Execute("DELETE FROM audit_log WHERE audit_id <= 24")
        yield Execute("UPDATE audit_trees SET floor_size = size, floor_frontier = frontier WHERE tree = 0")

    gateway.run(program)
    with pytest.raises(TamperedError, match="deleted"):
        gateway.run(lambda: look(tree, known, fresh=True))


def test_old_heads_are_thinned_to_one_an_hour(gateway: Gateway) -> None:
    tree = gateway.trees[0]
    for _ in range(10):
        gateway.append(0, 1)
        gateway.sign(0)
        gateway.now_ms += 20 * MINUTE_MS
    week_ms = 7 * 24 * 60 * MINUTE_MS
    before = len(gateway.log().heads)
    assert gateway.run(lambda: thin_heads(tree, gateway.now_ms)) == 0
    gone = gateway.run(lambda: thin_heads(tree, gateway.now_ms + week_ms))
    heads = gateway.log().heads
    assert gone == before - len(heads) > 0
    hours = [head.at_ms // (60 * MINUTE_MS) for head in heads if head.tree == 0]
    assert len(hours) == len(set(hours))
    assert gateway.run(lambda: thin_heads(tree, gateway.now_ms + week_ms)) == 0
    assert gateway.log().kinds() <= {"head_missing"}


# -- any change, of any log ------------------------------------------------------------------------

steps = st.lists(
    st.tuples(st.sampled_from(["append", "append", "sign"]), st.integers(0, 1), st.integers(1, 5)),
    min_size=1,
    max_size=14,
)


def play(moves: Sequence[tuple[str, int, int]]) -> Gateway:
    gateway = Gateway()
    for what, which, count in moves:
        if what == "append":
            gateway.append(which, count)
        elif gateway.run(lambda: look(gateway.trees[which], None)).frontier.size:  # noqa: B023
            gateway.sign(which)
    return gateway


@settings(deadline=None)
@given(steps, st.integers(1, 9))
def test_no_log_of_a_gateway_is_accused(moves: Sequence[tuple[str, int, int]], block: int) -> None:
    gateway = play(moves)
    log = gateway.log()
    log.block = block
    assert log.findings() == []
    assert log.findings(gateway.notes) == []


def edit(log: Log, data: st.DataObject) -> None:
    row = data.draw(st.sampled_from(log.stored))
    log.change(row[0], actor_id=data.draw(st.text(max_size=3)) + "!")
    if data.draw(st.booleans()):
        log.hashed(row[0])


def remove(log: Log, data: st.DataObject) -> None:
    del log.stored[data.draw(st.integers(0, len(log.stored) - 1))]


def swap(log: Log, data: st.DataObject) -> None:
    one = data.draw(st.integers(0, len(log.stored) - 1))
    same = [place for place, row in enumerate(log.stored) if row[0] >> 40 == log.stored[one][0] >> 40]
    other = data.draw(st.sampled_from(same))
    first, second = log.stored[one], log.stored[other]
    log.stored[one], log.stored[other] = (first[0], *second[1:]), (second[0], *first[1:])


def insert(log: Log, data: st.DataObject) -> None:
    row = data.draw(st.sampled_from(log.stored))
    number = place_of(row[0])[0]
    log.stored.append((audit_id(number, log.trees[number].size + data.draw(st.integers(0, 3))), *row[1:]))


@settings(deadline=None)
@given(steps, st.data(), st.sampled_from([edit, remove, swap, insert]), st.integers(1, 9))
def test_any_change_is_found(
    moves: Sequence[tuple[str, int, int]], data: st.DataObject, tamper: Callable[[Log, st.DataObject], None], block: int
) -> None:
    log = play([("append", 0, 1), *moves]).log()
    log.block = block
    before = sorted(log.stored)
    tamper(log, data)
    if sorted(log.stored) != before:
        assert log.findings()

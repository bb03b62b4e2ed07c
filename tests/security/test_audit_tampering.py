"""`aether audit verify` of a database that was changed behind the gateway.

A gateway keeps an agent's doings in a file or on PostgreSQL, and stops. Then its rows are changed
as by someone who may write to the database, and who knows how the log is made: hashes and the
tree's own row are made to fit. What he does not have is the key.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from aether_trio.cli.app import app
from aether_trio.config import load_settings
from aether_trio.gateway.core import open_core
from aether_trio.model.access.merkle import EMPTY
from aether_trio.services.audit.checkpoints import PublicKey
from aether_trio.services.audit.proofs import proves
from aether_trio.services.audit.trees import COLUMNS, LEAF_HASH, row_leaf
from tests.cli.shell import aether
from tests.helpers.core import agent, barrier, connect, kv_put
from tests.helpers.engines import Engine, PostgresEngine

KEYS = 8


class Site:
    """A data directory, or a schema, with what a gateway has left there."""

    def __init__(self, directory: Path, engine: Engine) -> None:
        self.directory = directory
        self.engine = engine
        self.heads_file = directory / "heads"

    @property
    def _postgres(self) -> PostgresEngine | None:
        return self.engine if isinstance(self.engine, PostgresEngine) else None

    async def live(self) -> None:
        """Run a gateway: some keys are written, and a head is signed between them."""
        flags: dict[str, Any] = {
            "gateway.dev": True,
            "gateway.data_dir": str(self.directory),
            "audit.heads_file": str(self.heads_file),
        }
        if self._postgres is not None:
            flags |= {"storage.database": self._postgres.server.dsn(), "storage.schema": self._postgres.schema}
        with trio.fail_after(300):
            async with (
                open_core(load_settings(flags=flags)) as core,
                connect(core, agent("w", "a", "1")) as peer,
            ):
                for number in range(KEYS):
                    peer.send(kv_put(f"key-{number}", b"x"))
                    await peer.next("kv")
                    await core.audit.writer.flush()
                    if number == KEYS // 2:
                        assert await core.audit.signer.sign()
                await barrier(peer)

    def sql(self, text: str, *args: Any) -> list[tuple[Any, ...]]:
        if self._postgres is not None:
            return self._postgres.rows(text, *args)
        with closing(sqlite3.connect(self.directory / "tasks.db", isolation_level=None)) as connection:
            return connection.execute(text.replace("$", "?"), args).fetchall()

    def run(self, command: str, *arguments: str) -> tuple[int, str]:
        where = ["--data-dir", str(self.directory)]
        if self._postgres is not None:
            where = ["--database", self._postgres.server.dsn(), "--schema", self._postgres.schema]
        done = CliRunner().invoke(app, ["audit", command, *where, *arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    def verify(self, *arguments: str) -> tuple[int, str]:
        return self.run("verify", *arguments)

    def rows(self) -> list[tuple[Any, ...]]:
        return self.sql(f"SELECT {', '.join(COLUMNS)} FROM audit_log ORDER BY audit_id")

    def id_of(self, key: str) -> int:
        [(row_id,)] = self.sql("SELECT audit_id FROM audit_log WHERE resource_id = $1 AND event_type = 'kv'", key)
        return int(row_id)

    def make_fit(self) -> None:
        """Store the hashes that the rows have now, with them and in the tree."""
        leaves = []
        for row in self.rows():
            leaves.append(row_leaf(row))
            self.sql("UPDATE audit_log SET leaf_hash = $1 WHERE audit_id = $2", leaves[-1], row[0])
        frontier = EMPTY.extend(leaves)
        self.sql("UPDATE audit_trees SET size = $1, frontier = $2", frontier.size, frontier.encode())


@pytest.fixture
def site(tmp_path: Path, engine: Engine) -> Site:
    """A log in which nothing is found before it is changed."""
    made = Site(tmp_path / "data", engine)
    (tmp_path / "data").mkdir(mode=0o700)
    trio.run(made.live)
    assert made.verify("--heads", str(made.heads_file))[0] == 0
    return made


def test_untouched(site: Site) -> None:
    code, said = site.verify()
    assert code == 0
    assert said.startswith(f"ok: {len(site.rows())} rows of 1 trees, ")
    [key] = site.run("keys")[1].splitlines()
    assert site.verify("--key", key)[0] == 0
    assert site.verify("--key", key, "--heads", str(site.heads_file))[0] == 0


def test_row_edited(site: Site) -> None:
    row = site.id_of("key-2")
    site.sql("UPDATE audit_log SET actor_id = 'ag::w::someone::else' WHERE audit_id = $1", row)
    code, said = site.verify()
    assert code == 1
    assert f"row {row}" in said
    assert "row_changed" in said
    site.make_fit()
    code, said = site.verify()
    assert code == 1
    assert "rows_differ" in said


def test_row_removed(site: Site) -> None:
    row = site.id_of("key-2")
    site.sql("DELETE FROM audit_log WHERE audit_id = $1", row)
    code, said = site.verify()
    assert code == 1
    assert "row_removed" in said
    assert f"row {row}" in said
    # The rows behind it move up, each into the place of the one before it.
    for one in site.rows():
        if one[0] > row:
            site.sql("UPDATE audit_log SET audit_id = $1 WHERE audit_id = $2", one[0] - 1, one[0])
    site.make_fit()
    code, said = site.verify()
    assert code == 1
    assert "rows_differ" in said


def test_row_swapped(site: Site) -> None:
    one, other = site.id_of("key-1"), site.id_of("key-2")
    for old, new in ((one, 999), (other, one), (999, other)):
        site.sql("UPDATE audit_log SET audit_id = $1 WHERE audit_id = $2", new, old)
    assert site.verify()[0] == 1
    site.make_fit()
    code, said = site.verify()
    assert code == 1
    assert "rows_differ" in said or "row_moved" in said


def test_row_inserted(site: Site) -> None:
    last = site.rows()[-1]
    values = [last[0] + 1, *last[1:]]
    marks = ", ".join(f"${number + 1}" for number in range(len(COLUMNS)))
    site.sql(f"INSERT INTO audit_log ({', '.join(COLUMNS)}) VALUES ({marks})", *values)
    code, said = site.verify()
    assert code == 1
    assert "row_inserted" in said


def test_tail_cut(site: Site) -> None:
    row = site.id_of("key-6")
    site.sql("DELETE FROM audit_log WHERE audit_id >= $1", row)
    assert site.verify()[0] == 1
    site.make_fit()
    code, said = site.verify()
    assert code == 1
    assert "tail_cut" in said
    # The heads of what is gone go too: now the database says nothing, and the witness' file does.
    site.sql("DELETE FROM audit_heads WHERE size >= $1", row)
    assert site.verify()[0] == 0
    code, said = site.verify("--heads", str(site.heads_file))
    assert code == 1
    assert "tail_cut" in said


def test_head_forged(site: Site) -> None:
    site.sql("UPDATE audit_heads SET note = replace(note, 'aether-time', 'aether-Time')")
    code, said = site.verify()
    assert code == 1
    assert "head_forged" in said


def test_everything_made_anew(site: Site, tmp_path: Path) -> None:
    """Another log with another key in its place, right in itself."""
    keys = site.run("keys")[1].split()
    site.sql("UPDATE audit_trees SET public_key = $1", bytes(32))
    site.sql("DELETE FROM audit_heads")
    assert site.verify()[0] == 0
    code, said = site.verify("--key", keys[0])
    assert code == 1
    assert "key_changed" in said
    code, said = site.verify("--heads", str(site.heads_file))
    assert code == 1
    assert "head_forged" in said


def test_findings_are_json_for_programs(site: Site) -> None:
    site.sql("UPDATE audit_log SET success = 0 WHERE audit_id = 1")
    code, said = site.verify("--json")
    assert code == 1
    finding = json.loads(said.splitlines()[0])
    assert (finding["kind"], finding["first"], finding["last"]) == ("row_changed", 1, 1)


def test_one_row_is_proved_to_who_has_the_key_alone(site: Site) -> None:
    code, said = site.run("prove", str(site.id_of("key-3")))
    assert code == 0
    proof = json.loads(said)
    key = PublicKey.parse(site.run("keys")[1])
    assert b"key-3" in bytes.fromhex(proof["leaf"])
    assert proves(proof, key)
    for name, value in (("index", 1), ("leaf", "00"), ("proof", []), ("size", 3)):
        assert not proves(proof | {name: value}, key)
    assert site.run("prove", "999")[0] == 1


def test_rows_are_exported_as_they_are_stored(site: Site) -> None:
    code, said = site.run("export")
    assert code == 0
    exported = [json.loads(line) for line in said.splitlines()]
    assert [row["audit_id"] for row in exported] == [row[0] for row in site.rows()]
    assert [row["leaf_hash"] for row in exported] == [row[LEAF_HASH].hex() for row in site.rows()]
    assert [row["resource_id"] for row in exported if row["event_type"] == "kv"] == [f"key-{n}" for n in range(KEYS)]
    assert site.run("export", "--heads") == (0, site.heads_file.read_text())


def test_a_place_without_a_log(tmp_path: Path) -> None:
    done = aether("audit", "verify", "--data-dir", str(tmp_path / "nowhere"))
    assert done.returncode == 3
    assert "there is no" in done.stderr


@pytest.mark.parametrize("row_id", [-1, 0, -(2**62), 2**39, 2**40, 2**62])
def test_a_row_outside_all_trees(site: Site, row_id: int) -> None:
    """Such rows are shown by queries as any other one."""
    row = next(one for one in site.rows() if one[0] == site.id_of("key-2"))
    made_up = (row_id, *row[1:])
    names = ", ".join(COLUMNS)
    values = ", ".join(f"${number}" for number in range(1, len(COLUMNS) + 1))
    site.sql(f"INSERT INTO audit_log ({names}) VALUES ({values})", *made_up)
    code, said = site.verify()
    assert code == 1
    assert ("row_removed" if row_id == 2**39 else "row_inserted" if row_id <= 0 else "tree_missing") in said


def test_a_row_put_back_below_what_retention_has_deleted(site: Site) -> None:
    rows = site.rows()
    floor = EMPTY.extend([row[LEAF_HASH] for row in rows[:3]])
    site.sql("DELETE FROM audit_log WHERE audit_id <= $1", rows[2][0])
    site.sql("UPDATE audit_trees SET floor_size = $1, floor_frontier = $2", floor.size, floor.encode())
    assert "row_inserted" not in site.verify()[1]
    names = ", ".join(COLUMNS)
    values = ", ".join(f"${number}" for number in range(1, len(COLUMNS) + 1))
    site.sql(f"INSERT INTO audit_log ({names}) VALUES ({values})", *rows[1][:3], *rows[5][3:])
    code, said = site.verify()
    assert code == 1
    assert "row_inserted" in said, said


def test_everything_removed(site: Site) -> None:
    """Nothing is left that does not fit; who trusts a key misses its tree."""
    [key] = site.run("keys")[1].splitlines()
    for table in ("audit_log", "audit_trees", "audit_heads"):
        site.sql(f"DELETE FROM {table}")
    for elsewhere in (["--key", key], ["--heads", str(site.heads_file)]):
        code, said = site.verify(*elsewhere)
        assert code == 1
        assert "tree_missing" in said


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("size", "'x'"), ("floor_size", "'x'"), ("floor_size", "-5"), ("floor_size", "9223372036854775807"),
        ("public_key", "7"), ("origin", "7"), ("frontier", "'x'"), ("floor_frontier", "7"), ("tree", "-1"),
        ("tree", "4611686018427387904"),
    ],
)  # fmt: skip
def test_a_damaged_tree_hides_no_changed_row(tmp_path: Path, site: Site, column: str, value: str) -> None:
    if isinstance(site.engine, PostgresEngine):
        pytest.skip("PostgreSQL checks the types of columns")
    row = site.id_of("key-2")
    site.sql("UPDATE audit_log SET actor_id = 'someone' WHERE audit_id = $1", row)
    site.sql(f"UPDATE audit_trees SET {column} = {value}")
    code, said = site.verify()
    assert code == 1
    assert "tree_differs" in said or "tree_missing" in said
    assert column in {"tree", "origin"} or f"row {row} was changed" in said, said


def test_rows_with_any_columns_are_exported(site: Site) -> None:
    row = site.id_of("key-2")
    site.sql("UPDATE audit_log SET metadata = '{x', workspace = $1 WHERE audit_id = $2", "a\nb\x1b[2J", row)
    if not isinstance(site.engine, PostgresEngine):
        site.sql("UPDATE audit_log SET success = X'ff', leaf_hash = 7 WHERE audit_id = $1", row)
    code, said = site.run("export")
    assert (code, len(said.splitlines())) == (0, len(site.rows()))
    assert "\x1b" not in said
    found = next(one for one in map(json.loads, said.splitlines()) if one["audit_id"] == row)
    assert (found["metadata"], found["workspace"]) == ("{x", "a\nb\x1b[2J")

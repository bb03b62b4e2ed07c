"""What was answered survives a power loss that drops whatever was not synced.

The recorder is C, preloaded into a process that writes to a database. Without a C compiler these
tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from tests.storage.sqlite.power_loss.recording import Disk, Record, crash_points, read_records
from tests.storage.sqlite.power_loss.workload import ROWS, WRITES

CRASHES = 90
SHARES = (0.0, 0.5, 0.9)
"""Shares of the sectors not synced that are on the disk all the same."""


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("the recorder needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("recorder") / "recorder.so"
    source = Path(__file__).with_name("recorder.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl", "-lpthread"], check=True)
    return library


def record(recorder: Path, place: Path, seed: int, way: str) -> list[Record]:
    """Run the workload, and return what it did to its files."""
    data = place / "data"
    data.mkdir()
    subprocess.run(
        [sys.executable, "-m", "tests.storage.sqlite.power_loss.workload", str(data), str(seed), way],
        check=True,
        cwd=Path(__file__).parents[4],
        env={**os.environ, "LD_PRELOAD": str(recorder), "RECORD_DIR": str(data), "RECORD_FILE": str(place / "records")},
    )
    return read_records(place / "records")


def recover(place: Path, files: Mapping[str, bytes]) -> dict[int, int]:
    """Open the files as after a restart; the number that each row has."""
    place.mkdir(exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    for name, content in files.items():
        if not name.endswith("-shm"):  # which is made anew
            (place / name).write_bytes(content)
    with closing(sqlite3.connect(place / "items.db")) as database:
        database.execute("PRAGMA synchronous=OFF")
        assert database.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        return {row: int(data.split(b":")[0]) for row, data in database.execute("SELECT id, data FROM items")}


def answered(disk: Disk) -> dict[int, int]:
    """The last number of each row that was answered."""
    lines = [line.split() for line in disk.all_written("answers").splitlines()]
    return {int(row): int(number) for row, number in lines if int(row)}


@pytest.mark.parametrize("way", ["kernel", "thread"])
def test_a_power_loss_takes_nothing_that_was_answered(recorder: Path, tmp_path: Path, way: str) -> None:
    seed = 20
    records = record(recorder, tmp_path, seed, way)
    by_the_kernel = sum(one.kind == "a" for one in records)
    if way == "kernel" and not by_the_kernel:
        pytest.skip("this kernel or sandbox has no asynchronous fdatasync")
    assert (by_the_kernel > 5) == (way == "kernel")
    random = Random(seed)
    points = crash_points(records, random, CRASHES)
    disk = Disk()
    at = tried = 0
    for point in points:
        for one in records[at:point]:
            disk.apply(one)
        at = point
        due = answered(disk)
        for share in SHARES:
            stored = recover(tmp_path / "after", disk.without_power(random, share))
            lost = {row: (number, stored.get(row)) for row, number in due.items() if stored.get(row, 0) < number}
            assert not lost, f"seed {seed}, power lost after record {point}, {share} of the rest kept"
            tried += 1
    assert tried >= CRASHES
    assert len(answered(disk)) == ROWS
    assert sum(answered(disk).values()) > ROWS * WRITES // 2
    assert any(one.kind == "w" and one.name == "items.db" for one in records[at // 2 :]), "no checkpoint was seen"


def last_commit(records: Sequence[Record]) -> tuple[int, int]:
    """Choose a commit of few bytes: the numbers of records before and with its writes."""
    syncs = [n for n, one in enumerate(records) if one.kind in "as" and one.name == "items.db-wal"]
    sizes = {}
    for before, begun in pairwise(syncs):
        writes = [one for one in records[before:begun] if one.kind in "wt" and one.name.startswith("items.db")]
        # no checkpoint, and no log that begins anew
        alone = all(one.name == "items.db-wal" and one.offset for one in writes)
        if writes and alone:
            sizes[before, begun] = sum(len(one.data) for one in writes)
    return min(sizes, key=lambda commit: sizes[commit])


def test_a_last_record_that_is_torn_at_any_byte_takes_nothing_before_it(recorder: Path, tmp_path: Path) -> None:
    """The last commit is cut at each of its bytes; at some of them noise follows."""
    records = record(recorder, tmp_path, 7, "kernel")
    before, begun = last_commit(records)
    disk = Disk()
    for one in records[:before]:
        disk.apply(one)
    files = {name: disk.all_written(name) for name in ("items.db", "items.db-wal")}
    expected = recover(tmp_path / "after", files)
    writes = [one for one in records[before:begun] if one.kind == "w" and one.name == "items.db-wal"]
    start, end = writes[0].offset, writes[-1].offset + len(writes[-1].data)
    for one in records[before:begun]:
        disk.apply(one)
    whole = disk.all_written("items.db-wal")
    assert recover(tmp_path / "after", {**files, "items.db-wal": whole[:end]}) != expected
    noise = Random(7).randbytes(64)
    for cut in range(start, end):
        for tail in (b"", noise) if cut % 16 == 0 else (b"",):
            stored = recover(tmp_path / "after", {**files, "items.db-wal": whole[:cut] + tail})
            assert stored == expected, f"cut at byte {cut - start} of {end - start}, {len(tail)} bytes of noise"

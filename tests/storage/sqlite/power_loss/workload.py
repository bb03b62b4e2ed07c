"""Writes to a database in every way and notes each answer, until it is done.

Run as `python -m tests.storage.sqlite.power_loss.workload DIRECTORY SEED WAY`. An answer is a line
in the file `answers`: the row's id and the number that it has at least.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from random import Random

import trio

from aether_trio.storage.base import Execute, Program
from aether_trio.storage.sqlite import database as engine
from aether_trio.storage.sqlite import wal
from aether_trio.storage.sqlite.database import SqliteDatabase, open_sqlite
from tests.storage.programs import CREATE

ROWS = 12
WRITES = 25
"""Writes of each row."""
SMALL = 0.97
"""Share of the writes that run in the trio thread."""


def put(row: int, number: int, filler: bytes) -> Program[None]:
    yield Execute(
        "INSERT INTO items (id, data) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET data = excluded.data",
        (row, b"%d:" % number + filler),
    )


async def write_row(database: SqliteDatabase, answers: int, random: Random, row: int) -> None:
    """Write a row again and again; note each answer."""
    for number in range(1, WRITES + 1):
        program = partial(put, row, number, bytes(random.choice((10, 300, 9_000))))
        if random.random() < SMALL:
            await database.run_small(program)
        else:
            await database.run(program)
        os.write(answers, b"%d %d\n" % (row, number))
        await trio.sleep(random.choice((0, 0.001, 0.005)))


async def main(directory: Path, seed: int, way: str) -> None:
    """Write all rows at once, with frequent checkpoints."""
    random = Random(seed)
    wal.CHECKPOINT_PAGES = 10  # type: ignore[misc]
    wal.CHECK_GROUPS = 4  # type: ignore[misc]
    if way == "thread":
        engine.open_kernel_sync = lambda _: None  # type: ignore[assignment, attr-defined]
    answers = os.open(directory / "answers", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    async with open_sqlite(directory / "items.db") as database:
        await database.execute(CREATE)
        os.write(answers, b"0 0\n")
        async with trio.open_nursery() as nursery:
            for row in range(1, ROWS + 1):
                nursery.start_soon(write_row, database, answers, random, row)
        os.fsync(answers)
        os._exit(0)  # a close would copy the log into the file


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

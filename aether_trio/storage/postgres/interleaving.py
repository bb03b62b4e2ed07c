"""Runs the programs of one group interleaved, so that they share round trips.

    program A  ── FetchOne ─┐                     ┌─ writes ── FetchOne ─┐
    program B  ── FetchOne ─┼── one round trip ───┼─ end                 ├── one round trip ── …
    program C  ── FetchOne ─┘                     └─ writes ── FetchOne ─┘

Each program runs until its next FetchOne; those with one SQL text are pipelined. Those that are
`late` wait until all programs that go on wait for such a one. Other statements run at once, in the
order of the programs, as without interleaving.

Invariants: programs that run interleaved have different keys, so none decides on a row that
another one writes (`Database.run_keyed`). A program without a key runs when those before it have
ended, and before those behind it begin. A program that yields Alone runs again after the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from aether_trio.storage.base import Alone, Deferred, FetchOne, Program, Row
from aether_trio.storage.postgres.merged_writes import WriteMerger
from aether_trio.storage.postgres.statements import DeferredWrites, PostgresJob, drive, run_statement

_Parked = tuple[PostgresJob, Program[Any], FetchOne]
"""A program that waits for the row of a FetchOne."""


def in_parts(jobs: Sequence[PostgresJob]) -> Iterator[list[PostgresJob]]:
    """Split a group into runs of jobs with different keys, and jobs without a key."""
    part: list[PostgresJob] = []
    keys: set[str] = set()
    for job in jobs:
        named = {job.key, job.also} - {""}
        if part and (not job.key or named & keys or not part[-1].key):
            yield part
            part, keys = [], set()
        part.append(job)
        keys |= named
    if part:
        yield part


async def drive_group(connection: Any, jobs: Sequence[PostgresJob], merger: WriteMerger | None = None) -> None:
    """Run the programs of a group to their ends, and all their deferred writes."""
    deferred = DeferredWrites(merger)
    for part in in_parts(jobs):
        await drive_interleaved(connection, part, deferred)
    await deferred.write(connection)


async def drive_interleaved(connection: Any, jobs: Sequence[PostgresJob], deferred: DeferredWrites) -> None:
    """Run programs with different keys to their ends; put their results into the jobs."""
    if len(jobs) == 1:
        jobs[0].value = await drive(connection, jobs[0], deferred)
        return
    alone: list[PostgresJob] = []
    programs: list[Program[Any]] = []
    parked: list[_Parked] = []
    try:
        for job in jobs:
            job.rows = 0
            program = job.factory()
            programs.append(program)
            if (waits := await _advance(connection, job, program, None, deferred, alone)) is not None:
                parked.append(waits)
        while parked:
            late = [one for one in parked if one[2].late]
            waiting = [one for one in parked if not one[2].late] or late
            parked = late if waiting is not late else []
            rows = await _fetch(connection, waiting, deferred, jobs)
            for (job, program, _), found in zip(waiting, rows, strict=True):
                if (waits := await _advance(connection, job, program, found, deferred, alone)) is not None:
                    parked.append(waits)
    finally:
        for program in programs:
            program.close()
    for job in alone:
        job.value = await drive(connection, job, deferred)


async def _advance(
    connection: Any,
    job: PostgresJob,
    program: Program[Any],
    result: Any,
    deferred: DeferredWrites,
    alone: list[PostgresJob],
) -> _Parked | None:
    """Run a program to its next FetchOne, its end (None) or its Alone (None)."""
    try:
        while True:
            statement = program.send(result)
            if isinstance(statement, FetchOne):
                return job, program, statement
            if isinstance(statement, Alone):
                alone.append(job)
                return None
            if isinstance(statement, Deferred):
                deferred.add(statement, job)
                job.rows += 1
                result = None
                continue
            if deferred.precede(statement):
                await deferred.write(connection)
            result = await run_statement(connection, statement, job)
    except StopIteration as stop:
        job.value = stop.value
        return None


async def _fetch(
    connection: Any, parked: Sequence[_Parked], deferred: DeferredWrites, jobs: Sequence[PostgresJob]
) -> list[list[Row]]:
    """Run the FetchOne of parked programs; return the rows of each: one or none."""
    by_sql: dict[str, list[int]] = {}
    for at, (_, _, statement) in enumerate(parked):
        by_sql.setdefault(statement.sql, []).append(at)
    found: list[list[Row]] = [[] for _ in parked]
    for sql, places in by_sql.items():
        first = parked[places[0]][2]
        if deferred.precede_own(first, [parked[at][0] for at in places], jobs):
            await deferred.write(connection)
        args = [parked[at][2].args for at in places]
        rows = iter([tuple(record) for record in await connection.fetchmany(sql, args)])
        row = next(rows, None)
        # Rows come in the order of the arguments.
        for at, (key, *_) in zip(places, args, strict=True):
            if row is not None and row[0] == key:
                found[at].append(row)
                row = next(rows, None)
        assert row is None, sql
    return found

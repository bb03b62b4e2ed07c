"""Half a minute of faults on a real cluster, and every invariant."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from chaos.load import Rates
from chaos.plan import Kind
from chaos.run import Wishes, last_lines_of_tracebacks, run

pytestmark = pytest.mark.crash

SEED: Final = 834
"""Its faults are of all the kinds below, one of them a SIGSTOP that is longer than the grace of a
lease.
"""
KINDS: Final = (
    Kind.KILL_NODE,
    Kind.STOP_NODE,
    Kind.CRASH_DATABASE,
    Kind.END_LEASE,
    Kind.WITHHOLD_LEASE,
    Kind.END_BACKEND,
    Kind.END_BUS,
    Kind.CUT_DATABASE_LINK,
    Kind.CUT_CLIENTS,
    Kind.STALL_DATABASE_LINK,
    Kind.STALL_WRITE,
)
BOUND_S: Final = 120.0
"""A safety net: how soon clients are back on a machine that does nothing else is what a run of `nox
-s chaos` is about.
"""


async def test_half_a_minute_of_faults_violates_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    wishes = Wishes(
        SEED,
        minutes=24 / 60,
        nodes=3,
        mean_s=1.2,
        bound_s=BOUND_S,
        trials=0,
        kinds=KINDS,
        rates=Rates(peers=4, workers=3, messages_per_s=12.0),
        keep=tmp_path / "kept",
    )
    assert wishes.keep is not None
    result = await run(wishes, said.append)
    story = "\n".join(said)
    assert {fault.kind for fault in result.history.disturbances} == set(KINDS), story
    assert result.missed <= len(result.history.disturbances) // 2, story
    violations = [f"{verdict.invariant}: {one}" for verdict in result.verdicts for one in verdict.violations]
    assert violations == [], story
    assert [verdict.invariant for verdict in result.verdicts if not verdict.looked_at] == []
    assert result.well
    kept = {file.name: file for file in wishes.keep.iterdir()}
    assert set(kept) == {"history.jsonl", "node-1.log", "node-2.log", "node-3.log", "postgres-log"}
    seen = Counter(json.loads(line)["what"] for line in kept["history.jsonl"].read_text().splitlines())
    assert (seen["run"], seen["sent"], seen["held"]) == (1, len(result.history.sent), len(result.history.held))


def test_the_last_line_of_each_traceback_is_found() -> None:
    printed = """2026-11-27 07:49:23 [error    ] a write failed                 writes=1
Traceback (most recent call last):
  File "/x/writes.py", line 1, in run
    await perform(one)
          ^^^^^^^^^^^^
KeyError: 7
2026-11-27 07:49:24 [info     ] lease regained                 epoch=2
  + Exception Group Traceback (most recent call last):
  |   File "/x/core.py", line 2, in main
  |     raise combined
  | ExceptionGroup: Exceptions from Trio nursery (1 sub-exception)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "/x/y.py", line 3, in z
    |     assert it
    | AssertionError
    +------------------------------------
2026-11-27 07:49:25 [warning  ] lease lost reason='Traceback of a bug'
"""
    assert last_lines_of_tracebacks(printed) == [
        "KeyError: 7",
        "ExceptionGroup: Exceptions from Trio nursery (1 sub-exception)",
        "AssertionError",
    ]
    assert last_lines_of_tracebacks("nothing") == []

"""Check an audit log in a file, by one process and by several.

The log is written once, by the programs of the gateway. Each window checks all of it, as
`aether audit verify` does, in a process that may use one CPU, and in one that may use two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, Final

from bench.access_ground import lay_audit
from bench.goals import Goal
from bench.scenarios.base import Scenario
from bench.world import ScenarioFailed

ROWS_PER_S: Final = 200_000.0
CPUS: Final = (1, 2)


class Verify(Scenario):
    """Scenario: the whole check of a log, over and over."""

    name = "access-verify"
    doc = "`audit verify` of 500,000 rows in a SQLite file, by one process and by two"
    unit = "row"
    own_server = True
    gated = ()

    def prepare(self) -> None:
        assert self.world.data_dir is not None
        self._data_dir = self.world.data_dir
        lay_audit(self._data_dir, self.options.audit_rows)
        self._fastest: dict[int, float] = {}
        self._cpu_us = 0.0
        self.rows = 0

    def window(self, seconds: float) -> int:
        before = self.rows
        available = sorted(os.sched_getaffinity(0))
        for count in CPUS:
            if count > len(available):
                continue
            cpus = ",".join(map(str, available[:count]))
            command = [sys.executable, "-m", "bench.verifying", str(self._data_dir), cpus]
            said = subprocess.run(command, check=False, capture_output=True, text=True)
            if said.returncode:
                raise ScenarioFailed(f"the check failed: {said.stderr[-500:]}")
            found = json.loads(said.stdout)
            if found["findings"]:
                raise ScenarioFailed(f"a log that was not changed has findings: {found['findings']}")
            self._fastest[count] = max(self._fastest.get(count, 0.0), found["rows"] / found["seconds"])
            if count == 1:
                cost = found["cpu_seconds"] * 1e6 / found["rows"]
                self._cpu_us = min(self._cpu_us or cost, cost)
            self.rows += found["rows"]
        return self.rows - before

    def finish(self) -> None:
        most = max(self._fastest)
        for count, rate in self._fastest.items():
            goal = ROWS_PER_S if count == most else None
            self.goals.append(Goal(f"rows a second on {count} CPU", rate, "", goal, at_least=True))
        self.goals.append(Goal("CPU of a row, one process", self._cpu_us, "us"))
        self.verdict.counts = {"rows": self.rows}

    def parameters(self) -> dict[str, Any]:
        return {"rows": self.options.audit_rows}

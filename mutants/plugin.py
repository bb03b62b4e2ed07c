"""Report to `sample` from a run of pytest, with `-p mutants.plugin`.

Two environment variables tell it what to run and where to write.

MUTANTS_RECORD names a file for a Record: all that is chosen, and which of it runs which lines of
the module MUTANTS_MODULE. MUTANTS_CHOICE names a file with the tests to run, in their order, and
gets which of them is at work and which has failed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest

RECORD: Final = "MUTANTS_RECORD"
MODULE: Final = "MUTANTS_MODULE"
CHOICE: Final = "MUTANTS_CHOICE"
_PR_SET_PDEATHSIG: Final = 1


def pytest_configure(config: pytest.Config) -> None:
    """Take the part that this run has."""
    if sys.platform == "linux":
        # What is left of a run whose `sample` was killed ends as well.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if RECORD in os.environ:
        config.pluginmanager.register(Recorder(Path(os.environ[RECORD]), Path(os.environ[MODULE])))
    else:
        config.pluginmanager.register(Chooser(Path(os.environ[CHOICE])))


class Recorder:
    """Writes which tests run which lines, how long they take, and which fail as it is."""

    def __init__(self, record: Path, module: Path) -> None:
        import coverage

        self._record, self._module = record, module
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()
        self._coverage = coverage.Coverage(data_file=None, config_file=False, include=[str(module)], messages=False)
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """What runs now, runs for this test."""
        self._coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Setting up counts, too."""
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration
        if report.outcome != "passed":
            self._failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write it all."""
        self._coverage.stop()
        by_line = self._coverage.get_data().contexts_by_lineno(str(self._module))
        lines = {line: sorted({*tests} - {""}) for line, tests in by_line.items()}
        record = {"seconds": self._seconds, "failed": sorted(self._failed), "lines": lines}
        self._record.write_text(json.dumps(record))


class Chooser:
    """Runs the chosen tests, and records each result at once.

    A run may have to be killed.
    """

    def __init__(self, choice: Path) -> None:
        self._order = {name: index for index, name in enumerate(json.loads(choice.read_text()))}
        self._said = choice.with_suffix(".said")

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """The quick ones first; pytest itself then keeps those together that share what is
        expensive.
        """
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in self._order])
        items[:] = sorted(
            (item for item in items if item.nodeid in self._order), key=lambda item: self._order[item.nodeid]
        )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._say("begun", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has failed, or what it needs has."""
        if report.outcome == "failed":
            self._say("failed", report.nodeid)

    def _say(self, what: str, name: str) -> None:
        with self._said.open("a") as file:
            file.write(f"{what} {name}\n")

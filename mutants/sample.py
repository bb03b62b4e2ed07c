"""Try a sample of a module's changes, each in a copy of the tree, bounded in time."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mutants import plugin
from mutants.changes import Change, changes

LEFT_OUT: Final = (".git", ".venv", ".nox", ".*_cache", "__pycache__", ".hypothesis", ".coverage*", "bench-results")
BOUND_FACTOR: Final = 4
"""A run has so many times what its tests took before, and LEAST_BOUND_S beside: tests that wait for
a minute at most fail by then.
"""
LEAST_BOUND_S: Final = 150.0
RECORD_BOUND_S: Final = 3600.0
SAMPLE_SEED: Final = 0
_PR_SET_CHILD_SUBREAPER: Final = 36


class CannotRun(Exception):
    """Nothing can be said about this module; the message says why."""


class Result(enum.Enum):
    """What became of a change, the worst first."""

    SURVIVED = "SURVIVED"
    HANG = "hang"
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one change: `by` is the test that failed or hangs, if any.

    Of a survivor it says how many tests ran.
    """

    change: Change
    result: Result
    by: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Wishes:
    """`module` and `tests` are relative to `root`.

    `whole`: all tests for each change, also those that only start processes.
    """

    root: Path
    module: Path
    tests: tuple[str, ...]
    count: int
    seed: int
    whole: bool = False
    lines: range | None = None
    least_bound_s: float = LEAST_BOUND_S


@dataclass(frozen=True, slots=True)
class Record:
    """What the tests do while nothing is changed."""

    seconds: dict[str, float]
    failed: frozenset[str]
    lines: dict[int, frozenset[str]]

    def tests_of(self, lines: Sequence[int], *, whole: bool) -> list[str]:
        """Give the tests that run one of these lines, or all; quick ones first.

        Without lines, the tests that run any line of the module.
        """
        if whole:
            found = set(self.seconds)
        else:
            found = set().union(*(tests for line, tests in self.lines.items() if not lines or line in lines))
        return sorted(found - self.failed, key=lambda name: (self.seconds.get(name, 0.0), name))


def tests_for(root: Path, module: Path) -> tuple[str, ...]:
    """Return the folder that mirrors the module's, or the nearest above it.

    For a module at the top this is `tests`.
    """
    folder = Path("tests", *module.parts[1:-1])
    while not (root / folder).is_dir():
        folder = folder.parent
    return (str(folder),)


def run(wishes: Wishes, say: Callable[[str], None]) -> list[Outcome]:
    """Try the sample; the outcomes, the worst first. Raises CannotRun."""
    source = (wishes.root / wishes.module).read_text()
    possible = [one for one in changes(source) if wishes.lines is None or one.line in wishes.lines]
    chosen = random.Random(wishes.seed).sample(possible, min(wishes.count, len(possible)))
    if not chosen:
        raise CannotRun(f"there is nothing to change in {wishes.module}")
    with _workplace(wishes.root) as place:
        say(f"{len(chosen)} of {len(possible)} changes; first the tests as they are: {' '.join(wishes.tests)}")
        record = place.record(wishes)
        say(f"{len(record.seconds)} tests in {sum(record.seconds.values()):.0f} s")
        for name in sorted(record.failed):
            say(f"left out, as it does not pass: {name}")
        outcomes = []
        for number, change in enumerate(sorted(chosen, key=lambda one: one.start), 1):
            outcome = place.try_one(wishes, source, change, record.tests_of(change.lines, whole=wishes.whole), record)
            say(f"{number}/{len(chosen)} line {change.line}: {outcome.result.value} {outcome.by}")
            outcomes.append(outcome)
    order = list(Result)
    return sorted(outcomes, key=lambda one: (order.index(one.result), one.change.line))


class Workplace:
    """The copy, and where runs write. Made by `_workplace`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copy = folder / "tree"
        self._choice = folder / "choice.json"

    def record(self, wishes: Wishes) -> Record:
        """Run the tests as they are. Raises CannotRun."""
        file = self._folder / "record.json"
        variables = {plugin.RECORD: str(file), plugin.MODULE: str(self._copy / wishes.module)}
        code = self._pytest(variables, wishes.tests, RECORD_BOUND_S)
        if not file.exists():
            raise CannotRun(f"pytest has ended with {code}:\n{self._output()}")
        read = json.loads(file.read_text())
        lines = {int(line): frozenset(tests) for line, tests in read["lines"].items()}
        record = Record(read["seconds"], frozenset(read["failed"]), lines)
        if not record.tests_of((), whole=wishes.whole):
            raise CannotRun(f"none of {' '.join(wishes.tests)} runs {wishes.module} and passes:\n{self._output()}")
        return record

    def try_one(self, wishes: Wishes, source: str, change: Change, tests: Sequence[str], record: Record) -> Outcome:
        """Run these tests with this change."""
        if not tests:
            return Outcome(change, Result.SURVIVED, "no test runs the line", 0.0)
        module = self._copy / wishes.module
        said = self._choice.with_suffix(".said")
        said.write_text("")
        self._choice.write_text(json.dumps(tests))
        bound_s = wishes.least_bound_s + BOUND_FACTOR * sum(record.seconds[name] for name in tests)
        files = list(dict.fromkeys(name.partition("::")[0] for name in tests))
        begun = time.monotonic()
        try:
            module.write_text(change.applied(source))
            _forget_compiled(module)
            arguments = ["-x", "-p", "no:cacheprovider", f"--hypothesis-seed={SAMPLE_SEED}", *files]
            code = self._pytest({plugin.CHOICE: str(self._choice)}, arguments, bound_s)
        finally:
            module.write_text(source)
            _forget_compiled(module)
            shutil.rmtree(self._copy / ".hypothesis", ignore_errors=True)
        took_s = time.monotonic() - begun
        events = [line.partition(" ")[::2] for line in said.read_text().splitlines()]
        failed = [name for what, name in events if what == "failed"]
        if failed:
            return Outcome(change, Result.KILLED, failed[0], took_s)
        if code == 0:
            return Outcome(change, Result.SURVIVED, f"{len(tests)} tests run the line", took_s)
        if code is None or (code == 1 and events):  # pytest-timeout leaves without a report
            return Outcome(change, Result.HANG, events[-1][1] if events else "import", took_s)
        return Outcome(change, Result.KILLED, "import", took_s)

    def _pytest(self, variables: dict[str, str], arguments: Sequence[str], bound_s: float) -> int | None:
        """The exit status; None when it had to be killed.

        Nothing that it has started goes on.
        """
        temporary = self._folder / "tmp"
        temporary.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            **variables,
            "PYTHONPATH": os.pathsep.join([str(self._copy), str(Path(plugin.__file__).parents[1])]),
            "TMPDIR": str(temporary),
            "PYTHONUNBUFFERED": "1",
        }
        with (self._folder / "output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", f"--rootdir={self._copy}", "-p", "mutants.plugin", *arguments],
                cwd=self._copy,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                return process.wait(bound_s)
            except subprocess.TimeoutExpired:
                return None
            finally:
                _kill_all(process)
                shutil.rmtree(temporary, ignore_errors=True)

    def _output(self) -> str:
        return "\n".join((self._folder / "output").read_text(errors="replace").splitlines()[-30:])


@contextlib.contextmanager
def _workplace(root: Path) -> Iterator[Workplace]:
    if sys.platform == "linux":
        # What a run has started and left is our child then, and can be found.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user where the tests run as root
        shutil.copytree(root, folder / "tree", symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        yield Workplace(folder)


def _forget_compiled(module: Path) -> None:
    """Python compares sizes and whole seconds, and a change may keep both."""
    for file in (module.parent / "__pycache__").glob(f"{module.stem}.*.pyc"):
        file.unlink()


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    """End a run, and all that is left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while left := _children():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _children() -> list[int]:
    """Our children, as Linux knows them; none elsewhere."""
    found = []
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in file.read_text().split()]
    return found

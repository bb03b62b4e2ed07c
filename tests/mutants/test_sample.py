"""A sample of a small project: which test fails, and that nothing remains of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from mutants import sample
from mutants.cli import ROOT, parser, wishes_of

PATIENCE_S = 120

PROJECT = {
    "pyproject.toml": """\
        [tool.pytest.ini_options]
    """,
    "pkg/__init__.py": "",
    "pkg/part/__init__.py": "",
    "pkg/part/sums.py": """\
        LIMIT = 10

        def below(a):
            return a < LIMIT

        def unused(a):
            return a + 1

        def total(count):
            found = 0
            while count > 0:
                found += count
                count -= 1
            return found
    """,
    "tests/part/test_sums.py": """\
        import os, subprocess, sys
        from pkg.part.sums import below, total

        def test_below():
            assert below(1) and not below(11)

        def test_total():
            sleep = [sys.executable, "-c", "import time; time.sleep(3600)"]
            left = subprocess.Popen(sleep, start_new_session=True)
            with open(os.environ["LEFT"], "a") as file:
                file.write(f"{left.pid}\\n")
            assert total(3) == 6

        def test_that_fails():
            assert False

        def test_of_something_else():
            pass
    """,
}


class Project:
    """The project, and a folder for all that is temporary."""

    def __init__(self, folder: Path) -> None:
        self.root, self.temporary, self._left = folder / "project", folder / "t", folder / "left"
        self.temporary.mkdir()
        self._left.touch()
        for name, text in PROJECT.items():
            file = self.root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(dedent(text))
        self._before = self._files()
        self._json = folder / "result.json"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mutants", "pkg.part.sums", "--root", str(self.root), *arguments]
        environment = {
            **os.environ,
            "TMPDIR": str(self.temporary),
            "LEFT": str(self._left),
            # Others are of no use to this project, and take a second to import.
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_PLUGINS": "_hypothesis_pytestplugin",
        }
        return subprocess.Popen(
            [*command, "--json", str(self._json)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, list[dict[str, Any]]]:
        """The exit status, what was printed, and the outcomes."""
        with self.start(*arguments) as process:
            output, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode in {0, 1}, said
        return process.returncode, output, json.loads(self._json.read_text())["outcomes"]

    def check_untouched(self) -> None:
        """The tree is as it was, nothing temporary is left, and nothing runs on."""
        assert self._files() == self._before
        assert list(self.temporary.iterdir()) == []
        pids = [int(line) for line in self._left.read_text().split()]
        assert pids
        assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []

    def _files(self) -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in self.root.rglob("*") if file.is_file()}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere orphans are not found")
def test_a_sample_of_all_there_is(project: Project) -> None:
    status, output, outcomes = project.run("--lines", "4-8", "--bound", "600", "--seed", "1")
    assert status == 1
    found = [(one["result"], one["line"], one["was"]) for one in outcomes]
    assert found == [
        ("survived", 4, "a < LIMIT"),
        ("survived", 7, "return a + 1"),
        ("survived", 7, "a + 1"),
        ("survived", 7, "1"),
        ("killed", 4, "return a < LIMIT"),
    ]
    assert [one["by"] for one in outcomes] == [
        "1 tests run the line",
        *["no test runs the line"] * 3,
        "tests/part/test_sums.py::test_below",
    ]
    assert "| SURVIVED | 4 | `a < LIMIT` | `(a <= LIMIT)` | 1 tests run the line |" in output
    assert "pkg/part/sums.py, seed 1: 1 of 5 noticed (20 %), 0 of these by a hang" in output
    project.check_untouched()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere orphans are not found")
def test_a_loop_that_cannot_end_is_ended(project: Project) -> None:
    """A bound that is over at once has the same result on any machine."""
    status, _, outcomes = project.run("--lines", "13", "--bound", "1", "--count", "1", "--seed", "2")
    assert [(one["result"], one["was"], one["is"]) for one in outcomes] == [("hang", "count -= 1", "pass")]
    assert status == 0
    project.check_untouched()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere orphans are not found")
def test_one_that_is_stopped_leaves_nothing(project: Project) -> None:
    with project.start("--lines", "13", "--bound", "3600", "--count", "1", "--seed", "2") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("left out"):
                break
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
    assert process.returncode == 130
    project.check_untouched()


def test_tests_that_do_not_run_the_module_say_nothing(project: Project) -> None:
    with project.start("--tests", "tests/part/test_sums.py::test_of_something_else") as process:
        output, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, output) == (2, "")
    assert "runs pkg/part/sums.py and passes" in said


def test_the_tests_of_a_change() -> None:
    lines = {3: frozenset({"a", "b"}), 4: frozenset({"b", "c"}), 9: frozenset({"slow"})}
    record = sample.Record({"a": 2.0, "b": 1.0, "c": 3.0, "slow": 60.0, "process": 0.1}, frozenset({"c"}), lines)
    assert record.tests_of((3,), whole=False) == ["b", "a"]
    assert record.tests_of((4, 5), whole=False) == ["b"]
    assert record.tests_of((7,), whole=False) == []
    assert record.tests_of((), whole=False) == ["b", "a", "slow"]
    assert record.tests_of((3,), whole=True) == ["process", "b", "a", "slow"]


@pytest.mark.parametrize(
    ("module", "folder"),
    [
        ("delivery/outbox.py", "tests/delivery"),
        ("services/tasks/transaction/task_transaction.py", "tests/services/tasks/transaction"),
        ("storage/schema/tasks.py", "tests/storage"),
        ("gateway/core.py", "tests/gateway"),
        ("version.py", "tests"),
    ],
)
def test_the_tests_of_a_module(module: str, folder: str) -> None:
    assert sample.tests_for(ROOT, Path("aether_trio", module)) == (folder,)


def test_options() -> None:
    given = parser().parse_args(["aether_trio.delivery.outbox", "--lines", "4-6", "--count", "3"])
    wishes = wishes_of(given)
    assert (wishes.root, wishes.module, wishes.count) == (ROOT, Path("aether_trio/delivery/outbox.py"), 3)
    assert wishes.lines == range(4, 7)
    assert wishes.tests == ("tests/delivery",)
    for wrong in (["x.py", "--count", "0"], ["x.py", "--lines", "a"], []):
        with pytest.raises(SystemExit):
            parser().parse_args(wrong)

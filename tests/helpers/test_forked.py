"""A fork is as a new interpreter to the program that it runs, and to the test."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.forked import READ_AT_START, ROOT, ForkedProcess, run

SHOW = (sys.executable, "-m", "tests.helpers.shown_process")
STRICT = (sys.executable, "-W", "error", *SHOW[1:])
WAYS = {"new": subprocess.Popen[Any], "forked": ForkedProcess}
LIMIT_S = 300


def own(errors: bytes) -> bytes:
    """Leave out a traceback's lines about what started the program."""
    return re.sub(rb'(?:  File "<frozen runpy>".*\n|  File ".*fork_server.py".*\n.*\n(?: +[~^]+\n)?)', b"", errors)


def pair(command: tuple[str, ...], **options: Any) -> list[tuple[int, bytes, bytes]]:
    """Give the exit code, output and errors by a new interpreter and by a fork."""
    given = options.pop("input", None)
    ended = []
    for way in WAYS.values():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with way(command, **{**pipes, **options}) as process:
            assert (getattr(process, "_connection", None) is not None) == (way is ForkedProcess)
            out, err = process.communicate(given, LIMIT_S)
            ended.append((process.returncode, out, own(err or b"")))
    return ended


@pytest.mark.parametrize("command", [SHOW, STRICT], ids=["plain", "strict"])
@pytest.mark.parametrize("end", ["exit", "message", "error", "warning", "input", "none"])
def test_a_program_finds_and_says_the_same(command: tuple[str, ...], end: str) -> None:
    environment = dict(os.environ)  # else those that readline sets are inherited, too
    given = b"one\r\ntwo \xff\n"
    new, forked = pair((*command, end, "--an", "öption", "\udcff"), input=given, env=environment)
    lines = [out.splitlines() for _, out, _ in (new, forked)]
    assert json.loads(lines[1][0]) == json.loads(lines[0][0])
    assert (forked[0], lines[1][1:], forked[2]) == (new[0], lines[0][1:], new[2])
    assert forked[2].startswith(b"its error\n")


@pytest.mark.parametrize(
    "options",
    [
        {"cwd": "/"},
        {"env": {"A": "b\udcff=", "TZ": "Asia/Tokyo"}},
        {"env": {"PYTHONPATH": f"{ROOT}:/elsewhere", "PYTHONUNBUFFERED": "1"}},
        {"start_new_session": True},
        {"process_group": 0},
        {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT},
        {"stdin": None, "stderr": None},
    ],
    ids=" ".join,
)
def test_options_do_the_same(options: dict[str, Any]) -> None:
    started = {name: value for name, value in os.environ.items() if name.startswith(READ_AT_START)}
    given = options.get("env", os.environ)
    options = options | {"env": started | {"PYTHONPATH": ROOT} | given}
    new, forked = pair((*SHOW, "exit"), **options)
    assert (forked[0], forked[2]) == (new[0], new[2])
    assert json.loads(forked[1].splitlines()[0]) == json.loads(new[1].splitlines()[0])


def test_the_masks_and_limits_of_the_tests_are_inherited() -> None:
    run((*SHOW, "none"), capture_output=True)  # the server is there before
    umask = os.umask(0o027)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[0] - 1, files[1]))
    try:
        new, forked = (json.loads(out.splitlines()[0]) for _, out, _ in pair((*SHOW, "none")))
    finally:
        os.umask(umask)
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
    assert forked["umask"] == new["umask"] == 0o027
    assert forked["limits"] == new["limits"]
    assert [files[0] - 1, files[1]] in forked["limits"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_end_it_in_the_same_way(number: signal.Signals) -> None:
    codes = []
    for way in WAYS.values():
        with way((*SHOW, "wait"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            assert process.stdout.readline() == b"waits\n"
            assert process.poll() is None
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.001)
            process.send_signal(number)
            _, err = process.communicate(timeout=LIMIT_S)
            lines = err.splitlines()  # those between say which instruction the signal has found
            codes.append((process.wait(), process.poll(), lines[0], lines[-1]))
    assert codes[0] == codes[1]
    assert codes[0][0] == -number


def test_an_output_that_is_closed_ends_it_in_the_same_way() -> None:
    ended = []
    for way in WAYS.values():
        with way((*SHOW, "closed"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            ended.append((own(process.stderr.read()), process.wait(LIMIT_S)))
    assert ended[0] == ended[1]


def test_a_terminal_is_seen() -> None:
    shown = []
    for way in WAYS.values():
        ours, theirs = os.openpty()
        with way((*SHOW, "none"), stdin=theirs, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            data = b""
            while b"its error\r\n" not in data:
                data += os.read(ours, 65536)
            assert process.wait(LIMIT_S) == 0
        os.close(ours)
        line = json.loads(data.splitlines()[0])
        assert line["standard"][1]["terminal"]
        shown.append([{**one, "file": ""} for one in line["standard"]])
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ((sys.executable, "-c", "print(1)"), {}),
        (("/bin/echo", "1"), {}),
        ((*SHOW, "none"), {"env": {"PYTHONUTF8": "1", "PYTHONPATH": ROOT}}),
        ((*SHOW, "none"), {"env": {**os.environ, "NEW_INTERPRETERS": "1"}}),
        ((*SHOW, "none"), {"preexec_fn": int}),
        ((*SHOW, "none"), {"pass_fds": [1]}),
    ],
    ids=["program", "other-program", "variable", "asked", "preexec", "files"],
)
def test_what_a_fork_cannot_be_starts_as_usual(command: tuple[str, ...], options: dict[str, Any]) -> None:
    with ForkedProcess(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        assert process._connection is None
        assert process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 0


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run((*SHOW, "none"), cwd=tmp_path / "nowhere")


def test_run_does_what_subprocess_does() -> None:
    options: dict[str, Any] = {"input": "one", "capture_output": True, "text": True, "timeout": LIMIT_S}
    done = run((*SHOW, "input"), **options)
    assert (done.returncode, done.stdout.splitlines()[1], done.stderr) == (0, "'one'", "its error\n")
    with pytest.raises(subprocess.CalledProcessError):
        run((*SHOW, "exit"), check=True, **options)
    with pytest.raises(subprocess.TimeoutExpired):
        run((*SHOW, "wait"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=0.5)

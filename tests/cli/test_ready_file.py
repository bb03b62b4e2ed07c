"""Test that the ready file exists only while its gateway serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aether_trio.cli.exits import SETTINGS, CliError
from aether_trio.cli.ready_file import ReadyFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ready.json"


@pytest.fixture
def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_it_appears_whole_and_disappears(path: Path) -> None:
    ready = ReadyFile(str(path))
    ready.prepare()
    assert list(path.parent.iterdir()) == []
    ready.write("127.0.0.1:1", "", {"grpc": "127.0.0.1:1"})
    assert json.loads(path.read_text()) == {
        "pid": os.getpid(),
        "gateway": "127.0.0.1:1",
        "ops": "",
        "transports": {"grpc": "127.0.0.1:1"},
    }
    assert list(path.parent.iterdir()) == [path]
    ready.remove()
    assert list(path.parent.iterdir()) == []


def test_what_a_killed_gateway_left_is_gone_before_the_next_one_opens(path: Path, dead_pid: int) -> None:
    path.write_text(json.dumps({"pid": dead_pid, "gateway": "127.0.0.1:1", "ops": ""}))
    ReadyFile(str(path)).prepare()
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "junk", "[]", "{}", '{"pid": "x"}', '{"pid": 0}', '{"pid": null}'])
def test_what_is_no_ready_file_is_no_sign_of_life(path: Path, content: str) -> None:
    path.write_text(content)
    ReadyFile(str(path)).prepare()
    assert not path.exists()


def test_a_second_gateway_that_fails_leaves_the_first_ones_alone(path: Path) -> None:
    first = json.dumps({"pid": os.getppid(), "gateway": "127.0.0.1:1", "ops": ""})
    path.write_text(first)
    second = ReadyFile(str(path))
    second.prepare()
    second.remove()
    assert path.read_text() == first


def test_a_successors_file_is_not_taken_away(path: Path) -> None:
    ready = ReadyFile(str(path))
    ready.prepare()
    ready.write("127.0.0.1:1", "", {"grpc": "127.0.0.1:1"})
    successor = json.dumps({"pid": os.getppid(), "gateway": "127.0.0.1:1", "ops": ""})
    path.write_text(successor)
    ready.remove()
    assert path.read_text() == successor


def test_where_it_cannot_be_written_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"cannot write the ready file .*No such file") as refused:
        ReadyFile(str(tmp_path / "absent" / "ready.json")).prepare()
    assert refused.value.exit_code == SETTINGS

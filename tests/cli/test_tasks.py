"""Test `aether tasks` against a real gateway, with a worker."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from aether_trio.client import connect_sync
from tests.cli.shell import LIMIT_S, Command, Shell
from tests.helpers.gateway import GatewayProcess, start_gateway


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[Any]:
    address = f"aether://{gateway.address}"
    with connect_sync(address, workspace="default", implementation="presser", specifier="1") as worker:
        yield worker


def listed(shell: Shell, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(shell.out("tasks", "list", "--json", *arguments))
    return found


def test_create_list_and_show(shell: Shell) -> None:
    place = ("--workspace", "shelf")
    assert shell.notice("tasks", "list", *place) == "no such task in the workspace shelf\n"
    plain = shell.out("tasks", "create", "press", "wine", "--pool", "absent", *place, "--priority", "high").strip()
    told = shell.out(
        *("tasks", "create", "pick", "-", "--pool", "absent", *place, "--as", "sv::boss::1", "--json"),
        *("--metadata", "size=3", "--class", "batch", "--max-attempts", "5", "--correlation", "c1"),
        stdin=b"\x00\xff",
    )
    rare = json.loads(told)
    assert rare == {"task_id": rare["task_id"], "status": "pending_pool", "assigned_to": ""}

    both = listed(shell, *place)
    assert [one["task_id"] for one in both] == [rare["task_id"], plain]
    assert (both[0]["creator"], both[0]["metadata"], both[0]["max_attempts"]) == ("sv::boss::1", {"size": "3"}, 5)
    assert (both[0]["task_class"], both[0]["status"], both[0]["started_at"]) == ("batch", "queued", None)
    assert [one["task_id"] for one in listed(shell, *place, "--type", "press", "--status", "live")] == [plain]
    assert [one["task_id"] for one in listed(shell, *place, "--creator", "sv::boss::1")] == [rare["task_id"]]
    assert [one["task_id"] for one in listed(shell, *place, "--correlation", "c1")] == [rare["task_id"]]
    assert listed(shell, *place, "--status", "ended") == []
    assert [one["task_id"] for one in listed(shell, *place, "-n", "1")] == [rare["task_id"]]

    head, *rows = shell.out("tasks", "list", *place).splitlines()
    assert head.split() == ["task", "type", "status", "attempt", "priority", "worker", "created", "error"]
    assert rows[1].split()[:5] == [plain, "press", "queued", "1/3", "high"]
    lines = dict(line.split(maxsplit=1) for line in shell.out("tasks", "show", rare["task_id"]).splitlines())
    assert lines["metadata"].strip() == "size=3"
    assert lines["attempt"].strip() == "1/5"
    assert lines["status"].strip() == "queued"
    assert json.loads(shell.out("tasks", "show", plain, "--json"))["priority"] == "high"


def test_a_list_says_whom_a_task_is_for(shell: Shell) -> None:
    place = ("--workspace", "office")
    shell.out("tasks", "create", "sign", "--target", "ag::office::clerk::1", "--offline", "queue", *place)
    assert "  for ag::office::clerk::1  " in shell.out("tasks", "list", *place)


def test_the_same_key_finds_the_same_task(shell: Shell) -> None:
    create = ("tasks", "create", "press", "--pool", "absent", "--workspace", "keys", "--idempotency-key", "order-7")
    assert shell.out(*create) == shell.out(*create)


def test_cancel_retry_and_what_to_do_about_a_refusal(shell: Shell) -> None:
    one, two = (shell.out("tasks", "create", "press", "--pool", "absent").strip() for _ in range(2))
    assert shell.out("tasks", "cancel", one, two) == f"{one} is cancelled\n{two} is cancelled\n"
    shell.fails(1, "`aether tasks show` says how", "tasks", "cancel", one)
    shell.fails(1, "--as says who asks", "tasks", "cancel", one, "--as", "sv::someone::else")
    assert shell.out("tasks", "retry", one) == f"{one} is queued again\n"
    shell.fails(1, "only tasks that have failed or were cancelled", "tasks", "retry", one)
    shell.fails(1, "only paused tasks are resumed", "tasks", "resume", one)
    for command in ("show", "watch", "cancel"):
        shell.fails(1, "`aether tasks list` shows those of a workspace", "tasks", command, "none")
    target = ("tasks", "create", "press", "--target", "ag::default::absent::1")
    shell.fails(1, "register it with `aether agents register`", *target)
    shell.fails(1, "let the task wait with --offline queue", *target, "--offline", "reject")
    assert json.loads(shell.out(*target, "--offline", "queue", "--json"))["status"] == "queued"
    shell.fails(1, "ERR_TASK_CREATE_FAILED", "tasks", "create", "press", "--target", "us::ann::1")


def test_a_task_that_waits_is_resumed(shell: Shell, client: Any) -> None:
    task_id = shell.out("tasks", "create", "press", "--pool", "presser").strip()
    with ExitStack() as stack:
        with next(client.work(timeout=LIMIT_S)) as job:
            process = stack.enter_context(shell.running("tasks", "watch", task_id, "--until-end"))
            assert "is running (attempt 1/3, ag::default::presser::1)" in process.line()
            with resumed(shell, task_id) as waiting:
                job.wait_for_input()
                assert waiting.end()[0] == 0
            job.progress(0.5, "half of it")
        code, lines, error = process.end()
    assert (code, error) == (0, "")
    assert [line.split("  ", 2)[2] for line in lines] == [
        "running -> waiting input",
        "waiting input -> running",
        "progress  50%  half of it",
        "running -> completed",
    ]


def resumed(shell: Shell, task_id: str) -> AbstractContextManager[Command]:
    """Resume the task as soon as it waits for input."""
    script = (
        f'until "$0" -m aether_trio tasks list --status waiting --json | grep -q {task_id}; do :; done; '
        f'exec "$0" -m aether_trio tasks resume {task_id}'
    )
    return shell.running(program=("/bin/sh", "-c", script, sys.executable))


def test_watching_what_has_been(shell: Shell, client: Any) -> None:
    task_id = shell.out("tasks", "create", "press", "--pool", "presser", "--max-attempts", "2", "--retry-delay", "0.1")
    task_id = task_id.strip()
    for job in client.work(timeout=LIMIT_S):
        with job:
            job.fail(f"attempt {job.attempt}")
        if job.attempt == 2:
            break
    with shell.running("tasks", "watch", task_id, "--from", "start", "--until-end", "--json") as process:
        code, lines, error = process.end()
    events = [json.loads(line) for line in lines]
    assert (code, error) == (1, "")
    assert {event["kind"] for event in events} == {"status_changed"}
    assert [(event["event"]["to_status"], event["event"]["reason"]) for event in events] == [
        ("running", ""),
        ("failed", "attempt 1"),
        ("queued", ""),
        ("running", ""),
        ("failed", "attempt 2"),
    ]


def test_dead_letters(shell: Shell) -> None:
    place = ("--workspace", "cellar")
    create = ("tasks", "create", "press", "--pool", "absent", *place, "--max-attempts", "1")
    assert shell.notice("dlq", "list", *place) == "no dead letter in the workspace cellar\n"
    dead = shell.out(*create, "--schedule-to-start", "0.01").strip()
    alive = shell.out(*create).strip()
    shell.run("tasks", "watch", dead, "--from", "start", "--until-end")
    (letter,) = json.loads(shell.out("dlq", "list", "--json", *place))
    assert letter["task_id"] == dead
    assert "schedule_to_start" in letter["error"]
    assert dead in shell.out("dlq", "list", *place)
    assert "schedule_to_start" in shell.out("dlq", "show", dead)
    assert json.loads(shell.out("dlq", "show", dead, "--json"))["status"] == "failed"
    shell.fails(1, "is no dead letter", "dlq", "show", alive)
    shell.fails(1, "is no dead letter", "dlq", "requeue", alive)
    assert shell.out("dlq", "requeue", dead[:18]) == f"{dead} is queued again\n"
    # It dies again, and now an operator resolves it.
    shell.run("tasks", "watch", dead, "--until-end")
    assert dead in shell.out("dlq", "list", *place)
    seen_to = ("--by", "ann")
    shell.fails(1, "is no open dead letter", "dlq", "resolve", alive, *seen_to)
    assert shell.out("dlq", "resolve", dead, "--notes", "pressed by hand", *seen_to) == f"{dead}  resolved\n"
    shell.fails(1, "is no open dead letter", "dlq", "resolve", dead, *seen_to)
    assert shell.notice("dlq", "list", *place) == "no dead letter in the workspace cellar\n"
    assert dead in shell.out("dlq", "list", "--all", *place)
    assert "resolved by ann" in shell.out("dlq", "show", dead)
    assert shell.out("dlq", "requeue", dead) == f"{dead} is queued again\n"
    shell.run("tasks", "watch", dead, "--until-end")
    assert dead in shell.out("dlq", "list", *place)


def test_ctrl_c_ends_watching_and_a_restart_does_not(tmp_path: Path) -> None:
    with start_gateway() as gateway:
        shell = Shell(gateway)
        one, two = (shell.out("tasks", "create", "press", "--pool", "absent").strip() for _ in range(2))
        with shell.running("tasks", "watch", one, two) as process:
            assert f"{one}  is queued" in process.line()
            assert f"{two}  is queued" in process.line()
            process.process.send_signal(signal.SIGSTOP)  # it misses what happens
            gateway.restart()
            shell.out("tasks", "cancel", two)
            process.process.send_signal(signal.SIGCONT)
            assert process.line().endswith(f"{two}  queued -> cancelled\n")
            code, lines, error = process.end(signal.SIGINT)
    assert (code, lines) == (130, [])
    assert "trying again" in error
    assert "Traceback" not in error

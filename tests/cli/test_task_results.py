"""`aether tasks` shows results, what follows a failure, and answers questions."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aether_trio.client import connect_sync
from tests.cli.shell import AETHER, Shell, on_terminal
from tests.helpers.gateway import GatewayProcess

LIMIT_S = 300


@pytest.fixture
def shell(gateway: GatewayProcess) -> Shell:
    return Shell(gateway)


@contextmanager
def handling(gateway: GatewayProcess, pool: str, handler: Callable[[Any], Any]) -> Iterator[None]:
    """Call the handler for each task of the pool, in threads, during the block."""
    address = f"aether://{gateway.address}"
    with connect_sync(address, workspace="default", implementation=pool, specifier="1", worker_tasks=4) as worker:
        thread = threading.Thread(target=worker.run_tasks, args=(handler,))
        thread.start()
        yield
    thread.join(LIMIT_S)


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ({"sum": [1, "\N{SNOWMAN}"]}, '{"sum": [1, "\N{SNOWMAN}"]}\n'.encode()),
        (b"\x00\xff", b"\x00\xff"),
        (None, b""),
        ("text", b'"text"\n'),
    ],
)
def test_create_and_wait_print_the_result(shell: Shell, gateway: GatewayProcess, given: Any, printed: bytes) -> None:
    with handling(gateway, "adder", lambda job: given):
        done = shell.run("tasks", "create", "add", "1,2", "--pool", "adder", "--wait")
    assert (done.returncode, done.stdout) == (0, printed), done
    task_id = done.stderr.decode().strip()
    again = shell.run("tasks", "wait", task_id[:-2])
    assert (again.returncode, again.stdout, again.stderr) == (0, printed, b"")
    assert shell.out("tasks", "show", task_id, "--payload") == "1,2"
    shown = json.loads(shell.out("tasks", "show", task_id, "--json"))
    match given:
        case bytes():
            assert shown["result_base64"] == "AP8="
            assert on_terminal(shell.env, 80, *AETHER, "tasks", "wait", task_id)[1] == b"\\x00\\xff\n"
        case None:
            assert "result" not in shown
        case _:
            assert shown["result"] == given
    assert (shown["attempt"], shown["outcome"], shown["metadata"]) == (1, "", {})


def test_a_result_that_was_saved_is_printed(shell: Shell, gateway: GatewayProcess) -> None:
    def handle(job: Any) -> None:
        job.save(b"x" * 600_000)
        job.complete(result_checkpoint=job.saved_key)

    with handling(gateway, "saver", handle):
        done = shell.run("tasks", "create", "big", "--pool", "saver", "--wait")
    assert (done.returncode, len(done.stdout)) == (0, 600_000)


def test_a_failure_says_what_follows(shell: Shell, gateway: GatewayProcess) -> None:
    def handle(job: Any) -> None:
        job.fail(f"no paper {job.attempt}")

    with handling(gateway, "printer", handle):
        create = ("tasks", "create", "print", "--pool", "printer")
        one = shell.run(*create, "--wait")
        assert one.returncode == 1
        assert one.stderr.decode().endswith(" has failed (no policy): no paper 1\n")
        two = shell.run(*create, "--max-attempts", "2", "--retry-delay", "0.1", "--wait")
        assert two.returncode == 1
        assert two.stderr.decode().endswith(" has failed (exhausted): no paper 2\n")
        three = shell.out(*create, "--max-attempts", "3", "--retry-delay", "600").strip()
        done = shell.run("tasks", "wait", three, "--timeout", "2")
        assert (done.returncode, done.stdout) == (124, b"")
        assert b"has not ended within 2 s; it goes on" in done.stderr
        with shell.running("tasks", "watch", three, "--until-end") as watching:
            assert ", retry 2 of 3 in " in watching.line()
            lines = dict(line.split(maxsplit=1) for line in shell.out("tasks", "show", three).splitlines())
            assert lines["status"].startswith("failed, retry 2 of 3 in ")
            assert lines["attempt"].strip() == "1/3"
            assert "failed, retry 2 of 3 in " in shell.out("tasks", "list", "--type", "print")
            shell.out("tasks", "cancel", three)
            code, [line], _ = watching.end()
        assert (code, line.rsplit("  ", 1)[1]) == (1, "failed -> cancelled")


def test_watching_until_the_end_goes_on_over_a_retry(shell: Shell, gateway: GatewayProcess) -> None:
    def handle(job: Any) -> str:
        if job.attempt < 3:
            job.fail("jam")
        return "done"

    task_id = shell.out(
        *("tasks", "create", "print", "--pool", "jammer", "--max-attempts", "3", "--retry-delay", "0.5")
    ).strip()
    with shell.running("tasks", "watch", task_id, "--until-end") as watching:
        assert "is queued" in watching.line()
        with handling(gateway, "jammer", handle):
            code, lines, error = watching.end()
    assert (code, error) == (0, "")
    assert lines[-1].endswith("running -> completed")
    failures = [line for line in lines if "-> failed" in line]
    assert len(failures) == 2
    again = shell.out("tasks", "watch", task_id, "--from", "start", "--until-end").splitlines()
    assert [line.rsplit("  ", 1)[1] for line in again if "-> failed" in line] == ["jam", "jam"]


def test_a_replay_says_what_follows_the_last_failure_only(shell: Shell, gateway: GatewayProcess) -> None:
    def handle(job: Any) -> None:
        job.fail(f"jam {job.attempt}")

    with handling(gateway, "stuck", handle):
        create = ("tasks", "create", "print", "--pool", "stuck", "--max-attempts", "2", "--retry-delay", "0.1")
        done = shell.run(*create, "--wait")
        task_id = done.stderr.decode().splitlines()[0]
        watched = shell.run("tasks", "watch", task_id, "--from", "start", "--until-end")
    failures = [line for line in watched.stdout.decode().splitlines() if "-> failed" in line]
    assert [line.split("-> failed  ")[1] for line in failures] == ["jam 1", "jam 2  (exhausted)"]


def test_a_watch_says_how_the_tasks_below_ended(shell: Shell, gateway: GatewayProcess) -> None:
    def handle(job: Any) -> None:
        job.fail("jam")

    address = f"aether://{gateway.address}"
    with connect_sync(address, workspace="default", implementation="boss", specifier="1") as boss:
        whole = boss.tasks.create("whole", pool="nowhere").task_id
        with handling(gateway, "parts", handle):
            part = boss.tasks.create("part", pool="parts", parent_task_id=whole).task_id
            boss.tasks.wait(part)
        boss.tasks.cancel(whole)
    watched = shell.run("tasks", "watch", whole, "--recursive", "--from", "start", "--until-end")
    of_whole = [line.split(whole)[1].strip() for line in watched.stdout.decode().splitlines() if whole in line]
    children = [line for line in of_whole if line.startswith("child")]
    assert [children[0], children[-1]] == [f"child {part} is created", f"child {part} is failed"]


def test_a_person_who_waits_is_told_why(shell: Shell) -> None:
    # The notice is due after two seconds.
    waits = ("tasks", "create", "press", "--pool", "vacant", "--wait", "--timeout", "15")
    code, shown = on_terminal(shell.env, 200, *AETHER, *waits)
    _, notice, last = shown.decode().splitlines()
    assert (code, notice) == (124, "it waits: no worker of the pool vacant is connected to the workspace default")
    assert "has not ended within 15 s" in last


def test_a_queued_task_says_why(shell: Shell, gateway: GatewayProcess) -> None:
    task_id = shell.out("tasks", "create", "press", "--pool", "unmanned").strip()
    assert "no worker of the pool unmanned is connected to the workspace default" in shell.out("tasks", "show", task_id)
    targeted = shell.out("tasks", "create", "sign", "--target", "ag::default::clerk::1", "--offline", "queue").strip()
    assert "ag::default::clerk::1 is not connected" in shell.out("tasks", "show", targeted)


def test_a_question_is_shown_and_answered(shell: Shell, gateway: GatewayProcess) -> None:
    def handle(job: Any) -> Any:
        answer = job.ask("Pay 5?", choices=["now", "later"], text="Why?")
        return [answer.approved, answer.choice, answer.text, answer.by]

    with handling(gateway, "payer", handle):
        task_id = shell.out("tasks", "create", "pay", "--pool", "payer").strip()
        while json.loads(shell.out("tasks", "show", task_id, "--json"))["question"] is None:
            pass
        shown = shell.out("tasks", "show", task_id)
        assert "question=Pay 5?" in shown
        assert "\nwhy it waits    waits for the answer to: Pay 5?\n" in shown
        assert "_form" not in shown
        shell.fails(1, "`aether tasks answer TASK_ID approve`", "tasks", "resume", task_id)
        shell.fails(2, "offers choices; give --choice: now, later", "tasks", "answer", task_id, "approve")
        shell.fails(2, "is none of: now, later", "tasks", "answer", task_id, "approve", "--choice", "never")
        answer = ("tasks", "answer", task_id, "approve", "--choice", "now", "--text", "due", "--as", "us::ann::w")
        shell.fails(1, "asks another question now: 'Pay 5?'", *answer, "--question", "_1-0")
        asked = json.loads(shell.out("tasks", "show", task_id, "--json"))["question"]
        assert shell.out(*answer, "--question", asked["question_id"]) == f"{task_id}  approved: Pay 5?\n"
        assert shell.out("tasks", "wait", task_id) == '[true, "now", "due", "us::ann::w"]\n'
        shell.fails(1, "asks no question: it is completed", "tasks", "answer", task_id, "reject")

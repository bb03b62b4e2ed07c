"""Test the beginnings of ids in commands, and tables on terminals."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
import trio

from aether_trio.cli.exits import USAGE, CliError
from aether_trio.cli.ids import Listed, full_id
from aether_trio.client import SessionEnded, connect_sync
from aether_trio.client.operations import AccessLevel, Principal
from aether_trio.client.operations.requests import AuthorityRoute, AuthorityWish
from tests.cli.shell import Shell
from tests.helpers.gateway import GatewayProcess

WISH = AuthorityWish(
    target_subject=Principal.user("ann"),
    requested_access_level=AccessLevel.READ,
    requested_duration_s=60,
    route=AuthorityRoute(principal=Principal.user("ann")),
    workspace_scope=("default",),
    reason="to press",
)
IDS = ("abcd-1", "abcd-2", "abcde", "ffff0", "f")


def looked_up(given: str, ids: Sequence[str] = IDS) -> str:
    async def pages() -> AsyncIterator[Sequence[Listed]]:
        for one in ids:
            yield [(one, f"about {one}")]

    return trio.run(full_id, given, "grant", pages())


def test_the_beginning_of_one_id_is_that_id() -> None:
    assert looked_up("ffff") == "ffff0"
    assert looked_up("abcd-2") == "abcd-2"
    assert looked_up("f") == "f", "a whole id, though others begin with it"
    assert looked_up("unknown") == "unknown", "for the gateway to refuse"
    assert looked_up("") == ""


def test_the_beginning_of_many_lists_them() -> None:
    with pytest.raises(CliError) as caught:
        looked_up("abcd")
    assert caught.value.exit_code == USAGE
    assert caught.value.message.splitlines() == [
        "abcd is the beginning of more than one grant: give more of the id",
        "  abcd-1  about abcd-1",
        "  abcd-2  about abcd-2",
        "  abcde  about abcde",
    ]
    with pytest.raises(CliError, match=r"\.\.\."):
        looked_up("same", [f"same{number}" for number in range(100)])
    with pytest.raises(CliError, match=r"too short.*4 characters"):
        looked_up("ff", ["ffff0"])


@pytest.fixture(scope="module")
def worker(gateway: GatewayProcess) -> Iterator[Any]:
    address = f"aether://{gateway.address}"
    with connect_sync(address, workspace="default", implementation="presser", specifier="1") as one:
        yield one


def beginning(name: str) -> str:
    """The first half of an id, as ids of one minute begin alike."""
    return name[:18]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_tables_do_not_break_ids_on_a_terminal(shell: Shell, worker: Any, columns: int) -> None:
    task = shell.out("tasks", "create", "press", "--pool", "absent", "--workspace", f"w{columns}").strip()
    shown = shell.on_terminal(columns, "tasks", "list", "--workspace", f"w{columns}")
    assert sum(task in line for line in shown) == 1, shown
    assert all(len(line) <= columns for line in shown), shown
    shown = shell.on_terminal(columns, "sessions")
    [session] = [one for one in json.loads(shell.out("sessions", "--json")) if one["identity"].startswith("ag::")]
    assert sum(session["session_id"] in line for line in shown) == 1, shown
    assert sum(session["identity"] in line for line in shown) == 1, shown
    assert all(len(line) <= columns for line in shown), shown
    shown = shell.on_terminal(columns, "tasks", "show", task)
    assert sum(task in line for line in shown) >= 1, shown


def test_tasks_are_found_by_a_beginning(shell: Shell) -> None:
    task = shell.out("tasks", "create", "press", "--pool", "absent").strip()
    short = beginning(task)
    assert json.loads(shell.out("tasks", "show", short, "--json"))["task_id"] == task
    assert shell.notice("tasks", "list", "--parent", short) == "no such task in the workspace default\n"
    assert shell.out("tasks", "cancel", short) == f"{task} is cancelled\n"
    watched = shell.run("tasks", "watch", short, "--from", "start", "--until-end", "--json")
    assert task in watched.stdout.decode()
    shell.fails(1, "task not found", "tasks", "show", "0000-none")


def test_many_tasks_with_one_beginning_are_listed(shell: Shell, worker: Any) -> None:
    tasks = [worker.tasks.create("press", pool="absent").task_id for _ in range(40)]
    first = next(one for one in "0123456789abcdef" if sum(task.startswith(one) for task in tasks) > 1)
    done = shell.run("tasks", "show", first)
    assert done.returncode == USAGE, done
    assert f"{first} is the beginning of more than one task" in done.stderr.decode()
    assert any(task in done.stderr.decode() for task in tasks)


def test_tokens_rules_and_locks_are_found_by_a_beginning(shell: Shell) -> None:
    made = json.loads(shell.out("tokens", "create", "ci", "--principal-type", "agent", "--json"))["token"]["id"]
    assert json.loads(shell.out("tokens", "show", beginning(made)))["id"] == made
    assert shell.out("tokens", "revoke", beginning(made)) == f"{made} is revoked\n"
    assert shell.out("tokens", "delete", beginning(made)) == f"{made} is deleted\n"

    grant = ("access", "grant", "ag::red::ann::1", "workspace:blue", "read", "--json")
    rule = json.loads(shell.out(*grant))["rule_id"]
    assert "revoked" in shell.out("access", "revoke", beginning(rule))
    assert rule not in shell.out("access", "list")

    lock = shell.out("access", "lock", "ag::nowhere::*").split()[-1]
    shell.out("access", "unlock", beginning(lock))
    assert lock.encode() not in shell.run("access", "locks").stdout


def test_sessions_are_found_by_a_beginning(shell: Shell, gateway: GatewayProcess) -> None:
    address = f"aether://{gateway.address}"
    with (
        pytest.raises(SessionEnded),
        connect_sync(address, workspace="default", implementation="ended", specifier="1"),
    ):
        [session] = [
            one["session_id"] for one in json.loads(shell.out("sessions", "--json")) if "ended" in one["identity"]
        ]
        told = shell.out("sessions", "--disconnect", beginning(session))
        assert told == f"disconnected {session}\n"


def test_requests_and_grants_are_found_by_a_beginning(shell: Shell, worker: Any) -> None:
    window = ("--as", "us::ann::1")
    asked = worker.authority_requests.create(WISH)
    short = beginning(asked.request_id)
    approved = shell.out("requests", "approve", short, *window).split()
    assert approved[0] == asked.request_id
    grant = approved[-1]
    assert grant in shell.out("grants", "show", beginning(grant), *window)
    assert shell.out("grants", "revoke", beginning(grant), *window) == f"{grant}  revoked\n"
    denied = worker.authority_requests.create(WISH)
    assert shell.out("requests", "deny", beginning(denied.request_id), *window) == f"{denied.request_id}  denied\n"

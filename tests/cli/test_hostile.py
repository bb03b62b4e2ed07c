"""Test each command on a terminal with the worst names, keys and texts."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aether_trio.client import connect_sync
from tests.cli.shell import AETHER, LIMIT_S, Shell, leaves
from tests.helpers.forked import ForkedProcess
from tests.helpers.gateway import GatewayProcess

NAME = "[/b]\x9b31m:smile:\u202e"
"""What a name may hold: markup, a one-character CSI, letters from right to left."""
TEXT = "[/b]\x1b]52;c;aGk=\x07\r\nfake\x9b2J\u202e:smile:"
"""What a value may hold besides: a sequence that fills the clipboard, another line."""
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u2028-\u202e\u2066-\u2069]")
PLACE = ("--workspace", "worst")


class Hostile(NamedTuple):
    shell: Shell
    failed: str
    running: str
    dead: str
    data: str
    """Where the gateway's data lies."""


def on_terminal(shell: Shell, *arguments: str, lines: int | None = None, errors: bool = True) -> tuple[int, str]:
    """Run a command on a terminal until `lines` are out; give exit code and output."""
    ours, theirs = pty.openpty()
    env = shell.env | {"TERM": "xterm", "COLUMNS": "1000"}
    command = [*AETHER, *arguments]
    stderr = theirs if errors else subprocess.DEVNULL
    with ForkedProcess(command, env=env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=stderr) as process:
        os.close(theirs)
        told = b""
        while lines is None or told.count(b"\n") < lines:
            try:
                part = os.read(ours, 65536)
            except OSError as error:
                if error.errno != errno.EIO:  # which is the end of what a terminal is told
                    raise
                break
            if not part:
                break
            told += part
        if lines is not None:
            process.terminate()  # kills what it has started, too
        code = process.wait(LIMIT_S)
    os.close(ours)
    text = told.decode().replace("\r\n", "\n")
    for own in ("\x1b[1m", "\x1b[0m", "\r\x1b[2K"):  # heads of tables, and the progress of a bench
        text = text.replace(own, "")
    return code, text


def harmless(told: str) -> None:
    assert "Traceback" not in told, told
    assert OBEYED.search(told) is None, ascii(told)
    assert "\nfake" not in told, ascii(told)


@pytest.fixture(scope="module")
def hostile(gateway: GatewayProcess) -> Iterator[Hostile]:
    shell = Shell(gateway)
    place = (*PLACE, "--as", f"sv::{NAME}::1", "--metadata", f"{NAME}={TEXT}")
    create = ("tasks", "create", TEXT, "--pool", NAME, *place)
    late = ("--pool", "absent", *place, "--metadata", "schedule_to_start_ms=10", "--max-attempts", "1")
    dead = shell.out("tasks", "create", TEXT, *late).strip()
    shell.run("tasks", "watch", dead, "--from", "start", "--until-end")
    shell.run("send", f"ag::worst::{NAME}::1", TEXT, "--as", f"ag::worst::{NAME}::2")
    shell.out("kv", "put", NAME, "-", *PLACE, stdin=TEXT.encode())
    shell.out("agents", "register", NAME, "--profile", NAME, "--param", f"{NAME}={TEXT}", "--description", TEXT)
    shell.out("workspaces", "create", NAME, "--description", NAME, "--metadata", f"{NAME}={NAME}")
    shell.out("quotas", "set", NAME, "kv_keys_per_scope=5")
    shell.out("access", "grant", f"ag::worst::{NAME}::1", "workspace:worst", "read", "--reason", NAME)
    shell.out("access", "lock", f"ag::locked::{NAME}::1", "--reason", NAME)
    shell.out("access", "groups", "create", NAME, "--description", NAME)
    shell.out("access", "groups", "add", NAME, f"ag::worst::{NAME}::1")
    shell.out("send", "ag::default::reader::1", "-", "--as", f"us::{NAME}::1", stdin=TEXT.encode())
    shell.run("tokens", "create", NAME, "--principal-type", "agent", "--workspace", NAME)
    address = f"aether://{gateway.address}"
    with connect_sync(address, workspace="worst", implementation=NAME, specifier="1") as worker:
        failed = shell.out(*create, "--max-attempts", "1").strip()
        jobs = worker.work(timeout=LIMIT_S)
        with next(jobs) as job:
            job.fail(TEXT)
        running = shell.out(*create).strip()
        with next(jobs) as job:
            job.progress(0.5, TEXT)
            yield Hostile(shell, failed, running, dead, str(gateway.data_dir))


def walked(one: Hostile) -> dict[str, tuple[tuple[str, ...], int | None, str | None]]:
    """Give for each command its arguments, its lines, and what it must show."""
    name = r"[/b]\x9b31m:smile:\u202e"
    text = r"[/b]\x1b]52;c;aGk=\x07\r\nfake\x9b2J\u202e:smile:"
    return {
        "send": (("send", "ag::default::reader::1", "x", "--as", f"us::{NAME}::2"), None, name),
        "tail": (("tail", "ag::default::reader::1", "--from", "start"), 2, name),
        "kv get": (("kv", "get", NAME, *PLACE), None, "[/b]"),
        "kv put": (("kv", "put", f"{NAME}2", "v", *PLACE), None, name),
        "kv list": (("kv", "list", *PLACE), None, name),
        "kv delete": (("kv", "delete", f"{NAME}3", *PLACE), None, name),
        "kv increment": (("kv", "increment", NAME, *PLACE), None, None),
        "kv decrement": (("kv", "decrement", NAME, *PLACE), None, None),
        "kv set-add": (("kv", "set-add", NAME, NAME, *PLACE), None, None),
        "kv set-size": (("kv", "set-size", NAME, *PLACE), None, None),
        "tasks list": (("tasks", "list", *PLACE), None, text.replace(r"\r\n", " ")),
        "tasks show": (("tasks", "show", one.failed), None, text),
        "tasks create": (("tasks", "create", NAME, "--target", f"ag::worst::{NAME}::9", *PLACE), None, None),
        "tasks watch": (("tasks", "watch", one.running, "--from", "start"), 2, text),
        "tasks cancel": (("tasks", "cancel", NAME), None, None),
        "tasks wait": (("tasks", "wait", one.failed), None, text),
        "tasks answer": (("tasks", "answer", NAME, "approve", "--text", TEXT), None, None),
        "tasks retry": (("tasks", "retry", NAME), None, name),
        "tasks resume": (("tasks", "resume", NAME), None, name),
        "dlq list": (("dlq", "list", *PLACE), None, text),
        "dlq show": (("dlq", "show", one.dead), None, text),
        "dlq requeue": (("dlq", "requeue", NAME), None, None),
        "dlq discard": (("dlq", "discard", NAME), None, None),
        "dlq resolve": (("dlq", "resolve", NAME), None, None),
        "agents list": (("agents", "list"), None, text),
        "agents register": (("agents", "register", NAME, "--profile", NAME), None, name),
        "agents launch": (("agents", "launch", f"ag::worst::{NAME}::7"), None, name),
        "agents delete": (("agents", "delete", f"{NAME}8"), None, "[/b]"),
        "agents orchestrators": (("agents", "orchestrators"), None, None),
        "sessions": (("sessions",), None, name),
        "topics list": (("topics", "list", *PLACE), None, name),
        "topics show": (("topics", "show", f"ag::worst::{NAME}::1"), None, None),
        "topics purge": (("topics", "purge", f"ag::worst::{NAME}::1", "--yes"), None, None),
        "workspaces list": (("workspaces", "list"), None, name),
        "workspaces show": (("workspaces", "show", NAME), None, name),
        "workspaces flow": (("workspaces", "flow", "worst"), None, None),
        "workspaces create": (("workspaces", "create", f"{NAME}2"), None, name),
        "workspaces update": (("workspaces", "update", NAME, "--tenant", NAME), None, name),
        "workspaces delete": (("workspaces", "delete", f"{NAME}8"), None, "[/b]"),
        "quotas list": (("quotas", "list"), None, name),
        "quotas set": (("quotas", "set", NAME, "kv_value_bytes=1"), None, name),
        "quotas clear": (("quotas", "clear", NAME, "kv_value_bytes"), None, name),
        "access grant": (("access", "grant", f"ag::worst::{NAME}::2", "workspace:worst", "read"), None, name),
        "access revoke": (("access", "revoke", NAME), None, None),
        "access list": (("access", "list"), None, name),
        "access explain": (("access", "explain", f"ag::worst::{NAME}::1", "workspace:worst"), None, name),
        "access who": (("access", "who", "workspace:worst"), None, name),
        "access lint": (("access", "lint"), None, None),
        "access paths": (("access", "paths", "--live", f"ag::worst::{NAME}::1"), None, name),
        "access export": (("access", "export"), None, None),
        "access lock": (("access", "lock", f"ag::locked::{NAME}::2"), None, name),
        "access unlock": (("access", "unlock", NAME), None, name),
        "access locks": (("access", "locks"), None, name),
        "access fallback get": (("access", "fallback", "get", NAME), None, None),
        "access fallback list": (("access", "fallback", "list"), None, None),
        "access fallback set": (("access", "fallback", "set", NAME, "read"), None, name),
        **{
            f"access {kind} {what}": (("access", kind, what, *arguments), None, None)
            for kind in ("groups", "roles")
            for what, arguments in {
                "create": (f"{NAME}2",),
                "delete": (f"{NAME}3",),
                "list": (),
                "add": (NAME, f"ag::worst::{NAME}::2"),
                "remove": (NAME, f"ag::worst::{NAME}::3"),
                "members": (NAME,),
            }.items()
        },
        **{name: ((*name.split(), *arguments), lines, None) for name, arguments, lines in about_credentials(one)},
        **{name: ((*name.split(), *arguments), None, None) for name, arguments in about_workflows()},
        "bench": (("bench", "--workspace", NAME, "--pairs", "1", "--seconds", "0.2", "--rate", "10"), None, None),
    }


def about_workflows() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield commands about workflows, and their arguments."""
    for name in ("list", "executions"):
        yield f"workflows {name}", PLACE
    for name in ("show", "delete", "wait", "watch", "history", "cancel", "pause", "resume", "retry"):
        yield f"workflows {name}", (NAME,)
    for name in ("schedules list", "instances list", "joins list"):
        yield f"workflows {name}", PLACE
    for name in ("schedules show", "schedules pause", "schedules resume", "instances show"):
        yield f"workflows {name}", (NAME,)
    for name in ("schedules backfill", "backfill"):
        yield f"workflows {name}", (NAME, "--from", "2020-01-01")
    for name in ("instances create", "instances send", "joins show", "joins cancel"):
        yield f"workflows {name}", (NAME, NAME)
    yield "workflows run", (NAME, f"{NAME}={TEXT}")
    yield "workflows signal", (NAME, NAME)
    yield "workflows fork", (NAME, "--from", NAME)
    yield "workflows rotate", (NAME,)
    yield "workflows redrive", ("--rule", NAME)
    yield "workflows answer", (NAME, NAME, "--approve", "--text", TEXT)


def about_credentials(one: Hostile) -> Iterator[tuple[str, tuple[str, ...], int | None]]:
    """Yield commands about the audit and credentials, their arguments and lines."""
    data = ("--data-dir", one.data)
    yield "audit query", (), None
    yield "audit tail", ("-n", "1"), 1
    for name in ("audit verify", "audit export", "audit keys"):
        yield name, data, None
    yield "audit prove", ("1", *data), None
    for name in ("grants list", "requests list", "tokens list"):
        yield name, (), None
    yield "requests watch", (), 0
    for name in ("grants show", "grants revoke", "requests deny", "requests approve"):
        yield name, (NAME,), None
    for name in ("tokens show", "tokens revoke", "tokens delete"):
        yield name, (NAME,), None
    yield "tokens create", (f"{NAME}2", "--principal-type", NAME), None


FED_BY_FILES = {"orchestrate", "backup", "restore", "access test", "access apply", "access replay"} | {
    f"workflows {name}" for name in ("apply", "test", "validate")
}
"""Have other tests below."""
OWN_WORDS = {
    "init",
    "dev",
    "serve",
    "version",
    "errors",
    "config default",
    "config show",
    "config check",
    "keys new",
} | {f"context {name}" for name in ("save", "use", "list", "show", "delete")}
"""Show what their operator has set, and logs: tests/telemetry has those."""


@pytest.mark.parametrize("command", sorted(set(leaves()) - OWN_WORDS - FED_BY_FILES))
def test_a_terminal_shows_what_participants_say_and_obeys_none_of_it(hostile: Hostile, command: str) -> None:
    arguments, lines, seen = walked(hostile)[command]
    _, told = on_terminal(hostile.shell, *arguments, lines=lines)
    harmless(told.replace("\nfake", "") if command == "kv get" else told)  # whose value has lines
    assert seen is None or seen in told, ascii(told)


def test_refusals_quote_harmlessly(hostile: Hostile) -> None:
    for arguments in (
        ("tasks", "list", "--workspace", TEXT),
        ("dlq", "list", "--workspace", TEXT),
        ("tasks", "show", TEXT),
        ("tail", TEXT),
        ("send", f"ag::default::{TEXT}::1", "x"),
        ("sessions", "--as", TEXT),
    ):
        harmless(on_terminal(hostile.shell, *arguments)[1])


def test_json_stays_json_and_harmless(hostile: Hostile) -> None:
    def read(*arguments: str) -> Any:
        code, told = on_terminal(hostile.shell, *arguments, "--json", errors=False)
        assert code == 0, told
        harmless(told)
        return json.loads(told)

    assert read("kv", "list", "--prefix", NAME, *PLACE)[NAME] == TEXT
    assert read("tasks", "show", hostile.failed)["error"] == TEXT
    assert {one["task_id"] for one in read("dlq", "list", *PLACE)} == {hostile.dead}
    assert NAME in {one["implementation"] for one in read("agents", "list")}
    assert f"ag::worst::{NAME}::1" in {one["identity"] for one in read("sessions")}
    assert read("tail", "ag::default::reader::1", "--from", "start", "--limit", "1")["source"] == f"us::{NAME}::1"


def test_what_a_policy_names(hostile: Hostile, tmp_path: Path) -> None:
    who = f"ag::worst::\\{NAME}::9"  # as a name, which begins with what would be a pattern
    rule = {"principal": who, "level": "read", "resource": "workspace:worst", "reason": NAME}
    file = tmp_path / "policy.yaml"
    file.write_text(json.dumps({"version": 1, "rules": [rule], "tests": [f"{who} may read workspace:worst"]}))
    for arguments in (("test",), ("replay", "--allow-denials"), ("apply", "--dry-run"), ("apply",)):
        _, told = on_terminal(hostile.shell, "access", *arguments, str(file))
        harmless(told)
        assert "Error" not in told


def test_what_a_started_agent_prints(hostile: Hostile, tmp_path: Path) -> None:
    agent = tmp_path / "agent.py"
    agent.write_text(f"import time\nprint({TEXT!r}, flush=True)\ntime.sleep(3600)\n", encoding="utf-8")
    spec = {"command": [sys.executable, str(agent)], "profile": "p", "description": TEXT}
    file = tmp_path / "agents.yaml"
    file.write_text(json.dumps({"agents": {"shouter": spec}}), encoding="utf-8")
    harmless(on_terminal(hostile.shell, "orchestrate", str(file), "--check")[1])
    shell = hostile.shell
    shell.out("agents", "register", "shouter", "--profile", "p")
    assert shell.run("agents", "launch", "ag::w::shouter::1").returncode == 0
    _, told = on_terminal(shell, "orchestrate", str(file), "--grace", "0", lines=4)
    assert OBEYED.search(told) is None, ascii(told)
    assert r"[/b]\x1b]52;c;aGk=\x07" in told, ascii(told)

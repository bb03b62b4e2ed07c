"""Walk through all commands: their exit codes, and failures on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest
from click.testing import CliRunner, Result

from aether_trio.cli import exits
from aether_trio.cli.app import app
from aether_trio.devtools.ports import held_port
from tests.cli.shell import clean_environment, leaves, serving_with_a_key
from tests.helpers.gateway import GatewayProcess

ID: Final = "3f2a90de-6f0c-4c6e-9a51-77c0c1b2d3e4"
WORDS: Final = {
    "topic": "ag::default::echo::1",
    "topics": "ag::default::echo::1",
    "text": "hello",
    "identity": "ag::default::echo::1",
    "principal": "ag::default::echo::1",
    "member": "ag::default::echo::1",
    "pattern": "ag::default::*",
    "resource": "workspace:default",
    "level": "read",
    "category": "agent_workspace",
    "quotas": "kv_value_bytes=1",
    "audit_id": "1",
}
"""What is given for an argument, by its name; for any other one an id."""
OPTIONS: Final = {
    "principal": "agent",
    "principal_type": "agent",
    "profile": "process",
    "hours": "1",
    "gateway": "gw:1",
    "begin": "2020-01-01",
    "step": "a",
}
NEEDED: Final = {
    "tasks create": ("--pool", "absent"),
    "topics purge": ("--yes",),
    "workflows redrive": ("--all",),
    "workflows test": ("--events", "1h"),
    "workspaces update": ("--tenant", "t"),
    "quotas clear": ("kv_value_bytes",),
    "access paths": ("--live", "ag::default::echo::1"),
    "bench": ("--pairs", "1", "--seconds", "0.2"),
}
POLICY: Final = "version: 1\nrules: []\n"
WORKFLOW: Final = "id: one\nsteps: [{id: a, output: 1}]\n"
FILES: Final = {"orchestrate": "agents.yaml", "workflows": "workflow.yaml"}
"""Which file is given, by the first word of a command."""
AGENTS: Final = "agents:\n  echo:\n    command: [cat]\n"


def command_of(path: str) -> click.Command:
    command: click.Command = app
    context = click.Context(app)
    for word in path.split():
        assert isinstance(command, click.Group)
        found = command.get_command(context, word)
        assert found is not None
        command = found
    return command


def options_of(path: str) -> set[str]:
    return {name for one in command_of(path).params if isinstance(one, click.Option) for name in one.opts}


def words_of(path: str, directory: Path) -> list[str]:
    """Return a right command line of a command."""
    words = path.split()
    for one in command_of(path).params:
        if isinstance(one, click.Argument):
            if isinstance(one.type, click.Path) and one.required:
                file = directory / FILES.get(path.split(maxsplit=1)[0], "policy.yaml")
                words.append(str(file))
            elif isinstance(one.type, click.Choice):
                words.append(str(one.type.choices[0]))
            elif one.required:
                words.append(WORDS.get(one.name or "", ID))
        elif one.required:
            words += [one.opts[0], OPTIONS[one.name or ""]]
    return [*words, *NEEDED.get(path, ())]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("exits")
    (made / "policy.yaml").write_text(POLICY)
    (made / "agents.yaml").write_text(AGENTS)
    (made / "workflow.yaml").write_text(WORKFLOW)
    return made


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that knows one key, and whose ops port has no token."""
    many = {"auth.max_failures_per_address": 10_000}
    with serving_with_a_key(tmp_path_factory.mktemp("closed"), "service", many) as process:
        yield process


def run(*words: str) -> Result:
    environment: dict[str, str | None] = dict.fromkeys(_AETHER_VARIABLES)
    return CliRunner().invoke(app, words, prog_name="aether", env=environment | {"XDG_CONFIG_HOME": "/nonexistent"})


_AETHER_VARIABLES: Final = tuple(name for name in clean_environment() if name.startswith("AETHER_"))


def assert_fails(code: int, *words: str) -> None:
    """Check a failure: its exit code, and that its words are on standard error alone."""
    done = run(*words)
    assert done.exit_code == code, (words, done.output, done.exception)
    assert done.stdout == "", words
    assert "Error: " in done.stderr, words
    assert "Traceback" not in done.stderr


EVERY: Final = sorted(leaves())
WITH_GATEWAY: Final = [one for one in EVERY if {"--gateway", "--timeout"} <= options_of(one)]
WITH_OPS: Final = [one for one in EVERY if "--ops" in options_of(one) and one != "context save"]
WITH_SETTINGS: Final = [one for one in EVERY if "--config" in options_of(one)]


def test_the_walk_has_all_commands() -> None:
    local = set(EVERY) - {*WITH_GATEWAY, *WITH_OPS, *WITH_SETTINGS}
    assert local == {
        "access test", "config default", "context delete", "context list", "context save", "context show", "context use",
        "errors", "init", "keys new", "version", "workflows validate",
    }  # fmt: skip


@pytest.mark.parametrize("command", EVERY)
def test_a_wrong_command_line_is_2(command: str) -> None:
    assert_fails(exits.USAGE, *command.split(), "--nonsense")


@pytest.mark.parametrize("command", WITH_GATEWAY)
def test_a_gateway_that_cannot_be_reached_is_4(command: str, directory: Path) -> None:
    with held_port() as port:
        where = ("--gateway", f"127.0.0.1:{port}", "--timeout", "2")
        assert_fails(exits.UNREACHABLE, *words_of(command, directory), *where)


@pytest.mark.parametrize("command", WITH_OPS)
def test_an_ops_port_that_cannot_be_reached_is_4(command: str, directory: Path) -> None:
    with held_port() as port:
        assert_fails(exits.UNREACHABLE, *words_of(command, directory), "--ops", f"127.0.0.1:{port}")


@pytest.mark.parametrize("command", WITH_GATEWAY)
def test_a_credential_that_is_refused_is_5(command: str, directory: Path, closed: GatewayProcess) -> None:
    where = ("--gateway", closed.address, "--api-key", "aek_wrong")
    assert_fails(exits.REFUSED, *words_of(command, directory), *where)


@pytest.mark.parametrize("command", WITH_OPS)
def test_an_ops_port_that_wants_a_token_is_5(command: str, directory: Path, closed: GatewayProcess) -> None:
    assert_fails(exits.REFUSED, *words_of(command, directory), "--ops", closed.ops_address)


@pytest.mark.parametrize("command", WITH_SETTINGS)
def test_settings_that_are_wrong_are_3(command: str, directory: Path) -> None:
    offline = ["--offline"] if "--offline" in options_of(command) else []
    assert_fails(exits.SETTINGS, *words_of(command, directory), *offline, "--config", str(directory / "missing.yaml"))


@pytest.mark.parametrize("command", [one for one in WITH_GATEWAY if "--context" in options_of(one)])
def test_a_context_that_is_not_there_is_3(command: str, directory: Path) -> None:
    assert_fails(exits.SETTINGS, *words_of(command, directory), "--context", "nothing")


MISSING: Final = (
    "tasks show", "tasks cancel", "tasks retry", "tasks resume", "tasks watch", "grants show", "grants revoke",
    "requests approve", "requests deny", "tokens show", "tokens revoke", "tokens delete", "topics show",
    "topics purge", "access revoke", "access unlock", "workspaces show", "workspaces delete", "kv get", "dlq show",
    "dlq requeue", "workflows show", "workflows run", "workflows delete", "workflows cancel", "workflows retry",
    "workflows pause", "workflows signal", "workflows answer", "workflows watch", "workflows history",
    "workflows schedules show", "workflows schedules pause", "workflows schedules backfill",
    "workflows instances show", "workflows instances create", "workflows instances send", "workflows joins show",
)  # fmt: skip


@pytest.mark.parametrize("command", MISSING)
def test_a_thing_that_is_not_there_is_1(command: str, directory: Path, gateway: GatewayProcess) -> None:
    assert_fails(exits.FAILED, *words_of(command, directory), "--gateway", gateway.address)


def test_a_session_that_is_not_there_is_1(gateway: GatewayProcess) -> None:
    assert_fails(exits.FAILED, "sessions", "--disconnect", ID, "--gateway", gateway.address)

"""What is run for a start, and what it finds in its environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from aether_trio.client.operations.records import read
from aether_trio.client.operations.task_values import Assignment
from aether_trio.model.identity import IdentityError
from aether_trio.orchestrator import DockerError, GatewayAddresses, check_docker, missing_commands
from aether_trio.orchestrator.agents_file import parse_agents
from aether_trio.orchestrator.launch_plan import AgentStart, LaunchPlan, cannot_run, plan_launch
from aether_trio.wire.pb import aether_pb2 as pb
from tests.orchestrator.starts import assignment, python

AROUND = GatewayAddresses("gw:1", "aether://gw:1", {"AETHER_TLS_ENABLED": "true"})


def start(message: pb.TaskAssignment) -> AgentStart:
    return AgentStart.of(read(Assignment, message))


def container(text: str, message: pb.TaskAssignment) -> LaunchPlan:
    (spec,) = parse_agents(text, "agents.yaml", Path("/")).values()
    return plan_launch(spec, start(message), AROUND)


def test_what_an_agent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AETHER_API_KEY", "the orchestrator's own")
    monkeypatch.setenv("LC_HOME_GROWN", "kept")
    spec = python("", environment={"MOOD": "good", "AETHER_SPECIFIER": "another one"})
    params = {"voice": "loud", "env.MOOD": "better", "env.AETHER_AUTH_TOKEN": "stolen", "env.not a name": "x"}
    woken = assignment(params=params, trigger="123")
    woken.checkpoint_key = "half"
    launch = plan_launch(spec, start(woken), AROUND)
    told = {name: value for name, value in launch.environment.items() if name.startswith("AETHER_")}
    assert json.loads(told.pop("AETHER_LAUNCH_PARAMS")) == {"profile": "process", **params}
    assert told == {
        "AETHER_GATEWAY": "gw:1",
        "AETHER_ADDRESS": "aether://gw:1",
        "AETHER_WORKSPACE": "w",
        "AETHER_IMPLEMENTATION": "echo",
        "AETHER_SPECIFIER": "1",
        "AETHER_IDENTITY": "ag::w::echo::1",
        "AETHER_AUTH_TOKEN": "secret",
        "AETHER_TASK_ID": "task",
        "AETHER_PROFILE": "process",
        "AETHER_TRIGGER_TIMESTAMP_MS": "123",
        "AETHER_CHECKPOINT_KEY": "half",
        "AETHER_TLS_ENABLED": "true",
    }
    assert launch.environment["MOOD"] == "good"
    assert launch.environment["LC_HOME_GROWN"] == "kept"
    assert "not a name" not in launch.environment


def test_a_command_is_looked_for_beside_this_python_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python3"))
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n", encoding="utf-8")
    tool.chmod(0o755)
    launch = plan_launch(python("", command=("tool", "x")), start(assignment()), AROUND)
    assert launch.command == (str(tool), "x")
    assert launch.environment["PATH"].split(os.pathsep)[0] == str(tmp_path)
    assert plan_launch(python("", command=("no-such-tool",)), start(assignment()), AROUND).command == ("no-such-tool",)


@pytest.mark.parametrize(
    ("message", "identity"),
    [
        (assignment(specifier="7"), "ag::w::echo::7"),
        (assignment(specifier="", params={"specifier": "8"}), "ag::w::echo::8"),
        (assignment(specifier=""), "ag::w::echo::default"),
        (assignment(workspace=""), "ag::default::echo::1"),
    ],
)
def test_who_is_to_be_started(message: pb.TaskAssignment, identity: str) -> None:
    assert start(message).identity.text == identity


def test_an_assignment_that_names_no_agent() -> None:
    with pytest.raises(IdentityError):
        start(assignment(implementation="a::b"))


def test_a_container_gets_the_same_and_its_token_is_on_no_command_line() -> None:
    launch = container(
        "agents: {big: {image: 'example/big:1', arguments: [--memory, 1g], network: none, command: [run, it], "
        "environment: {MOOD: good}}}",
        assignment("big", "a/b+c"),
    )
    name = launch.command[launch.command.index("--name") + 1]
    assert name.startswith("aether-big-a-b-c-")
    assert launch.command[:3] == ("docker", "run", "--rm")
    assert launch.command[-5:] == ("--memory", "1g", "example/big:1", "run", "it")
    assert launch.command[launch.command.index("--network") + 1] == "none"
    passed = {launch.command[i + 1] for i, part in enumerate(launch.command) if part == "--env"}
    assert {"MOOD", "AETHER_AUTH_TOKEN", "AETHER_IDENTITY", "AETHER_GATEWAY"} <= passed
    assert not [part for part in launch.command if "secret" in part]
    assert launch.environment["AETHER_AUTH_TOKEN"] == "secret"
    assert launch.kill == ("docker", "kill", name)


def fake_docker(folder: Path, script: str) -> None:
    tool = folder / "docker"
    tool.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    tool.chmod(0o755)


def test_docker_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DockerError, match="no docker command on the PATH"):
        check_docker()


def test_docker_that_has_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_docker(tmp_path, "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(DockerError, match="Cannot connect to the Docker daemon"):
        check_docker()


def test_docker_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_docker(tmp_path, 'echo 28.2; [ "$1" = version ]')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert check_docker() == "28.2"


@pytest.mark.parametrize(
    ("command", "error", "why"),
    [
        ("tool", FileNotFoundError(), "there is no such command on the orchestrator's PATH"),
        ("./tool", FileNotFoundError(), "there is no such file, seen from /"),
        ("./tool", PermissionError(), "it is not executable; chmod +x"),
        ("tool", OSError(12, "Cannot allocate memory"), "Cannot allocate memory"),
    ],
)
def test_why_a_command_cannot_be_run(command: str, error: OSError, why: str) -> None:
    assert cannot_run(LaunchPlan((command,), {}, Path("/")), error).startswith(f"cannot run {command}: {why}")


def test_a_directory_that_has_gone_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert f"directory {gone} is not there" in cannot_run(LaunchPlan(("tool",), {}, gone), FileNotFoundError())


def test_a_program_that_is_not_there_is_named_and_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "tool").touch(mode=0o755)
    text = "agents: {a: {command: ./tool}, b: {command: ./tol}, c: {command: python}, d: {command: tol}, e: {image: i}}"
    assert missing_commands(parse_agents(text, "agents.yaml", tmp_path).values()) == [
        f"agents.b: there is no program {tmp_path}/./tol, so far".replace("/./", "/"),
        "agents.d: there is no program tol on the PATH, so far",
    ]

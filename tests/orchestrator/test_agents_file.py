"""The file of agents: what it means, and which mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_trio.orchestrator import AgentsFileError, AgentSpec, load_agents
from aether_trio.orchestrator.agents_file import parse_agents


def parsed(text: str) -> dict[str, AgentSpec]:
    return parse_agents(text, "agents.yaml", Path("/"))


def problem(text: str) -> str:
    with pytest.raises(AgentsFileError) as error:
        parsed(text)
    return str(error.value)


def test_a_process(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    file = tmp_path / "agents.yaml"
    file.write_text(
        """
agents:
  echo:
    profile: process
    command: [python, echo.py]
    directory: agents
    environment: {PORT: 8080, LOUD: true, MOOD: good}
    params: {voice: 3}
    description: Says it again
    most: 4
""",
        encoding="utf-8",
    )
    assert load_agents(file) == {
        "echo": AgentSpec(
            implementation="echo",
            profile="process",
            manner="process",
            command=("python", "echo.py"),
            directory=tmp_path / "agents",
            environment={"PORT": "8080", "LOUD": "true", "MOOD": "good"},
            params={"voice": "3"},
            description="Says it again",
            most=4,
        )
    }


def test_a_container() -> None:
    spec = parsed("agents: {big: {image: 'e/big:1', arguments: [--memory, 1g], network: none, command: run}}")["big"]
    assert (spec.manner, spec.profile, spec.image) == ("docker", "docker", "e/big:1")
    assert (spec.network, spec.arguments, spec.command) == ("none", ("--memory", "1g"), ("run",))


def test_the_least_that_can_be_said() -> None:
    spec = parsed("agents: {echo: {command: \"python -c 'print(1)'\"}}")["echo"]
    assert (spec.profile, spec.command, spec.directory) == ("process", ("python", "-c", "print(1)"), Path("/"))


def test_a_profile_of_ones_own_is_started_by_what_it_has() -> None:
    agents = parsed("agents: {a: {profile: gpu, command: x}, b: {profile: gpu, image: y}}")
    assert [(spec.profile, spec.manner) for spec in agents.values()] == [("gpu", "process"), ("gpu", "docker")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("agents: [", "not YAML"),
        ("", 'the file needs "agents:"'),
        ("agents: [a]", 'the file needs "agents:"'),
        ("agents: {a: {command: x}}\nmore: 1", "only agents: may be at the file's left edge, and there is more"),
        ("agents: {}", "names no agent"),
        ("agents: {a: {}}", "agents.a: the agent has neither a command nor an image"),
        ("agents: {a: }", "agents.a: it should be a mapping, as in  {command: [python, echo.py]}, and is nothing"),
        ("agents: {a: {comand: x}}", "agents.a: there is no setting 'comand' (is command meant?); known are profile, "),
        ("agents: {a: {colour: x}}", "agents.a: there is no setting 'colour'; known are profile, "),
        ("agents: {a: {command: x, most: many}}", "agents.a: most should be a whole number, and is a text"),
        (
            "agents: {a: {command: [x, 3]}}",
            "command[1] should be a text, and is a whole number; quotes make a text of it",
        ),
        (
            "agents: {a: {command: x, params: {b: [1]}}}",
            "values of params should be texts, numbers, true or false, and one is a list",
        ),
        (
            "agents: {a: {command: x, environment: {b: }}}",
            "values of environment should be texts, numbers, true or false, and one is nothing",
        ),
        ("agents: {a: {command: ['']}}", "the first word of command is empty"),
        ("agents: {a: {command: x, params: {profile: gpu}}}", "params cannot have profile"),
        ("agents: {a: {command: x, params: {auth_token: me}}}", "params cannot have auth_token"),
        ("agents: {a: {command: x, environment: {A=B: 1}}}", "'A=B' is not the name of an environment variable"),
        ("agents: {a: {command: x, most: -1}}", "most"),
        ('agents: {a: {command: "\'"}}', "No closing quotation"),
        ("agents: {'a::b': {command: x}}", "agents.a::b"),
        ("agents: {a: {command: x, directory: nowhere}}", "there is no directory /nowhere"),
        ("agents: {a: {profile: docker, command: x}}", "needs an image"),
        ("agents: {a: {profile: process, image: x}}", "needs profile docker"),
        ("agents: {a: {command: x, network: none}}", "has no image"),
        ("agents: {a: {image: x, directory: tmp}}", "volume"),
        ("agents: {a: {command: x}, a: {command: y}}", "'a' is in this mapping twice"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    assert said in problem(text)


def test_all_that_is_wrong_is_said_at_once() -> None:
    said = problem("agents: {a: {}, b: {command: x}, c: {image: y, most: z}}")
    assert "agents.a: " in said
    assert "agents.b: " not in said
    assert "agents.c: " in said


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(AgentsFileError, match="No such file"):
        load_agents(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AgentsFileError, match="UTF-8"):
        load_agents(tmp_path / "binary.yaml")

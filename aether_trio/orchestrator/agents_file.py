"""Reads the YAML file of the agents that an orchestrator can start (agents.yaml).

    agents:
      echo:
        profile: process
        command: [python, echo.py]

The key is the implementation: echo is started for ag::ANY-WORKSPACE::echo::ANY-SPECIFIER.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import yaml

from aether_trio.model.identity import IdentityError, check_token

Manner = Literal["process", "docker"]

PROCESS: Final = "process"
DOCKER: Final = "docker"
MAX_AGENTS: Final = 1000
EXAMPLE: Final = "agents: {echo: {command: [python, echo.py]}}"
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*?)`")
_OTHER: Final = re.compile(r"Expected `(.*?)`, got `(.*?)`(?: - at `\$\.?(.*?)`)?$")
_WORDS: Final = {
    "object": "a mapping",
    "array": "a list",
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
}


class AgentsFileError(Exception):
    """The agents file cannot be used; `problems` are sentences for a person."""

    def __init__(self, path: str, problems: list[str]) -> None:
        super().__init__(f"{path}: " + ("  " if len(problems) > 1 else "") + "\n  ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """How an agent implementation is started: as a process or in docker (`manner`)."""

    implementation: str
    profile: str
    manner: Manner
    command: tuple[str, ...]
    directory: Path  # the absolute working directory of a process
    environment: Mapping[str, str]
    params: Mapping[str, str]  # launch parameters that a start can override
    description: str
    most: int
    """How many run at once; 0: as many as the orchestrator allows."""
    image: str = ""
    network: str = "host"
    inherit: tuple[str, ...] = ()  # further variables from the orchestrator's environment
    arguments: tuple[str, ...] = ()  # arguments of `docker run`, in front of the image


class _Agent(msgspec.Struct, forbid_unknown_fields=True):
    profile: str = ""
    command: list[str] | str = msgspec.field(default_factory=list)
    image: str = ""
    directory: str = ""
    environment: dict[str, str | int | float | bool] = msgspec.field(default_factory=dict)
    inherit: list[str] = msgspec.field(default_factory=list)
    params: dict[str, str | int | float | bool] = msgspec.field(default_factory=dict)
    description: str = ""
    most: int = 0
    network: str = "host"
    arguments: list[str] = msgspec.field(default_factory=list)


class _OneMapping(yaml.SafeLoader):
    """Loads safe YAML, and refuses a mapping that has a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                problem = f"{key!r} is in this mapping twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


def load_agents(path: str | Path) -> dict[str, AgentSpec]:
    """Return the agents of a file, by implementation. Raises AgentsFileError."""
    name = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise AgentsFileError(name, [error.strerror or str(error)]) from None
    except UnicodeDecodeError:
        raise AgentsFileError(name, ["the file is not UTF-8 text"]) from None
    return parse_agents(text, name, Path(path).absolute().parent)


def parse_agents(text: str, name: str, directory: Path) -> dict[str, AgentSpec]:
    """Return the agents of a YAML text; relative directories are below `directory`."""
    try:
        body = yaml.load(text, _OneMapping)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise AgentsFileError(name, [f"the file is not YAML: {error}"]) from None
    if not isinstance(body, dict) or not isinstance(body.get("agents"), dict):
        raise AgentsFileError(name, [f'the file needs "agents:" and below it how each is started, as in  {EXAMPLE}'])
    if others := sorted(str(key) for key in body if key != "agents"):
        raise AgentsFileError(name, [f"only agents: may be at the file's left edge, and there is {', '.join(others)}"])
    agents = body["agents"]
    if len(agents) > MAX_AGENTS:
        raise AgentsFileError(name, [f"the file has {len(agents)} agents; at most {MAX_AGENTS} are allowed"])
    problems: list[str] = []
    found: dict[str, AgentSpec] = {}
    for implementation, entry in agents.items():
        try:
            found[str(implementation)] = _spec(str(implementation), entry, directory)
        except (ValueError, msgspec.ValidationError) as error:
            problems.append(f"agents.{implementation}: {_in_words(error)}")
    if not agents:
        problems.append("the file names no agent")
    if problems:
        raise AgentsFileError(name, problems)
    return found


def _spec(implementation: str, entry: Any, directory: Path) -> AgentSpec:
    try:
        check_token(implementation, "implementation")
    except IdentityError as error:
        raise ValueError(str(error)) from None
    agent = msgspec.convert(entry, _Agent)
    try:
        command = tuple(shlex.split(agent.command) if isinstance(agent.command, str) else agent.command)
    except ValueError as error:
        raise ValueError(f"command {agent.command!r}: {error}") from None
    if command and not command[0]:
        raise ValueError("the first word of command is empty; it must be the program")
    manner: Manner = DOCKER if agent.image else PROCESS
    if agent.profile == PROCESS and agent.image:
        raise ValueError("the agent has an image, and profile process runs a command; an image needs profile docker")
    if agent.profile == DOCKER and not agent.image:
        raise ValueError("profile docker needs an image, and the agent names none")
    if manner == PROCESS:
        if not command:
            raise ValueError("the agent has neither a command nor an image, so there is nothing to start")
        if agent.arguments or agent.network != "host":
            raise ValueError("network and arguments are for docker, and this agent has no image")
    elif agent.directory:
        raise ValueError("directory is for processes; give docker a volume with arguments: [--volume, ...]")
    for key, instead in _TAKEN.items():
        if key in agent.params:
            raise ValueError(f"params cannot have {key}: {instead}")
    named = [*agent.environment, *agent.inherit]
    if wrong := sorted(key for key in named if not key or "=" in key or "\0" in key):
        raise ValueError(f"{wrong[0]!r} is not the name of an environment variable")
    if agent.most < 0:
        raise ValueError(f"most is {agent.most}; it must be the number of agents that may run at once, 0 for no limit")
    where = directory / agent.directory
    if not where.is_dir():
        raise ValueError(f"there is no directory {where}")
    return AgentSpec(
        implementation=implementation,
        profile=agent.profile or manner,
        manner=manner,
        command=command,
        directory=where,
        environment=_texts(agent.environment),
        params=_texts(agent.params),
        description=agent.description,
        most=agent.most,
        image=agent.image,
        network=agent.network,
        inherit=tuple(agent.inherit),
        arguments=tuple(agent.arguments),
    )


_TAKEN: Final = {
    "profile": 'that is a setting of the agent itself, "profile:"',
    "auth_token": "the gateway makes one for each start",
}


def _in_words(error: Exception) -> str:
    """Return msgspec's complaint about an agent's entry in the words of YAML."""
    text = str(error)
    if unknown := _UNKNOWN.search(text):
        known = [field.name for field in msgspec.structs.fields(_Agent)]
        near = difflib.get_close_matches(unknown[1], known, 1)
        meant = f" (is {near[0]} meant?)" if near else ""
        return f"there is no setting {unknown[1]!r}{meant}; known are {', '.join(known)}"
    if other := _OTHER.match(text):
        if other[1] == "bool | int | float | str":
            return f"values of {other[3].replace('[...]', '')} should be texts, numbers, true or false, and one is {_WORDS[other[2]]}"
        wanted = " or ".join(_WORDS.get(word, word) for word in other[1].split(" | "))
        where = (other[3] or "").replace("[...]", "")
        as_in = "" if where else ", as in  {command: [python, echo.py]}"
        quotes = "; quotes make a text of it" if "a text" in wanted and other[2] in {"int", "float", "bool"} else ""
        return f"{where or 'it'} should be {wanted}{as_in}, and is {_WORDS.get(other[2], other[2])}{quotes}"
    return text


def _texts(values: Mapping[str, str | int | float | bool]) -> dict[str, str]:
    """Return YAML values as texts: YAML reads 8080 and true as a number and a bool."""
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in values.items()}

"""From a start to a command line and its environment. Nothing is run here.

What an agent is told, as variables of its environment:

| variable | |
|---|---|
| AETHER_GATEWAY | HOST:PORT, as the published SDK wants it |
| AETHER_ADDRESS | the same for aether_trio's client: aether://HOST:PORT |
| AETHER_WORKSPACE, AETHER_IMPLEMENTATION, AETHER_SPECIFIER | who it is to connect as |
| AETHER_IDENTITY | the three in one: ag::WORKSPACE::IMPLEMENTATION::SPECIFIER, or tu::… for a unique task |
| AETHER_AUTH_TOKEN | its credential "token": made for this start, good for this identity only |
| AETHER_TASK_ID | the startup task, which lives as long as the agent does |
| AETHER_PROFILE | the launch profile |
| AETHER_TRIGGER_TIMESTAMP_MS | when that happened for which it is started, Unix milliseconds; "" when the gateway does not say |
| AETHER_CHECKPOINT_KEY | where it left its state when it hibernated; "" when it did not |
| AETHER_LAUNCH_PARAMS | its launch parameters, a JSON object of texts |

Launch parameters are in AETHER_LAUNCH_PARAMS and nowhere else: who creates a task chooses them, and a variable can make a program run
other code (PYTHONWARNINGS, LD_PRELOAD). The file's `environment` wins over everything but this table, so no start makes an agent
somebody else. Of the orchestrator's own environment an agent has INHERITED and what the file's `inherit` names: the rest may hold the
orchestrator's secrets, such as its API key or a database's address.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aether_trio.client.operations.task_values import Assignment
from aether_trio.model.identity import Identity
from aether_trio.orchestrator.agents_file import DOCKER, AgentSpec

TOKEN: Final = "auth_token"  # noqa: S105  # a name
"""The launch parameter that the gateway adds."""
TRIGGER: Final = "trigger_timestamp_ms"
IDENTITY: Final = "target_identity"
"""Metadata of an assignment: who is to be started, in full."""
PRIORITY: Final = "priority"
NORMAL: Final = 30
"""The priority of a start whose gateway says none."""
INHERITED: Final = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TERM",
        "COLORTERM",
        "NO_COLOR",
        "TMPDIR",
        "TMP",
        "TEMP",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "PYTHONPATH",
        "PYTHONHOME",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ]
)
"""What an agent has of the orchestrator's environment: where programs and libraries are, and how to speak to people."""
INHERITED_PREFIXES: Final = ("LC_", "XDG_")
DOCKER_PREFIX: Final = "DOCKER_"
DOCKER_ALSO: Final = frozenset({"SSH_AUTH_SOCK"})
"""With the variables of DOCKER_PREFIX: how the docker command finds its server. Containers do not have them."""
DOCKER_ANSWERS_S: Final = 30.0

_UNFIT: Final = re.compile(r"[^A-Za-z0-9_.-]+")


class DockerError(Exception):
    """Containers cannot be started here, and why."""


@dataclass(frozen=True, slots=True)
class Start:
    """One wish to start an agent."""

    task_id: str
    identity: Identity
    profile: str
    params: Mapping[str, str]
    token: str
    trigger_ms: str
    checkpoint_key: str = ""
    reference: str = ""
    """What the gateway is told the end of: this start, and not a later one of the same agent."""
    priority: int = NORMAL
    """That of the most urgent task that it is for."""

    @classmethod
    def of(cls, assignment: Assignment) -> Start:
        """What an assignment asks for. Raises IdentityError."""
        params = dict(assignment.launch_params)
        token = params.pop(TOKEN, "")
        named = assignment.metadata.get(IDENTITY, "")
        if named:
            identity = Identity.parse(named)
        else:
            specifier = assignment.specifier or params.get("specifier", "") or "default"
            identity = Identity.agent(assignment.workspace or "default", assignment.target_implementation, specifier)
        trigger = assignment.metadata.get(TRIGGER, "")
        priority = assignment.metadata.get(PRIORITY, "")
        return cls(
            assignment.task_id,
            identity,
            assignment.profile,
            params,
            token,
            trigger,
            assignment.checkpoint_key,
            assignment.reference,
            int(priority) if priority.isascii() and priority.isdigit() and len(priority) < 10 else NORMAL,
        )


@dataclass(frozen=True, slots=True)
class Surroundings:
    """How what is started finds the gateway."""

    gateway: str
    """HOST:PORT, for gRPC."""
    address: str
    """For our own client: aether://HOST:PORT."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further variables for all: where the authority's certificate is, say."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to run. `kill` is a command that ends it when signals do not reach it, () for none."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path | None
    kill: tuple[str, ...] = ()


def launch_of(spec: AgentSpec, start: Start, surroundings: Surroundings) -> Launch:
    """How this agent is started here."""
    own = own_variables(spec, start, surroundings, os.environ)
    inherited = {name: value for name, value in os.environ.items() if is_inherited(name)}
    if spec.manner == DOCKER:
        name = _UNFIT.sub("-", f"aether-{spec.implementation}-{start.identity.specifier}-{secrets.token_hex(4)}")
        # Values are in the environment of the command and not on its line, where everybody on this machine could read the token.
        passed = [part for variable in own for part in ("--env", variable)]
        run = ["docker", "run", "--rm", "--init", "--name", name, "--network", spec.network, *passed]
        command = (*run, *spec.arguments, spec.image, *spec.command)
        found = {name: value for name, value in os.environ.items() if _finds_docker(name)}
        return Launch(command, {**inherited, **found, **own}, None, kill=("docker", "kill", name))
    environment = {**inherited, "PATH": _search_path(inherited), "PYTHONUNBUFFERED": "1", **own}
    first = shutil.which(spec.command[0], path=environment["PATH"]) or spec.command[0]
    return Launch((first, *spec.command[1:]), environment, spec.directory)


def is_inherited(name: str) -> bool:
    """Whether every agent has this variable of the orchestrator."""
    return name in INHERITED or name.startswith(INHERITED_PREFIXES)


def _finds_docker(name: str) -> bool:
    return name in DOCKER_ALSO or name.startswith(DOCKER_PREFIX)


def own_variables(
    spec: AgentSpec, start: Start, surroundings: Surroundings, environ: Mapping[str, str]
) -> dict[str, str]:
    """What the agent is told; see the module's text. `environ` is the orchestrator's environment."""
    identity = start.identity
    return {
        **{name: environ[name] for name in spec.inherit if name in environ},
        **spec.environment,
        **surroundings.extra,
        "AETHER_GATEWAY": surroundings.gateway,
        "AETHER_ADDRESS": surroundings.address,
        "AETHER_WORKSPACE": identity.workspace,
        "AETHER_IMPLEMENTATION": identity.implementation,
        "AETHER_SPECIFIER": identity.specifier,
        "AETHER_IDENTITY": identity.text,
        "AETHER_AUTH_TOKEN": start.token,
        "AETHER_TASK_ID": start.task_id,
        "AETHER_PROFILE": start.profile,
        "AETHER_TRIGGER_TIMESTAMP_MS": start.trigger_ms,
        "AETHER_CHECKPOINT_KEY": start.checkpoint_key,
        "AETHER_LAUNCH_PARAMS": json.dumps(dict(start.params), sort_keys=True),
    }


def missing_commands(agents: Iterable[AgentSpec]) -> list[str]:
    """Sentences on agents whose program is not there now. It may be when they are started."""
    found = []
    for spec in agents:
        if spec.manner == DOCKER:
            continue
        command = spec.command[0]
        path = spec.environment.get("PATH") or _search_path(os.environ)
        wanted = str(spec.directory / command) if os.sep in command else command
        if shutil.which(wanted, path=path) is None:
            where = "" if os.sep in command else " on the PATH"
            found.append(f"agents.{spec.implementation}: there is no program {wanted}{where}, so far")
    return found


def _search_path(environment: Mapping[str, str]) -> str:
    """Programs beside this Python come first, so that `python` is the same one."""
    return os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])


def cannot_run(launch: Launch, error: OSError | ValueError) -> str:
    """Why it was not started, and what to do about it."""
    command = launch.command[0]
    if launch.directory is not None and not launch.directory.is_dir():
        return f"cannot run {command}: the agent's directory {launch.directory} is not there any more"
    if isinstance(error, FileNotFoundError) and os.sep not in command:
        return f"cannot run {command}: there is no such command on the orchestrator's PATH; install it, or write its whole path"
    if isinstance(error, FileNotFoundError):
        at = launch.directory or Path.cwd()
        return f"cannot run {command}: there is no such file, seen from {at} (or the program that its first line names)"
    if isinstance(error, PermissionError):
        return f"cannot run {command}: it is not executable; chmod +x, or name its interpreter in front of it"
    return f"cannot run {command}: {getattr(error, 'strerror', '') or error}"


def check_docker() -> str:
    """The version of the docker server that is there. Raises DockerError, which says what is missing. Blocks for a moment."""
    if shutil.which("docker") is None:
        raise DockerError("there is no docker command on the PATH")
    try:
        done = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            text=True,
            timeout=DOCKER_ANSWERS_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DockerError(f"docker did not answer within {DOCKER_ANSWERS_S:g} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise DockerError(f"docker cannot be used here: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout.strip()

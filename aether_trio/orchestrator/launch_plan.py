"""Plans how a start is run: its command line and environment. Nothing is run here.

The environment variables of an agent:

| variable | |
|---|---|
| AETHER_GATEWAY | HOST:PORT, as the published SDK wants it |
| AETHER_ADDRESS | the same for aether_trio's client: aether://HOST:PORT |
| AETHER_WORKSPACE, AETHER_IMPLEMENTATION, AETHER_SPECIFIER | the identity to connect with |
| AETHER_IDENTITY | the identity in full: ag::… for an agent, tu::… for a unique task |
| AETHER_AUTH_TOKEN | its credential "token": made for this start, good for this identity only |
| AETHER_TASK_ID | the startup task, which lives as long as the agent does |
| AETHER_PROFILE | the launch profile |
| AETHER_TRIGGER_TIMESTAMP_MS | when its message or task came, Unix milliseconds; "" if unknown |
| AETHER_CHECKPOINT_KEY | the checkpoint that it hibernated with; "" if it has not |
| AETHER_LAUNCH_PARAMS | its launch parameters, a JSON object of texts |

Launch parameters are in AETHER_LAUNCH_PARAMS alone: the creator of a task chooses them, and a
variable can make a program run other code (PYTHONWARNINGS, LD_PRELOAD). The file's `environment`
overrides all but this table, so a start cannot change an agent's identity. Of the orchestrator's
environment an agent inherits INHERITED and the names in the file's `inherit`: other variables may
be secrets, such as an API key or a database's address.
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
"""The launch parameter with the agent's token, which the gateway adds."""
TRIGGER: Final = "trigger_timestamp_ms"
IDENTITY: Final = "target_identity"  # metadata of an assignment: the full identity to start
PRIORITY: Final = "priority"
NORMAL: Final = 30  # the priority of a start without one
INHERITED: Final = frozenset([
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "COLORTERM", "NO_COLOR",
    "TMPDIR", "TMP", "TEMP", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR",
])  # fmt: skip
"""Inherited variables: where programs and libraries are, the language and the terminal."""
INHERITED_PREFIXES: Final = ("LC_", "XDG_")
DOCKER_PREFIX: Final = "DOCKER_"
DOCKER_ALSO: Final = frozenset({"SSH_AUTH_SOCK"})  # for the docker command, and no container
DOCKER_ANSWERS_S: Final = 30.0

_UNFIT: Final = re.compile(r"[^A-Za-z0-9_.-]+")


class DockerError(Exception):
    """Docker containers cannot be started on this machine; the text says why."""


@dataclass(frozen=True, slots=True)
class AgentStart:
    """The gateway's request to an orchestrator to start one agent."""

    task_id: str
    identity: Identity
    profile: str
    params: Mapping[str, str]
    token: str
    trigger_ms: str
    checkpoint_key: str = ""
    reference: str = ""  # the assignment to report the end of, not a later one of the agent
    priority: int = NORMAL  # the priority of the most urgent task that waits for the agent

    @classmethod
    def of(cls, assignment: Assignment) -> AgentStart:
        """Read a start from the assignment of a startup task. Raises IdentityError."""
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
class GatewayAddresses:
    """The gateway's addresses, for the environment of started agents."""

    gateway: str  # HOST:PORT, for gRPC
    address: str  # for aether_trio's client: aether://HOST:PORT
    extra: Mapping[str, str] = field(default_factory=dict)  # further variables for all agents


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """The command, environment and directory of an agent's process."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path | None
    kill: tuple[str, ...] = ()  # kills the agent where signals do not reach it


def plan_launch(spec: AgentSpec, start: AgentStart, addresses: GatewayAddresses) -> LaunchPlan:
    """Return the command and environment that start an agent."""
    own = own_variables(spec, start, addresses, os.environ)
    inherited = {key: os.environ[key] for key in os.environ if key in INHERITED or key.startswith(INHERITED_PREFIXES)}
    if spec.manner == DOCKER:
        name = _UNFIT.sub("-", f"aether-{spec.implementation}-{start.identity.specifier}-{secrets.token_hex(4)}")
        # Values are not on the command's line, where every user of the machine could read them.
        passed = [part for variable in own for part in ("--env", variable)]
        run = ["docker", "run", "--rm", "--init", "--name", name, "--network", spec.network, *passed]
        command = (*run, *spec.arguments, spec.image, *spec.command)
        found = {key: os.environ[key] for key in os.environ if key in DOCKER_ALSO or key.startswith(DOCKER_PREFIX)}
        return LaunchPlan(command, {**inherited, **found, **own}, None, kill=("docker", "kill", name))
    environment = {**inherited, "PATH": _search_path(inherited), "PYTHONUNBUFFERED": "1", **own}
    first = shutil.which(spec.command[0], path=environment["PATH"]) or spec.command[0]
    return LaunchPlan((first, *spec.command[1:]), environment, spec.directory)


def own_variables(
    spec: AgentSpec, start: AgentStart, addresses: GatewayAddresses, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return an agent's own environment variables; `environ` is the orchestrator's."""
    identity = start.identity
    return {
        **{name: environ[name] for name in spec.inherit if name in environ},
        **spec.environment,
        **addresses.extra,
        "AETHER_GATEWAY": addresses.gateway,
        "AETHER_ADDRESS": addresses.address,
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
    """Return a sentence for each agent whose program is not found now."""
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
    """Return a PATH on which `python` is the Python that runs the orchestrator."""
    return os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])


def cannot_run(plan: LaunchPlan, error: OSError | ValueError) -> str:
    """Return why an agent's process could not be started, and what to do about it."""
    command = plan.command[0]
    if plan.directory is not None and not plan.directory.is_dir():
        return f"cannot run {command}: the agent's directory {plan.directory} is not there any more"
    if isinstance(error, FileNotFoundError) and os.sep not in command:
        return f"cannot run {command}: there is no such command on the orchestrator's PATH; install it, or write its whole path"
    if isinstance(error, FileNotFoundError):
        at = plan.directory or Path.cwd()
        return f"cannot run {command}: there is no such file, seen from {at} (or the program that its first line names)"
    if isinstance(error, PermissionError):
        return f"cannot run {command}: it is not executable; chmod +x, or name its interpreter in front of it"
    return f"cannot run {command}: {getattr(error, 'strerror', '') or error}"


def check_docker() -> str:
    """Return the docker server's version. Raises DockerError. Blocks for a moment."""
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

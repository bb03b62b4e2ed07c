"""`aether orchestrate`: starts agents when they are needed."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import click
import trio

from aether_trio.cli import exits
from aether_trio.cli.connect import addresses_of, innermost, on_first_spoken, options_of
from aether_trio.cli.hangups import Hangups
from aether_trio.cli.json_lines import JSON, LOG_FORMATS, agents_reporter, begin_log
from aether_trio.cli.options import GatewayTarget, client_options
from aether_trio.cli.output import announce, print_table, wait_output_closed
from aether_trio.client import AetherError, ClientOptions, OrchestratorClient
from aether_trio.config import LoggingSettings
from aether_trio.model.identity import Identity, IdentityError
from aether_trio.orchestrator import (
    AgentsFileError,
    AgentSpec,
    AgentSupervisor,
    DockerError,
    GatewayAddresses,
    OrchestratorLimits,
    Reporter,
    check_docker,
    load_agents,
    missing_commands,
)
from aether_trio.orchestrator.agents_file import DOCKER
from aether_trio.orchestrator.supervisor import DEFAULT_GRACE_S, DEFAULT_MOST

NAME: Final = "aether-orchestrate"
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@click.command(
    name="orchestrate",
    epilog="""
\b
The file says what can be started:
  agents:
    echo:
      profile: process              the default with a command
      command: [python, echo.py]    a list, or a text with quotes as in a shell
      directory: agents             where it runs; below the file's directory
      environment: {MOOD: good}     variables for all of them
      inherit: [OPENAI_API_KEY]     variables that they have of this command's
      params: {voice: loud}         launch parameters, unless who starts it says otherwise
      description: Says it again
      most: 4                       at once; 0 for no separate limit
    summary:
      profile: docker               the default with an image
      image: example/summary:1
      command: [--fast]
      network: host
      arguments: [--memory, 512m]   for docker run

\b
Examples:
  aether orchestrate agents.yaml
  aether orchestrate agents.yaml --gateway gateway.example:50051 --tls
  aether orchestrate agents.yaml --check
  aether dev --agents agents.yaml         gateway and orchestrator in one

\b
A started agent finds in its environment: AETHER_GATEWAY, AETHER_ADDRESS,
AETHER_WORKSPACE, AETHER_IMPLEMENTATION, AETHER_SPECIFIER, AETHER_IDENTITY,
AETHER_AUTH_TOKEN, AETHER_TASK_ID, AETHER_PROFILE, AETHER_LAUNCH_PARAMS
(a JSON object), AETHER_TRIGGER_TIMESTAMP_MS, AETHER_CHECKPOINT_KEY. Of this
command's own environment it has PATH, HOME, the locale and the like, and what
its inherit names.
""",
)
@click.argument("agents_file", metavar="AGENTS.YAML", type=click.Path(dir_okay=False))
@click.option("--name", default=NAME, show_default=True, help="Its implementation; many may have the same.")
@click.option("--specifier", default="", help="Tells it from others of its name.  [default: made up]")
@click.option(
    "--most",
    type=click.IntRange(1),
    default=DEFAULT_MOST,
    show_default=True,
    metavar="N",
    help="Agents at once; more wait.",
)
@click.option(
    "--grace", "grace_s", type=click.FloatRange(min=0), default=DEFAULT_GRACE_S, show_default=True, metavar="SECONDS",
    help="From SIGTERM to SIGKILL, for an agent that is to end.",
)  # fmt: skip
@click.option(
    "--register/--no-register", default=True, show_default=True,
    help="Tell the gateway of the file's agents; otherwise another program has.",
)  # fmt: skip
@click.option(
    "--log-format", type=click.Choice(LOG_FORMATS), default="console", show_default=True, envvar="AETHER_LOG_FORMAT",
    show_envvar=True, help="With json each line is an object, on standard error.",
)  # fmt: skip
@click.option("--check", is_flag=True, help="Only read the file, and say what is in it.")
@client_options
def command(
    target: GatewayTarget,
    agents_file: str,
    name: str,
    specifier: str,
    most: int,
    grace_s: float,
    register: bool,
    log_format: str,
    check: bool,
) -> None:
    """Start agents of AGENTS.YAML when a message or a task needs them.

    Messages to an agent that is registered and not running make the gateway ask for it here.
    Processes end with this command: Ctrl-C sends them SIGTERM, a second one SIGKILL. SIGHUP has it
    read the file again.
    """
    if log_format == JSON:
        begin_log(LoggingSettings(format=JSON))
    hangups = Hangups()
    with hangups.noted():
        agents = read_agents(agents_file)
        if check:
            show_agents(agents)
            return
        require_docker(agents)
        try:
            Identity.orchestrator(name, specifier or "made-up")
        except IdentityError as error:
            raise click.BadParameter(str(error), param_hint="--name or --specifier") from None
        limits = OrchestratorLimits(most, grace_s)

        def orchestrate(address: str) -> None:
            _orchestrate(target, address, agents, limits, name, specifier, agents_file, register, hangups)

        try:
            on_first_spoken(addresses_of(target), orchestrate)
        except AetherError as error:
            raise _explained(error, str(target)) from None


def _orchestrate(
    target: GatewayTarget,
    address: str,
    agents: Mapping[str, AgentSpec],
    limits: OrchestratorLimits,
    name: str,
    specifier: str,
    agents_file: str,
    register: bool,
    hangups: Hangups,
) -> None:
    """Start agents for the gateway at this address until a signal."""
    reporter = agents_reporter()
    addresses = GatewayAddresses(str(target), address, tls_variables(target))
    orchestrator = AgentSupervisor(agents, addresses, reporter, limits)
    connection = _Connection(reporter)
    options: ClientOptions = {**options_of(target), "on_connected": connection.made, "on_disconnected": connection.lost}
    client = OrchestratorClient(
        address,
        implementation=name,
        specifier=specifier,
        profiles=orchestrator.profiles,
        agents=orchestrator.agents,
        **options,
    )
    try:
        stopped_by = trio.run(_run, orchestrator, client, connection, agents_file, register, str(target), hangups)
    except* AetherError as group:
        raise innermost(group) from None
    if stopped_by is not None:
        raise SystemExit(128 + stopped_by)


def read_agents(path: str) -> dict[str, AgentSpec]:
    """Read the agents of a file. Raises CliError with every problem of the file."""
    try:
        agents = load_agents(path)
    except AgentsFileError as error:
        raise exits.CliError(str(error), exits.SETTINGS, lines=True) from None
    for text in missing_commands(agents.values()):
        announce(f"{path}: {text}", err=True)
    return agents


def require_docker(agents: Mapping[str, AgentSpec]) -> None:
    """Raise CliError when agents need Docker and it does not work."""
    wanted = sorted(spec.implementation for spec in agents.values() if spec.manner == DOCKER)
    if not wanted:
        return
    try:
        check_docker()
    except DockerError as error:
        raise exits.CliError(f"cannot start {', '.join(wanted)} as a container: {error}", exits.SETTINGS) from None


def show_agents(agents: Mapping[str, AgentSpec]) -> None:
    """Print the agents of a file as a table."""
    columns = ("agent", "profile", "is started as", "most", "description")
    print_table(columns, [_cells(spec) for spec in agents.values()], "no agents")


def _cells(spec: AgentSpec) -> tuple[str, ...]:
    how = " ".join([spec.image, *spec.command] if spec.image else spec.command)
    return (spec.implementation, spec.profile, how, str(spec.most or ""), spec.description)


def tls_variables(target: GatewayTarget) -> dict[str, str]:
    """Return the environment by which started agents trust the gateway."""
    found: dict[str, str] = {}
    if target.tls:
        found["AETHER_TLS_ENABLED"] = "true"
    if target.tls_ca:
        found["AETHER_TLS_CA_CERT"] = str(Path(target.tls_ca).absolute())
    return found


class _Connection:
    """Prints when the gateway is away or back; registers agents in each new session."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._made = 0
        self._forgotten = trio.Event()

    def made(self, resumed: bool) -> None:
        self._made += 1
        if self._made > 1:
            self._reporter.event("", "the gateway is back")
            if not resumed:
                self._forgotten.set()

    def lost(self, error: AetherError) -> None:
        self._reporter.event("", f"the gateway is away; what runs goes on meanwhile: {error.message}")

    async def keep_registered(self, orchestrator: AgentSupervisor, client: OrchestratorClient) -> None:
        """Register the agents again after each lost session, until cancelled."""
        while True:
            await self._forgotten.wait()
            self._forgotten = trio.Event()
            try:
                await orchestrator.register(client)
            except AetherError as error:
                self._reporter.event("", f"its agents could not be registered again: {error.message}")


async def _run(
    orchestrator: AgentSupervisor,
    client: OrchestratorClient,
    connection: _Connection,
    agents_file: str,
    register: bool,
    gateway: str,
    hangups: Hangups,
) -> int | None:
    """Start agents until a signal comes; return the second signal, if there was one."""

    async def read_again() -> None:
        text = await _read_again(orchestrator, client, agents_file, register)
        announce(f"SIGHUP: {agents_file}: {text}", err=True)

    stop = _StopSignals(read_again)
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop.watch, signals, orchestrator)
            nursery.start_soon(stop.watch_output)
            with stop.scope:
                async with client:
                    if register:
                        await orchestrator.register(client)
                        nursery.start_soon(connection.keep_registered, orchestrator, client)
                    if hangups.came:
                        await read_again()
                    await orchestrator.run(
                        client, on_serving=lambda: announce(ready_text(orchestrator, client, gateway))
                    )
            nursery.cancel_scope.cancel()
    return stop.second


def ready_text(orchestrator: AgentSupervisor, client: OrchestratorClient, gateway: str) -> str:
    """Return the line that tells which agents are started for which gateway."""
    return f"{client.topic} starts {orchestrator.described} for the gateway at {gateway}; Ctrl-C ends all of them"


async def _read_again(
    orchestrator: AgentSupervisor, client: OrchestratorClient, agents_file: str, register: bool
) -> str:
    """Read the agents' file again and return a text with the result."""
    try:
        orchestrator.replace(read_agents(agents_file))
    except (exits.CliError, ValueError) as error:
        text = error.message if isinstance(error, exits.CliError) else str(error)
        return f"not used, what was read before stays: {text}"
    try:
        await client.say_agents(orchestrator.agents)
        if register:
            await orchestrator.register(client)
    except AetherError as error:
        return f"used, but the gateway could not be told: {error.message}"
    return f"used; it starts {orchestrator.described}"


class _StopSignals:
    """Ends a block at the first signal, kills agents at the second; SIGHUP reloads."""

    def __init__(self, read_again: Callable[[], Awaitable[None]]) -> None:
        self._read_again = read_again
        self.scope = trio.CancelScope()
        self.second: int | None = None
        self._first = True

    async def watch_output(self) -> None:
        """End the block when the output is closed, as a first signal does."""
        await wait_output_closed()
        self.scope.cancel()

    async def watch(self, signals: AsyncIterator[int], orchestrator: AgentSupervisor) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                await self._read_again()
            elif not self._first:
                self.second = number
                announce(f"{name}: killing what still runs", err=True)
                orchestrator.kill_all()
            else:
                self._first = False
                announce(f"{name}: stopping the agents. Again to kill them.", err=True)
                self.scope.cancel()


def _explained(error: AetherError, gateway: str) -> exits.CliError:
    if error.code in {"PERMISSION_DENIED", "UNAUTHENTICATED", "ALREADY_EXISTS"}:
        return exits.CliError(f"{gateway} said {error.code}: {error.message}", exits.REFUSED)
    if error.code.startswith("ERR_"):
        return exits.CliError(f"{error.code}: {error.message}")
    return exits.CliError(f"{gateway}: {error.message}", exits.UNREACHABLE)

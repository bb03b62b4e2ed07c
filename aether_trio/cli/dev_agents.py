"""`aether dev --agents`: runs an orchestrator in the gateway's process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aether_trio.cli import exits
from aether_trio.cli.json_lines import agents_reporter
from aether_trio.cli.orchestrate import read_agents, require_docker
from aether_trio.cli.output import announce
from aether_trio.cli.sidecar_process import Served, Sidecar
from aether_trio.client import AetherError, OrchestratorClient
from aether_trio.config import Settings
from aether_trio.orchestrator import AgentSpec, AgentSupervisor, GatewayAddresses

NAME: Final = "aether-dev"


def sidecar_for(agents_file: str, settings: Settings) -> Sidecar:
    """Make the Sidecar that starts a file's agents. Raises CliError."""
    agents = read_agents(agents_file)
    require_docker(agents)
    if settings.tls.cert:
        raise exits.CliError(
            "--agents cannot be used with TLS; run `aether orchestrate` beside `aether dev` instead", exits.SETTINGS
        )
    if not (settings.framed.enabled or settings.websocket.enabled):
        raise exits.CliError(
            "--agents needs framed.enabled or websocket.enabled, by which agents are started", exits.SETTINGS
        )
    running: list[AgentSupervisor] = []

    def kill() -> None:
        for orchestrator in running:
            orchestrator.kill_all()

    return Sidecar(lambda gateway: _orchestrate(agents, gateway, running), kill)


def addresses_of(gateway: Served) -> GatewayAddresses:
    """Return the addresses by which started agents find this gateway."""
    transports = gateway.addresses
    address = f"aether://{transports['framed']}" if "framed" in transports else f"ws://{transports['websocket']}"
    return GatewayAddresses(transports.get("grpc", gateway.address), address)


async def _orchestrate(agents: Mapping[str, AgentSpec], gateway: Served, running: list[AgentSupervisor]) -> None:
    addresses = addresses_of(gateway)
    orchestrator = AgentSupervisor(agents, addresses, agents_reporter())
    running.append(orchestrator)
    client = OrchestratorClient(
        addresses.address, implementation=NAME, profiles=orchestrator.profiles, agents=orchestrator.agents
    )
    try:
        async with client:
            await orchestrator.register(client)
            await orchestrator.run(
                client, on_serving=lambda: announce(f"  agents {orchestrator.described} start when they are needed")
            )
    except AetherError as error:
        announce(f"agents are not started any more: {error.message}", err=True)

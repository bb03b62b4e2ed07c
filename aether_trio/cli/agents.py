"""`aether agents`: list, register and start agents."""

from __future__ import annotations

from typing import Final

import click

from aether_trio.cli.connect import open_client
from aether_trio.cli.identities import access_options
from aether_trio.cli.options import GatewayTarget, name_and_value
from aether_trio.cli.output import print_json, print_table, run_client, say
from aether_trio.cli.records import plain
from aether_trio.client import Client
from aether_trio.client.operations.agents import Orchestrator, Registration
from aether_trio.client.operations.records import read
from aether_trio.model.identity import Identity, IdentityError, Kind
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.AgentOperation

_PAGE = 500
WAITS: Final = "the start waits for one"  # how the gateway's answer to LAUNCH ends then


@click.group(
    name="agents",
    epilog="""
\b
Examples:
  aether agents list
  aether agents register echo --profile process --param voice=loud
  aether agents launch ag::default::echo::1
  aether agents orchestrators
  aether agents delete echo
""",
)
def command() -> None:
    """List and register agents that are started when they are needed.

    `aether orchestrate` registers its agents itself.
    """


@command.command("list")
@click.option("--profile", default="", help="Only those of this launch profile.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@access_options
def list_agents(target: GatewayTarget, who: Identity, profile: str, as_json: bool) -> None:
    """Show the registered agent implementations."""
    rows = run_client(_list, target, who, profile)
    if as_json:
        print_json([plain(read(Registration, row)) for row in rows], indent=2)
        return
    print_table(
        ("agent", "profile", "launch parameters", "description"),
        [(row.implementation, row.orchestrator_profile, _params_text(row), row.description) for row in rows],
        "no agent is registered",
        whole=("agent", "profile"),
    )


def _params_text(row: pb.AgentRegistrationInfo) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(row.launch_params.items()) if key != "profile")


@command.command()
@click.argument("implementation")
@click.option("--profile", required=True, help="Which orchestrators may start it.")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A launch parameter; may be repeated.")
@click.option("--description", default="", help="What it is for.")
@access_options
def register(
    target: GatewayTarget, who: Identity, implementation: str, profile: str, params: tuple[str, ...], description: str
) -> None:
    """Register an agent implementation, or replace its registration."""
    info = pb.AgentRegistrationInfo(
        implementation=implementation, description=description, launch_params={**_params(params), "profile": profile}
    )
    run_client(_ask, target, who, Op(op=Op.REGISTER, agent=info))
    say(f"{implementation} is registered")


@command.command()
@click.argument("implementation")
@access_options
def delete(target: GatewayTarget, who: Identity, implementation: str) -> None:
    """Delete the registration of an agent implementation. Running agents go on."""
    run_client(_ask, target, who, Op(op=Op.DELETE, implementation=implementation))
    say(f"{implementation} is not registered any more")


@command.command()
@click.argument("identity", metavar="AG::WORKSPACE::IMPLEMENTATION::SPECIFIER")
@click.option(
    "--param", "params", multiple=True, metavar="NAME=VALUE", help="A launch parameter for this start; may be repeated."
)
@access_options
def launch(target: GatewayTarget, who: Identity, identity: str, params: tuple[str, ...]) -> None:
    """Start an agent without sending it a message. Prints the id of its startup task."""
    try:
        agent = Identity.parse(identity)
    except IdentityError as error:
        raise click.BadParameter(str(error)) from None
    if agent.kind is not Kind.AGENT:
        raise click.BadParameter(f"cannot launch {identity}: it is {agent.kind.with_article}, not an agent")
    wanted = pb.AgentLaunchParams(workspace=agent.workspace, specifier=agent.specifier, param_overrides=_params(params))
    op = Op(op=Op.LAUNCH, implementation=agent.implementation, launch_params=wanted)
    say(run_client(_launch, target, who, op))


async def _launch(target: GatewayTarget, who: Identity, op: pb.AgentOperation) -> str:
    """Launch an agent and return the task id. Warn when no orchestrator can start it."""
    async with open_client(target, who) as client:
        answer = await _answer(client, op)
    if answer.message.endswith(WAITS):
        say(f"{answer.message}, such as `aether orchestrate`", err=True)
    return answer.launch_result.task_id


@command.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@access_options
def orchestrators(target: GatewayTarget, who: Identity, as_json: bool) -> None:
    """Show the connected orchestrators, which can start agents."""
    rows = run_client(_ask, target, who, Op(op=Op.LIST_ORCHESTRATORS)).orchestrators
    if as_json:
        print_json([plain(read(Orchestrator, row)) for row in rows], indent=2)
        return
    print_table(
        ("orchestrator", "profiles"),
        [(row.orchestrator_id, ", ".join(row.profiles)) for row in rows],
        "no orchestrator is connected; start one with `aether orchestrate`",
    )


def _params(given: tuple[str, ...]) -> dict[str, str]:
    return dict(name_and_value(one, "--param") for one in given)


async def _list(target: GatewayTarget, who: Identity, profile: str) -> list[pb.AgentRegistrationInfo]:
    rows: list[pb.AgentRegistrationInfo] = []
    async with open_client(target, who) as client:
        while True:
            wanted = pb.AgentFilter(orchestrator_profile=profile, limit=_PAGE, offset=len(rows))
            page = await _answer(client, Op(op=Op.LIST, filter=wanted))
            rows += page.agents
            if not page.agents or len(rows) >= page.total_count:
                return rows


async def _ask(target: GatewayTarget, who: Identity, op: pb.AgentOperation) -> pb.AgentResponse:
    async with open_client(target, who) as client:
        return await _answer(client, op)


async def _answer(client: Client, op: pb.AgentOperation) -> pb.AgentResponse:
    answer: pb.AgentResponse = await client.request(pb.UpstreamMessage(agent_op=op), timeout=None)
    return answer

"""Cancels, retries and pauses executions, and gives them signals and answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

import click

from aether_trio.cli.identities import access_options, asking_options
from aether_trio.cli.options import GatewayTarget
from aether_trio.cli.output import run_client, say
from aether_trio.cli.workflows.arguments import json_argument
from aether_trio.cli.workflows.connection import (
    execution_id_of,
    open_workflows,
)
from aether_trio.client.operations.workflow import Workflow
from aether_trio.model.identity import Identity, Kind

Move: TypeAlias = Callable[[Workflow, str], Awaitable[None]]


def _steering(name: str, move: Move, done: str, text: str) -> click.Command:
    """Make a subcommand that steers executions."""

    @click.argument("executions", nargs=-1, required=True, metavar="EXECUTION...")
    @access_options
    def steer(target: GatewayTarget, who: Identity, executions: tuple[str, ...]) -> None:
        run_client(_move, target, who, move, executions, done)

    return click.command(name, help=text)(steer)


async def _move(target: GatewayTarget, who: Identity, move: Move, given: Sequence[str], done: str) -> None:
    async with open_workflows(target, who) as client:
        for one in given:
            execution_id = await execution_id_of(client, one)
            await move(client.workflow, execution_id)
            say(f"execution {execution_id} {done}")


cancel: Final = _steering(
    "cancel",
    Workflow.cancel,
    "is cancelled",
    "Cancel executions: open steps are told to stop, completed ones are compensated.",
)
retry: Final = _steering(
    "retry",
    Workflow.retry,
    "goes on",
    "Go on with executions that have failed or were cancelled, after their completed steps.",
)
resume: Final = _steering("resume", Workflow.resume, "goes on", "Let paused executions go on.")


@click.command()
@click.argument("executions", nargs=-1, required=True, metavar="EXECUTION...")
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who look at it.")
@access_options
def pause(target: GatewayTarget, who: Identity, executions: tuple[str, ...], reason: str) -> None:
    """Let executions begin no further step; what has begun goes on."""

    async def move(workflow: Workflow, execution_id: str) -> None:
        await workflow.pause(execution_id, reason)

    run_client(_move, target, who, move, executions, "is paused")


@click.command()
@click.argument("execution")
@click.argument("name", metavar="SIGNAL")
@click.option("--data", metavar="JSON|@FILE|-", help="What the step that waits for it gets as its result.")
@click.option(
    "--idempotency-key",
    "key",
    default="",
    metavar="KEY",
    help="Send it once: with the same key it comes once within a day.",
)
@access_options
def signal(target: GatewayTarget, who: Identity, execution: str, name: str, data: str | None, key: str) -> None:
    """Send a signal to an execution; a step that waits for it later gets it, too."""
    value = None if data is None else json_argument(data, "--data")
    execution_id = run_client(_signal, target, who, execution, name, value, key)
    say(f"signal {name} is delivered to execution {execution_id}")


async def _signal(target: GatewayTarget, who: Identity, given: str, name: str, data: Any, key: str) -> str:
    async with open_workflows(target, who) as client:
        execution_id = await execution_id_of(client, given)
        await client.workflow.signal(execution_id, name, data, idempotency_key=key)
        return execution_id


@click.command(
    epilog="""
\b
Examples:
  aether workflows answer EXECUTION                       asks, in a terminal
  aether workflows answer EXECUTION review --approve
  aether workflows answer EXECUTION review --reject --text "not yet"
  aether workflows answer EXECUTION 'review[3]' --choice later
  aether workflows answer EXECUTION pay --data '{"sum": 7}'
"""
)
@click.argument("execution")
@click.argument("step", default="", metavar="[STEP]")
@click.option("--approve/--reject", "approved", default=None, help="What is decided; --choice and --data approve.")
@click.option("--choice", default="", metavar="TEXT", help="One of the choices that the question offers.")
@click.option("--text", default="", metavar="TEXT", help="What to say besides.")
@click.option("--data", metavar="JSON|@FILE|-", help="What the form of the question wants.")
@asking_options(Kind.USER, "Who answers.  [default: a window of the user admin, an administrator]")
def answer(
    target: GatewayTarget,
    who: Identity,
    execution: str,
    step: str,
    approved: bool | None,
    choice: str,
    text: str,
    data: str | None,
) -> None:
    """Answer the question that a step of an execution asks.

    STEP may be left out if one step asks. In a terminal the question is shown and the answer asked
    for, unless an option gives it.
    """
    from aether_trio.cli.workflows.answering import GivenAnswer, answer_question

    value = None if data is None else json_argument(data, "--data")
    if approved is None and (choice or data is not None or text):
        approved = True
    run_client(answer_question, target, who, execution, step, GivenAnswer(approved, choice, text, value))


@click.command()
@click.argument("name", metavar="WEBHOOK")
@click.option("--workspace", default="default", show_default=True, help="The workspace of the webhook.")
@click.option(
    "--idempotency-key",
    "key",
    default="",
    metavar="KEY",
    help="Rotate it once: the same key prints the same secret for a day.",
)
@access_options
def rotate(target: GatewayTarget, who: Identity, name: str, workspace: str, key: str) -> None:
    """Give a webhook a new secret, and print it.

    The one before is valid until the next rotation, so that the sender can change meanwhile.
    """
    say(run_client(_rotate, target, who, name, workspace, key))


async def _rotate(target: GatewayTarget, who: Identity, name: str, workspace: str, key: str) -> str:
    async with open_workflows(target, who) as client:
        return await client.workflow.rotate_webhook(name, workspace=workspace, idempotency_key=key)

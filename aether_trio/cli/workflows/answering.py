"""`aether workflows answer`: answers a step's question, by a terminal too."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import click
import trio

from aether_trio.cli import exits
from aether_trio.cli.connect import is_refusal
from aether_trio.cli.options import GatewayTarget
from aether_trio.cli.output import say, visible
from aether_trio.cli.workflows.connection import execution_id_of, open_workflows
from aether_trio.cli.workflows.texts import cut
from aether_trio.client import AetherError
from aether_trio.client.client import Client
from aether_trio.client.operations.workflow_values import Execution, ExecutionStep
from aether_trio.model.identity import Identity

_TRUE: Final = {"y": True, "yes": True, "true": True, "n": False, "no": False, "false": False}
_SHOWN: Final = 10


class GivenAnswer(NamedTuple):
    """What the command line says of an answer; `approved` None for nothing."""

    approved: bool | None
    choice: str = ""
    text: str = ""
    data: Any = None


async def answer_question(target: GatewayTarget, who: Identity, given: str, name: str, answer: GivenAnswer) -> None:
    """Answer the question of a step. Raises CliError."""
    async with open_workflows(target, who, endless=True) as client:
        execution_id = await execution_id_of(client, given)
        step = await _find(client, execution_id, name)
        if answer.approved is None:
            if not sys.stdin.isatty():
                raise click.UsageError("give the answer with --approve, --reject, --choice or --data.")
            answer = await trio.to_thread.run_sync(_asked, step, abandon_on_cancel=True)
        assert answer.approved is not None
        await client.workflow.answer(
            execution_id, step.name, approved=answer.approved, choice=answer.choice, text=answer.text, data=answer.data
        )
        decision = answer.choice or ("approved" if answer.approved else "rejected")
        say(f"{step.name} of execution {execution_id} is answered: {decision}")


async def _find(client: Client, execution_id: str, name: str) -> ExecutionStep:
    """Find the step that asks: the only one, without a name.

    Raises CliError, and AetherError of a refusal.

    Questions about a step have names of their own: `~budget`, and `mail?1` of a step `mail`.
    """
    try:
        named = await client.workflow.execution(execution_id, step=name)
    except AetherError as error:
        if not name or not is_refusal(error):
            raise
        found = _about(await client.workflow.execution(execution_id), name)
        if found is None:
            raise
        return found
    found = None
    if name and not any(one.waits_for.get("for") == "answer" for one in named.steps):
        found = _about(await client.workflow.execution(execution_id), name)
    return found or _asking(named, name)


def _about(execution: Execution, name: str) -> ExecutionStep | None:
    """Return what asks about a step or the execution, else None."""
    asking = (one for one in execution.steps if one.waits_for.get("for") == "answer")
    return next((one for one in asking if one.name == f"~{name}" or one.name.startswith(f"{name}?")), None)


def _asking(execution: Execution, name: str) -> ExecutionStep:
    """Return the step that asks, the only one without a name. Raises CliError."""
    asking = [one for one in execution.steps if one.waits_for.get("for") == "answer"]
    named = [one for one in asking if not name or one.name == name]
    if len(named) == 1:
        return named[0]
    if not asking:
        what = f"step {name}" if name else "no step"
        raise exits.CliError(
            f"{what} of execution {execution.execution_id} asks {'nothing' if name else 'anything'} now: "
            f"it is {execution.status}; `aether workflows show` says what it waits for"
        )
    lines = [f"  {one.name}  {cut(str(one.waits_for.get('question', '')))}" for one in asking[:_SHOWN]]
    more = [f"  and {len(asking) - _SHOWN} more"] if len(asking) > _SHOWN else []
    problem = "several steps ask; name one:"
    raise exits.CliError("\n".join([problem, *lines, *more]), exits.USAGE, lines=True)


def _asked(step: ExecutionStep) -> GivenAnswer:
    """Show the question in the terminal, and ask for the answer. Any thread."""
    question = step.waits_for
    say(str(question.get("question", "")), lines=True)
    choices = [str(one) for one in question.get("choices") or ()]
    if not choices:
        if not _yes("Approve?"):
            return GivenAnswer(False, "", _free_text(question))
        return GivenAnswer(True, "", _free_text(question), _form(question))
    for number, one in enumerate(choices, start=1):
        say(f"  {number}  {one}")
    say("  r  reject")
    while True:
        given = _line("Which?").strip()
        if given.lower() == "r":
            return GivenAnswer(False, "", _free_text(question))
        if given.isdecimal() and 0 < int(given) <= len(choices):
            given = choices[int(given) - 1]
        if given in choices:
            return GivenAnswer(True, given, _free_text(question), _form(question))
        say(f"a number from 1 to {len(choices)}, or r")


def _free_text(question: Mapping[str, Any]) -> str:
    label = question.get("text")
    if not label:
        return ""
    return _line(f"{label if isinstance(label, str) else 'Text'} (may be empty):")


def _form(question: Mapping[str, Any]) -> Any:
    """Ask for what the form of a question wants; None without a form."""
    form = question.get("form")
    if not isinstance(form, dict):
        return None
    properties = form.get("properties")
    if form.get("type", "object") != "object" or not isinstance(properties, dict):
        return _json_line("The answer as JSON:")
    needed = form.get("required")
    required: list[Any] = needed if isinstance(needed, list) else []
    found: dict[str, Any] = {}
    for name, schema in properties.items():
        value, is_given = _property(str(name), schema if isinstance(schema, dict) else {}, name in required)
        if is_given:
            found[name] = value
    return found


def _property(name: str, schema: Mapping[str, Any], needed: bool) -> tuple[Any, bool]:
    """Ask for one property of a form; return it, and whether it is given."""
    kind, values = schema.get("type"), schema.get("enum")
    title = str(schema.get("title") or name)
    about = f" - {schema['description']}" if isinstance(schema.get("description"), str) else ""
    kinds = " | ".join(map(str, values)) if isinstance(values, list) else str(kind or "JSON")
    default = f", {json.dumps(schema['default'])} by default" if "default" in schema else ""
    while True:
        given = _line(f"{title} ({kinds}{default}{'' if needed else ', may be empty'}){about}:").strip()
        if not given and "default" in schema:
            return schema["default"], True
        if not given and not needed:
            return None, False
        try:
            value = _typed(given, kind)
        except ValueError:
            say(f"that is no {kind}")
            continue
        if isinstance(values, list) and value not in values:
            say(f"one of {', '.join(map(str, values))}")
            continue
        return value, True


def _typed(text: str, kind: Any) -> Any:
    if kind == "string":
        return text
    if kind == "boolean":
        if text.lower() not in _TRUE:
            raise ValueError
        return _TRUE[text.lower()]
    if kind == "integer":
        return int(text)
    if kind == "number":
        number = float(text)
        return int(number) if number.is_integer() else number
    try:
        return json.loads(text)
    except ValueError:
        if kind in (None, "any"):
            return text
        raise


def _json_line(prompt: str) -> Any:
    while True:
        try:
            return json.loads(_line(prompt))
        except ValueError as error:
            say(f"it is not JSON: {error}")


def _yes(prompt: str) -> bool:
    while True:
        given = _line(f"{prompt} (y/n)").strip().lower()
        if given in _TRUE:
            return _TRUE[given]


def _line(prompt: str) -> str:
    """Ask for a line. Raises CliError at the end of the input."""
    say(f"{visible(prompt)} ", end="")
    given = sys.stdin.readline()
    if not given:
        say("")
        raise exits.CliError("nothing was answered")
    return given.rstrip("\n")

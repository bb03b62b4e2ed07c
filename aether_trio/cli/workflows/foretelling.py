"""`aether workflows test --events`: what files would do with the real events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from aether_trio.cli import exits
from aether_trio.cli.options import GatewayTarget
from aether_trio.cli.output import print_json, run_client, say
from aether_trio.cli.workflows.connection import open_workflows
from aether_trio.cli.workflows.texts import cut, json_line, when_text
from aether_trio.client.operations.workflow_values import moment
from aether_trio.model.identity import Identity

_SHOWN: Final = 300
_DOES: Final = {
    "message": "would send",
    "create_task": "would create the task",
    "emit_event": "would emit",
    "start": "would start",
    "join": "would take part in a join",
    "send": "would send to instance",
    "fire": "would fire",
}


def print_foretold(
    target: GatewayTarget,
    who: Identity,
    workspace: str,
    documents: Sequence[Mapping[str, Any]],
    length: str,
    as_object: bool,
) -> None:
    """Print what documents would have done with the events of the last `length`.

    Raises SystemExit(1) if something would have failed.
    """
    from aether_trio.model.workflows.durations import DurationError, duration_ms

    try:
        since = datetime.now(UTC) - timedelta(milliseconds=duration_ms(length))
    except DurationError as error:
        raise click.BadParameter(str(error), param_hint="--events") from None
    events, foretold = run_client(_foretell, target, who, workspace, documents, since)
    errors = sum("error" in one for one in foretold)
    if as_object:
        print_json({"events": events, "foretold": foretold, "errors": errors}, indent=2)
    else:
        for one in foretold:
            say(_line(one))
        counts = Counter(f"{one.get('kind')} {one.get('id')}" for one in foretold if "error" not in one)
        for name, count in counts.items():
            say(f"{name}: {count} {'event' if count == 1 else 'events'}")
        seen = "1 event" if events == 1 else f"{events} events"
        failed = f"; {errors} would have failed" if errors else ""
        say(f"{seen} of the last {length}: {len(foretold) - errors} would have had an effect{failed}")
    if errors:
        raise SystemExit(exits.FAILED)


async def _foretell(
    target: GatewayTarget, who: Identity, workspace: str, documents: Sequence[Mapping[str, Any]], since: datetime
) -> tuple[int, list[Mapping[str, Any]]]:
    events, after = 0, 0
    found: list[Mapping[str, Any]] = []
    async with open_workflows(target, who, endless=True) as client:
        while True:
            page = await client.workflow.foretell(documents, since=since, workspace=workspace, after=after)
            events += page.events
            found += page.foretold
            after = page.next
            if not after:
                return events, found


def _line(one: Mapping[str, Any]) -> str:
    at = when_text(moment(one.get("at")))
    what = f"{at}  {one.get('event')} of {one.get('source')}: {one.get('kind')} {one.get('id')}"
    if "error" in one:
        return f"{what} would have failed: {cut(str(one['error']), _SHOWN)}"
    does = one.get("does")
    does = does if isinstance(does, Mapping) else {}
    rest = {key: value for key, value in does.items() if key != "type"}
    kind = str(does.get("type", ""))
    return f"{what} {_DOES.get(kind, f'would do {kind}')} {json_line(rest, _SHOWN)}"

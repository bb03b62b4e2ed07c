"""`aether workflows show ID --timeline`: an execution's sources in one order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aether_trio.cli.options import GatewayTarget
from aether_trio.cli.output import print_json, run_client, say
from aether_trio.cli.workflows.connection import execution_id_of, open_workflows
from aether_trio.cli.workflows.texts import clock_text, cut
from aether_trio.cli.workflows.watching import entry_lines, timed_line
from aether_trio.client.jobs.job import NEWS_STATE
from aether_trio.client.operations.workflow_values import entry_of, moment
from aether_trio.model.identity import Identity


def print_timeline(target: GatewayTarget, who: Identity, given: str, after: str, limit: int, *, as_lines: bool) -> None:
    """Print entries behind a position, up to a limit, and how to get more."""
    left = run_client(_print, target, who, given, after, limit, as_lines)
    if left:
        say(f"there is more: --after '{left}'", err=True)


async def _print(target: GatewayTarget, who: Identity, given: str, after: str, limit: int, as_lines: bool) -> str:
    async with open_workflows(target, who, endless=True) as client:
        execution_id = await execution_id_of(client, given)
        while True:
            page = await client.workflow.timeline(execution_id, after=after, limit=limit)
            limit -= len(page.entries)
            after = page.next
            for entry in page.entries:
                if as_lines:
                    print_json(dict(entry))
                    continue
                at = clock_text(moment(entry.get("at")))
                for place, text in timeline_lines(entry):
                    say(timed_line(at, place, text))
            if not after or limit <= 0:
                return after


def timeline_lines(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what an entry says: a step or item ("" for the execution), and words."""
    place = str(entry.get("step") or "")
    match entry.get("source"):
        case "history":
            yield from entry_lines(entry_of(entry))
        case "attempt":
            yield (
                place,
                f"goes to {entry.get('worker')} (attempt {entry.get('attempt')} of task {entry.get('task_id')})",
            )
        case "task":
            reason = f": {cut(str(entry['reason']), 300)}" if entry.get("reason") else ""
            yield place, f"task {entry.get('from')} -> {entry.get('to')}{reason}"
        case "progress" if entry.get("state") == NEWS_STATE:
            return  # what a function's worker is told: its history has more
        case "progress":
            share = entry.get("progress")
            percent = f" {share:.0%}" if isinstance(share, int | float) and 0 < share <= 1 else ""
            words = " ".join(str(one) for one in (entry.get("state"), entry.get("message")) if one)
            yield place, f"progress{percent}: {cut(words, 300)}"
        case "chat":
            yield place, f"{entry.get('from')} says: {cut(str(entry.get('text')), 300)}"

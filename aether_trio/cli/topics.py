"""`aether topics`: what topics hold, who reads them and how far; purges one."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

from aether_trio.cli import exits
from aether_trio.cli.connect import open_client
from aether_trio.cli.identities import access_options
from aether_trio.cli.options import GatewayTarget, workspace_option
from aether_trio.cli.output import print_facts, print_json, print_table, run_client, say
from aether_trio.client.operations.topics import ConsumerInfo, TopicDetails, TopicInfo, Topics
from aether_trio.model.identity import Identity

_PAGE: Final = 500
_MANY: Final = 1000
"""More consumers than this are not counted in a list."""
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


@click.group(
    name="topics",
    epilog="""
\b
Examples:
  aether topics list
  aether topics list --all --prefix us::
  aether topics list --json | jq '.[] | select(.most_behind > 1000) | .name'
  aether topics show ag::default::echo::1
  aether topics purge ag::default::echo::1
""",
)
def command() -> None:
    """Show what topics hold and how far they are read, and purge them.

    To look needs READ on the workspace of the topics, to purge ADMIN; topics of users and services
    are in no workspace and need admin/workspaces.
    """


@command.command("list")
@workspace_option
@click.option("--all", "everywhere", is_flag=True, help="Topics of all workspaces, and of users and services.")
@click.option("--prefix", default="", metavar="TEXT", help="Only topics that begin with this.")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@access_options
def list_topics(
    target: GatewayTarget, who: Identity, workspace: str, everywhere: bool, prefix: str, limit: int, as_json: bool
) -> None:
    """Show topics in the order of their names."""
    place = "" if everywhere else workspace
    found, more = run_client(_list, target, who, place, prefix, limit)
    if as_json:
        print_json([_topic_json(one) for one in found], indent=2)
    else:
        empty = f"no topic in the workspace {workspace}" if place else "no topic"
        print_table(
            ("topic", "messages", "bytes", "oldest", "consumers", "most behind"),
            [_cells(one) for one in found],
            empty,
        )
    if more:
        say(f"there are more than these {limit}; see --limit and --prefix", err=True)


def _cells(one: TopicInfo) -> tuple[str, ...]:
    consumers = f"{_MANY}+" if one.consumers > _MANY else str(one.consumers)
    behind = str(one.most_behind) if one.consumers else ""
    return (one.name, str(one.messages), _size(one.retained_bytes), _when(one.oldest_at), consumers, behind)


async def _list(
    target: GatewayTarget, who: Identity, workspace: str, prefix: str, limit: int
) -> tuple[list[TopicInfo], bool]:
    """Return at most `limit` topics, and whether there are more."""
    found: list[TopicInfo] = []
    after = ""
    async with open_client(target, who) as client:
        while len(found) <= limit:
            wanted = min(_PAGE, limit + 1 - len(found))
            page = await client.topics.within(None).list(workspace, prefix=prefix, limit=wanted, after=after)
            found += page.topics
            after = page.next_after
            if not after:
                break
    return found[:limit], len(found) > limit


@command.command()
@click.argument("topic")
@click.option("--json", "as_json", is_flag=True, help="A JSON object with its consumers.")
@access_options
def show(target: GatewayTarget, who: Identity, topic: str, as_json: bool) -> None:
    """Show one topic, and how far each of its consumers has read."""
    details, consumers = run_client(_show, target, who, topic)
    info = details.topic
    if as_json:
        print_json(_topic_json(info) | {"consumers": [_consumer_json(one) for one in consumers]}, indent=2)
        return
    facts = [
        ("topic", info.name),
        ("messages", f"{info.messages}, {_size(info.retained_bytes)}"),
        ("offsets", f"{info.first_offset} to {info.last_offset}" if info.messages else f"last {info.last_offset}"),
        ("oldest", _when(info.oldest_at)),
        ("newest", _when(info.newest_at)),
    ]
    print_facts([(name, text) for name, text in facts if text])
    say("")
    print_table(
        ("consumer", "lag", "position", "moved"),
        [
            (_consumer_name(one), str(one.lag), str(one.position), _when(one.moved_at))
            for one in sorted(consumers, key=lambda one: -one.lag)
        ],
        "no consumer has read it yet",
    )


def _consumer_name(one: ConsumerInfo) -> str:
    return "(all workers)" if one.name == "*" else one.name


async def _show(target: GatewayTarget, who: Identity, topic: str) -> tuple[TopicDetails, list[ConsumerInfo]]:
    async with open_client(target, who) as client:
        pages = [page async for page in _pages(client.topics.within(None), topic)]
    return pages[0], [one for page in pages for one in page.consumers]


async def _pages(topics: Topics, topic: str) -> AsyncIterator[TopicDetails]:
    after = ""
    while True:
        page = await topics.show(topic, limit=_PAGE, after=after)
        yield page
        after = page.next_after
        if not after:
            return


@command.command()
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@access_options
def purge(target: GatewayTarget, who: Identity, topics: Sequence[str], yes: bool) -> None:
    """Delete all messages that a topic holds now; messages that come later stay.

    Consumers that have not read them are told that they are gone. Messages on their way to a
    consumer may still arrive.
    """
    for topic in topics:
        details, consumers = run_client(_show, target, who, topic)
        info = details.topic
        if not info.messages:
            say(f"{info.name} holds no message")
            continue
        if not yes:
            _ask(info, consumers)
        gone = run_client(_purge, target, who, info)
        say(f"{info.name}: {gone} messages are purged")


def _ask(info: TopicInfo, consumers: Sequence[ConsumerInfo]) -> None:
    """Ask the person before messages are deleted. Raises CliError."""
    behind = [one for one in consumers if one.lag]
    unread = f"; {len(behind)} of {len(consumers)} consumers have not read all of them" if behind else ""
    question = f"Delete {info.messages} messages ({_size(info.retained_bytes)}) of {info.name}{unread}?"
    if not is_asked(question):
        raise exits.CliError("nothing was deleted")


def is_asked(question: str) -> bool:
    """Ask on standard error for yes or no. Raises UsageError without a terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: give --yes to delete without a question.")
    say(f"{question} [y/N] ", err=True, end="")
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


async def _purge(target: GatewayTarget, who: Identity, info: TopicInfo) -> int:
    gone = 0
    async with open_client(target, who, endless=True) as client:
        while True:
            done = await client.topics.purge(info.name, through=info.last_offset)
            gone += done.messages
            if not done.more:
                return gone


def _size(count: int) -> str:
    size = float(count)
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def _when(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _topic_json(one: TopicInfo) -> dict[str, Any]:
    return {
        "name": one.name,
        "messages": one.messages,
        "retained_bytes": one.retained_bytes,
        "first_offset": one.first_offset,
        "last_offset": one.last_offset,
        "oldest_at": _iso(one.oldest_at),
        "newest_at": _iso(one.newest_at),
        "consumers": one.consumers,
        "most_behind": one.most_behind,
    }


def _consumer_json(one: ConsumerInfo) -> dict[str, Any]:
    return {"name": one.name, "lag": one.lag, "position": one.position, "moved_at": _iso(one.moved_at)}


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat()

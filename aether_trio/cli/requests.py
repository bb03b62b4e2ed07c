"""`aether requests`: lists, watches, approves and denies authority requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import click

from aether_trio.cli.authority_texts import level_text, parse_duration, scope_text, when, who
from aether_trio.cli.connect import open_client
from aether_trio.cli.grants import person_options
from aether_trio.cli.ids import Listed, full_id
from aether_trio.cli.options import GatewayTarget, name_and_value
from aether_trio.cli.output import print_json, print_table, run_client, say
from aether_trio.cli.paging import in_pages
from aether_trio.cli.records import plain
from aether_trio.client.operations import ResourceScope
from aether_trio.client.operations.enums import AuthorityRequestEventType, AuthorityRequestStatus
from aether_trio.client.operations.requests import AuthorityRequest, AuthorityRequests, RequestEvent
from aether_trio.model.access import AccessLevel
from aether_trio.model.identity import Identity

_LEVELS: Final = tuple(level.name.lower() for level in AccessLevel if level)
_STATUSES: Final = tuple(status.name.lower() for status in AuthorityRequestStatus if status)


@click.group(
    name="requests",
    epilog="""
\b
Examples:
  aether requests list
  aether requests list --capability capability/approve/deploy
  aether requests watch
  aether requests approve REQUEST_ID
  aether requests approve REQUEST_ID --workspace prod --level read --for 10m
  aether requests deny REQUEST_ID --reason "not today"
""",
)
def command() -> None:
    """List, watch, approve and deny requests of participants to act for someone.

    The subject of a request decides it, or one who may exchange grants for the subject; never the
    participant that asks.
    """


@command.command("list")
@click.option(
    "--capability", "capabilities", multiple=True, metavar="NAME", help="Also those routed to this; may be repeated."
)
@click.option(
    "--status", type=click.Choice(_STATUSES), default="pending", show_default=True, help="Those in this state."
)
@click.option("--workspace", default="", help="Those for this workspace.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@person_options
def list_requests(
    target: GatewayTarget,
    asker: Identity,
    capabilities: tuple[str, ...],
    status: str,
    workspace: str,
    as_json: bool,
) -> None:
    """Show the requests that the caller may decide, the latest first."""
    found = run_client(_list, target, asker, capabilities, AuthorityRequestStatus[status.upper()], workspace)
    if as_json:
        print_json([plain(one) for one in found], indent=2)
        return
    print_table(
        ("request", "asks", "to act for", "level", "scope", "for", "until", "says"),
        [
            (
                one.request_id,
                who(one.requesting_actor),
                who(one.target_subject) or "you",
                level_text(one.requested_access_level),
                scope_text(one),
                f"{one.requested_duration_s} s",
                when(one.expires_at),
                one.reason,
            )
            for one in found
        ],
        f"no {status} request for {asker}",
        whole=("request", "asks"),
    )


async def _list(
    target: GatewayTarget,
    asker: Identity,
    capabilities: Sequence[str],
    status: AuthorityRequestStatus,
    workspace: str,
) -> list[AuthorityRequest]:
    found: list[AuthorityRequest] = []
    async with open_client(target, asker) as client:
        requests = client.authority_requests.within(None)
        wanted = {"status": status, "workspace": workspace, "matching_capabilities": capabilities}
        async for page in _pages(requests, **wanted):
            found += page
    return found


def _pages(requests: AuthorityRequests, **wanted: Any) -> AsyncIterator[Sequence[AuthorityRequest]]:
    async def read(limit: int, offset: int) -> Sequence[AuthorityRequest]:
        return (await requests.list_pending(limit=limit, offset=offset, **wanted)).requests

    return in_pages(read)


async def _request_id_of(requests: AuthorityRequests, given: str) -> str:
    """Return the id of the pending request that begins with `given`."""

    async def listed() -> AsyncIterator[Sequence[Listed]]:
        async for page in _pages(requests, status=AuthorityRequestStatus.PENDING):
            yield [(one.request_id, f"{who(one.requesting_actor)}: {one.reason}") for one in page]

    return await full_id(given, "request", listed())


@command.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@person_options
def watch(target: GatewayTarget, asker: Identity, as_json: bool) -> None:
    """Show requests as they are made and decided, until Ctrl-C."""
    run_client(_watch, target, asker, as_json)


async def _watch(target: GatewayTarget, asker: Identity, as_json: bool) -> None:
    async with open_client(target, asker, endless=True) as client, client.authority_requests.events() as events:
        say(f"watching as {asker}", err=True)
        async for event in events:
            if as_json:
                print_json(plain(event))
            else:
                say(_event_line(event))


def _event_line(event: RequestEvent) -> str:
    request = event.request
    word = event.event_type.name.lower()
    if event.event_type is AuthorityRequestEventType.CREATED:
        subject = who(request.target_subject) or "the approver"
        level = level_text(request.requested_access_level)
        line = f"{who(request.requesting_actor)} asks to act for {subject}: {level}, {scope_text(request)}"
        said = f'; it says "{request.reason}"' if request.reason else ""
        return f"{request.request_id}  {word}  {line}, for {request.requested_duration_s} s{said}"
    by = f" by {who(request.resolved_by)}" if request.resolved_by else ""
    reason = f": {request.resolution_reason}" if request.resolution_reason else ""
    grant = f", grant {request.granted_grant_id}" if request.granted_grant_id else ""
    return f"{request.request_id}  {word}{by}{grant}{reason}"


@dataclass(frozen=True, slots=True)
class _Narrowing:
    """What an approver gives of a wish; empty: all of it."""

    workspaces: tuple[str, ...]
    resources: tuple[ResourceScope, ...]
    operations: tuple[str, ...]
    level: AccessLevel | None
    duration: timedelta | None


@command.command()
@click.argument("request_id")
@click.option("--workspace", "workspaces", multiple=True, metavar="PATTERN", help="Only there; may be repeated.")
@click.option("--resource", "resources", multiple=True, metavar="TYPE=PATTERN", help="Only on these; may be repeated.")
@click.option("--operation", "operations", multiple=True, metavar="PATTERN", help="Only these; may be repeated.")
@click.option("--level", type=click.Choice(_LEVELS), help="At most this level of access.")
@click.option("--for", "duration", callback=parse_duration, metavar="TIME", help="Not longer, such as 90s, 15m or 1h.")
@click.option("--reason", default="", metavar="TEXT", help="What the requester is told.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object: the decided request.")
@person_options
def approve(
    target: GatewayTarget,
    asker: Identity,
    request_id: str,
    workspaces: tuple[str, ...],
    resources: tuple[str, ...],
    operations: tuple[str, ...],
    level: str | None,
    duration: timedelta | None,
    reason: str,
    as_json: bool,
) -> None:
    """Approve a request, all of it or less.

    Each option narrows what was asked for, and never widens it. An approval that leaves nothing is
    refused.
    """
    narrowing = _Narrowing(
        workspaces, _resources(resources), operations, None if level is None else AccessLevel[level.upper()], duration
    )
    decided = run_client(_approve, target, asker, request_id, narrowing, reason)
    if as_json:
        print_json(plain(decided), indent=2)
    else:
        say(f"{decided.request_id}  approved, grant {decided.granted_grant_id}")


def _resources(given: tuple[str, ...]) -> tuple[ResourceScope, ...]:
    found: dict[str, list[str]] = {}
    for one in given:
        resource_type, pattern = name_and_value(one, "--resource")
        found.setdefault(resource_type, []).append(pattern)
    return tuple(ResourceScope(resource_type=kind, patterns=tuple(texts)) for kind, texts in found.items())


async def _approve(
    target: GatewayTarget, asker: Identity, request_id: str, narrowing: _Narrowing, reason: str
) -> AuthorityRequest:
    async with open_client(target, asker) as client:
        requests = client.authority_requests.within(None)
        return await requests.approve(
            await _request_id_of(requests, request_id),
            workspace_scope=narrowing.workspaces,
            resource_scope=narrowing.resources,
            operation_scope=narrowing.operations,
            access_level=narrowing.level,
            duration=narrowing.duration,
            reason=reason,
        )


@command.command()
@click.argument("request_id")
@click.option("--reason", default="", metavar="TEXT", help="What the requester is told.")
@person_options
def deny(target: GatewayTarget, asker: Identity, request_id: str, reason: str) -> None:
    """Deny a request. A task that waits for it fails."""
    denied = run_client(_deny, target, asker, request_id, reason)
    say(f"{denied}  denied")


async def _deny(target: GatewayTarget, asker: Identity, given: str, reason: str) -> str:
    async with open_client(target, asker) as client:
        requests = client.authority_requests.within(None)
        request_id = await _request_id_of(requests, given)
        await requests.deny(request_id, reason=reason)
    return request_id

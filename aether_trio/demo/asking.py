"""Runs the demo of borrowed authority: asked for, approved in part, revoked.

The planner may not enter the workspace "office" itself. It asks maya to act for her, and a scripted
maya decides in one of her two windows.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from aether_trio.client import AetherError, AgentClient, UserClient
from aether_trio.client.operations import AccessLevel, Authorization, Principal, on_behalf_of
from aether_trio.client.operations.requests import AuthorityRequest, AuthorityRoute, AuthorityWish, RequestEvent
from aether_trio.demo import texts
from aether_trio.demo.checks import DemoCheck
from aether_trio.demo.planner_and_window import LIMIT_S, Line, Missed
from aether_trio.demo.processes import GatewayProcess
from aether_trio.demo.screen import Screen

OFFICE: Final = "office"
HOME: Final = "home"
CALENDAR: Final = "saturday"
ENTRY: Final = "Saturday: nothing. Sunday: Grandma's birthday!"
WHY: Final = "Which weekend is free for the hut? I would write the trip down, too."
ANSWER: Final = "Read it, that will do."
ASKED_S: Final = 600
APPROVED_S: Final = 60


@dataclass(frozen=True, slots=True)
class AskingFacts:
    """What happened in the demo of borrowed authority.

    A refusal is its text, "" for none. `asked` and `granted` are (workspaces, level, seconds).
    `heard` is how many of maya's windows and of the planner's connections have heard of the
    decision.
    """

    alone: str
    by_itself: str
    asked: tuple[tuple[str, ...], AccessLevel, int]
    granted: tuple[tuple[str, ...], AccessLevel, int]
    heard: int
    read: str
    written: str
    elsewhere: str
    told: bool
    after: str


def judge(facts: AskingFacts) -> list[DemoCheck]:
    """Check every claim about borrowed authority against the observed facts."""
    workspaces, level, lasts_s = facts.granted
    scope = f"{level.name.lower()} in {', '.join(workspaces) or 'any workspace'}, for {lasts_s} s"
    less = set(workspaces) < set(facts.asked[0]) and level < facts.asked[1] and lasts_s < facts.asked[2]
    return [
        DemoCheck(bool(facts.alone), "without authority the agent was refused", facts.alone or "it was not"),
        DemoCheck(bool(facts.by_itself), "it could not approve its request", facts.by_itself or "it could"),
        DemoCheck(less and bool(workspaces), "maya approved less than was asked for", scope),
        DemoCheck(facts.heard == 3, "her two windows and the agent heard of it", f"{facts.heard} of 3"),
        DemoCheck(facts.read == ENTRY, "within the grant the agent acted for her", facts.read or "it read nothing"),
        DemoCheck(bool(facts.written), "to write was refused", facts.written or "it was not"),
        DemoCheck(bool(facts.elsewhere), "another workspace was refused", facts.elsewhere or "it was not"),
        DemoCheck(facts.told, "the agent was told of the revocation", "at once" if facts.told else "it was not"),
        DemoCheck(bool(facts.after), "after the revocation it was refused", facts.after or "it was not"),
    ]


async def refusal(operation: Awaitable[object]) -> str:
    """Return why the gateway refuses an operation; "" if it does not."""
    try:
        await operation
    except AetherError as error:
        return str(error).partition(": ")[2] or str(error)
    return ""


async def decided(events: AsyncIterator[RequestEvent]) -> AuthorityRequest:
    """Wait for the decision of a request."""
    async for event in events:
        if event.request.resolved_by is not None:
            return event.request
    raise Missed("the connection ended before the decision")


async def perform(screen: Screen, gateway: GatewayProcess, pace_s: float) -> list[DemoCheck]:
    """Run the story of borrowed authority, and check its claims."""
    screen.title("aether-trio: an agent asks, a person approves less, a revoke stops it")
    await gateway.start()
    screen.introduce("gateway", gateway.address, f"process {gateway.pid}")
    address = f"aether://{gateway.address}"
    user = Principal.user(texts.USER)
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(UserClient(address, user_id="admin", window_id="1"))
        planner = await stack.enter_async_context(
            AgentClient(address, workspace=texts.WORKSPACE, implementation=texts.PLANNER, specifier="1")
        )
        windows = [
            await stack.enter_async_context(UserClient(address, user_id=texts.USER, window_id=name))
            for name in (texts.WINDOW, "phone")
        ]
        clients: list[Any] = [*windows, planner]
        feeds = [await stack.enter_async_context(one.authority_requests.events()) for one in clients]
        gone = await stack.enter_async_context(planner.grants.revocations())
        screen.introduce(texts.PLANNER, texts.PLANNER_TOPIC, f"an agent that may not enter the workspace {OFFICE}")
        screen.introduce(texts.USER, texts.WINDOW_TOPIC, "and her phone, a second window")
        screen.blank()
        await admin.rules.grant("user", texts.USER, "kv_scope", "workspace", AccessLevel.READWRITE)
        await planner.kv.put(CALENDAR, ENTRY.encode(), workspace=OFFICE)
        await admin.rules.grant("agent", texts.PLANNER_TOPIC, "workspace", OFFICE, AccessLevel.NONE)

        async def read(acting: Authorization | None = None, workspace: str = OFFICE) -> str:
            return (await planner.kv.get(CALENDAR, workspace=workspace, authorization=acting) or b"").decode()

        alone = await refusal(read())
        screen.event("the planner reads her calendar", f"refused, {alone}")
        await asyncio.sleep(pace_s)

        wish = AuthorityWish(
            target_subject=user,
            requested_access_level=AccessLevel.READWRITE,
            requested_duration_s=ASKED_S,
            route=AuthorityRoute(principal=user),
            workspace_scope=(OFFICE, HOME),
            reason=WHY,
        )
        request = await planner.authority_requests.create(wish)
        screen.line(Line(texts.PLANNER_TOPIC, texts.USER, f"{WHY} ({OFFICE} and {HOME}, read and write, ten minutes)"))
        by_itself = await refusal(planner.authority_requests.approve(request.request_id))
        screen.event("the planner approves its request", f"refused, {by_itself}")
        await asyncio.sleep(2 * pace_s)

        await windows[0].authority_requests.approve(
            request.request_id,
            workspace_scope=[OFFICE],
            access_level=AccessLevel.READ,
            duration=timedelta(seconds=APPROVED_S),
            reason=ANSWER,
        )
        screen.line(Line(texts.WINDOW_TOPIC, texts.PLANNER, f"{ANSWER} ({OFFICE} only, read, one minute)"))
        heard = [await decided(feed) for feed in feeds]
        grant = await planner.grants.get(heard[-1].granted_grant_id)
        acting = on_behalf_of(user, grant=grant.grant_id)
        await asyncio.sleep(pace_s)

        found = await read(acting)
        screen.event("the planner reads it for her", found)
        put = planner.kv.put(CALENDAR, b"the hut!", workspace=OFFICE, authorization=acting)
        written = await refusal(put)
        screen.event("it writes", f"refused, {written}")
        elsewhere = await refusal(read(acting, HOME))
        screen.event(f"it looks around in {HOME}", f"refused, {elsewhere}")
        await asyncio.sleep(2 * pace_s)

        await windows[1].grants.revoke(grant.grant_id)
        screen.event("maya revokes the grant, on her phone")
        told = (await anext(gone)).grant_id == grant.grant_id
        after = await refusal(read(acting))
        screen.event("the planner reads once more", f"refused, {after}")

        start, end = grant.created_at, grant.expires_at
        lasts_s = int((end - start).total_seconds()) if start is not None and end is not None else 0
        level = grant.max_access_level
        return judge(
            AskingFacts(
                alone=alone,
                by_itself=by_itself,
                asked=(wish.workspace_scope, AccessLevel.READWRITE, ASKED_S),
                granted=(grant.workspace_scope, level, lasts_s),
                heard=sum(one.granted_grant_id == grant.grant_id for one in heard),
                read=found,
                written=written,
                elsewhere=elsewhere,
                told=told,
                after=after,
            )
        )


async def run_asking(screen: Screen, *, pace_s: float, stop: asyncio.Event) -> bool:
    """Run the demo of borrowed authority, or until `stop`; return whether all is true."""
    with tempfile.TemporaryDirectory(prefix="aether-demo-") as scratch:
        gateway = GatewayProcess(Path(scratch))
        story = asyncio.create_task(perform(screen, gateway, pace_s))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({story, stopped}, return_when=asyncio.FIRST_COMPLETED, timeout=4 * LIMIT_S)
            if not story.done():
                if not stop.is_set():
                    screen.failure("the story does not go on")
                return False
            return screen.judged(story.result())
        except (Missed, AetherError) as error:
            screen.failure(f"{error}\n{gateway.printed()}".rstrip())
            return False
        finally:
            stopped.cancel()
            story.cancel()
            await asyncio.gather(story, return_exceptions=True)
            await gateway.stop()

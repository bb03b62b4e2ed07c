"""The memory of what grants amount to: asked once, and forgotten in time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aether_trio.client import ConnectionLost, Refused
from aether_trio.client.errors import from_text
from aether_trio.client.operations import grant_cache
from aether_trio.client.operations.grant_cache import GrantCache
from aether_trio.client.operations.grants import Grants
from aether_trio.client.operations.principals import Principal
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.operations.fake import FakeRequester

ACTOR = "ag::prod::planner::1"
ANN = Principal.user("ann")


def granting(expires_at: datetime | None = None) -> FakeRequester:
    requester = FakeRequester()

    def answer(request: pb.ResolveAuthorityRequest) -> pb.ResolveAuthorityResponse:
        expiry = 0 if expires_at is None else int(expires_at.timestamp())
        grant = pb.AuthorityGrantInfo(grant_id=request.grant_id, expires_at=expiry)
        return pb.ResolveAuthorityResponse(ok=True, authority=pb.ResolvedAuthority(grant=grant))

    requester.answers["resolve_authority_request"] = answer
    return requester


async def ask(cache: GrantCache, grant_id: str = "g", **other: Any) -> None:
    resolved = await cache.resolve(grant_id, **{"actor": ACTOR, "subject": ANN, **other})
    assert resolved.grant is not None
    assert resolved.grant.grant_id == grant_id


async def test_a_grant_is_asked_about_once_in_a_while(autojump_clock: object) -> None:
    requester = granting()
    async with Grants(requester).cached(max_age_s=10) as cache:
        await ask(cache)
        await trio.sleep(9)
        await ask(cache)
        assert (cache.hits, cache.misses, len(requester.asked)) == (1, 1, 1)
        await trio.sleep(2)
        await ask(cache)
        assert len(requester.asked) == 2


async def test_others_are_others() -> None:
    requester = granting()
    async with Grants(requester).cached() as cache:
        await ask(cache)
        await ask(cache, "h")
        await ask(cache, subject="us::bob")
        await ask(cache, actor="ag::prod::planner::2")
        await ask(cache, audience_type="task", audience_id="t")
        assert len(requester.asked) == 5


async def test_an_expired_grant_is_not_believed() -> None:
    requester = granting(datetime.now(UTC) - timedelta(minutes=1))
    async with Grants(requester).cached() as cache:
        await ask(cache)
        await ask(cache)
        assert len(requester.asked) == 2


@pytest.mark.parametrize(("cascade", "asked"), [(False, 3), (True, 4)])
async def test_a_revocation_is_heard(cascade: bool, asked: int) -> None:
    requester = granting()
    async with Grants(requester).cached() as cache:
        await ask(cache)
        await ask(cache, "h")
        gone = pb.AuthorityGrantRevocation(grant_id="g", cascade=cascade)
        requester.publish(pb.DownstreamMessage(authority_grant_revocation=gone))
        await ask(cache)
        await ask(cache, "h")
        assert len(requester.asked) == asked


async def test_after_a_cut_or_a_flood_nothing_is_believed() -> None:
    requester = granting()
    async with Grants(requester).cached() as cache:
        await ask(cache)
        requester.feeds.publish("connection_lost", ConnectionLost("cut", in_doubt=True))
        await ask(cache)
        assert len(requester.asked) == 2
        for n in range(300):
            gone = pb.AuthorityGrantRevocation(grant_id=f"other {n}")
            requester.publish(pb.DownstreamMessage(authority_grant_revocation=gone))
        await ask(cache)
        assert len(requester.asked) == 3


def slow() -> FakeRequester:
    requester = granting()
    request = requester.request

    async def request_slowly(*args: Any, **kwargs: Any) -> Any:
        await trio.sleep(1)
        return await request(*args, **kwargs)

    requester.request = request_slowly  # type: ignore[method-assign]
    return requester


async def test_many_at_once_ask_once(autojump_clock: object) -> None:
    requester = slow()
    async with Grants(requester).cached() as cache, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask, cache)
        await wait_all_tasks_blocked()
    assert len(requester.asked) == 1


async def test_a_caller_that_waits_while_the_grant_is_forgotten_asks_again(autojump_clock: object) -> None:
    requester = slow()
    async with Grants(requester).cached() as cache, trio.open_nursery() as nursery:
        nursery.start_soon(ask, cache)
        nursery.start_soon(ask, cache)
        await wait_all_tasks_blocked()
        cache.forget("g")
    assert len(requester.asked) == 2


async def test_a_refusal_is_not_remembered() -> None:
    requester = granting()

    def refuse(request: Any) -> Any:
        raise from_text("the grant is not yours", "REFUSED")

    good = requester.answers["resolve_authority_request"]
    requester.answers["resolve_authority_request"] = refuse
    async with Grants(requester).cached() as cache:
        with pytest.raises(Refused):
            await ask(cache)
        requester.answers["resolve_authority_request"] = good
        await ask(cache)


async def test_it_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grant_cache, "MAX_ENTRIES", 3)
    requester = granting()
    async with Grants(requester).cached() as cache:
        for n in range(5):
            await ask(cache, f"g{n}")
        await ask(cache, "g4")
        assert len(requester.asked) == 5
        await ask(cache, "g0")
        assert len(requester.asked) == 6

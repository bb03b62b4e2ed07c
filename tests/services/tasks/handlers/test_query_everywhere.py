"""Lists of tasks for participants in no workspace: what their rules let them read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count

import pytest

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.handlers import query
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, deadlock_is_an_error, orchestrator, service, switch_to, user
from tests.services.access.acl import READ, READWRITE, grant
from tests.services.audit.test_trail import rows
from tests.services.tasks.peers import answer, create

SERVICE = ("service", "sv::s::1")
_numbers = count(1)


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    async with deadlock_is_an_error(), world.open(access={"default": "closed"}) as opened:
        yield opened


async def ask(peer: MemoryLink, **fields: object) -> pb.TaskQueryResponse:
    wanted = pb.TaskFilter(**fields)  # type: ignore[arg-type]
    asked = pb.TaskQuery(op=pb.TaskQuery.LIST, filter=wanted, request_id=f"list-{next(_numbers)}")
    peer.send(pb.UpstreamMessage(task_query=asked))
    found: pb.TaskQueryResponse = await answer(peer, "task_query", asked.request_id)
    return found


async def pages(peer: MemoryLink, limit: int = 2, **fields: object) -> list[str]:
    """The ids of all pages, whose totals are the numbers of their rows."""
    ids: list[str] = []
    token = ""
    while True:
        page = await ask(peer, limit=limit, page_token=token, **fields)
        assert page.success, page.error
        assert page.total_count == len(page.tasks) <= limit
        ids += [task.task_id for task in page.tasks]
        token = page.next_page_token
        if not token:
            return ids
        assert len(page.tasks) == limit


async def tasks_of(core: Core, *workspaces: str, each: int = 3, **fields: object) -> dict[str, list[str]]:
    """New tasks of workspaces in turn; the ids of each workspace, the latest first."""
    made: dict[str, list[str]] = {workspace: [] for workspace in workspaces}
    for _ in range(each):
        for workspace in workspaces:
            async with connect(core, agent(workspace, "maker", "1")) as maker:
                created = await create(maker, **fields)
                assert created.success, created.error_message
                made[workspace].insert(0, created.task_id)
    return made


async def test_a_service_is_listed_what_it_may_read(core: Core) -> None:
    made = await tasks_of(core, "a", "b", "c")
    latest_first = [made[name][number] for number in range(3) for name in ("c", "b", "a")]
    async with connect(core, orchestrator("o", "1")) as admin, connect(core, service("s", "1")) as peer:
        assert await pages(peer) == []
        await grant(admin, SERVICE, ("workspace", "a"), READ)
        assert await pages(peer) == made["a"]
        await grant(admin, SERVICE, ("workspace", "c"), READ)
        assert await pages(peer) == [one for one in latest_first if one not in made["b"]]
        for limit in (1, 2, 3, 4, 6, 7):
            assert await pages(peer, limit) == [one for one in latest_first if one not in made["b"]]
        assert await pages(peer, workspace="c") == made["c"]
        assert await pages(peer, workspace="b") == []
        await grant(admin, SERVICE, ("workspace", "a"), 0)
        assert await pages(peer) == made["c"]


async def test_its_own_tasks_are_listed_without_a_right(core: Core) -> None:
    made = await tasks_of(core, "b")
    async with connect(core, orchestrator("o", "1")) as admin, connect(core, service("s", "1")) as peer:
        await grant(admin, SERVICE, ("workspace", "b"), READWRITE)
        own = (await create(peer, workspace="b")).task_id
        assert await pages(peer) == [own, *made["b"]]
        await grant(admin, SERVICE, ("workspace", "b"), 0)
        assert await pages(peer) == [own]
        await grant(admin, ("agent", "ag::b::maker::1"), ("service_impl", "s"), READWRITE)
        async with connect(core, agent("b", "maker", "1")) as maker:
            given = await create(
                maker, assignment_mode=pb.TARGETED, target_implementation="", target_agent_id="sv::s::1"
            )
        assert given.success, given.error_message
        assert await pages(peer) == [given.task_id, own]


@pytest.mark.parametrize(
    "hello", [user("eve", "1"), orchestrator("o", "2"), service("t", "1")], ids=["user", "orc", "sv"]
)
async def test_each_kind_without_a_workspace(core: Core, hello: pb.UpstreamMessage) -> None:
    made = await tasks_of(core, "a", "b", each=1)
    async with connect(core, user("admin", "1")) as admin, connect(core, hello) as peer:
        [identity] = [one.identity for one in core.registry if one.identity.canonical_id != "admin"]
        before = await pages(peer)
        assert before == ([] if identity.type_name != "orchestrator" else [*made["b"], *made["a"]])
        principal = (identity.type_name, identity.canonical_id)
        await grant(admin, principal, ("workspace", "a"), READ)
        await grant(admin, principal, ("workspace", "b"), 0)
        assert await pages(peer) == made["a"]
        if identity.type_name == "user":
            peer.send(switch_to("a"))
            assert await pages(peer) == made["a"], "in a workspace the list is of it"


async def test_filters_count_everywhere(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await tasks_of(core, "a", "b", task_type="one")
    await tasks_of(core, "a", "b", task_type="two")
    async with connect(core, user("admin", "1")) as admin:
        wanted = [made[name][number] for number in range(3) for name in ("b", "a")]
        assert await pages(admin, task_type="one") == wanted
        assert await pages(admin, status=pb.TASK_STATUS_COMPLETED) == []
        assert (await ask(admin, page_token="nonsense")).error == "page_token is not one that a query has returned"
        assert (await ask(admin, parent_task_id="none")).success
        child = {"parent_task_id": wanted[0], "include_descendants": True}
        assert await pages(admin, **child) == []
        monkeypatch.setattr(query, "MAX_WORKSPACES", 1)
        assert "filter.workspace is required" in (await ask(admin)).error


async def test_what_may_not_be_read_is_no_refusal_to_record(core: Core, world: World) -> None:
    await tasks_of(core, "a", "b", each=1)
    async with connect(core, orchestrator("o", "1")) as admin, connect(core, service("s", "1")) as peer:
        await grant(admin, SERVICE, ("workspace", "a"), READ)
        assert len(await pages(peer)) == 1
    found = await rows(core, world, operation="task_query")
    assert {(row["resource_id"], row["success"]) for row in found} == {("a", 1)}

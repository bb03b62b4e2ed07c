"""A key limited to one workspace touches no task, agent or token of another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import pytest
import trio

from aether_trio.client import AetherError, MetricsBridgeClient, PermissionDenied, ServiceClient, Unauthenticated
from aether_trio.client.operations.agents import Registration
from aether_trio.client.operations.enums import TargetOfflinePolicy, TaskStatus, WaitReason
from aether_trio.client.operations.task_values import Hibernation, WaitSpec
from aether_trio.client.operations.tasks import Tasks
from tests.client.gateways import QUICK
from tests.helpers.core import give_all_rights
from tests.security.tenants import SCHEMES, agent_of, key_of, open_tenants, orchestrator_of, record, user_of

NOWHERE: Final = "00000000-0000-4000-8000-000000000000"
IN_BLUE: Final = ("ag::blue::worker::1", "tu::blue::worker::1", "ta::blue::worker::1")

pytestmark = pytest.mark.parametrize("scheme", SCHEMES)


async def refusal(ask: Callable[[], Awaitable[Any]]) -> tuple[str, str]:
    """(code, text) of what a client is told."""
    with pytest.raises(AetherError) as caught:
        await ask()
    return caught.value.code, caught.value.message


# -- tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", [*IN_BLUE, "sv::worker::1", "us::alice::1", "orc::o::1", "br::b::1", "wfe::shard0"])
async def test_no_token_for_an_identity_beyond_the_creators_reach(scheme: str, owner: str) -> None:
    async with open_tenants() as gateway, agent_of(gateway, "red", "creator", scheme=scheme) as creator:
        made = await creator.tasks.create("t", target_identity=owner)
        assert made.task_id
        assert made.task_token == ""


@pytest.mark.parametrize("owner", ["ag::red::worker::1", "tu::red::worker::1"])
async def test_a_token_is_for_the_creators_workspace_and_reaches_no_other(scheme: str, owner: str) -> None:
    async with open_tenants() as gateway, agent_of(gateway, "red", "creator", scheme=scheme) as creator:
        made = await creator.tasks.create("t", target_identity=owner)
        assert made.task_token.startswith("att_")
        if owner.startswith("ag"):
            async with agent_of(gateway, "red", token=made.task_token, scheme=scheme) as worker:
                for target in IN_BLUE:
                    with pytest.raises(PermissionDenied):
                        await worker.send(target, b"hello")
                    assert (await worker.tasks.create("t", target_identity=target)).task_token == ""
                assert (await worker.tasks.create("t", target_identity="sv::worker::1")).task_token == ""


async def test_a_key_for_some_identities_makes_tokens_for_those(scheme: str) -> None:
    narrow = record("narrow", principal="agent", identity="ag::*::creator::*", workspaces=("red",))
    async with open_tenants(narrow) as gateway, agent_of(gateway, "red", "creator", key="narrow", scheme=scheme) as one:
        assert (await one.tasks.create("t", target_identity="ag::red::boss::1")).task_token == ""
        assert (await one.tasks.create("t", target_identity="ag::red::creator::2")).task_token


async def test_a_service_is_let_in_by_a_token_of_someone_who_reaches_all(scheme: str) -> None:
    async with open_tenants() as gateway, agent_of(gateway, "red", "creator", key="all", scheme=scheme) as creator:
        give_all_rights(gateway.core)
        made = await creator.tasks.create("t", target_identity="sv::worker::1")
        assert made.task_token
        address = f"{scheme}://{gateway.address}"
        worker = partial(ServiceClient, address, implementation="worker", specifier="1", token=made.task_token)
        async with worker(retry=QUICK) as service:
            while (await service.tasks.get(made.task_id)).status is not TaskStatus.RUNNING:
                await trio.sleep(0.01)  # the task is moved when its worker has been let in
            with pytest.raises(PermissionDenied):
                await service.send("ag::blue::worker::1", b"hello")
        while (await creator.tasks.get(made.task_id)).status is TaskStatus.RUNNING:
            await trio.sleep(0.01)  # its clean end completes the task
        with pytest.raises(Unauthenticated):
            async with worker(retry=QUICK):
                pass


# -- tasks by their ids ----------------------------------------------------------------------------


async def _followed(tasks: Tasks, task_id: str, *, recursive: bool = False) -> None:
    async with tasks.follow(task_id, recursive=recursive):
        pass


ASKED: Final[dict[str, Callable[[Tasks, str], Awaitable[Any]]]] = {
    "get": lambda tasks, task_id: tasks.get(task_id),
    "follow": _followed,
    "follow all": partial(_followed, recursive=True),
    "claim": lambda tasks, task_id: tasks.claim(task_id),
    "complete": lambda tasks, task_id: tasks.complete(task_id),
    "fail": lambda tasks, task_id: tasks.fail(task_id, reason="r"),
    "cancel": lambda tasks, task_id: tasks.cancel(task_id),
    "retry": lambda tasks, task_id: tasks.retry(task_id),
    "reject": lambda tasks, task_id: tasks.reject(task_id),
    "pause": lambda tasks, task_id: tasks.pause(task_id, WaitSpec(reason=WaitReason.INPUT)),
    "wait for": lambda tasks, task_id: tasks.wait_for(task_id, [NOWHERE]),
    "hibernate": lambda tasks, task_id: tasks.hibernate(task_id, Hibernation(checkpoint_key="k")),
    "resume": lambda tasks, task_id: tasks.resume(task_id),
}


@pytest.mark.parametrize("state", ["pending", "running", "failed"])
async def test_a_user_in_no_workspace_has_no_part_in_tasks_beyond_its_reach(scheme: str, state: str) -> None:
    async with open_tenants() as gateway, agent_of(gateway, "blue") as blue, AsyncExitStack() as stack:
        if state == "pending":
            made = await blue.tasks.create("secret", pool="empty")
        else:
            made = await blue.tasks.create("secret")
            await blue.tasks.claim(made.task_id)
            if state == "failed":
                await blue.tasks.fail(made.task_id, reason="it rains")
        before = await blue.tasks.get(made.task_id)
        eve = await stack.enter_async_context(user_of(gateway, "red", scheme=scheme))
        for where in ("", "red"):
            if where:
                await eve.switch_workspace(where)
            for name, ask in ASKED.items():
                there = await refusal(lambda ask=ask: ask(eve.tasks, made.task_id))  # type: ignore[misc]
                assert there == await refusal(lambda ask=ask: ask(eve.tasks, NOWHERE)), name  # type: ignore[misc]
            assert (await eve.tasks.query(workspace="blue")).tasks == ()
        assert await blue.tasks.get(made.task_id) == before


async def test_a_user_in_no_workspace_moves_tasks_that_its_key_reaches(scheme: str) -> None:
    async with open_tenants() as gateway, agent_of(gateway, "blue") as blue:
        made = await blue.tasks.create("t", pool="empty")
        async with user_of(gateway, "both", scheme=scheme) as operator:
            assert (await operator.tasks.get(made.task_id)).status is TaskStatus.QUEUED
            assert (await operator.tasks.cancel(made.task_id)).status is TaskStatus.CANCELLED


async def test_what_it_has_created_is_out_of_reach_with_a_lesser_key(scheme: str) -> None:
    async with open_tenants() as gateway:
        async with user_of(gateway, "both", scheme=scheme) as alice:
            made = await alice.tasks.create("t", workspace="blue")
            assert (await alice.tasks.get(made.task_id)).workspace == "blue"
        async with user_of(gateway, "red", scheme=scheme) as alice:
            assert "not found" in (await refusal(lambda: alice.tasks.get(made.task_id)))[1]
            assert (await alice.tasks.query(workspace="blue")).tasks == ()


async def test_a_worker_of_another_workspace_sees_its_own_task_there_and_nothing_below(scheme: str) -> None:
    async with (
        open_tenants() as gateway,
        agent_of(gateway, "red", "creator", key="both") as creator,
        agent_of(gateway, "blue", scheme=scheme) as worker,
    ):
        made = await creator.tasks.create("t", target="ag::blue::worker::1")
        aside = await creator.tasks.create("t")
        below = await creator.tasks.create("t", parent_task_id=made.task_id)
        assert (await worker.tasks.claim(made.task_id)).status is TaskStatus.RUNNING
        assert [one.task_id for one in (await worker.tasks.query(workspace="red")).tasks] == [made.task_id]
        for task_id in (aside.task_id, below.task_id):
            assert "not found" in (await refusal(lambda task_id=task_id: worker.tasks.get(task_id)))[1]  # type: ignore[misc]
        async with worker.tasks.follow(made.task_id, recursive=True) as events:
            await creator.tasks.cancel(below.task_id)
            await worker.tasks.complete(made.task_id)
            async for event in events:
                assert event.task_id == made.task_id
                if getattr(event.event, "to_status", None) is TaskStatus.COMPLETED:
                    break


# -- whom a task may be for ------------------------------------------------------------------------


@pytest.mark.parametrize("task_type", ["t", "agent_startup"])
@pytest.mark.parametrize("target", IN_BLUE)
async def test_a_task_goes_where_a_message_may(scheme: str, target: str, task_type: str) -> None:
    async with (
        open_tenants() as gateway,
        orchestrator_of(gateway, "p") as orchestrator,
        agent_of(gateway, "red", "creator", scheme=scheme) as creator,
    ):
        for policy in TargetOfflinePolicy:

            async def ask(to: str = target, policy: TargetOfflinePolicy = policy) -> Any:
                return await creator.tasks.create(task_type, target=to, offline_policy=policy)

            code, text = await refusal(ask)
            assert code == "ERR_PERMISSION_DENIED"
            # The same whether it is there, can be started, or does not exist.
            if target.startswith("ag"):
                async with agent_of(gateway, "blue") as there:
                    assert await refusal(ask) == (code, text)
                    assert (await there.tasks.query()).tasks == ()
            await orchestrator.registry.register(
                Registration(implementation="worker", orchestrator_profile="p", launch_params={"profile": "p"})
            )
            assert await refusal(ask) == (code, text)
            await orchestrator.registry.delete("worker")
            absent = target.replace("worker", "absent")
            assert await refusal(partial(ask, absent)) == (code, text.replace(target, absent))
        async with user_of(gateway, "all") as operator:
            assert (await operator.tasks.query(workspace="blue")).tasks == ()
            assert (await operator.tasks.query(workspace="red")).tasks == ()
        with pytest.raises(PermissionDenied):
            await creator.send(target, b"hello")


async def test_a_client_that_may_not_send_may_not_assign_work(scheme: str) -> None:
    async with open_tenants() as gateway:
        address = f"{scheme}://{gateway.address}"
        async with MetricsBridgeClient(address, api_key=key_of("all"), retry=QUICK) as bridge:
            for fields in ({"target": "ag::red::worker::1"}, {"target": "sv::s::1"}, {"pool": "worker"}):
                code, text = await refusal(
                    lambda fields=fields: bridge.tasks.create("t", workspace="red", **fields)  # type: ignore[misc]
                )
                assert code == "ERR_PERMISSION_DENIED", text
        async with orchestrator_of(gateway, "p") as orchestrator:
            code, text = await refusal(lambda: orchestrator.tasks.create("t", workspace="red", target="sv::s::1"))
            assert (code, text) == ("ERR_PERMISSION_DENIED", "an orchestrator may not send to sv topics")


async def test_what_a_task_waits_for_elsewhere_is_like_what_is_nowhere(scheme: str) -> None:
    async with (
        open_tenants() as gateway,
        agent_of(gateway, "blue") as blue,
        agent_of(gateway, "red", scheme=scheme) as red,
    ):
        foreign = (await blue.tasks.create("secret")).task_id

        async def waits(task_id: str) -> TaskStatus:
            mine = (await red.tasks.create("t")).task_id
            await red.tasks.claim(mine)
            told = await refusal(lambda: red.tasks.wait_for(mine, [task_id]))
            assert told[1] == f"dependency {task_id} not found"
            wait = WaitSpec(reason=WaitReason.DEPENDENCY, depends_on=(task_id,))
            return (await red.tasks.pause(mine, wait)).status

        own = (await red.tasks.create("t")).task_id
        assert await waits(foreign) is await waits(NOWHERE) is TaskStatus.RUNNING
        mine = (await red.tasks.create("t")).task_id
        await red.tasks.claim(mine)
        wait = WaitSpec(reason=WaitReason.DEPENDENCY, depends_on=(own, foreign))
        assert (await red.tasks.pause(mine, wait)).status is TaskStatus.WAITING_DEPENDENCY
        await red.tasks.complete(own)
        assert (await red.tasks.get(mine)).status is TaskStatus.RUNNING
        told = await refusal(lambda: red.tasks.create("t", parent_task_id=foreign))
        assert told[1] == f"parent task {foreign} not found"
        told = await refusal(lambda: red.tasks.create("t", parent_task_id=NOWHERE))
        assert told[1] == f"parent task {NOWHERE} not found"

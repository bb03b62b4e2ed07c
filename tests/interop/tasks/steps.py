"""What scenarios of tasks do again and again with peers of the SDK."""

from __future__ import annotations

from typing import Any

from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import LIMIT_S, Peer, World, answered, declined, eventually

SELF, TARGETED, POOL = pb.SELF_ASSIGN, pb.TARGETED, pb.POOL


async def ask(peer: Peer, world: World, task_type: str = "work", *, mode: int = POOL, **fields: Any) -> Any:
    """Ask for a task, by default of the world's pool; give the response."""
    if mode == POOL:
        fields.setdefault("target_implementation", world.impl)
    response = await peer.client.create_task_sync(
        task_type, fields.pop("workspace", world.ws), assignment_mode=mode, timeout=LIMIT_S, **fields
    )
    assert response is not None, "create_task: no response"
    return response


async def create(peer: Peer, world: World, task_type: str = "work", **fields: Any) -> str:
    response = await ask(peer, world, task_type, **fields)
    assert response.success, f"create_task: {response.error_code} {response.error_message}"
    assert response.task_id
    return str(response.task_id)


async def assignment(worker: Peer, task_id: str = "") -> Any:
    """The next assignment of a worker, or that of this task."""
    return await worker.take(lambda one: not task_id or one.task_id == task_id, box=worker.assignments)


async def op(peer: Peer, name: str, task_id: str, *args: Any, **fields: Any) -> Any:
    """A task operation that must succeed; the task afterwards."""
    response = answered(await getattr(peer.client, f"{name}_task")(task_id, *args, timeout=LIMIT_S, **fields), name)
    assert response.task.task_id == task_id
    return response.task


async def refused(peer: Peer, name: str, task_id: str, *args: Any, **fields: Any) -> str:
    """A task operation that must be refused; why."""
    response = declined(await getattr(peer.client, f"{name}_task")(task_id, *args, timeout=LIMIT_S, **fields), name)
    assert response.error
    return str(response.error)


async def task(peer: Peer, task_id: str) -> Any:
    return answered(await peer.client.get_task(task_id, timeout=LIMIT_S), "get_task").task


async def status(peer: Peer, task_id: str) -> int:
    return int((await task(peer, task_id)).status)


async def reaches(peer: Peer, task_id: str, wanted: int) -> Any:
    """Wait until a task has this status; the task."""
    return await eventually(lambda: task(peer, task_id), lambda one: one.status == wanted, "status")


async def running(creator: Peer, worker: Peer, world: World, **fields: Any) -> str:
    """A task of the pool that `worker`, who must be its only one, has claimed; its id."""
    task_id = await create(creator, world, **fields)
    await assignment(worker, task_id)
    assert (await op(worker, "claim", task_id)).status == pb.TASK_STATUS_RUNNING
    return task_id


async def notice(peer: Peer, task_id: str, state: str) -> Any:
    """The gateway's own progress update that says so of a task."""
    return await peer.take(lambda one: one.task_id == task_id and one.state == state, box=peer.progress)


async def event(peer: Peer, kind: str, task_id: str = "") -> Any:
    return await peer.take(
        lambda one: one.WhichOneof("event") == kind and (not task_id or one.task_id == task_id), box=peer.task_events
    )

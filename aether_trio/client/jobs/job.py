"""What a program sees of a task that it works on, and may do inside of its block.

The block itself is in held.py.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Final, NoReturn

import anyio
import anyio.lowlevel

from aether_trio.client.errors import AetherError, ConnectionLost, NotImplementedByGateway, RequestTimeout
from aether_trio.client.jobs.running_job import LAST_WORDS_S, REFUSALS, WAITS, RunningJob
from aether_trio.client.operations.checkpoints import Checkpoint
from aether_trio.client.operations.enums import TaskStatus, WaitReason
from aether_trio.client.operations.progress import UNKNOWN_COMPLETION, Step
from aether_trio.client.operations.task_values import NUMBER, Hibernation, Task, WaitSpec

__all__ = ["Job"]

logger = logging.getLogger("aether_trio.client")

NO_INPUT: Final = {"aether.wait_until": "no input"}
"""What a wait for a time matches: it ends none of the waits for inputs, and uses none up."""


class Job(RunningJob):
    """A task that this worker has claimed. `async with job:` is the work on it, once.

    The block left well is COMPLETE. Left by an exception it is FAIL with that text, and the
    exception goes on; left by a cancellation from outside it is FAIL too, "the worker was stopped".
    If the gateway ends the task meanwhile (somebody has cancelled it, a deadline has passed, it was
    given to another worker), the block is cancelled, and the program goes on behind it; `end` says
    what has happened.
    """

    def __repr__(self) -> str:
        state = self._phase.name.lower() if self.end is None else self.end.value
        return f"<Job {self.id} of type {self.type!r}, {state}>"

    @property
    def type(self) -> str:
        """What kind of work it is; the creator's word."""
        return self.assignment.task_type

    @property
    def payload(self) -> bytes:
        """What is to be worked on."""
        return self.assignment.payload

    @property
    def text(self) -> str:
        """The payload as UTF-8; what is none is replaced."""
        return self.payload.decode(errors="replace")

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the creator has written on it."""
        return {name: text for name, text in self.assignment.metadata.items() if name != NUMBER}

    @property
    def creator(self) -> str:
        """The identity of its creator, which is where results go."""
        return self.task.creator

    @property
    def attempt(self) -> int:
        """1 for the first one."""
        return self.task.attempt + 1

    async def progress(
        self,
        completion: float = UNKNOWN_COMPLETION,
        summary: str = "",
        *,
        state: str = "running",
        step: Step | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Say how far it is: `completion` is from 0 to 1, or -1 when nobody knows.

        It is also a sign of life.

        Whoever follows the task is told, and the agents of the workspace. It is sent, and not
        confirmed.
        """
        await self._checked()
        await self._bench.progress.report(
            self.id, completion=completion, summary=summary, state=state, step=step, metadata=metadata
        )

    async def wait_for_input(self, match: Mapping[str, str] | None = None, *, timeout: float | None = None) -> None:
        """Stand still until somebody resumes the task, or gives the input whose metadata has all of
        `match`.

        An input that has come before is used, the oldest one first; each is used once. After
        `timeout` seconds the task fails ("wait timeout"). A cancelled wait goes on without the
        input.
        """
        wait = WaitSpec(reason=WaitReason.INPUT, input_match=dict(match or {}), timeout_ms=_ms(timeout))
        await self._wait_as(wait)

    async def wait_for_authority(self, request_id: str, *, timeout: float | None = None) -> None:
        """Raise NotImplementedByGateway: gateways serve no authority requests yet, so nothing would
        end the wait.
        """
        await self._checked()
        await anyio.lowlevel.checkpoint()
        raise NotImplementedByGateway(
            "ERR_NOT_IMPLEMENTED",
            f"no gateway serves authority requests yet: a task that waits for {request_id!r} would wait for ever",
        )

    async def wait_for_tasks(
        self, task_ids: Sequence[str], *, any_of_them: bool = False, timeout: float | None = None
    ) -> None:
        """Stand still until these tasks have ended, in whatever way, or the first of them.

        After `timeout` seconds the task fails ("wait timeout").
        """
        tasks = self._bench.tasks
        await self._wait(
            lambda request_id: tasks.wait_for(
                self._reference,
                task_ids,
                any_of_them=any_of_them,
                timeout_ms=_ms(timeout),
                request_id=request_id,
            ),
        )

    async def wait_until(self, when: datetime) -> None:
        """Stand still until then. The worker is kept: for longer times, `hibernate`."""
        wait = WaitSpec(reason=WaitReason.INPUT, input_match=NO_INPUT, scheduled_wake=when)
        await self._wait_as(wait)

    async def _wait_as(self, wait: WaitSpec) -> None:
        await self._wait(lambda request_id: self._bench.tasks.pause(self._reference, wait, request_id=request_id))

    async def _wait(self, pause: Callable[[str], Awaitable[Task]]) -> None:
        """`pause` is given the id of its request."""
        await self._checked()
        if self._waiting:
            raise RuntimeError(f"task {self.id} waits already")
        self._waiting = True
        try:
            await self._bench.watch(self)
            await self._pause(pause)
            await self._until_running()
        except anyio.get_cancelled_exc_class():
            if self.end is None:
                with anyio.move_on_after(LAST_WORDS_S, shield=True):
                    await self._go_on()
            raise
        finally:
            self._waiting = False

    async def _pause(self, pause: Callable[[str], Awaitable[Task]]) -> None:
        """Said again after a cut, if the task does not stand still then: the same pause, whose wait
        may have ended meanwhile.
        """
        request_id = str(uuid.uuid4())
        while True:
            try:
                self._status = (await pause(request_id)).status
                return
            except (ConnectionLost, RequestTimeout):
                self.looked(await self._bench.look_up(self.id))
                self._check()
                if self._status in WAITS:
                    return

    async def _until_running(self) -> None:
        """Events may be older than an answer, so what they say is looked up."""
        while True:
            news = self._news
            if self._runs():
                self.looked(await self._bench.look_up(self.id))
            self._check()
            if self._runs():
                return
            await news.wait()

    def _runs(self) -> bool:
        return self._status is TaskStatus.RUNNING

    async def _go_on(self) -> None:
        try:
            await self._bench.tasks.resume(self.id)
        except AetherError as error:
            logger.warning("task %s: its wait was given up, and the gateway could not be told: %s", self.id, error)

    async def hibernate(
        self,
        state: bytes = b"",
        *,
        until: datetime | None = None,
        timeout: float | None = None,
        on_timeout: str = "",
        key: str = "",
    ) -> NoReturn:
        """Save `state`, end the block, and have the task assigned anew at `until` or when it is
        resumed: this never returns.

        `state` is saved as this participant's checkpoint `key` (the task's id), and `load` gives it
        back to the next block. After `timeout` seconds: the task fails, or what `on_timeout` says
        ("retry" wakes it, "alert" lets it sleep on).
        """
        await self._checked()
        key = key or self.id
        await self._bench.checkpoints.save(state, key=key)
        hibernation = Hibernation(checkpoint_key=key, escalation_policy=on_timeout)
        tasks = self._bench.tasks
        request_id = str(uuid.uuid4())
        while self.end is None:
            self._in_doubt = True
            try:
                self.looked(
                    await tasks.hibernate(
                        self._reference, hibernation, until=until, timeout_ms=_ms(timeout), request_id=request_id
                    )
                )
            except (ConnectionLost, RequestTimeout):
                self.looked(await self._bench.look_up(self.id))
        await anyio.lowlevel.checkpoint()
        raise self._over()  # somebody called it from outside of the block

    async def load(self) -> Checkpoint | None:
        """What the task has left behind when it hibernated.

        None if it never did, or if another participant has saved it.
        """
        await self._checked()
        await anyio.lowlevel.checkpoint()
        key = self.assignment.checkpoint_key
        return await self._bench.checkpoints.load(key) if key else None

    async def fail(self, reason: str) -> NoReturn:
        """End the block as FAIL with this text, without an exception: this never returns."""
        await self._checked()
        await self._fail(reason, REFUSALS)
        self._scope.cancel()
        await anyio.lowlevel.checkpoint()
        raise self._over()

    async def _checked(self) -> None:
        """Raise what ends the use of this task, behind a checkpoint: who asks again and again can
        be cancelled.
        """
        if self.end is not None:
            await anyio.lowlevel.checkpoint()
        self._check()


def _ms(seconds: float | None) -> int:
    return 0 if seconds is None else max(1, round(seconds * 1000))

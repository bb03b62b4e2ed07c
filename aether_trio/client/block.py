"""The `async with` block of a client: connects at its begin, leaves at its end.

Invariants: the background tasks live in a task group that is the block's; leaving it, in whatever
way, takes at most `close_timeout_s` and leaves no task and no socket behind; what is raised is the
body's own exception, or why the connection has ended for good, and never a group around it.
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.abc
import anyio.lowlevel

from aether_trio.client.connection.dispatch import MessageDispatch
from aether_trio.client.connection.reconnect import Reconnector, State
from aether_trio.client.errors import AetherError, ClientClosed, ConnectionLost

_HASTY_S: Final = 0.5
"""Time for the goodbye of a block that was cancelled."""


class ClientBlock:
    """Mixin of clients: connects when `async with` begins, disconnects when it ends."""

    def __init__(self, dispatch: MessageDispatch, reconnector: Reconnector) -> None:
        self._dispatch = dispatch
        self._reconnector = reconnector
        self._group: anyio.abc.TaskGroup | None = None
        self._over = anyio.Event()

    @property
    def _ending(self) -> AetherError | None:
        """Why the client takes no request (failed, ended, not begun); None if it does."""
        if self._reconnector.failure is not None:
            return self._reconnector.failure
        if self._group is None or self._reconnector.state is State.CLOSED:
            return ClientClosed()
        return None

    async def _check_open(self) -> None:
        """If the client takes no request, raise why, after a cancellation checkpoint."""
        if (ending := self._ending) is not None:
            await anyio.lowlevel.checkpoint()
            raise ending

    def _check_begun(self) -> None:
        """Raise ClientClosed outside of the client's block, unless the client has failed."""
        if self._reconnector.failure is None and (ending := self._ending) is not None:
            raise ending

    async def __aenter__(self) -> Self:
        if self._reconnector.state is not State.NEW or self._group is not None:
            raise ClientClosed("this client has been connected before; make a new client to connect again")
        group = self._group = anyio.create_task_group()
        await group.__aenter__()
        try:
            await group.start(self._live)
        except BaseException as error:
            await self._end_group(group, error)
            raise
        return self

    async def _live(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        assert self._group is not None
        try:
            await self._reconnector.run(self._group.cancel_scope, task_status=task_status)
        finally:
            self._over.set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        group = self._group
        assert group is not None
        reconnector = self._reconnector
        last_words: BaseException | None = None
        try:
            if error is None:
                self._dispatch.cursors.all_done()
                await self._say_goodbye()
            elif reconnector.failure is None and reconnector.error is None:
                with anyio.move_on_after(_HASTY_S, shield=True):
                    reconnector.leave()
                    await self._over.wait()
        except BaseException as raised:
            if error is None or not _cancelled(raised):
                last_words = raised
        swallowed = await self._end_group(group, last_words or error)
        if reconnector.error is not None and (error is None or swallowed):
            raise reconnector.error
        if reconnector.failure is not None and (error is None or swallowed):
            raise reconnector.failure
        if last_words is not None and not swallowed:
            raise last_words
        return swallowed and last_words is None

    async def _say_goodbye(self) -> None:
        """Wait until all messages are settled, then disconnect. Raises an unseen refusal."""
        settings = self._reconnector.settings
        send_queue = self._dispatch.send_queue
        with anyio.move_on_after(settings.close_timeout_s):
            try:
                await send_queue.flush()
            finally:
                self._reconnector.leave()
            await self._over.wait()
        if send_queue.unsettled:
            text = f"{send_queue.unsettled} messages were not confirmed within {settings.close_timeout_s:g} s"
            raise ConnectionLost(text, in_doubt=send_queue.doubtful)

    async def _end_group(self, group: anyio.abc.TaskGroup, error: BaseException | None) -> bool:
        """End the client's background tasks. Return whether `error` is swallowed.

        Only cancellation is shown to the group, which swallows its own. The client swallows a group
        of nothing but its failure and cancellations. A cancellation from around the client does not
        replace an exception of the body.
        """
        group.cancel_scope.cancel()
        if error is None:
            await group.__aexit__(None, None, None)
            return False
        if not _cancelled(error):
            group.cancel_scope.shield = True
            # Of asyncio, which knows no shield.
            with contextlib.suppress(anyio.get_cancelled_exc_class()):
                await group.__aexit__(None, None, None)
            return self._is_group_of_failure(error)
        try:
            return bool(await group.__aexit__(type(error), error, error.__traceback__))
        except BaseExceptionGroup as raised:
            rest = raised
        if self._is_group_of_failure(rest):
            return True
        if isinstance(error, BaseExceptionGroup) and len(rest.exceptions) == 1:
            # The body's group, in another one that the task group has made.
            raise rest.exceptions[0]
        raise rest

    def _is_group_of_failure(self, error: BaseException) -> bool:
        """Return whether the group has only the client's failure and cancellations."""
        if not isinstance(error, BaseExceptionGroup):
            return False
        _, others = error.split(anyio.get_cancelled_exc_class())
        return others is not None and others.split(lambda one: one is self._reconnector.failure)[1] is None


def _cancelled(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_cancelled(one) for one in error.exceptions)
    return isinstance(error, anyio.get_cancelled_exc_class())

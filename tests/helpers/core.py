"""A gateway's core in memory for tests, with scripted participants.

On a clock that jumps (`use_virtual_time`) a whole core runs in virtual time, on either engine.
"""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import msgspec
import pytest
import trio
from trio.testing import MockClock

from aether_trio.config import Settings, load_settings
from aether_trio.gateway.core import Core, open_core
from aether_trio.gateway.databases import Databases
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.rules import RESOURCE_TYPES, Rule
from aether_trio.model.clock import Clock
from aether_trio.model.identity import PrincipalType
from aether_trio.services.access.records import rule_value
from aether_trio.session.session import Session
from aether_trio.testing.memory import MemoryLink, StreamEnded, agent, message_to, open_participant
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.clocks import VirtualClock
from tests.helpers.direct import Store
from tests.helpers.inline import Gate, InlineDatabase

__all__ = [
    "Gate", "World", "agent", "barrier", "bridge", "connect", "deadlock_is_an_error", "errors", "give_all_rights",
    "kv_get", "kv_put", "let_manage", "let_share_keys", "message_to", "metrics_bridge", "open_world", "orchestrator", "payloads",
    "pump", "rest_of", "run_in_virtual_time", "service", "settings_for_tests", "switch_to", "task",
    "use_virtual_time", "user", "workflow_engine",
]  # fmt: skip

T = TypeVar("T")

_numbers = count(1)


def run_in_virtual_time(
    main: Callable[[], Awaitable[T]], *, clock: trio.abc.Clock | None = None, instruments: Sequence[Any] = ()
) -> T:
    """`trio.run` on a clock that jumps to the next deadline when nothing can go on."""
    return trio.run(main, clock=clock or MockClock(autojump_threshold=0), instruments=instruments)


def use_virtual_time(
    items: Iterable[pytest.Item], folder: Path, names: Sequence[str] = (), *, subfolders: bool = True
) -> None:
    """Run the tests of `folder` (of the modules `names`, if given) in virtual time.

    pytest-trio gives a run its clock only when the test function asks for one; here the folder
    asks. A name without a module is an error: its tests would run in real time, for minutes.
    """
    missing = [name for name in names if next(folder.rglob(f"{name}.py"), None) is None]
    assert not missing, f"{folder} has no {missing}"
    # Of ten thousand tests, seven times: a comparison of paths takes ten times as long.
    below = f"{folder}{os.sep}"
    for item in items:
        path = str(item.path)
        chosen = path.startswith(below) and (subfolders or os.sep not in path[len(below) :])
        chosen = chosen and (not names or item.path.stem in names)
        if chosen and isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.add_marker(pytest.mark.trio(run=run_in_virtual_time), append=False)


def settings_for_tests(**changes: Mapping[str, Any]) -> Settings:
    """Development settings without a directory; `changes` are sections."""
    settings = load_settings(flags={"gateway.dev": True})
    defaults = {"log": {"offset_flush_s": 0.05}, "workflow": {"engine": "external"}}
    changes = {"gateway": {"ephemeral": True}, **defaults, **changes}
    for section, fields in changes.items():
        settings = _changed(settings, section, fields)
    return settings


def _changed(settings: Settings, section: str, fields: Mapping[str, Any]) -> Settings:
    old = getattr(settings, section)
    if isinstance(old, msgspec.Struct):
        new = msgspec.structs.replace(old, **fields)
    else:
        new = type(old)(**{name: fields.get(name, getattr(old, name)) for name in old.__slots__})
    return msgspec.structs.replace(settings, **{section: new})


def let_manage(core: Core, *who: str) -> None:
    """Let these agents or kinds of participants (agents) manage every workspace."""
    for one in who or ("agent",):
        if "::" in one:
            rule = Rule(f"manager {one}", "agent", one, "workspace", "*", AccessLevel.MANAGE)
            core.authorizer._rules_changed([(rule.rule_id, rule_value(rule))], False)
        else:
            core.authorizer._fallbacks_changed([(f"{one}_workspace", AccessLevel.MANAGE)], False)


def let_share_keys(core: Core, *kinds: str) -> None:
    """Let these kinds of participants (agents) use all keys, those of users too."""
    for kind in kinds or ("agent",):
        core.authorizer._fallbacks_changed([(f"{kind}_kv_scope", AccessLevel.READWRITE)], False)


def give_all_rights(core: Core) -> None:
    """Let all participants administer all, so that only their credentials limit them."""
    categories = [f"{kind.type_name}_{resource}" for kind in PrincipalType for resource in RESOURCE_TYPES]
    core.authorizer._fallbacks_changed([(category, AccessLevel.ADMIN) for category in categories], False)


class World:
    """Databases that outlive the cores that are opened on them."""

    def __init__(self, store: Store) -> None:
        self._place = store.place()
        self.databases = {name: InlineDatabase(self._place.direct(name)) for name in ("state", "log", "tasks")}
        self._lives = 0

    @property
    def log(self) -> InlineDatabase:
        return self.databases["log"]

    @property
    def state(self) -> InlineDatabase:
        return self.databases["state"]

    @asynccontextmanager
    async def open(self, *, clock: Clock | None = None, **changes: Mapping[str, Any]) -> AsyncIterator[Core]:
        """A core on these databases. At the end it stops as a gateway that is told to.

        Its calendar begins anew, unless a `clock` is given that lives longer than the core.
        """
        self._lives += 1
        for database in self.databases.values():
            database.renew()

        @asynccontextmanager
        async def open_inline(_: Settings) -> AsyncIterator[Databases]:
            yield Databases(**self.databases)  # type: ignore[arg-type]

        with mock.patch("aether_trio.gateway.core.open_databases", open_inline):
            opened = open_core(
                settings_for_tests(**changes),
                clock=clock or VirtualClock(trio.current_time),
                randomness=random.Random(self._lives),
            )
            async with opened as core:
                yield core

    def fail(self) -> None:
        """Let no database do anything any more, as when the gateway is killed."""
        for database in self.databases.values():
            database.failing = True

    def close(self) -> None:
        """Forget everything."""
        self._place.close()


@contextmanager
def open_world(store: Store) -> Iterator[World]:
    world = World(store)
    try:
        yield world
    finally:
        world.close()


@asynccontextmanager
async def deadlock_is_an_error() -> AsyncIterator[None]:
    """Fail the test when virtual time jumps for hours, as nothing can go on."""

    async def give_up() -> None:
        await trio.sleep(7200)
        raise AssertionError("nothing went on for two hours of virtual time: whatever the test waits for never comes")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        yield
        nursery.cancel_scope.cancel()


def connect(core: Core, hello: pb.UpstreamMessage, **options: Any) -> AbstractAsyncContextManager[MemoryLink]:
    """A scripted participant of this core; see `open_participant`."""
    return open_participant(core.sessions, hello, **options)


# -- first messages --------------------------------------------------------------------------------


def _init(client: Mapping[str, Any], init: Mapping[str, Any]) -> pb.UpstreamMessage:
    return pb.UpstreamMessage(init=pb.InitConnection(**client, **init))


def task(workspace: str, implementation: str, specifier: str = "", **init: Any) -> pb.UpstreamMessage:
    """The InitConnection of a task; without a specifier a non-unique one."""
    identity = pb.TaskIdentity(workspace=workspace, implementation=implementation, unique_specifier=specifier)
    return _init({"task": identity}, init)


def user(user_id: str, window_id: str, **init: Any) -> pb.UpstreamMessage:
    return _init({"user": pb.UserIdentity(user_id=user_id, window_id=window_id)}, init)


def service(implementation: str, specifier: str, **init: Any) -> pb.UpstreamMessage:
    return _init({"service": pb.ServiceIdentity(implementation=implementation, specifier=specifier)}, init)


def bridge(implementation: str, specifier: str, **init: Any) -> pb.UpstreamMessage:
    return _init({"bridge": pb.BridgeIdentity(implementation=implementation, specifier=specifier)}, init)


def orchestrator(implementation: str, specifier: str = "", **init: Any) -> pb.UpstreamMessage:
    identity = pb.OrchestratorIdentity(implementation=implementation, specifier=specifier)
    return _init({"orchestrator": identity}, init)


def workflow_engine(**init: Any) -> pb.UpstreamMessage:
    return _init({"workflow_engine": pb.WorkflowEngineIdentity()}, init)


def metrics_bridge(**init: Any) -> pb.UpstreamMessage:
    return _init({"metrics_bridge": pb.MetricsBridgeIdentity()}, init)


# -- other messages --------------------------------------------------------------------------------


def switch_to(workspace: str) -> pb.UpstreamMessage:
    return pb.UpstreamMessage(switch_workspace=pb.SwitchWorkspace(new_workspace_id=workspace))


def kv_get(request_id: str) -> pb.UpstreamMessage:
    """A KV GET of a key that is not there."""
    op = pb.KVOperation(op=pb.KVOperation.GET, scope=pb.KVOperation.GLOBAL, key="nothing", request_id=request_id)
    return pb.UpstreamMessage(kv_op=op)


def kv_put(key: str, value: bytes) -> pb.UpstreamMessage:
    op = pb.KVOperation(op=pb.KVOperation.PUT, scope=pb.KVOperation.GLOBAL, key=key, value=value, request_id="put")
    return pb.UpstreamMessage(kv_op=op)


async def barrier(*peers: MemoryLink) -> None:
    """Wait until all that these participants have sent is committed and handed on.

    Asks for a checkpoint, which every kind of participant may. What came before the answer is left
    for the test to read.
    """
    for peer in peers:
        request_id = f"barrier-{next(_numbers)}"
        op = pb.CheckpointOperation(op=pb.CheckpointOperation.LOAD, request_id=request_id)
        peer.send(pb.UpstreamMessage(checkpoint_op=op))
        while not any(one.checkpoint.request_id == request_id for one in peer.waiting("checkpoint")):
            if peer.ended is not None:
                raise peer.ended
            await trio.sleep(0.001)
    await pump()


async def pump(ticks: int = 20) -> None:
    """Let every task that can run do so for a while, in no time."""
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()


def payloads(peer: MemoryLink) -> list[bytes]:
    """The payloads of the messages that have arrived, not taking them."""
    return [message.msg.payload for message in peer.waiting("msg")]


def errors(peer: MemoryLink) -> list[pb.ErrorResponse]:
    """The ErrorResponses that have arrived, not taking them."""
    return [message.error for message in peer.waiting("error")]


async def rest_of(peer: MemoryLink) -> list[pb.DownstreamMessage]:
    """Give all that arrives until the gateway ends the stream; `peer.ended` says how."""
    messages: list[pb.DownstreamMessage] = []
    while True:
        try:
            messages.append(await peer.receive_message())
        except StreamEnded:
            return messages


def hang_kv(core: Core) -> trio.Event:
    """Let KV requests wait until cancelled; the event is set by the first."""
    hanging = trio.Event()

    async def hang(session: Session, payload: Any) -> list[pb.DownstreamMessage]:
        hanging.set()
        await trio.sleep_forever()
        return []

    core.dispatcher._batch_handlers["kv_op"] = hang
    return hanging

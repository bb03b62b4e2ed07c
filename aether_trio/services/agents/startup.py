"""Starting agents: the wish for one becomes a task in one transaction, wherever it was made, and an orchestrator is told of it.

A Starter of the task service, for TARGETED tasks whose target is not connected; `wake` is for messages, `launch` for whoever asks. The
registration is read in the transaction that makes the start, so what was registered before the wish counts.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Final

from aether_trio.model.identity import Identity, Kind
from aether_trio.model.ids import IdFactory
from aether_trio.model.tasks import Task
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.services.agents.registry import AgentStore, find
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction import rows, sessions, startup
from aether_trio.services.tasks.transaction.startup import Begun, Wish
from aether_trio.services.tasks.transaction.work import Push, Work
from aether_trio.services.tasks.write_batcher import Heartbeat
from aether_trio.session.session import Session
from aether_trio.storage.base import Program
from aether_trio.wire.pb import aether_pb2 as pb

NOT_OVERRIDDEN: Final = frozenset({startup.PROFILE, startup.TOKEN})
"""Launch parameters that are the registration's and the gateway's: which orchestrators are asked, and the agent's credential."""
STARTABLE: Final = frozenset({Kind.AGENT, Kind.UNIQUE_TASK})
CAPACITY: Final = 1 << 40
"""Starts do not count as work, so any number will do."""
_NAMES: Final = uuid.UUID("0a2f6a0e-1df6-4a63-9d35-6cfc4b1e7c0a")


class Starts:
    """See the module docstring."""

    def __init__(
        self,
        engine: Engine,
        agents: AgentStore,
        ids: IdFactory,
    ) -> None:
        self._engine = engine
        self._agents = agents
        self._ids = ids

    # -- wishes -----------------------------------------------------------------------------------------------------

    async def knows(self, implementation: str) -> bool:
        """See Starter."""
        return await self._agents.find(implementation) is not None

    def start(self, work: Work, target: Identity, cause: Task) -> Program[str]:
        """See Starter. A cause that is a start itself is made to be the target's."""
        overrides = pb.CreateTaskRequest.FromString(cause.spec).launch_param_overrides
        own = cause.task_type == AGENT_STARTUP
        task_id = cause.task_id if own else str(uuid.uuid5(_NAMES, cause.task_id))
        creator = cause.creator if own else ""
        begun = yield from self._begin(work, task_id, target, overrides, work.context.now_ms, creator, cause.priority)
        if own and not begun.problem and not begun.created and begun.task is not None:
            return f"{target.text} is being started already (task {begun.task.task_id})"
        return begun.problem

    async def launch(self, target: Identity, overrides: Mapping[str, str], creator: str) -> Begun:
        """Start an agent because somebody asks for it. Raises StorageUnavailable."""
        return (await self.wake({target: self._engine.clock.now_ms()}, overrides, creator))[target]

    async def wake(
        self, wanted: Mapping[Identity, int], overrides: Mapping[str, str] | None = None, creator: str = ""
    ) -> dict[Identity, Begun]:
        """Have these started, that something has happened for at these moments (Unix ms). Raises StorageUnavailable.

        Whoever is connected is left alone: then there is neither a task nor a problem. Without `overrides` the first task that waits
        for one says with what it is started: it may have slept, or be tried again, since it was started for it.
        """
        task_ids = {target: self._ids.unique() for target in wanted}
        found: dict[Identity, Begun] = {}

        def errand(work: Work) -> Program[None]:
            found.clear()
            for target, trigger_ms in wanted.items():
                if (yield from work.find_worker(target.text)) is not None:
                    found[target] = Begun()
                    continue
                wanted_params, priority = yield from startup.asked_for(target.text)
                if overrides is not None:
                    wanted_params = overrides
                found[target] = yield from self._begin(
                    work, task_ids[target], target, wanted_params, trigger_ms, creator, priority
                )

        await self._engine.perform(errand)
        return found

    def _begin(
        self,
        work: Work,
        task_id: str,
        target: Identity,
        overrides: Mapping[str, str],
        trigger_ms: int,
        creator: str,
        priority: int,
    ) -> Program[Begun]:
        if target.kind not in STARTABLE:
            return Begun(
                problem=f"{target.text} is {target.kind.with_article}; only agents and unique tasks are started"
            )
        registration = yield from find(target.implementation)
        if registration is None:
            return Begun(problem=f"no agent implementation {target.implementation!r} is registered")
        wish = Wish(
            task_id,
            target,
            {
                **registration.launch_params,
                **{name: overrides[name] for name in overrides if name not in NOT_OVERRIDDEN},
            },
            trigger_ms,
            order_us=work.context.now_ms * 1000,
            creator=creator,
            priority=priority,
        )
        return (yield from startup.begin(work, wish))

    async def connected(self, identities: Sequence[str]) -> set[str]:
        """Those who are connected, on whichever node; a node that was killed is believed for some seconds. Raises StorageUnavailable."""
        return await self._engine.database.read(lambda: startup.connected(identities))

    async def of(self, identity: Identity) -> Task | None:
        """The start of this identity that has not ended; None for those that are not started. Raises StorageUnavailable."""
        if identity.kind not in STARTABLE:
            return None
        return await self._engine.database.read_small(lambda: startup.live(identity.text))

    # -- orchestrators ----------------------------------------------------------------------------------------------

    def joined(self, session: Session, *, back: bool, again: bool = False) -> None:
        """An orchestrator has been acknowledged. `back`: it knows what it was told before. `again`: its node was taken for dead since."""
        name, session_id, profiles = session.identity.text, session.session_id, session.profiles
        worker = rows.Worker(
            name, session_id, self._engine.hints.node, "", session.identity.implementation, False, 0, CAPACITY
        )

        def errand(work: Work) -> Program[None]:
            if session.detached:
                return  # written late: another one of its name may have come meanwhile, elsewhere
            yield from sessions.join(work, sessions.Joined(worker, back, again=again))
            if not back:
                here = worker._replace(node=work.context.node)
                for task in (yield from startup.again(work, name)):
                    work.pushes.append(Push(task, here, b""))
            yield from startup.joined(work, name, session_id, profiles)

        self._engine.writes.put(errand, heartbeat=Heartbeat(name))

    def ended(self, session: Session) -> None:
        """An orchestrator has gone. What it was to start goes to the next one."""
        left = sessions.Left(
            session.identity.text, session.session_id, session.finished, by_gateway=session.ended_by_gateway
        )

        def errand(work: Work) -> Program[None]:
            yield from startup.left(left.identity, left.session_id)
            yield from sessions.leave(work, left)

        self._engine.writes.put(errand)

    async def orchestrators(self) -> list[tuple[str, Sequence[str], int]]:
        """(identity, profiles, connected since) of everybody who can start something. Raises StorageUnavailable."""
        await self._engine.writes.flush()  # who has been acknowledged here is in it
        found: dict[str, tuple[list[str], int]] = {}
        for name, profile, connected_ms in await self._engine.database.read(startup.entries):
            found.setdefault(name, ([], connected_ms))[0].append(profile.decode())
        return [(name, profiles, connected_ms) for name, (profiles, connected_ms) in found.items()]

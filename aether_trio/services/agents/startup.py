"""Makes startup tasks, which orchestrators are assigned to start agents.

Three things cause a start: a TARGETED task whose target is not connected (`start`), a message to an
absent agent (`start_all`, see autostart.py), and the operation LAUNCH (`launch`). The registration
is read in the transaction that makes the startup task.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Final

from aether_trio.model.identity import Identity, Kind
from aether_trio.model.ids import IdFactory
from aether_trio.model.tasks import TaskRow
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.services.agents.registry import AgentRegistry, find
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction import dead_messages, orchestrators, sessions, startup
from aether_trio.services.tasks.transaction.due import Heartbeat
from aether_trio.services.tasks.transaction.interface import NewAssignment, Transaction
from aether_trio.services.tasks.transaction.startup import AgentStartRequest, StartResult
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.tasks.transaction.workers import Worker
from aether_trio.session.session import Session
from aether_trio.storage.base import Program
from aether_trio.wire.pb import aether_pb2 as pb

NOT_OVERRIDDEN: Final = frozenset({startup.PROFILE, startup.TOKEN})  # overrides leave these alone
STARTABLE: Final = frozenset({Kind.AGENT, Kind.UNIQUE_TASK})
CAPACITY: Final = 1 << 40  # of an orchestrator as a worker: startup tasks do not count
_NAMES: Final = uuid.UUID("0a2f6a0e-1df6-4a63-9d35-6cfc4b1e7c0a")


class AgentStarter:
    """Makes startup tasks of agents, and lists orchestrators.

    Coroutines raise StorageUnavailable.
    """

    def __init__(self, engine: Engine, agents: AgentRegistry, ids: IdFactory) -> None:
        self._engine = engine
        self._agents = agents
        self._ids = ids
        self._changing: set[str] = set()  # sessions whose change of agents waits to be written

    async def knows(self, implementation: str) -> bool:
        """Whether an agent implementation is registered."""
        return await self._agents.find(implementation) is not None

    def start(self, tx: Transaction, target: Identity, cause: TaskRow) -> Program[str]:
        """Start `target` in the transaction of the task `cause`; return "" or why not.

        If `cause` is a startup task itself, it becomes the target's startup task.
        """
        overrides = pb.CreateTaskRequest.FromString(cause.spec).launch_param_overrides
        own = cause.task_type == AGENT_STARTUP
        task_id = cause.task_id if own else str(uuid.uuid5(_NAMES, cause.task_id))
        creator = cause.creator if own else ""
        begun = yield from self._begin(tx, task_id, target, overrides, tx.context.now_ms, creator, cause.priority)
        if own and not begun.problem and not begun.created and begun.task is not None:
            return f"{target.text} is being started already (task {begun.task.task_id})"
        return begun.problem

    async def launch(self, target: Identity, overrides: Mapping[str, str], creator: str) -> StartResult:
        """Start an agent that the client `creator` launches."""
        return (await self.start_all({target: self._engine.clock.now_ms()}, overrides, creator))[target]

    async def start_all(
        self,
        targets: Mapping[Identity, int],
        overrides: Mapping[str, str] | None = None,
        creator: str = "",
        *,
        count_crashes: bool = False,
    ) -> dict[Identity, StartResult]:
        """Start participants, each with the time of its trigger (Unix ms).

        A connected participant gets neither a startup task nor a problem. `overrides` replace
        launch parameters of the registration; without them, those of the first task that waits for
        the participant do: it may have been started for this task before, and hibernated or failed
        since. `count_crashes`: one whose crash is not counted so far is `crashed`, and not started.
        """
        task_ids = {target: self._ids.unique() for target in targets}
        found: dict[Identity, StartResult] = {}

        def mutation(tx: TaskTransaction) -> Program[None]:
            found.clear()
            crashed: set[str] = set()
            if count_crashes:
                crashed = yield from dead_messages.unhandled([target.text for target in targets], skips=False)
            for target, trigger_ms in targets.items():
                if target.text in crashed:
                    found[target] = StartResult(crashed=True)
                    continue
                if (yield from tx.find_worker(target.text)) is not None:
                    found[target] = StartResult()
                    continue
                wanted, priority = yield from startup.wanted_start(target.text)
                params = wanted if overrides is None else overrides
                begun = yield from self._begin(tx, task_ids[target], target, params, trigger_ms, creator, priority)
                found[target] = begun

        await self._engine.perform(mutation)
        return found

    def _begin(
        self,
        tx: Transaction,
        task_id: str,
        target: Identity,
        overrides: Mapping[str, str],
        trigger_ms: int,
        creator: str,
        priority: int,
    ) -> Program[StartResult]:
        if target.kind not in STARTABLE:
            kind = target.kind.with_article
            return StartResult(problem=f"{target.text} is {kind}; only agents and unique tasks are started")
        registration = yield from find(target.implementation)
        if registration is None:
            return StartResult(problem=f"no agent implementation {target.implementation!r} is registered")
        wish = AgentStartRequest(
            task_id,
            target,
            {**registration.launch_params, **{k: v for k, v in overrides.items() if k not in NOT_OVERRIDDEN}},
            trigger_ms,
            order_us=tx.context.now_ms * 1000,
            creator=creator,
            priority=priority,
        )
        return (yield from startup.request_start(tx, wish))

    async def connected(self, identities: Sequence[str]) -> set[str]:
        """Return which identities are connected to any node, or were seconds ago."""
        return await self._engine.database.read(lambda: startup.connected_among(identities))

    async def current_start(self, identity: Identity) -> TaskRow | None:
        """Return an identity's startup task that has not ended, or None."""
        if identity.kind not in STARTABLE or not self._engine.started.may_exist(identity.text):
            return None
        return await self._engine.database.read_small(lambda: startup.current_start(identity.text))

    def joined(self, session: Session, *, resumed: bool, rejoined: bool = False) -> None:
        """Assign startup tasks to an orchestrator whose session has begun.

        `resumed`: the orchestrator has resumed a session, and knows its assignments. `rejoined`:
        other nodes took its node for dead meanwhile.
        """
        name, session_id, profiles = session.identity.text, session.session_id, session.profiles
        agents = session.agents
        implementation = session.identity.implementation
        worker = Worker(name, session_id, self._engine.nodes.node, "", implementation, False, 0, CAPACITY)

        def mutation(tx: TaskTransaction) -> Program[None]:
            if session.detached:
                return  # an orchestrator of that name may be connected to another node by now
            yield from sessions.join(tx, sessions.WorkerJoined(worker, resumed, rejoined=rejoined))
            if not resumed:
                here = worker._replace(node=tx.context.node)
                for task in (yield from startup.untold_starts(name)):
                    tx.effects.assignments.append(NewAssignment(task, here, b""))
            yield from startup.orchestrator_joined(tx, name, session_id, profiles, agents)

        self._engine.writes.put(mutation, heartbeat=Heartbeat(name))

    def agents_changed(self, session: Session) -> None:
        """Write which agents an orchestrator says that it has by now.

        One change of a session waits at a time, and writes what the session has said last.
        """
        name, session_id, profiles = session.identity.text, session.session_id, session.profiles

        def mutation(tx: TaskTransaction) -> Program[None]:
            self._changing.discard(session_id)
            yield from startup.orchestrator_changed(tx, name, session_id, profiles, session.agents or frozenset())

        if session.identity.kind is Kind.ORCHESTRATOR and session_id not in self._changing:
            self._changing.add(session_id)
            self._engine.writes.put(mutation, heartbeat=Heartbeat(name))

    def ended(self, session: Session) -> None:
        """Reassign the startup tasks of an orchestrator whose session has ended."""
        left = sessions.WorkerLeft(
            session.identity.text, session.session_id, session.finished, by_gateway=session.ended_by_gateway
        )

        def mutation(tx: TaskTransaction) -> Program[None]:
            yield from orchestrators.leave(left.identity, left.session_id)
            yield from sessions.leave(tx, left)

        self._engine.writes.put(mutation)

    async def orchestrators(self) -> list[tuple[str, Sequence[str], int]]:
        """Return (identity, profiles, connected since) of the connected orchestrators."""
        await self._engine.writes.flush()  # with it the sessions that have begun on this node
        found: dict[str, tuple[list[str], int]] = {}
        for name, profile, connected_ms in await self._engine.database.read(orchestrators.entries):
            found.setdefault(name, ([], connected_ms))[0].append(profile.decode())
        return [(name, profiles, connected_ms) for name, (profiles, connected_ms) in found.items()]

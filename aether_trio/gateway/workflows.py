"""Makes the parts of a gateway that decide who the workflow engine is.

relay      operations of clients go to the engine that is connected, on any node
intake     the events of the gateway's own engine, each exactly once
embedded   the gateway's own engine, while no external one is connected
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.concurrency.supervision import keep_running
from aether_trio.config.settings import WorkflowSettings
from aether_trio.gateway.databases import Databases
from aether_trio.gateway.membership import ClusterMembership
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.clock import Clock
from aether_trio.model.ids import IdFactory
from aether_trio.services.access import Authorizer
from aether_trio.services.tasks import TaskNodes
from aether_trio.services.workflows.engine.embedded import SWITCHED_OFF, EmbeddedEngine, EngineSessions
from aether_trio.services.workflows.engine.relay import EmbeddedOperations, WorkflowRelay
from aether_trio.services.workflows.engine.remote_engine import RemoteCallers, RemoteRequests
from aether_trio.services.workflows.events.intake import EventIntake, pass_over
from aether_trio.services.workflows.events.taken_events import ENGINE
from aether_trio.services.workflows.rules.event_handler import EventHandler
from aether_trio.transport.link import Link

if TYPE_CHECKING:
    from aether_trio.cluster.cluster import Cluster


class WorkflowEngines:
    """The gateway's own workflow engine, and the relay to external ones."""

    def __init__(
        self,
        settings: WorkflowSettings,
        clock: Clock,
        random: Random,
        ids: IdFactory,
        databases: Databases,
        membership: ClusterMembership,
        log: TopicLog,
        authorizer: Authorizer,
        task_nodes: TaskNodes,
        nursery: trio.Nursery,
        *,
        events: EventHandler | None = None,
        operations: EmbeddedOperations | None = None,
    ) -> None:
        """`events` and `operations` are what the gateway's own engine does."""
        registry, directory, cluster = membership.registry, membership.directory, membership.cluster
        mode = settings.engine
        self._free = AutoResetEvent()
        self._running: dict[str, Callable[[], Awaitable[None]]] = {}
        asker = None if cluster is None else RemoteRequests(databases.tasks, task_nodes, directory, clock)
        self.relay = WorkflowRelay(
            registry,
            directory,
            authorizer,
            log,
            ids,
            nursery,
            remote=asker,
            embedded=operations if mode in {"auto", "embedded"} else None,
            refusal=SWITCHED_OFF if mode == "off" else "",
        )
        self._running["workflow-relay"] = self.relay.run
        if cluster is not None and asker is not None:
            callers = RemoteCallers(databases.tasks, task_nodes, registry, clock, self.relay.hand_over)
            self._running |= {"workflow-requests": asker.run, "workflow-callers": callers.run}
            cluster.peers.when_dead(asker.look)
            self._watch(cluster)
        if events is None:
            self.intake = EventIntake(databases.tasks, log, registry, clock, partial(pass_over, databases.tasks))
        else:
            self.intake = EventIntake(databases.tasks, log, registry, clock, events.handle, events.prepare)
        self.sessions = EngineSessions(mode, self.relay, self.intake, self._free)
        self.embedded = EmbeddedEngine(mode, self.intake, directory, self._free, random)

    def _watch(self, cluster: Cluster) -> None:
        """Look at the engine's identity when it is released on another node."""
        from aether_trio.cluster.locks.cluster_locks import NEWS
        from aether_trio.cluster.node.bus import ALL

        def on_news(_sender: int, identity: str) -> None:
            if identity in {ENGINE, ALL}:
                self._free.set()

        cluster.bus.handle(NEWS, on_news)
        cluster.peers.when_dead(self._free.set)

    @asynccontextmanager
    async def running(self, serve: Callable[[Link], Awaitable[None]]) -> AsyncIterator[None]:
        """Run the parts until the block ends; `serve` is SessionServer.serve."""
        async with trio.open_nursery() as nursery:
            for name, run in self._running.items():
                nursery.start_soon(keep_running, name, run, name=name)
            nursery.start_soon(keep_running, "workflow-engine", partial(self.embedded.run, serve), name="engine")
            yield
            nursery.cancel_scope.cancel()

"""The gateway without its sockets: databases, log, sessions and services, joined.

Everything between the transports and the disk. `open_core` opens it as nested async context managers; each part is
handed what it needs when it is made, and nothing looks anything up later. Tests use it with in-memory links
(aether_trio.testing.memory), a seeded randomness and their own clock.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import lru_cache, partial

import structlog
import trio

from aether_trio.concurrency.supervision import keep_running
from aether_trio.config import Settings
from aether_trio.delivery.ephemeral_topics import EphemeralTopics
from aether_trio.delivery.rates import Rates
from aether_trio.delivery.router import Router
from aether_trio.delivery.tail import Tail
from aether_trio.gateway import wiring
from aether_trio.gateway.databases import OpenDatabase, open_databases, starting
from aether_trio.gateway.membership import Membership, open_membership
from aether_trio.gateway.tasks import make_tasks
from aether_trio.log.programs import touch
from aether_trio.log.publishers import PublisherStore
from aether_trio.log.retention import Retention
from aether_trio.log.topic_log import PROBE_S, TopicLog, open_log
from aether_trio.model.clock import Clock, SystemClock
from aether_trio.model.containment import run_all
from aether_trio.model.errors import Status
from aether_trio.model.identity import Kind
from aether_trio.model.ids import IdFactory
from aether_trio.model.ownership import SessionHistory
from aether_trio.queues import open_work_queues
from aether_trio.services import unimplemented
from aether_trio.services.access import DevAuthorizer
from aether_trio.services.agents import AgentService, AgentStore, Autostarter
from aether_trio.services.checkpoints import CheckpointService
from aether_trio.services.credentials import CredentialChecker
from aether_trio.services.kv import KvService
from aether_trio.services.presence import PresenceStore
from aether_trio.services.progress import ProgressService
from aether_trio.services.sessions import SessionService
from aether_trio.services.tasks.delivery.conversations import Conversations
from aether_trio.services.tasks.transaction.startup import task_context
from aether_trio.services.workspaces import WorkspaceSwitch
from aether_trio.session.admission import Admitted, Claim
from aether_trio.session.dependencies import SessionDependencies
from aether_trio.session.dispatch import Dispatcher
from aether_trio.session.lifecycle import SessionServer
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, StorageUnavailable
from aether_trio.storage.database_clock import open_database_clock
from aether_trio.telemetry.health import Health
from aether_trio.telemetry.metrics import Metrics
from aether_trio.transport.link import Peer
from aether_trio.version import __version__
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.core")

STUCK_CHECKS = 10
"""Looks at every session per write timeout: a stuck one is ended at most a tenth late."""


class Core:
    """Everything between the transports and the databases."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        ids: IdFactory,
        log: TopicLog,
        state: Database,
        publishers: PublisherStore,
        ephemeral_topics: EphemeralTopics,
        membership: Membership,
        tasks: Database,
        randomness: random.Random,
        nursery: trio.Nursery,
    ) -> None:
        limits = settings.limits
        strict = settings.gateway.strict_identifier_charset
        self.settings = settings
        self.clock = clock
        self.log = log
        self.health = Health()
        self.metrics = Metrics()
        self.ephemeral_topics = ephemeral_topics
        self.registry = membership.registry
        self.gate = membership.gate
        self.locks = membership.locks
        self.directory = membership.directory
        self.authorizer = DevAuthorizer()
        self.presence = PresenceStore(state, clock, keep_s=settings.storage.presence_retention_s)
        rates = Rates(limits, clock)
        self.router = Router(log, rates, limits, self.authorizer, self.directory.pick_service, strict=strict)
        self.dispatcher = Dispatcher(log)
        self.kv = KvService(state, clock, limits, self.authorizer)
        self.checkpoints = CheckpointService(state, clock, limits)
        self.tail = Tail(log, self.ephemeral_topics, clock)
        self.work_queues = open_work_queues(log, nursery)
        self.agents = AgentStore(tasks, clock, strict=strict, most=limits.agent_registrations)
        self.tasks, self.starts = make_tasks(
            settings,
            clock,
            ids,
            randomness,
            tasks,
            log,
            ephemeral_topics,
            membership,
            self.authorizer,
            self.checkpoints,
            self.agents,
            self,
        )
        self.credentials = CredentialChecker(settings.auth, clock, self.tasks.admit)
        self.chats = Conversations(tasks, ephemeral_topics)
        self.router.on_task_input = self.tasks.engine.inputs.put
        self.waker = Autostarter(self.starts, self.agents, clock, self.tasks.creation.connected, self._unread)
        self.router.on_absent = self.waker.note
        if membership.cluster is not None:
            membership.cluster.on_renewal.append(self._renewed)
        self._register(rates, strict)
        self.sessions = SessionServer(
            SessionDependencies(
                clock=clock,
                ids=ids,
                limits=limits,
                outbox_limits=wiring.outbox_limits(settings),
                log=log,
                publishers=publishers,
                ephemeral_topics=self.ephemeral_topics,
                work_queues=self.work_queues,
                rates=rates,
                router=self.router,
                registry=self.registry,
                gate=self.gate,
                locks=self.locks,
                dispatcher=self.dispatcher,
                hooks=self,
                server_version=__version__,
                strict_charset=strict,
            )
        )

    def target_absent(self, identity: str) -> None:
        """Start the target of a task, if it can be started (AgentHooks)."""
        self.waker.note(identity)

    def gateway_lost(self, identity: str) -> None:
        """Start an agent again whose gateway has ended, if messages wait for it (AgentHooks)."""
        self.waker.ended(identity)

    def _register(self, rates: Rates, strict: bool) -> None:
        register = self.dispatcher.register
        sessions = SessionService(self.directory, self.presence, self.authorizer, self.clock)

        register("kv_op", self._kv_op)
        register("checkpoint_op", self._checkpoint_op)
        register("progress", ProgressService(self.ephemeral_topics, rates, self.clock, self.tasks.reported).handle)
        register("switch_workspace", WorkspaceSwitch(self.authorizer, self._moved, strict=strict).handle)
        register("session_op", sessions.operate)
        register("connection_status_request", sessions.status)
        register("agent_op", AgentService(self.agents, self.starts, self.authorizer, strict=strict).handle)
        register("create_task", self.tasks.creation.handle)
        register("task_op", self.tasks.operate)
        register("task_query", self.tasks.query)
        register("task_subscription_op", self.tasks.subscribe)
        unimplemented.register(self.dispatcher)

    async def _kv_op(self, session: Session, op: pb.KVOperation) -> list[pb.DownstreamMessage]:
        started = self.clock.monotonic()
        answers = await self.kv.handle(session.identity, op, session)
        operation, scope = _kv_labels(op)
        succeeded = answers[0].WhichOneof("payload") == "kv" and answers[0].kv.success
        self.metrics.metered_kv_operations.add((session.workspace, operation))
        self.metrics.kv_operations.add((operation, scope, "ok" if succeeded else "error"))
        self.metrics.kv_operation_latency.observe(self.clock.monotonic() - started, (operation, scope))
        return answers

    async def _checkpoint_op(self, session: Session, op: pb.CheckpointOperation) -> list[pb.DownstreamMessage]:
        answer = await self.checkpoints.handle(session.identity, op)
        if op.op == pb.CheckpointOperation.LOAD and answer.success and not answer.saved_at:
            owner = await self.tasks.checkpoint_owner(session.identity, op.key)
            if owner is not None:
                answer = await self.checkpoints.handle(owner, op)
        names = pb.CheckpointOperation.OpType
        operation = names.Name(op.op) if op.op in names.values() else "UNKNOWN"
        self.metrics.checkpoint_operations.add((session.workspace, operation))
        return [pb.DownstreamMessage(checkpoint=answer)]

    # -- SessionHooks -----------------------------------------------------------------------------------------------

    async def authenticate(self, claim: Claim, peer: Peer) -> Admitted:
        """See SessionHooks."""
        return await self.credentials.admit(claim, peer)

    async def recall(self, identity: str, session_id: str) -> SessionHistory | None:
        """See SessionHooks."""
        return await self.presence.recall(identity, session_id)

    def attempted(self, claim: Claim | None, status: Status, authenticated: bool) -> None:
        """What a stranger claims is no label: it could make up workspaces until there is no room for those that exist."""
        kind = "unknown" if claim is None else claim.identity.type_name
        workspace = claim.identity.workspace if claim is not None and authenticated else ""
        self.metrics.connection_attempts.add((workspace, kind, _attempt_label(status)))

    async def _unread(self, identity: str) -> tuple[int, int]:
        """Where a participant is in its own topic, and how many messages are behind that. Raises StorageUnavailable."""
        [(state, cursor)] = await self.log.warm([(identity, identity)])
        latest = self.log.cursors.unwritten(state, identity)
        self.log.unpin([state])
        position = max(cursor or 0, latest or 0)
        return position, max(state.end - position, 0)

    async def prepare(self, session: Session) -> None:
        """An agent that was started is the one of its start, token or not (reference: tasks.md 4.4)."""
        start = await self.starts.of(session.identity)
        if start is not None:
            session.start_agent(start.task_id, task_context(start))

    def _moved(self, session: Session) -> None:
        self.directory.moved(session.record)
        self.chats.moved(session)

    def joined(self, session: Session, claim: Claim) -> None:
        back = bool(claim.resume_session_id)
        self.tasks.joined(session, back=back)
        if session.identity.kind is Kind.ORCHESTRATOR:
            self.starts.joined(session, back=back)

    def _renewed(self) -> None:
        """This node was taken for dead: others may have let go of the sessions that it still has, and no longer listen for it."""
        self.tasks.engine.renewed()
        for session in self.registry:
            if session.acknowledged:
                self.tasks.joined(session, back=True, again=True)
                if session.identity.kind is Kind.ORCHESTRATOR:
                    self.starts.joined(session, back=True, again=True)

    async def config_snapshot(self, session: Session) -> pb.ConfigSnapshot:
        in_workspace, everywhere = await self.kv.exclusive_snapshot(session.identity)
        return pb.ConfigSnapshot(
            task_context=session.task_context, workspace_exclusive_kv=in_workspace, global_exclusive_kv=everywhere
        )

    def ended(self, session: Session) -> None:
        parts = (self.locks.release, self.presence.ended, self.tasks.ended, self.chats.ended, self._start_ended)
        run_all(session.who, *(partial(ended, session) for ended in parts))
        self.metrics.connection_duration.observe(
            (self.clock.now_ms() - session.connected_ms) / 1000,
            (session.identity.workspace, session.identity.type_name),
        )

    def _start_ended(self, session: Session) -> None:
        if session.identity.kind is Kind.ORCHESTRATOR:
            self.starts.ended(session)
        elif session.task_context:
            self.waker.ended(session.identity.text)
        else:
            self.waker.came_by_itself(session.identity.text)

    async def cut_stuck_sessions(self, write_timeout_s: float) -> None:
        """End sessions whose client has read nothing of what waits for it for so long. Runs until cancelled.

        What is durable waits in the log; the identity must not stay with a client that is stuck.
        """
        while True:
            await trio.sleep(write_timeout_s / STUCK_CHECKS)
            latest = trio.current_time() - write_timeout_s
            for session in self.registry:
                stalled_since = session.link.stalled_since
                if stalled_since is not None and stalled_since < latest:
                    session.end(Status.UNAVAILABLE, f"this client has read nothing for {write_timeout_s:g} seconds")

    async def let_sessions_go(self, reason: str, within_s: float = 0.0) -> None:
        """Ask every client to go elsewhere, in slices; their sessions end with UNAVAILABLE after `within_s` at the latest.

        Does not wait for their ends.

        The published Python SDK's blocking client takes GRACEFUL_DISCONNECT for the end of everything, so Python
        clients are only given the status, which both of its clients answer by reconnecting.
        """
        self.sessions.handshake.turn_away()
        for count, session in enumerate(self.registry):
            signal = None if session.client.sdk == "python" else pb.Signal.GRACEFUL_DISCONNECT
            session.leave(reason, within_s, signal)
            if count % 64 == 63:
                await trio.lowlevel.checkpoint()


@lru_cache(maxsize=256)
def _attempt_label(status: Status) -> str:
    """The reference's word for how a handshake ended; it has none for most of what we tell apart."""
    words = {Status.OK: "success", Status.ALREADY_EXISTS: "lock_failed", Status.RESOURCE_EXHAUSTED: "quota_exceeded"}
    return words.get(status, status.name.lower())


async def _find_well_again(name: str, database: OpenDatabase) -> None:
    """See whether a failing database can write again: who was turned away by our health may write nothing to find out."""
    failing = False
    while True:
        await trio.sleep(PROBE_S)
        if database.statistics().failing:
            try:
                await database.run(touch)
            except StorageUnavailable as error:
                if not failing:
                    logger.error("a database fails", database=name, reason=str(error))
                failing = True
                continue
        if failing:
            logger.info("a database can be written again", database=name)
        failing = False


def _kv_labels(op: pb.KVOperation) -> tuple[str, str]:
    """Operation and scope as labels; numbers that the protocol does not know are all one."""
    operations, scopes = pb.KVOperation.OpType, pb.KVOperation.Scope
    operation = operations.Name(op.op) if op.op in operations.values() else "UNKNOWN"
    scope = scopes.Name(op.scope) if op.scope in scopes.values() else "UNKNOWN"
    return operation, scope


@asynccontextmanager
async def open_core(
    settings: Settings, *, clock: Clock | None = None, randomness: random.Random | None = None
) -> AsyncIterator[Core]:
    """The gateway without its sockets: databases, log, services. Tests give a clock and a seeded `randomness`."""
    clock = clock or SystemClock(trio.current_time)
    randomness = randomness or random.SystemRandom()
    ids = IdFactory(randomness)
    async with AsyncExitStack() as stack:
        done = stack.enter_context(starting("this gateway could not start, as storage does not answer"))
        databases = await stack.enter_async_context(open_databases(settings))
        state, log_database = databases.state, databases.log
        if state.shared and isinstance(clock, SystemClock):
            # A clock that a test has given stays; that of a machine is not another machine's.
            clock = await stack.enter_async_context(open_database_clock(state, clock))
        log = await stack.enter_async_context(open_log(log_database, clock, wiring.log_limits(settings)))
        ephemeral_topics = EphemeralTopics()
        membership = await stack.enter_async_context(open_membership(settings, clock, databases, log, ephemeral_topics))
        nursery = await stack.enter_async_context(trio.open_nursery())
        framed = settings.framed
        publishers = PublisherStore(log_database, clock, window=framed.publish_window, lifetime_s=framed.dedup_s)
        core = Core(
            settings,
            clock,
            ids,
            log,
            state,
            publishers,
            ephemeral_topics,
            membership,
            databases.tasks,
            randomness,
            nursery,
        )
        core.health.add_probe(
            "log", lambda: "the last group could not be written" if log.statistics().storage_failing else None
        )
        core.health.add_probe(
            "state", lambda: "the last group could not be written" if state.statistics().failing else None
        )
        core.health.add_probe(
            "tasks", lambda: "the last group could not be written" if databases.tasks.statistics().failing else None
        )
        retention = Retention(log, wiring.retention_limits(settings))
        core.metrics.counter("aether_log_expired", "Messages that retention took", (), lambda: {(): retention.expired})
        wiring.watch_metrics(core.metrics, core, state=state, log=log_database, tasks=databases.tasks)
        wiring.watch_cluster(core.metrics, membership)
        nursery.start_soon(keep_running, "retention", retention.sweep_forever, name="retention")
        if databases.tasks.shared:
            nursery.start_soon(keep_running, "task-chats", core.chats.run, name="task-chats")
        nursery.start_soon(keep_running, "publishers", publishers.sweep_forever, name="publishers")
        nursery.start_soon(keep_running, "presence", core.presence.run, name="presence")
        nursery.start_soon(keep_running, "presence-sweep", core.presence.sweep_forever, name="presence-sweep")
        nursery.start_soon(keep_running, "waker", core.waker.run, name="waker")
        nursery.start_soon(keep_running, "topics", ephemeral_topics.run, name="topics")
        nursery.start_soon(keep_running, "state-probe", partial(_find_well_again, "state", state), name="state-probe")
        nursery.start_soon(
            keep_running, "tasks-probe", partial(_find_well_again, "tasks", databases.tasks), name="tasks-probe"
        )
        if settings.grpc.write_timeout_s:
            nursery.start_soon(
                keep_running,
                "stuck-sessions",
                partial(core.cut_stuck_sessions, settings.grpc.write_timeout_s),
                name="stuck-sessions",
            )
        nursery.start_soon(keep_running, "kv-sweep", core.kv.sweep_forever, name="kv-sweep")
        nursery.start_soon(keep_running, "checkpoint-sweep", core.checkpoints.sweep_forever, name="checkpoint-sweep")
        try:
            # It settles what it has taken on before it ends, so it ends before everything is cancelled.
            async with core.tasks.engine.running():
                done()
                try:
                    yield core
                finally:
                    core.sessions.handshake.stop_admitting()
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                        await core.presence.flush_at_end()
        finally:
            nursery.cancel_scope.cancel()

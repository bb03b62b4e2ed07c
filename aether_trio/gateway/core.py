"""Makes the parts of a gateway but its sockets: databases, services, sessions.

`open_core` makes each part with all that it needs. Tests open a core with in-memory links
(aether_trio.testing.memory), a seeded randomness and a separate clock.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.concurrency.supervision import keep_running
from aether_trio.config import Settings
from aether_trio.delivery.ephemeral_topics import EphemeralTopics
from aether_trio.delivery.rates import Rates
from aether_trio.delivery.router import Router
from aether_trio.delivery.topic_watcher import TopicWatcher
from aether_trio.gateway import limits, metrics
from aether_trio.gateway.audit import AuditTrail, fold_forever, open_audit
from aether_trio.gateway.databases import open_databases, probe_while_failing, starting
from aether_trio.gateway.membership import open_membership
from aether_trio.gateway.restored import begin_log
from aether_trio.gateway.samples import open_samples
from aether_trio.gateway.session_hooks import ServiceHooks, WorkspaceMoves
from aether_trio.gateway.workflows import WorkflowEngines
from aether_trio.log.deduplication import PublisherStore
from aether_trio.log.retention import Retention
from aether_trio.log.topic_log import TopicLog, open_log
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.seeds import CLOSED
from aether_trio.model.clock import Clock, SystemClock
from aether_trio.model.identity import Identity
from aether_trio.model.ids import IdFactory
from aether_trio.model.quotas import WorkspaceQuotas
from aether_trio.queues import open_work_queues
from aether_trio.services import quotas as quota_records
from aether_trio.services import unimplemented
from aether_trio.services.access.changes import AccessChanges, ChangePeers, NoPeers
from aether_trio.services.access.checks import AccessChecks
from aether_trio.services.access.decision_log import DecisionLog
from aether_trio.services.access.enforcement import Enforcement
from aether_trio.services.access.records import DECISIVE
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from aether_trio.services.access.seeding import seed
from aether_trio.services.access.service import AccessService
from aether_trio.services.agents import (
    AgentRegistry,
    AgentService,
    AgentStarter,
    Autostarter,
    AutostartQueue,
    CrashLoops,
    ResourceOwners,
)
from aether_trio.services.audit.service import AuditService
from aether_trio.services.authority import AuthorityService, KnownGrants, TaskTransactions
from aether_trio.services.authority.continuation import Continuations
from aether_trio.services.checkpoints import CheckpointHandler, CheckpointService
from aether_trio.services.credentials.checker import CredentialChecker
from aether_trio.services.credentials.ends import CredentialEnds
from aether_trio.services.credentials.throttle import Throttle
from aether_trio.services.kv import KvHandler, KvService
from aether_trio.services.last_seen import LastSeenStore
from aether_trio.services.progress import ProgressService
from aether_trio.services.sessions import SessionService
from aether_trio.services.tasks import ClusterNodes, Engine, SingleNode, TaskNodes, TaskService
from aether_trio.services.tasks.audit_events import TaskAudit
from aether_trio.services.tasks.delivery.conversations import Conversations
from aether_trio.services.tokens import TOKEN, TokenService, TokenStore, read_hmac_keys
from aether_trio.services.topics import TopicService
from aether_trio.services.workflows.engine.parts import WorkflowEngine
from aether_trio.services.workflows.events.kv_events import KeyEventMover
from aether_trio.services.workflows.stored.sources import WantedEvents
from aether_trio.services.workflows.webhooks.accepting import Webhooks
from aether_trio.services.workflows.webhooks.webhook_secrets import WebhookSecrets
from aether_trio.services.workspaces import WorkspaceService, WorkspaceSwitch
from aether_trio.session.dependencies import SessionDependencies
from aether_trio.session.directory import SessionDirectory
from aether_trio.session.dispatch import Dispatcher, Handler
from aether_trio.session.expiry import SessionExpiry
from aether_trio.session.lifecycle import SessionServer
from aether_trio.session.registry import SessionRegistry
from aether_trio.session.stalled_sessions import end_stalled_sessions
from aether_trio.storage.database_clock import open_database_clock
from aether_trio.telemetry.health import GatewayHealth
from aether_trio.telemetry.metrics import Metrics
from aether_trio.version import __version__


@dataclass(frozen=True, slots=True)
class Core:
    """The parts of a gateway between its transports and its databases."""

    settings: Settings
    clock: Clock
    health: GatewayHealth
    metrics: Metrics
    log: TopicLog
    ephemeral_topics: EphemeralTopics
    registry: SessionRegistry
    directory: SessionDirectory
    authorizer: RuleAuthorizer
    changes: AccessChanges
    presence: LastSeenStore
    kv: KvService
    tasks: TaskService
    agents: AgentRegistry
    starter: AgentStarter
    autostarter: Autostarter
    router: Router
    dispatcher: Dispatcher
    hooks: ServiceHooks
    credentials: CredentialChecker
    credential_ends: CredentialEnds
    tokens: TokenStore
    audit: AuditTrail
    workflows: WorkflowEngines
    webhooks: Webhooks | None
    sessions: SessionServer
    tail: TopicWatcher


@asynccontextmanager
async def open_core(
    settings: Settings, *, clock: Clock | None = None, randomness: random.Random | None = None
) -> AsyncIterator[Core]:
    """Open the parts of a gateway but its sockets, until the block ends."""
    clock = clock or SystemClock(trio.current_time)
    randomness = randomness or random.SystemRandom()
    ids = IdFactory(randomness)
    strict = settings.gateway.strict_identifier_charset
    health = GatewayHealth()
    metric_families = Metrics(workspace_label=settings.ops.workspace_label)
    async with AsyncExitStack() as stack:
        done = stack.enter_context(starting("this gateway could not start, as storage does not answer"))

        # Storage: databases, the topic log, and the cluster that they may be shared with.
        databases = await stack.enter_async_context(open_databases(settings))
        state, tasks_database = databases.state, databases.tasks
        if state.shared and isinstance(clock, SystemClock):
            # A clock that a test has given stays; that of a machine is not another machine's.
            clock = await stack.enter_async_context(open_database_clock(state, clock))
        await begin_log(databases, clock)
        log = await stack.enter_async_context(
            open_log(
                databases.log,
                clock,
                limits.log_limits(settings),
                lambda seconds, messages: metric_families.message_routing_latency.observe(seconds, times=messages),
            )
        )
        ephemeral_topics = EphemeralTopics()
        quotas = WorkspaceQuotas(settings.limits)
        membership = await stack.enter_async_context(
            open_membership(settings, clock, databases, log, ephemeral_topics, quotas)
        )
        registry, directory, cluster = membership.registry, membership.directory, membership.cluster
        audit = await stack.enter_async_context(open_audit(settings, clock, tasks_database, randomness))
        nursery = await stack.enter_async_context(trio.open_nursery())
        queues = open_work_queues(log, nursery, None if cluster is None else cluster.lease)
        framed = settings.framed
        publishers = PublisherStore(databases.log, clock, window=framed.publish_window, lifetime_s=framed.dedup_s)

        # Services.
        owners = ResourceOwners(tasks_database)
        decisions = DecisionLog(audit.writer.offer, clock, ids.unique, owners.owner_of)
        grants = KnownGrants(tasks_database, clock, registry, directory, strict=strict)
        authorizer = RuleAuthorizer(AccessIndex(), clock, grants, decisions)
        peers: ChangePeers = NoPeers()
        if cluster is not None:
            from aether_trio.cluster.access import ClusterPeers

            peers = ClusterPeers(cluster)
        changes = AccessChanges(tasks_database, clock, peers, membership.gate, audit.writer)
        authorizer.follow(changes)
        quota_records.follow(changes, quotas)
        grants.follow(changes)
        presence = LastSeenStore(state, clock, keep_s=settings.storage.presence_retention_s)
        wanted, key_events = WantedEvents(), AutoResetEvent()
        mover = KeyEventMover(state, key_events)
        kv = KvService(state, clock, settings.limits, authorizer, quotas, wanted.keys, key_events.set)
        checkpoints = CheckpointService(state, clock, settings.limits)
        autostart_queue = AutostartQueue(clock)
        task_nodes: TaskNodes = SingleNode(ids.unique()) if cluster is None else ClusterNodes(cluster)
        tokens = TokenStore(tasks_database, clock, read_hmac_keys(settings.auth, dev=settings.gateway.dev))
        workflow_engine = WorkflowEngine(
            authorizer,
            lambda workspace: quotas.of(workspace).task_payload_bytes,
            settings.workflow,
            WebhookSecrets(lambda: tokens.keys),
            wanted,
            strict=strict,
        )
        engine = Engine(
            tasks_database,
            clock,
            limits.time_limits(settings),
            randomness.random,
            registry,
            ephemeral_topics,
            log,
            task_nodes,
            autostart_queue,
            randomness.randbytes,
            TaskTransactions(),
            changes,
            lambda service, workspace: authorizer.may_read(Identity.parse(service, strict=False), workspace),
            TaskAudit(clock, audit.put),
            workflow_engine.hook,
        )
        wanted.follow(changes)
        authority = AuthorityService(
            engine,
            changes,
            grants,
            authorizer,
            authorizer,
            registry,
            directory,
            ids,
            clock,
            audit,
            strict=strict,
        )
        agents = AgentRegistry(
            tasks_database,
            clock,
            partial(_call_all, autostart_queue.registration_changed, owners.changed),
            strict=strict,
            most=settings.limits.agent_registrations,
        )
        starter = AgentStarter(engine, agents, ids)
        connected = partial(_is_connected, directory)
        tasks = TaskService(
            engine,
            starter,
            ids,
            authorizer,
            checkpoints.exists,
            connected,
            randomness.randbytes,
            may_read=authorizer.session_may_read,
            payload_bytes=lambda workspace: quotas.of(workspace).task_payload_bytes,
            strict=strict,
            capacity=settings.tasks.worker_tasks,
            grants=authority.grant_maker,
        )
        crashes = CrashLoops(engine, log, settings.tasks.message_crashes)
        autostarter = Autostarter(autostart_queue, starter, agents, clock, connected, log.unread, crashes)
        conversations = Conversations(tasks_database, ephemeral_topics)

        webhooks = None
        if settings.workflow.engine != "off":
            webhooks = workflow_engine.webhooks(engine, Throttle(settings.auth, clock))
        workflows = WorkflowEngines(
            settings.workflow,
            clock,
            randomness,
            ids,
            databases,
            membership,
            log,
            authorizer,
            task_nodes,
            nursery,
            events=workflow_engine.events(engine),
            operations=workflow_engine.operations(engine, ids, changes, log),
        )

        # Sessions: the hooks of their steps, the router of messages, the handlers of requests.
        credentials = CredentialChecker(
            settings.auth,
            clock,
            tasks.sessions.admit,
            tokens,
            bounded=settings.access.default == CLOSED,
        )
        credentials.use(credentials.prepare(settings.auth, settings.tls))
        credential_ends = CredentialEnds(credentials, registry)
        changes.when_applied(TOKEN, tokens.changed, tokens.load_live)
        changes.when_applied(TOKEN, credential_ends.tokens_changed)
        expiry = SessionExpiry(registry, clock)
        moves = WorkspaceMoves(directory, conversations)
        enforcement = Enforcement(registry, authorizer, moves.moved)
        changes.react(DECISIVE, enforcement.applied, enforcement.settle)
        changes.react(DECISIVE, engine.pools.forget, partial(tasks.access_changed, enforcement.may_read))
        await changes.start()
        nursery.start_soon(keep_running, "access", changes.run, name="access")
        await seed(changes, settings.access.default)
        hooks = ServiceHooks(
            clock=clock,
            metrics=metric_families,
            registry=registry,
            locks=membership.locks,
            directory=directory,
            credentials=credentials,
            enforcement=enforcement,
            expiry=expiry,
            presence=presence,
            kv=kv,
            tasks=tasks,
            conversations=conversations,
            starter=starter,
            autostart_queue=autostart_queue,
            audit=audit,
            engines=workflows.sessions,
        )
        if cluster is not None:
            # A renewal frees what this node itself had leased before.
            cluster.peers.when_dead(queues.node_left)
            cluster.when_renewed(queues.node_left)
            cluster.when_renewed(hooks.node_renewed)
        leased_rates: LeasedRates | None = None
        if cluster is not None:
            from aether_trio.cluster.rate_leases import LeasedRates

            leased_rates = LeasedRates(tasks_database, cluster.bus, cluster.lease, clock)
            nursery.start_soon(keep_running, "rate-leases", leased_rates.run, name="rate-leases")
        rates = Rates(settings.limits, clock, quotas, leased_rates)
        router = Router(
            log,
            rates,
            settings.limits,
            authorizer,
            directory.pick_service,
            strict=strict,
            on_task_input=engine.input_consumer.put,
            on_absent=autostart_queue.target_absent,
            on_counts=audit.counted.set,
        )
        token_service = TokenService(tasks_database, tokens, changes, authorizer, ids, clock, randomness.randbytes)
        session_service = SessionService(directory, presence, authorizer, clock)
        checks = AccessChecks(authorizer, rates)
        workspaces = WorkspaceService(
            tasks_database, authorizer, changes, directory, quotas, router, clock, strict=strict
        )
        topics = TopicService(databases.log, authorizer, clock, audit.put, workspaces.handle, strict=strict)
        audit_service = AuditService(
            tasks_database,
            clock,
            authorizer,
            audit.writer if settings.audit.enabled else None,
            partial(audit.fold_routes, router, all_routes=True),
            audit.upkeep.forget,
            submits_per_s=settings.audit.submits_per_s,
        )
        handlers: dict[str, Handler] = {
            **unimplemented.HANDLERS,
            "checkpoint_op": CheckpointHandler(
                checkpoints, metric_families, tasks.sessions.checkpoint_owner, tasks.saved_states.handle
            ).handle,
            "progress": ProgressService(ephemeral_topics, rates, clock, authorizer, tasks.sessions.reported).handle,
            "switch_workspace": WorkspaceSwitch(authorizer, moves.moved, strict=strict).handle,
            "access_check": checks.check,
            "batch_access_check": checks.check_all,
            "workspace_op": topics.handle,
            "acl_op": AccessService(tasks_database, authorizer, changes, audit_service, ids, clock).handle,
            "session_op": audit.disconnects(session_service.operate),
            "token_op": token_service.handle,
            "connection_status_request": session_service.status,
            "agent_op": AgentService(agents, starter, authorizer, strict=strict).handle,
            **tasks.handlers,
            **workflows.relay.handlers,
            "create_task": audit.created_tasks(tasks.handlers["create_task"]),
            **audit_service.handlers,
            **authority.handlers,
        }
        dispatcher = Dispatcher(log, handlers, {"kv_op": audit.kv(KvHandler(kv, metric_families, clock).handle_some)})
        sessions = SessionServer(
            SessionDependencies(
                clock=clock,
                ids=ids,
                limits=settings.limits,
                outbox_limits=limits.outbox_limits(settings),
                log=log,
                publishers=publishers,
                ephemeral_topics=ephemeral_topics,
                work_queues=queues,
                rates=rates,
                router=router,
                rules=Continuations(authorizer, authority.grants),
                registry=registry,
                gate=membership.gate,
                locks=membership.locks,
                dispatcher=dispatcher,
                hooks=hooks,
                server_version=__version__,
                strict_charset=strict,
            )
        )

        # Health, metrics, and background tasks.
        health.add_probe("log", _probe(lambda: log.statistics().storage_failing))
        health.add_probe("state", _probe(lambda: state.statistics().failing))
        health.add_probe("tasks", _probe(lambda: tasks_database.statistics().failing))
        health.add_probe("audit", lambda: audit.problem)
        retention = Retention(log, limits.retention_limits(settings))
        samples = open_samples(settings, metric_families, log, tasks_database, clock, cluster=cluster is not None)
        metrics.watch_databases(metric_families, databases, samples)
        metrics.watch_health(metric_families, health)
        metrics.watch_log(metric_families, log, retention)
        metrics.watch_audit(metric_families, audit)
        metrics.watch_delivery(metric_families, router, ephemeral_topics, queues)
        metrics.watch_sessions(metric_families, registry, dispatcher)
        metrics.watch_tasks(metric_families, engine, autostarter)
        metrics.watch_cluster(metric_families, membership)
        metrics.watch_workflows(metric_families, workflows)
        metrics.watch_access(metric_families, changes, authorizer, enforcement, credential_ends, expiry)
        if leased_rates is not None:
            metric_families.watch("rate_leases", leased_rates.statistics)
        core = Core(
            settings=settings,
            clock=clock,
            health=health,
            metrics=metric_families,
            log=log,
            ephemeral_topics=ephemeral_topics,
            registry=registry,
            directory=directory,
            authorizer=authorizer,
            changes=changes,
            presence=presence,
            kv=kv,
            tasks=tasks,
            agents=agents,
            starter=starter,
            autostarter=autostarter,
            router=router,
            dispatcher=dispatcher,
            hooks=hooks,
            credentials=credentials,
            credential_ends=credential_ends,
            tokens=tokens,
            audit=audit,
            workflows=workflows,
            webhooks=webhooks,
            sessions=sessions,
            tail=TopicWatcher(log, ephemeral_topics, clock),
        )
        background: Mapping[str, Callable[[], Awaitable[None]]] = {
            "retention": retention.sweep_forever,
            "publishers": publishers.sweep_forever,
            "publisher-names": publishers.load_names,
            "presence": presence.run,
            "presence-sweep": presence.sweep_forever,
            "autostart": autostarter.run,
            "ephemeral-topics": ephemeral_topics.run,
            "kv-sweep": kv.sweep_forever,
            "kv-own-spaces": kv.load_own_spaces,
            "kv-events": partial(mover.run, engine),
            "checkpoint-sweep": checkpoints.sweep_forever,
            "session-expiry": expiry.run,
            "identity-providers": credentials.run,
            "token-uses": tokens.run,
            "audit-counts": fold_forever(audit, router),
            "decisions": decisions.run,
            "resource-owners": owners.run,
            "state-probe": partial(probe_while_failing, "state", state),
            "tasks-probe": partial(probe_while_failing, "tasks", tasks_database),
            **authority.background,
            **{f"sample-{sample.name}": sample.run for sample in samples.values()},
        }
        for name, run in background.items():
            nursery.start_soon(keep_running, name, run, name=name)
        if tasks_database.shared:
            nursery.start_soon(keep_running, "conversations", conversations.run, name="conversations")
        if write_timeout_s := settings.grpc.write_timeout_s:
            end_stalled = partial(end_stalled_sessions, registry, write_timeout_s)
            nursery.start_soon(keep_running, "stalled-sessions", end_stalled, name="stalled-sessions")
        try:
            # The engine settles its accepted work when it ends, so it ends before all is cancelled.
            async with engine.running(), workflows.running(sessions.serve):
                done()
                try:
                    yield core
                finally:
                    sessions.handshake.stop_admitting()
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                        await presence.flush_at_end()
                        await tokens.flush_at_end()
                        if leased_rates is not None:
                            await leased_rates.give_back()
                    audit.fold_routes(router, all_routes=True)
                    decisions.fold()
        finally:
            nursery.cancel_scope.cancel()


def _probe(failing: Callable[[], bool]) -> Callable[[], str | None]:
    return lambda: "the last group could not be written" if failing() else None


def _call_all(*calls: Callable[[], None]) -> None:
    for call in calls:
        call()


async def _is_connected(directory: SessionDirectory, identity: str) -> bool:
    """Say whether a participant is connected to any node. Raises StorageUnavailable."""
    return (await directory.last_seen(identity)).connected

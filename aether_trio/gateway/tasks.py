"""The task service of a gateway, put together: what it is given by the core, and which settings mean what to it."""

from __future__ import annotations

from random import Random

from aether_trio.config import Settings
from aether_trio.delivery.ephemeral_topics import EphemeralTopics
from aether_trio.gateway.membership import Membership
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.clock import Clock
from aether_trio.model.ids import IdFactory
from aether_trio.model.tasks.due import TimeLimits
from aether_trio.services.access import Authorizer
from aether_trio.services.agents import AgentStore, Starts
from aether_trio.services.checkpoints import CheckpointService
from aether_trio.services.tasks import AgentHooks, Alone, Creation, Engine, Hints, InCluster, TaskService
from aether_trio.storage.base import Database


def time_limits(settings: Settings) -> TimeLimits:
    """How long tasks may be stale, and are kept when they have ended."""
    tasks = settings.tasks
    return TimeLimits(
        interactive_ms=round(tasks.interactive_ttl_s * 1000),
        startup_ms=round(tasks.startup_ttl_s * 1000),
        pool_ms=round(tasks.pool_ttl_s * 1000),
        completed_ms=round(tasks.completed_retention_s * 1000),
        failed_ms=round(tasks.failed_retention_s * 1000),
        cancelled_ms=round(tasks.cancelled_retention_s * 1000),
        resolved_ms=round(tasks.resolved_retention_s * 1000),
        start_timeout_ms=round(tasks.start_timeout_s * 1000),
        start_grace_ms=max(round(tasks.start_grace_s * 1000), 1),
    )


def make_tasks(
    settings: Settings,
    clock: Clock,
    ids: IdFactory,
    randomness: Random,
    database: Database,
    log: TopicLog,
    ephemeral_topics: EphemeralTopics,
    membership: Membership,
    authorizer: Authorizer,
    checkpoints: CheckpointService,
    agents: AgentStore,
    hooks: AgentHooks,
) -> tuple[TaskService, Starts]:
    """Make the task service and the starts of agents. Its `engine.running()` must run while sessions are served."""
    others: Hints = Alone(ids.unique()) if membership.cluster is None else InCluster(membership.cluster)
    engine = Engine(
        database,
        clock,
        time_limits(settings),
        randomness.random,
        membership.registry,
        ephemeral_topics,
        log,
        others,
        hooks,
        randomness.randbytes,
    )
    starts = Starts(engine, agents, ids)

    async def connected(identity: str) -> bool:
        return (await membership.directory.last_seen(identity)).connected

    creation = Creation(
        engine,
        ids,
        authorizer,
        payload_bytes=settings.limits.task_payload_bytes,
        strict=settings.gateway.strict_identifier_charset,
        random_bytes=randomness.randbytes,
        connected=connected,
        starter=starts,
    )
    exists, capacity = checkpoints.exists, settings.tasks.worker_tasks
    return TaskService(engine, creation, ids, authorizer, exists, capacity=capacity), starts

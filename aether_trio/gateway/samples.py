"""Reads what waits in the databases, and the free disk, for metrics.

What is read from the databases is of the whole cluster, so each node shows the same.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import trio

from aether_trio.config import Settings
from aether_trio.log import unread
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.clock import Clock
from aether_trio.services.tasks.transaction import backlog
from aether_trio.storage.base import Database
from aether_trio.telemetry.metrics import OTHER, Metrics
from aether_trio.telemetry.sampling import Figures, Sample

TOP_POOLS: Final = 50
TARGETED: Final = "_targeted"
"""The pool label of tasks that wait for one participant."""
PAUSES: Final = 4
"""A pause between two pages, in times that the page took."""


def open_samples(
    settings: Settings, metrics: Metrics, log: TopicLog, tasks: Database, clock: Clock, *, cluster: bool
) -> dict[str, Sample]:
    """Register the samples; the caller runs each."""
    read: tuple[tuple[str, tuple[str, ...], Callable[[], Awaitable[Figures]]], ...] = (
        (
            "tasks",
            (
                "aether_task_queue_tasks",
                "aether_task_queue_oldest_age_seconds",
                "aether_dead_letters_open",
                "aether_dead_letters_oldest_age_seconds",
                "aether_agent_starts_waiting",
                "aether_cluster_nodes_alive",
            ),
            partial(_tasks, tasks, clock, by_workspace=metrics.workspace_label, cluster=cluster),
        ),
        (
            "topics",
            ("aether_unread_messages", "aether_consumer_lag_messages", "aether_consumer_lag_seconds"),
            partial(_topics, log, clock),
        ),
        ("disk", ("aether_data_dir_free_bytes", "aether_data_dir_size_bytes"), partial(_disk, settings)),
    )
    samples = {name: Sample(name, families, call) for name, families, call in read}
    for sample in samples.values():
        metrics.sample(sample)
    return samples


async def _tasks(database: Database, clock: Clock, *, by_workspace: bool, cluster: bool) -> Figures:
    found = await database.read(backlog.read)
    now_ms = clock.now_ms()
    waiting: dict[tuple[str, str], tuple[int, int]] = {}
    if found.targeted and found.oldest_targeted_ms is not None:
        waiting["", TARGETED] = (found.targeted, found.oldest_targeted_ms)
    for place, (workspace, implementation, tasks, oldest_ms) in enumerate(sorted(found.pools, key=lambda p: -p[2])):
        pool = (workspace if by_workspace else "", implementation)
        if place >= TOP_POOLS and pool not in waiting:
            pool = (OTHER if by_workspace else "", OTHER)
        before, oldest_before_ms = waiting.get(pool, (0, oldest_ms))
        waiting[pool] = (before + tasks, min(oldest_ms, oldest_before_ms))
    figures: dict[str, dict[tuple[str, ...], float]] = {
        "aether_task_queue_tasks": {pool: tasks for pool, (tasks, _) in waiting.items()},
        "aether_task_queue_oldest_age_seconds": {pool: _age_s(now_ms, at_ms) for pool, (_, at_ms) in waiting.items()},
        "aether_dead_letters_open": {(): found.dead_letters},
        "aether_dead_letters_oldest_age_seconds": {(): _age_s(now_ms, found.oldest_dead_letter_ms)},
        "aether_agent_starts_waiting": {(): found.starts},
    }
    if cluster:
        [(nodes,)] = await database.fetch("SELECT count(*) FROM nodes WHERE alive")
        figures["aether_cluster_nodes_alive"] = {(): nodes}
    return figures


async def _topics(log: TopicLog, clock: Clock) -> Figures:
    found = unread.Unread()
    after = 0
    while True:
        began = time.perf_counter()
        rows, after = await log.database.read(partial(unread.page, after, shared=log.database.shared))
        found.add(rows)
        if not after:
            break
        await trio.sleep(PAUSES * (time.perf_counter() - began))
    lags = await unread.oldest(log.database, found.most)
    now_ms = clock.now_ms()
    return {
        "aether_unread_messages": {(kind,): messages for kind, messages in found.by_kind.items()},
        "aether_consumer_lag_messages": {(lag.topic, lag.consumer): lag.messages for lag in lags},
        "aether_consumer_lag_seconds": {(lag.topic, lag.consumer): _age_s(now_ms, lag.oldest_ms) for lag in lags},
    }


async def _disk(settings: Settings) -> Figures:
    free, size = await trio.to_thread.run_sync(_disk_bytes, settings, abandon_on_cancel=True)
    return {"aether_data_dir_free_bytes": {(): free}, "aether_data_dir_size_bytes": {(): size}}


def _disk_bytes(settings: Settings) -> tuple[int, int]:
    path = Path(tempfile.gettempdir() if settings.gateway.ephemeral else settings.gateway.data_dir).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent  # a gateway that keeps all in PostgreSQL may have no such directory
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def _age_s(now_ms: int, at_ms: int | None) -> float:
    return 0.0 if at_ms is None else max(now_ms - at_ms, 0) / 1000

"""The table of all metrics: name, kind, labels, and what each one says.

A metric that is not in this table cannot be registered (metrics.py), so no family lacks a text, and
the table of docs/monitoring.md is made from it (scripts/list_metrics.py).

Names follow Prometheus: base units (`_seconds`, `_bytes`, `_ratio`), `_total` for what only grows,
`_timestamp_seconds` for Unix times. What differs only in where it was counted is a label, not a
part of the name. Names that the reference has for the same figure are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Labels = tuple[str, ...]

WORKSPACE: Final = "workspace"
"""The label that is left out, its series added up, unless `ops.workspace_label` is on."""


@dataclass(frozen=True, slots=True)
class Family:
    """A metric of the table; `bounds` are those of a histogram's buckets."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: Labels = ()
    bounds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """Which fields of a `statistics()` record are which metrics.

    `fields` has the metric's name for each field; `left_out` the numbers that are shown elsewhere.
    """

    fields: Mapping[str, str]
    left_out: frozenset[str] = frozenset()


def doubling(start: float, count: int) -> tuple[float, ...]:
    """Return `count` histogram bounds: `start`, then doubled each time."""
    return tuple(start * 2**n for n in range(count))


_ROWS: Final[tuple[tuple[str, str, Labels], ...]] = (
    # -- the gateway
    ("aether_build_info", "Version of aether-trio that runs, as a label; always 1.", ("version",)),
    ("aether_ready", "1 while /readyz answers 200: the gateway serves and no part of it has a problem.", ()),
    ("aether_problem", "1 while this part makes /readyz answer 503: log, state, tasks or audit.", ("part",)),
    ("aether_scrapes_total", "Answers to GET /metrics that were begun.", ()),
    (
        "aether_scrape_duration_seconds",
        "Time that the answer to the previous GET /metrics took to make, waiting for figures included.",
        (),
    ),
    (
        "aether_sample_age_seconds",
        (
            "Age of the figures that are read from the databases and the disk at most every few seconds, by sample: "
            "tasks, topics or disk. Absent before the first reading."
        ),
        ("sample",),
    ),
    (
        "aether_sample_duration_seconds",
        "Time that the last reading of a sample took, pauses included.",
        ("sample",),
    ),
    ("aether_sample_failures_total", "Readings of a sample that failed, by sample.", ("sample",)),
    (
        "aether_data_dir_free_bytes",
        "Free bytes, for this user, of the file system that has gateway.data_dir.",
        (),
    ),
    ("aether_data_dir_size_bytes", "Size of the file system that has gateway.data_dir.", ()),
    (
        "aether_certificate_expiry_timestamp_seconds",
        (
            "Unix time at which the first certificate of a file that is in use expires, by setting: tls.cert, "
            "tls.client_ca; for tls.client_crl when the next list was due."
        ),
        ("setting",),
    ),
    # -- sessions and requests
    (
        "aether_active_connections",
        "Live sessions of participants on this node, by kind of participant.",
        (WORKSPACE, "principal_type"),
    ),
    (
        "aether_connection_attempts_total",
        (
            "Handshakes of clients by how they ended: success, lock_failed (the identity is connected), quota_exceeded, "
            "or the status of the refusal, such as unauthenticated."
        ),
        (WORKSPACE, "principal_type", "status"),
    ),
    ("aether_requests_total", "Requests of clients that were answered, by operation of the protocol.", ("operation",)),
    ("aether_registry_claims_total", "Identities that clients asked for on this node.", ()),
    ("aether_registry_takeovers_total", "Sessions that were replaced by a later one of the same identity.", ()),
    ("aether_registry_refused_total", "Clients that were refused, as their identity was connected.", ()),
    ("aether_access_version", "Version of the access data that this node knows.", ()),
    ("aether_access_settled_version", "Version of the access data that is in force for this node's live sessions.", ()),
    (
        "aether_access_look_age_seconds",
        "Time since this node began to look for other nodes' changes of access data; 0 without other nodes.",
        (),
    ),
    ("aether_access_decisions_remembered", "Decisions on access that are kept in memory.", ()),
    ("aether_access_decisions_hits_total", "Decisions on access that were taken from memory.", ()),
    ("aether_access_decisions_misses_total", "Decisions on access for which the rules were asked.", ()),
    (
        "aether_access_sessions_ended_total",
        "Sessions that lost what let them in, by cause: lock, right (READ of the workspace), credential or expiry.",
        ("cause",),
    ),
    # -- messages
    (
        "aether_messages_routed_total",
        "Messages of clients that were accepted, by type; by the sender's workspace.",
        (WORKSPACE, "message_type"),
    ),
    (
        "aether_messages_routed_bytes_total",
        "Payload bytes of the messages that were accepted, by type; by the sender's workspace.",
        (WORKSPACE, "message_type"),
    ),
    (
        "aether_message_errors_total",
        "Messages of clients that were refused, by error code; by the sender's workspace.",
        (WORKSPACE, "error_type"),
    ),
    ("aether_topic_subscriptions_active", "Subscriptions of connected participants to durable topics.", ()),
    (
        "aether_unread_messages",
        (
            "Messages in topics of a kind (ag, tb, us, ...) that their consumers have not read, of the whole database: "
            "each node of a cluster reports the same. A topic that only its owner reads counts although the owner was "
            "never connected."
        ),
        ("kind",),
    ),
    (
        "aether_consumer_lag_messages",
        (
            "Unread messages of the consumers that have the most, 20 at most, of the whole database: each node of a "
            "cluster reports the same."
        ),
        ("topic", "consumer"),
    ),
    (
        "aether_consumer_lag_seconds",
        "Age of the oldest unread message that is still kept, of the consumers of aether_consumer_lag_messages.",
        ("topic", "consumer"),
    ),
    ("aether_log_appended_total", "Messages given to the topic log.", ()),
    ("aether_log_settled_total", "Messages of the topic log whose commit is decided; those refused among them.", ()),
    ("aether_log_refused_total", "Messages of the topic log that were not committed; their senders were told.", ()),
    ("aether_log_groups_total", "Commits of the topic log, each of which has many messages.", ()),
    ("aether_log_pending_messages", "Messages that wait for their commit now.", ()),
    (
        "aether_log_pending_bytes",
        "Bytes of messages that wait for their commit now; log.pending_bytes bounds them.",
        (),
    ),
    ("aether_log_topics", "Topics that this node has in memory.", ()),
    ("aether_log_failing", "1 while the last commit of messages failed, or is not known to have succeeded.", ()),
    ("aether_log_remote_reads_total", "Reads that brought messages which other nodes had committed.", ()),
    ("aether_log_remote_messages_total", "Messages of other nodes that were read from the database.", ()),
    ("aether_log_pushed_messages_total", "Messages of other nodes that came with their notification.", ()),
    ("aether_log_expired_total", "Messages that retention deleted.", ()),
    ("aether_progress_published_total", "Progress updates of participants of this node, and of other nodes.", ()),
    ("aether_progress_delivered_total", "Progress updates that were given to a listener of this node.", ()),
    ("aether_progress_listeners", "Listeners of progress on this node.", ()),
    ("aether_work_queues_queues", "Work queues (tb topics) with a worker on this node, or with writes to make.", ()),
    ("aether_work_queues_idle", "Work queues without a worker here that remember what was done out of order.", ()),
    ("aether_work_queues_workers", "Connected workers of work queues on this node.", ()),
    ("aether_work_queues_exchanges_total", "Statements by which this node took or gave back messages.", ()),
    ("aether_work_queues_taken_total", "Messages that this node took from shared work queues for its workers.", ()),
    ("aether_work_queues_returned_total", "Messages that this node gave back for other nodes' workers.", ()),
    ("aether_work_queues_failed_total", "Statements on work queues that failed and were repeated.", ()),
    ("aether_rate_leases_workspaces", "Workspaces whose message rate this node leases a share of.", ()),
    ("aether_rate_leases_messages_per_second", "Messages a second that this node may accept by its leases.", ()),
    ("aether_rate_leases_unsatisfied", "Workspaces in which this node has less than its share of the rate.", ()),
    ("aether_rate_leases_renewals_total", "Transactions that renewed leases of message rates.", ()),
    # -- workflows
    ("aether_workflow_engine_connected", "1 while this node's embedded workflow engine is the connected one.", ()),
    ("aether_workflow_engine_attempts_total", "Times that this node's embedded workflow engine tried to connect.", ()),
    ("aether_workflow_engine_gave_way_total", "Times that it has given way to an external workflow engine.", ()),
    ("aether_workflow_events_taken_total", "Events that this node's embedded workflow engine has handled.", ()),
    ("aether_workflow_events_poisoned_total", "Of these events, those that could not be handled.", ()),
    ("aether_workflow_events_repeated_total", "Events that it was sent again and did not handle again.", ()),
    ("aether_workflow_events_missed_total", "Times that events were deleted or too large before it read them.", ()),
    ("aether_workflow_events_lag", "Messages of its topic that are not handled; 0 if it is not connected.", ()),
    ("aether_workflow_relay_pending", "Workflow operations that wait for the answer of an external engine.", ()),
    ("aether_workflow_relay_relayed_total", "Workflow operations that were handed to an external engine.", ()),
    ("aether_workflow_relay_timed_out_total", "Of these operations, those that were not answered in time.", ()),
    ("aether_workflow_relay_ignored_total", "Answers that no workflow operation waited for.", ()),
    # -- KV and checkpoints
    (
        "aether_kv_operations_total",
        "Operations on the key-value store, by operation, scope and status (ok or error); by workspace.",
        (WORKSPACE, "operation", "scope", "status"),
    ),
    (
        "aether_checkpoint_operations_total",
        "Operations on checkpoints, by operation; by workspace.",
        (WORKSPACE, "operation"),
    ),
    # -- tasks and agents
    (
        "aether_task_queue_tasks",
        (
            "Tasks that wait for a worker, by pool; those that wait for one participant are the pool _targeted, beyond 50 "
            "pools the rest is _other. Of the whole database: each node of a cluster reports the same."
        ),
        (WORKSPACE, "pool"),
    ),
    (
        "aether_task_queue_oldest_age_seconds",
        "Age since its creation of the oldest task that waits for a worker, by pool as aether_task_queue_tasks.",
        (WORKSPACE, "pool"),
    ),
    (
        "aether_task_outcomes_total",
        (
            "Attempts at tasks that this node saw end, by outcome: completed, failed, cancelled, rejected, dead_letter "
            "(failed for good), or retry (failed, and is tried again)."
        ),
        ("outcome",),
    ),
    ("aether_tasks_assignments_total", "Assignments of tasks that this node sent to its workers.", ()),
    ("aether_tasks_due_total", "Tasks that time has moved: deadlines, retries, ends of grace windows.", ()),
    ("aether_tasks_reports_dropped_total", "Reports of workers that could not be kept while storage was away.", ()),
    ("aether_tasks_inputs_dropped_total", "Inputs that came for a task that had ended, or takes none.", ()),
    ("aether_tasks_followed", "Tasks whose events a client of this node follows.", ()),
    (
        "aether_dead_letters_open",
        "Dead letters that are not resolved, of the whole database: each node of a cluster reports the same.",
        (),
    ),
    ("aether_dead_letters_oldest_age_seconds", "Time since the oldest unresolved dead letter failed for good.", ()),
    (
        "aether_agent_starts_waiting",
        "Starts of agents for which no orchestrator is found, of the whole database: each node reports the same.",
        (),
    ),
    ("aether_autostart_started_total", "Agents that this node asked an orchestrator to start for a message.", ()),
    ("aether_autostart_given_up_total", "Agents that ended again and again at the same message.", ()),
    ("aether_autostart_waiting", "Identities that this node is to check for a start now.", ()),
    # -- storage
    (
        "aether_database_up",
        "1 while a logical database (log, state, tasks) takes writes, and was read when figures were last asked for.",
        ("database",),
    ),
    ("aether_storage_groups_total", "Commits of a logical database, each of which has many programs.", ("database",)),
    ("aether_storage_programs_total", "Programs (units of work) that a logical database committed.", ("database",)),
    ("aether_storage_rows_total", "Rows that programs of a logical database wrote.", ("database",)),
    ("aether_storage_largest_group", "The most programs in one commit since the start.", ("database",)),
    (
        "aether_storage_queued",
        "Programs that wait for their commit now, those being committed included.",
        ("database",),
    ),
    ("aether_storage_failed_groups_total", "Commits that failed: a full disk, a lock, a server away.", ("database",)),
    ("aether_storage_failing", "1 from a failed commit of a logical database until the next good one.", ("database",)),
    ("aether_storage_conflicts_total", "Commits that had to be repeated, as others wrote the same.", ("database",)),
    ("aether_storage_losses_total", "Connections to the database that broke.", ("database",)),
    ("aether_storage_connections", "Connections of this process to the database.", ("database",)),
    ("aether_storage_stalls_total", "Connections that were replaced, as nothing came through them.", ("database",)),
    # -- the audit log
    ("aether_audit_written_total", "Rows written to the audit log.", ()),
    ("aether_audit_lost_total", "Audit events that did not fit while the database was away.", ()),
    ("aether_audit_gaps_total", "Rows of the audit log that stand for lost events.", ()),
    ("aether_audit_waiting", "Audit events that wait for the database.", ()),
    ("aether_audit_queue_bytes", "Memory of the audit events that wait; audit.queue_bytes bounds it.", ()),
    ("aether_audit_failing", "1 while audit rows cannot be written.", ()),
    ("aether_audit_heads_total", "Signed heads of the audit log that were made.", ()),
    ("aether_audit_tampered", "1 while nothing is signed, as stored audit rows were changed.", ()),
    # -- the cluster
    ("aether_cluster_lease_held", "1 while this node has its lease; else it reads no input.", ()),
    ("aether_cluster_lease_node_id", "Number of this node in the cluster.", ()),
    ("aether_cluster_lease_epoch", "Number of this node's lease, one more each time it was declared dead.", ()),
    ("aether_cluster_lease_losses_total", "Times that this node lost its lease.", ()),
    ("aether_cluster_lease_new_epochs_total", "Times that other nodes had declared this node dead.", ()),
    ("aether_cluster_lease_times_away_total", "Times that this node's process stood still, or was cut off.", ()),
    ("aether_cluster_nodes_alive", "Nodes of the cluster that are alive, as this node knows them.", ()),
    ("aether_cluster_nodes_declared_total", "Other nodes that this node declared dead.", ()),
    (
        "aether_cluster_nodes_cut_off_total",
        "Nodes whose database connections this node ended, as they were silent.",
        (),
    ),
    ("aether_cluster_nodes_swept_total", "Identity locks of ended nodes that this node deleted.", ()),
    ("aether_cluster_directory_service_looks_total", "Looks at the services that are connected to other nodes.", ()),
    ("aether_cluster_directory_move_statements_total", "Statements that wrote switches of workspaces.", ()),
    ("aether_cluster_directory_moves_total", "Switches of workspaces that were written.", ()),
    ("aether_cluster_bus_sent_total", "Notifications that this node sent to other nodes.", ()),
    ("aether_cluster_bus_notifies_total", "Payloads of NOTIFY that carried notifications.", ()),
    ("aether_cluster_bus_statements_total", "Statements that sent notifications.", ()),
    ("aether_cluster_bus_received_total", "Notifications of other nodes that this node received.", ()),
    ("aether_cluster_bus_dropped_total", "Notifications that could not be sent; the receivers look after 5 s.", ()),
    ("aether_cluster_bus_reconnects_total", "Times that the connection for notifications was lost.", ()),
    ("aether_cluster_bus_listening", "1 while notifications of other nodes can arrive.", ()),
    ("aether_cluster_locks_held", "Identities that are connected to this node.", ()),
    ("aether_cluster_locks_claimed_total", "Identity locks that this node took.", ()),
    ("aether_cluster_locks_refused_total", "Claims that were refused, as another node has the identity.", ()),
    ("aether_cluster_locks_taken_over_total", "Identities that this node gave to another node on a resume.", ()),
    ("aether_cluster_locks_lost_total", "Identities that this node lost with its lease.", ()),
    ("aether_cluster_locks_questions_total", "Questions of other nodes for an identity of this node.", ()),
    ("aether_cluster_progress_offered_total", "Progress updates that might interest other nodes.", ()),
    ("aether_cluster_progress_written_total", "Progress updates given to the database for other nodes.", ()),
    ("aether_cluster_progress_batches_total", "Statements that wrote progress updates.", ()),
    ("aether_cluster_progress_dropped_total", "Progress updates that could not be passed on in time.", ()),
    ("aether_cluster_progress_waiting", "Progress updates that wait to be passed on.", ()),
    ("aether_cluster_progress_received_total", "Progress updates of other nodes.", ()),
    ("aether_cluster_progress_reads_total", "Reads of other nodes' progress updates.", ()),
    ("aether_cluster_progress_interests", "Topics of progress that this node listens to.", ()),
    ("aether_cluster_log_committed_total", "Topics of committed groups, of which other nodes may have listeners.", ()),
    ("aether_cluster_log_lookups_total", "Statements that only looked up the listeners of topics.", ()),
    ("aether_cluster_log_statements_total", "Statements that notified other nodes, commits among them.", ()),
    ("aether_cluster_log_notifies_total", "Payloads of NOTIFY that told of messages.", ()),
    ("aether_cluster_log_wakes_total", "Topics of which other nodes were notified.", ()),
    ("aether_cluster_log_woken_total", "Topics and messages of which this node was notified.", ()),
    ("aether_cluster_log_looks_total", "Looks at topics without a notification.", ()),
    ("aether_cluster_log_interests", "Topics of the log that this node listens to.", ()),
    # -- ports and transports
    ("aether_listener_accepted_total", "Connections that were accepted.", ()),
    ("aether_listener_open", "Connections that are open.", ()),
    ("aether_listener_refused_over_limit_total", "Connections closed at once, as too many were open.", ()),
    ("aether_listener_pauses_total", "Pauses in accepting, as the process had no file descriptor left.", ()),
    ("aether_port_undecided", "Connections whose transport is not known yet.", ()),
    ("aether_port_connections_total", "Connections given to a transport.", ("transport",)),
    (
        "aether_port_rejects_total",
        "Connections that reached no transport, by reason; docs/operations.md lists the reasons.",
        ("reason",),
    ),
    ("aether_unfinished_input_messages", "Messages that have begun to arrive and are not complete.", ()),
    ("aether_unfinished_input_bytes", "Bytes of messages that are not complete.", ()),
    ("aether_unfinished_input_counted_bytes", "Those bytes beyond what each connection may have for free.", ()),
    ("aether_unfinished_input_given_up_total", "Incomplete messages that were ended, as memory for them ran out.", ()),
    ("aether_unfinished_input_too_slow_total", "Incomplete messages that were ended, as they came too slowly.", ()),
    ("aether_transport_connections", "Open connections of a transport.", ("transport",)),
    ("aether_transport_received_bytes_total", "Bytes received from clients.", ("transport",)),
    ("aether_transport_sent_bytes_total", "Bytes sent to clients.", ("transport",)),
    (
        "aether_transport_rejects_total",
        "Requests, messages and connections that a transport refused or cut off, by reason.",
        ("transport", "reason"),
    ),
    ("aether_grpc_streams", "Open gRPC streams.", ()),
    ("aether_grpc_streams_opened_total", "gRPC streams that clients opened.", ()),
    ("aether_websocket_fetches", "HTTP requests for pages and scripts that are being answered.", ()),
    ("aether_websocket_requests_total", "HTTP requests on the WebSocket port.", ()),
    ("aether_websocket_upgrades_total", "HTTP requests that became a WebSocket.", ()),
)

_HISTOGRAMS: Final = (
    Family(
        "aether_connection_duration_seconds",
        "histogram",
        "How long sessions lasted that have ended, by kind of participant; by workspace.",
        (WORKSPACE, "principal_type"),
        doubling(1.0, 15),
    ),
    Family(
        "aether_kv_operation_latency_seconds",
        "histogram",
        "Time of operations on the key-value store, by operation and scope.",
        ("operation", "scope"),
        doubling(0.0001, 14),
    ),
    Family(
        "aether_message_routing_latency_seconds",
        "histogram",
        "Time from the first message of a group read to all of it committed and offered to its receivers.",
        (),
        doubling(0.0001, 16),
    ),
    Family(
        "aether_event_loop_lag_seconds",
        "histogram",
        "How late the event loop woke a task that looks 10 times a second: the time that any client waited besides.",
        (),
        doubling(0.001, 14),
    ),
)


def _family(name: str, text: str, labels: Labels) -> Family:
    return Family(name, "counter" if name.endswith("_total") else "gauge", text, labels)


FAMILIES: Final[Mapping[str, Family]] = {
    family.name: family for family in (*(_family(*row) for row in _ROWS), *_HISTOGRAMS)
}
"""All metrics by name, in the order in which a scrape has them."""


def _record(prefix: str, *names: str, left_out: tuple[str, ...] = (), **renamed: str) -> Record:
    """Make a Record of fields that are called as their metrics, `_total` apart."""
    same = {name.removesuffix("_total"): f"{prefix}_{name}" for name in names}
    return Record(same | renamed, frozenset(left_out))


_STORAGE: Final = (
    *("groups_total", "programs_total", "rows_total", "largest_group", "queued", "failed_groups_total", "failing"),
    *("conflicts_total", "losses_total", "connections", "stalls_total"),
)
_CONNECTIONS: Final = {
    "connections_open": "aether_transport_connections",
    "bytes_received": "aether_transport_received_bytes_total",
    "bytes_sent": "aether_transport_sent_bytes_total",
}

RECORDS: Final[Mapping[str, Record]] = {
    "access": _record("aether_access", "version", "settled_version", "look_age_seconds"),
    "access_decisions": _record("aether_access_decisions", "remembered", "hits_total", "misses_total"),
    "audit": _record("aether_audit", "written_total", "lost_total", "waiting", "queue_bytes", "gaps_total", "failing"),
    "autostart": _record("aether_autostart", "started_total", "given_up_total", "waiting"),
    "cluster_bus": _record(
        "aether_cluster_bus",
        *("sent_total", "notifies_total", "statements_total", "received_total", "dropped_total", "reconnects_total"),
        "listening",
    ),
    "cluster_directory": _record(
        "aether_cluster_directory", "service_looks_total", "move_statements_total", "moves_total"
    ),
    "cluster_lease": _record(
        "aether_cluster_lease", "held", "node_id", "epoch", "losses_total", "new_epochs_total", "times_away_total"
    ),
    "cluster_locks": _record(
        "aether_cluster_locks",
        *("held", "claimed_total", "refused_total", "taken_over_total", "lost_total", "questions_total"),
    ),
    "cluster_log": _record(
        "aether_cluster_log",
        *("committed_total", "lookups_total", "statements_total", "notifies_total", "wakes_total", "woken_total"),
        *("looks_total", "interests"),
    ),
    "cluster_nodes": _record("aether_cluster_nodes", "declared_total", "cut_off_total", "swept_total"),
    "cluster_progress": _record(
        "aether_cluster_progress",
        *("offered_total", "written_total", "batches_total", "dropped_total", "waiting", "received_total"),
        *("reads_total", "interests"),
    ),
    "framed": Record(_CONNECTIONS, frozenset({"connections_total"})),
    "grpc": Record(
        _CONNECTIONS | {"streams_open": "aether_grpc_streams", "streams_total": "aether_grpc_streams_opened_total"},
        frozenset({"connections_total"}),
    ),
    "listener": _record("aether_listener", "accepted_total", "open", "refused_over_limit_total", "pauses_total"),
    "log": _record(
        "aether_log",
        *("appended_total", "settled_total", "refused_total", "groups_total", "pending_messages", "pending_bytes"),
        *("topics", "remote_reads_total", "remote_messages_total", "pushed_messages_total"),
        subscriptions="aether_topic_subscriptions_active",
        storage_failing="aether_log_failing",
    ),
    "port": _record("aether_port", "undecided"),
    "progress": _record("aether_progress", "published_total", "delivered_total", "listeners"),
    "rate_leases": _record("aether_rate_leases", "workspaces", "messages_per_second", "unsatisfied", "renewals_total"),
    "registry": _record("aether_registry", "claims_total", "takeovers_total", "refused_total"),
    "storage": _record("aether_storage", *_STORAGE),
    "tasks": _record(
        "aether_tasks",
        *("assignments_total", "due_total", "reports_dropped_total", "inputs_dropped_total", "followed"),
    ),
    "unfinished_input": _record(
        "aether_unfinished_input", "messages", "bytes", "counted_bytes", "given_up_total", "too_slow_total"
    ),
    "websocket": Record(
        {
            "websockets": "aether_transport_connections",
            "fetching": "aether_websocket_fetches",
            "requests_total": "aether_websocket_requests_total",
            "upgrades_total": "aether_websocket_upgrades_total",
        }
    ),
    "workflow_engine": _record("aether_workflow_engine", "connected", "attempts_total", "gave_way_total"),
    "workflow_events": _record(
        "aether_workflow_events", *("taken_total", "poisoned_total", "repeated_total", "missed_total", "lag")
    ),
    "workflow_relay": _record(
        "aether_workflow_relay", *("pending", "relayed_total", "timed_out_total", "ignored_total")
    ),
    "work_queues": _record(
        "aether_work_queues",
        *("queues", "idle", "workers", "exchanges_total", "taken_total", "returned_total", "failed_total"),
    ),
}
"""The parts that count in records, and which metrics their fields are."""

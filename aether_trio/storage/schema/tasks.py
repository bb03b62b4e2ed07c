"""Tables of tasks, their workers and events: a transition is one transaction.

`tasks` has a row as model/tasks/task.py has it. Some columns are derived from the others: `queue`
(where it waits), `holder` (the worker whose live task it is) and `due_ms` (when time moves it). ""
and 0 stand for "not", and the partial indexes have only the other rows. A long payload lies in
`task_payloads`, so that a change of status does not write it again; `payload` is NULL then, or
there is none. `awaited` is 1 when another task waits for this one. `keeper` is the participant
whose own task it is, with which the task ends. Deadlines count from `opened_ms`, `fresh_ms`,
`running_ms`, `worked_ms` and `excused_ms`; `deliveries` counts assignments. `begun` is 1 when its
worker, which does not say when it begins, has gone, and is taken to have begun it. `grants` is 1
when authority grants end with the task. `launched` is, of a start, the epoch of the assignment that
its agent has come from: the one that its token was made for; `process` is what is known of its
process (AgentProcess in model/tasks/task.py). `workflow` says what a task is to a workflow
(WorkflowPart in model/tasks/task.py), 0 for nothing.

`input_offset` is the number in the log of the last input that was taken over, and `pause_key` the
last PAUSE of the task. `task_inputs` are the inputs that no wait has used yet: `log_offset` is the
number in the log of the task's topic, `metadata` is JSON, `sender` an identity. `task_used_inputs`
has the input that ended the PAUSE with this `pause_key`.

`task_results` has what COMPLETE, or a progress report before it, gave as the task's result;
`tasks.result_bytes` is its size, -1 without one. `task_states` has what workers save in the middle
of tasks; `tasks.checkpoint_key` names it once there is one.

`task_workers` are the connected participants that may be given work; `free` is 1 while `live` is
below `capacity`, so that the index of a pool begins with its least busy worker and has no full
ones. `turn` orders equally busy workers by their last assignment. `claims` is 1 when the worker
says when it begins. `since_ms` and `task_memories` say since when a participant remembers its
assignments: since its client began, over all reconnections.

The current assignment of a task is in its row. `task_attempts` has a row for each assignment that
ended with another one or with the release of its worker, and for one to a worker of another node,
which has `pushed` 0 until that node has taken it up.

`task_events` is the log of the `tk::{workspace}::{task}::events` topics, numbered without gaps in
each task, and written with the row that it tells of; docs/architecture.md says why it is not in
`messages`. `task_watchers` says on which nodes a client follows a task. `task_child_events` are
events of children that the logs of their parents do not have yet
(services/tasks/transaction/child_events.py): `task_id` is the parent's, `id` orders the rows of one
child; `has_children` marks the parents. `task_cancelled_parents` are cancelled tasks whose children
have not all been looked at.

`task_dependents` are the tasks that wait for others, `task_outbox` messages that were not appended
to the topic log yet, `task_dead_letters` the tasks that have failed for good. `task_keys` has the
idempotency keys; `request` is the hash of the request that came with a key, NULL when it was not
recorded.

`task_tokens` let participants in. A token that was made by a session which a token had let in ends
with every task of its maker's `lineage`: the ids of the tasks that let it in, oldest first, with
spaces between them. Its `cap` and `makers` (JSON, of its API token and of its tasks) are those of
the session. `origin` is the API token that had let in the first of the makers, "" for another
credential: the task token is good only as long as that is not revoked. `task_descents` has a row
for each task of a lineage. `task_sessions` are the live sessions that tokens have let in, with a
row for each task of their lineage.

`tasks_in_trouble` finds tasks that have failed or wait, which ordinary tasks never do. Its
condition has OR because SQLite makes a table of an IN, twice for each UPDATE of a task: 7 of its 16
µs. Tasks without parents have no place in the index of their root.
"""

from __future__ import annotations

from typing import Final

STATEMENTS: Final = (
    """CREATE TABLE tasks (
        task_id TEXT {byte_order} PRIMARY KEY,
        task_type TEXT NOT NULL,
        workspace TEXT {byte_order} NOT NULL,
        mode TEXT NOT NULL,
        category TEXT NOT NULL,
        task_class INTEGER NOT NULL,
        priority {bigint} NOT NULL,
        creator TEXT {byte_order} NOT NULL,
        target TEXT NOT NULL,
        target_implementation TEXT {byte_order} NOT NULL,
        target_specifier TEXT NOT NULL,
        parent_task_id TEXT {byte_order} NOT NULL,
        root_task_id TEXT {byte_order} NOT NULL,
        correlation_id TEXT {byte_order} NOT NULL,
        context_id TEXT {byte_order} NOT NULL,
        subject_type TEXT NOT NULL,
        subject_id TEXT NOT NULL,
        root_subject_type TEXT NOT NULL,
        root_subject_id TEXT NOT NULL,
        authority_mode TEXT NOT NULL,
        authority_grant_id TEXT NOT NULL,
        root_authority_grant_id TEXT NOT NULL,
        parent_authority_grant_id TEXT NOT NULL,
        grace_ms {bigint} NOT NULL,
        schedule_to_start_ms {bigint} NOT NULL,
        start_to_close_ms {bigint} NOT NULL,
        heartbeat_timeout_ms {bigint} NOT NULL,
        schedule_to_close_ms {bigint} NOT NULL,
        retry_policy TEXT NOT NULL,
        spec {blob} NOT NULL,
        order_us {bigint} NOT NULL,
        created_ms {bigint} NOT NULL,
        status TEXT NOT NULL,
        epoch {bigint} NOT NULL,
        assigned_to TEXT {byte_order} NOT NULL,
        updated_ms {bigint} NOT NULL,
        pending_ms {bigint} NOT NULL,
        assigned_ms {bigint} NOT NULL,
        started_ms {bigint} NOT NULL,
        completed_ms {bigint} NOT NULL,
        failed_ms {bigint} NOT NULL,
        paused_ms {bigint} NOT NULL,
        disconnected_ms {bigint} NOT NULL,
        heartbeat_ms {bigint} NOT NULL,
        retry_count {bigint} NOT NULL,
        max_attempts {bigint} NOT NULL,
        next_retry_ms {bigint} NOT NULL,
        error TEXT NOT NULL,
        error_type TEXT NOT NULL,
        wait TEXT NOT NULL,
        attached INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        ended_by TEXT NOT NULL,
        checkpoint_key TEXT NOT NULL,
        resume_session_id TEXT NOT NULL,
        events {bigint} NOT NULL,
        queue TEXT {byte_order} NOT NULL,
        holder TEXT {byte_order} NOT NULL,
        due_ms {bigint} NOT NULL,
        payload {blob},
        awaited INTEGER NOT NULL DEFAULT 0,
        input_offset {bigint} NOT NULL DEFAULT 0,
        pause_key TEXT NOT NULL DEFAULT '',
        deliveries {bigint} NOT NULL DEFAULT 0,
        opened_ms {bigint} NOT NULL DEFAULT 0,
        fresh_ms {bigint} NOT NULL DEFAULT 0,
        running_ms {bigint} NOT NULL DEFAULT 0,
        worked_ms {bigint} NOT NULL DEFAULT 0,
        excused_ms {bigint} NOT NULL DEFAULT 0,
        keeper TEXT {byte_order} NOT NULL DEFAULT '',
        has_children INTEGER NOT NULL DEFAULT 0,
        begun INTEGER NOT NULL DEFAULT 0,
        grants INTEGER NOT NULL DEFAULT 0,
        launched {bigint} NOT NULL DEFAULT 0,
        process INTEGER NOT NULL DEFAULT 0,
        result_bytes {bigint} NOT NULL DEFAULT -1,
        workflow INTEGER NOT NULL DEFAULT 0
    )""",
    "CREATE INDEX tasks_queued ON tasks (queue, priority DESC, order_us) WHERE queue <> ''",
    """CREATE INDEX tasks_pooled ON tasks (target_implementation, priority DESC, order_us)
        WHERE queue <> '' AND mode = 'pool'""",
    "CREATE INDEX tasks_held ON tasks (holder) WHERE holder <> ''",
    "CREATE INDEX tasks_due ON tasks (due_ms) WHERE due_ms > 0",
    "CREATE INDEX tasks_listed ON tasks (workspace, updated_ms DESC, task_id DESC)",
    "CREATE INDEX tasks_by_parent ON tasks (parent_task_id) WHERE parent_task_id <> ''",
    "CREATE INDEX tasks_by_root ON tasks (root_task_id) WHERE root_task_id <> task_id",
    "CREATE INDEX tasks_by_correlation ON tasks (correlation_id, updated_ms DESC, task_id DESC) WHERE correlation_id <> ''",
    "CREATE INDEX tasks_by_context ON tasks (context_id, updated_ms DESC, task_id DESC) WHERE context_id <> ''",
    "CREATE INDEX tasks_by_creator ON tasks (creator)",
    "CREATE TABLE task_payloads (task_id TEXT {byte_order} PRIMARY KEY, payload {blob} NOT NULL)",
    """CREATE TABLE task_attempts (
        task_id TEXT {byte_order} NOT NULL,
        epoch {bigint} NOT NULL,
        worker TEXT NOT NULL,
        node TEXT {byte_order} NOT NULL,
        pushed INTEGER NOT NULL,
        assigned_ms {bigint} NOT NULL,
        started_ms {bigint} NOT NULL DEFAULT 0,
        ended_ms {bigint} NOT NULL DEFAULT 0,
        outcome TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (task_id, epoch)
    ) {clustered}""",
    "CREATE INDEX task_attempts_to_push ON task_attempts (node) WHERE pushed = 0",
    """CREATE TABLE task_workers (
        identity TEXT {byte_order} PRIMARY KEY,
        session_id TEXT NOT NULL,
        node TEXT {byte_order} NOT NULL,
        workspace TEXT {byte_order} NOT NULL,
        implementation TEXT {byte_order} NOT NULL,
        pooled INTEGER NOT NULL,
        live {bigint} NOT NULL,
        capacity {bigint} NOT NULL,
        free INTEGER NOT NULL,
        turn {bigint} NOT NULL,
        since_ms {bigint} NOT NULL DEFAULT 0,
        claims INTEGER NOT NULL DEFAULT 0
    ) {clustered}""",
    """CREATE INDEX task_workers_free ON task_workers (workspace, implementation, live, turn)
        WHERE pooled = 1 AND free = 1""",
    "CREATE INDEX task_workers_by_node ON task_workers (node)",
    """CREATE TABLE task_events (
        task_id TEXT {byte_order} NOT NULL,
        number {bigint} NOT NULL,
        at_ms {bigint} NOT NULL,
        event {blob} NOT NULL,
        PRIMARY KEY (task_id, number)
    ) {clustered}""",
    """CREATE TABLE task_watchers (
        task_id TEXT {byte_order} NOT NULL,
        node TEXT {byte_order} NOT NULL,
        PRIMARY KEY (task_id, node)
    ) {clustered}""",
    "CREATE INDEX task_watchers_by_node ON task_watchers (node)",
    """CREATE TABLE task_dependents (
        depends_on TEXT {byte_order} NOT NULL,
        task_id TEXT {byte_order} NOT NULL,
        PRIMARY KEY (depends_on, task_id)
    ) {clustered}""",
    "CREATE INDEX task_dependents_by_task ON task_dependents (task_id)",
    """CREATE TABLE task_tokens (
        hash {blob} PRIMARY KEY,
        task_id TEXT {byte_order} NOT NULL,
        identity TEXT NOT NULL,
        created_ms {bigint} NOT NULL,
        expires_ms {bigint} NOT NULL,
        revoked_ms {bigint} NOT NULL DEFAULT 0,
        lineage TEXT NOT NULL DEFAULT '',
        epoch {bigint} NOT NULL DEFAULT 0,
        cap {bigint} NOT NULL DEFAULT 50,
        makers TEXT NOT NULL DEFAULT '',
        origin TEXT NOT NULL DEFAULT ''
    ) {clustered}""",
    "CREATE INDEX task_tokens_by_task ON task_tokens (task_id)",
    "CREATE INDEX task_tokens_by_expiry ON task_tokens (expires_ms)",
    """CREATE TABLE task_keys (
        key_hash {blob} PRIMARY KEY,
        task_id TEXT {byte_order} NOT NULL,
        expires_ms {bigint} NOT NULL,
        request {blob}
    ) {clustered}""",
    "CREATE INDEX task_keys_by_expiry ON task_keys (expires_ms)",
    """CREATE TABLE task_outbox (
        task_id TEXT {byte_order} NOT NULL,
        number {bigint} NOT NULL,
        node TEXT {byte_order} NOT NULL,
        topic TEXT NOT NULL,
        frame {blob} NOT NULL,
        PRIMARY KEY (task_id, number)
    ) {clustered}""",
    "CREATE INDEX task_outbox_by_node ON task_outbox (node)",
    """CREATE TABLE task_dead_letters (
        task_id TEXT {byte_order} PRIMARY KEY,
        workspace TEXT {byte_order} NOT NULL,
        reason TEXT NOT NULL,
        error_type TEXT NOT NULL,
        attempts {bigint} NOT NULL,
        buried_ms {bigint} NOT NULL,
        resolved_ms {bigint} NOT NULL DEFAULT 0,
        resolved_by TEXT NOT NULL DEFAULT '',
        notes TEXT NOT NULL DEFAULT ''
    ) {clustered}""",
    "CREATE INDEX task_dead_letters_listed ON task_dead_letters (workspace, buried_ms)",
    "CREATE INDEX task_dead_letters_open ON task_dead_letters (buried_ms) WHERE resolved_ms = 0",
    "CREATE TABLE task_memories (identity TEXT {byte_order} PRIMARY KEY, since_ms {bigint} NOT NULL) {clustered}",
    """CREATE INDEX tasks_of_subject ON tasks (subject_id, workspace, started_ms) WHERE subject_id <> ''
        AND status NOT IN ('completed', 'failed', 'cancelled', 'dlq', 'rejected')""",
    """CREATE INDEX tasks_in_trouble ON tasks (workspace, updated_ms DESC, task_id DESC) WHERE
        (status = 'dlq' OR status = 'failed' OR status = 'hibernated' OR status = 'waiting_authority'
        OR status = 'waiting_dependency' OR status = 'waiting_input')""",
    """CREATE TABLE task_descents (
        task_id TEXT {byte_order} NOT NULL,
        hash {blob} NOT NULL,
        PRIMARY KEY (task_id, hash)
    ) {clustered}""",
    "CREATE INDEX task_descents_by_token ON task_descents (hash)",
    """CREATE TABLE task_sessions (
        task_id TEXT {byte_order} NOT NULL,
        session_id TEXT {byte_order} NOT NULL,
        identity TEXT {byte_order} NOT NULL,
        node TEXT {byte_order} NOT NULL,
        PRIMARY KEY (task_id, session_id)
    ) {clustered}""",
    "CREATE INDEX task_sessions_by_session ON task_sessions (session_id)",
    "CREATE INDEX task_sessions_by_node ON task_sessions (node)",
    "CREATE INDEX task_memories_by_age ON task_memories (since_ms)",
    "CREATE INDEX task_dead_letters_resolved ON task_dead_letters (resolved_ms) WHERE resolved_ms > 0",
    """CREATE TABLE task_inputs (
        task_id TEXT {byte_order} NOT NULL,
        log_offset {bigint} NOT NULL,
        metadata {blob} NOT NULL,
        payload {blob} NOT NULL,
        sender TEXT {byte_order} NOT NULL,
        PRIMARY KEY (task_id, log_offset)
    ) {clustered}""",
    """CREATE TABLE task_used_inputs (
        task_id TEXT {byte_order} PRIMARY KEY,
        pause_key TEXT NOT NULL,
        sender TEXT NOT NULL,
        metadata {blob} NOT NULL,
        payload {blob} NOT NULL
    )""",
    "CREATE TABLE task_results (task_id TEXT {byte_order} PRIMARY KEY, kind TEXT NOT NULL, data {blob} NOT NULL)",
    "CREATE TABLE task_states (task_id TEXT {byte_order} PRIMARY KEY, data {blob} NOT NULL, saved_s {bigint} NOT NULL)",
    "CREATE INDEX tasks_kept ON tasks (keeper, order_us) WHERE keeper <> ''",
    "CREATE TABLE task_cancelled_parents (task_id TEXT {byte_order} PRIMARY KEY) {clustered}",
    """CREATE TABLE task_child_events (
        id {row_id},
        task_id TEXT {byte_order} NOT NULL,
        at_ms {bigint} NOT NULL,
        event {blob} NOT NULL
    )""",
    "CREATE INDEX task_child_events_by_parent ON task_child_events (task_id, id)",
)

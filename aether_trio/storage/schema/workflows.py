"""Tables of workflows: definitions, executions, history, and what they wait for.

The tables lie in the database of the tasks, because an execution is a task and its steps are tasks:
one transaction ends a step, writes the history and creates what follows. "" and 0 stand for "not".
Documents, values and results are JSON in UTF-8.

`workflow_definitions` has every version of every workflow; a version never changes. `owner` is the
identity for which the definition acts. `workspace` '*' is every workspace that its owner may use.

`workflow_executions.kind` is graph or function. `state` is what the interpreter knows of a graph
(model/workflows/state.py), or what is kept of a function
(services/workflows/executions/function_rows.py). `entries` and `bytes` are the length of the
history, which is all that a function's worker needs. `generation` grows with each retry of the
ended execution. `workflow_steps` has a row for each step or item that was begun; `item` is -1 for a
step that does its work once. `result` is NULL without one. `workflow_history` has what happened and
what followed, numbered without gaps in each execution.

`workflow_forks` says of which execution another one is a fork, from which step, and what it keeps:
a part of the JSON of a state (model/workflows/forks.py), with which a queued fork begins.

`workflow_families` says of which family the executions below a root are; the row of the family's
root counts them. `workflow_put_off` has what is begun or cancelled below a root in later
transactions, by `what` (services/workflows/executions/families.py).

`workflow_arrivals` are the ends of items that their executions have not taken in yet
(services/workflows/executions/advancing.py): the items of a map do not queue for the row of its
execution.

`workflow_schedules.state` is what is known of the slots (FiringState in
model/workflows/schedules.py), `decided_ms` the moment up to which they are decided: it lies in the
future only after the clock was set back. `waits` is 1 while a slot waits for the end of a run.
`planned` counts the rows of `workflow_planned_firings`, which events and backfills have planned.
`workflow_schedule_runs` has what was started and may still run, of schedules with `max_concurrent`.

`workflow_timers` has one due moment of each execution, schedule and other thing that time moves;
`kind` says what `key` names. `workflow_cursors` says up to which message a topic was handled.

`workflow_event_ids` has the ids of handled events that the gateway itself has written: the log may
have copies of them.

`workflow_rules` has what follows events. Its ids are versions of `workflow_changes`, so none is
given twice. A deleted rule leaves its id until LATEST_DELETED later ones are deleted
(rule_rows.py). `changed` is the version that has last changed a row; `workflow_changes.version`
counts the changes of a kind of definitions, and what is in memory of the kind is of a version. A
node whose version is below `floor` has missed deletions, and reads all rows. `equalities` is JSON
of what the condition of a rule requires: nodes index rules without compiling them. `reach` is JSON
of the workspaces that the credential of its owner reached, as patterns, and "" for all
(services/workflows/requests/reach.py). `members` counts the rules.

`workflow_waits` are the steps of executions that wait for events, `workflow_interests` the events
for which an execution may wait while it runs, `workflow_kept_events` those that came meanwhile, by
the values of their keys in `workflow_kept_keys`. A key and its value are hashes, "" for any event.
`workflow_taken_events` has what a step has taken: it takes no event twice (waits.py).

`workflow_machines` has one row for each state machine; `changed` is as in `workflow_rules`. Of
`workflow_instances`, `transitions` counts the changes of state, of which the ids of actions are
made; `recent` has the ids of the latest operations, with spaces between, so that one whose commit
was in doubt is not done twice. `timeout_ms` is the moment of the timeout, 0 for none; its row in
`workflow_timers` rests while the machine is not active. That of a completed instance is when it is
forgotten.

`workflow_joins` has the instances of joins, by the hash of their workspace, name and correlation
key. `state` is JSON of JoinState, of which other columns are a mirror; `kept` is what rules have
declared. `workflow_join_members` has hashes of the ids that have arrived, of the members of a set
and of those expected. `workflow_join_actions` has refused actions that are tried again.

`workflow_unfinished_events` has events that start more than one transaction does, with what is
left: JSON of [kind, name, key] (services/workflows/rules/unfinished_events.py).

`workflow_flows` has whose flow control there is: its `gates` are as the newest document says, by a
hash of its owner and of what its gates count by. `workflow_flow_gates` has the state of each gate
for each key, by the hash of that. `workflow_flow_runs` has the runs that have begun (`waits` 0),
wait (1) or are gathered (2) at a `place`: a gate with a key, or a pool. `keys` are hashes, `shown`
the keys; of the `pools` that it needs, a run has the first `held`. `workflow_flow_items` has what
was gathered. `workflow_flow_pools` counts what runs of those that have a bound without a key
(services/workflows/flow/admission.py).

`workflow_made_operations` has what clients' operations have done to executions of late
(services/workflows/requests/made_operations.py).

`workflow_sources` has which events of the gateway are taken, and by which definition: only those
are written (services/workflows/stored/sources.py).

`workflow_usage` has what attempts at tasks have used, as their workers have reported;
`workflow_usage_totals` the sums of executions, with all below them, and an `allowance` above their
budget.

`workflow_webhooks.secrets` are encrypted (services/workflows/webhooks/webhook_secrets.py) with the
secret `key_id` of auth.token_hmac_keys. `workflow_webhook_ids` has hashes of the ids that were
accepted, and of their bodies ("" for those that were accepted before the second migration).

`workflow_relays` has operations for an external engine that is connected to another node than the
caller (services/workflows/engine/remote_engine.py), for seconds.
"""

from __future__ import annotations

from typing import Final

STATEMENTS: Final = (
    """CREATE TABLE workflow_definitions (
        workspace TEXT {byte_order} NOT NULL,
        id TEXT {byte_order} NOT NULL,
        version {bigint} NOT NULL,
        document {blob} NOT NULL,
        digest {blob} NOT NULL,
        owner TEXT NOT NULL,
        active INTEGER NOT NULL,
        created_ms {bigint} NOT NULL,
        updated_ms {bigint} NOT NULL,
        changed {bigint} NOT NULL,
        PRIMARY KEY (workspace, id, version)
    )""",
    "CREATE INDEX workflow_definitions_by_id ON workflow_definitions (id, version)",
    "CREATE INDEX workflow_definitions_changed ON workflow_definitions (changed)",
    """CREATE TABLE workflow_executions (
        execution_id TEXT {byte_order} PRIMARY KEY,
        workspace TEXT {byte_order} NOT NULL,
        defined_in TEXT {byte_order} NOT NULL,
        workflow_id TEXT {byte_order} NOT NULL,
        version {bigint} NOT NULL,
        owner TEXT NOT NULL,
        status TEXT NOT NULL,
        state {blob} NOT NULL,
        trigger_data {blob} NOT NULL,
        parent_id TEXT {byte_order} NOT NULL,
        root_id TEXT {byte_order} NOT NULL,
        correlation_id TEXT NOT NULL,
        depth INTEGER NOT NULL,
        generation {bigint} NOT NULL,
        entries {bigint} NOT NULL,
        bytes {bigint} NOT NULL,
        due_ms {bigint} NOT NULL,
        started_ms {bigint} NOT NULL,
        completed_ms {bigint} NOT NULL,
        error TEXT NOT NULL,
        hops TEXT NOT NULL,
        kind TEXT NOT NULL
    )""",
    """CREATE INDEX workflow_executions_by_status
        ON workflow_executions (workspace, status, started_ms DESC, execution_id DESC)""",
    """CREATE INDEX workflow_executions_by_workflow
        ON workflow_executions (workspace, workflow_id, status, started_ms DESC, execution_id DESC)""",
    """CREATE TABLE workflow_steps (
        execution_id TEXT {byte_order} NOT NULL,
        step TEXT {byte_order} NOT NULL,
        item {bigint} NOT NULL,
        status TEXT NOT NULL,
        attempt {bigint} NOT NULL,
        task_id TEXT {byte_order} NOT NULL,
        started_ms {bigint} NOT NULL,
        completed_ms {bigint} NOT NULL,
        error TEXT NOT NULL,
        error_type TEXT NOT NULL,
        input {blob},
        result {blob},
        PRIMARY KEY (execution_id, step, item)
    ) {clustered}""",
    """CREATE TABLE workflow_history (
        execution_id TEXT {byte_order} NOT NULL,
        number {bigint} NOT NULL,
        at_ms {bigint} NOT NULL,
        entry {blob} NOT NULL,
        PRIMARY KEY (execution_id, number)
    ) {clustered}""",
    """CREATE TABLE workflow_forks (
        execution_id TEXT {byte_order} PRIMARY KEY,
        origin TEXT {byte_order} NOT NULL,
        step TEXT NOT NULL,
        at_ms {bigint} NOT NULL,
        kept {blob} NOT NULL
    )""",
    "CREATE INDEX workflow_forks_of ON workflow_forks (origin, at_ms)",
    """CREATE TABLE workflow_families (
        root_id TEXT {byte_order} PRIMARY KEY,
        family TEXT {byte_order} NOT NULL,
        executions {bigint} NOT NULL
    ) {clustered}""",
    """CREATE TABLE workflow_put_off (
        number {row_id},
        root_id TEXT {byte_order} NOT NULL,
        execution_id TEXT {byte_order} NOT NULL,
        what INTEGER NOT NULL
    )""",
    "CREATE INDEX workflow_put_off_of ON workflow_put_off (root_id, what, number)",
    """CREATE TABLE workflow_arrivals (
        id {row_id},
        execution_id TEXT {byte_order} NOT NULL,
        entry {blob} NOT NULL
    )""",
    "CREATE INDEX workflow_arrivals_of ON workflow_arrivals (execution_id, id)",
    """CREATE TABLE workflow_timers (
        kind TEXT NOT NULL,
        key TEXT {byte_order} NOT NULL,
        due_ms {bigint} NOT NULL,
        PRIMARY KEY (kind, key)
    ) {clustered}""",
    "CREATE INDEX workflow_timers_due ON workflow_timers (due_ms)",
    """CREATE TABLE workflow_schedules (
        workspace TEXT {byte_order} NOT NULL,
        id TEXT {byte_order} NOT NULL,
        name TEXT NOT NULL,
        schedule_type TEXT NOT NULL,
        schedule_expr TEXT NOT NULL,
        timezone TEXT NOT NULL,
        event TEXT {byte_order} NOT NULL,
        document {blob} NOT NULL,
        digest TEXT NOT NULL,
        workflow_id TEXT NOT NULL,
        owner TEXT NOT NULL,
        miss_policy TEXT NOT NULL,
        max_concurrent {bigint} NOT NULL,
        jitter_ms {bigint} NOT NULL,
        enabled INTEGER NOT NULL,
        paused INTEGER NOT NULL,
        state {blob} NOT NULL,
        decided_ms {bigint} NOT NULL,
        next_fire_ms {bigint} NOT NULL,
        last_fired_ms {bigint} NOT NULL,
        last_slot_ms {bigint} NOT NULL,
        last_run_id TEXT NOT NULL,
        fired {bigint} NOT NULL,
        planned {bigint} NOT NULL,
        waits INTEGER NOT NULL,
        last_error TEXT NOT NULL,
        last_error_ms {bigint} NOT NULL,
        created_ms {bigint} NOT NULL,
        updated_ms {bigint} NOT NULL,
        PRIMARY KEY (workspace, id)
    )""",
    "CREATE INDEX workflow_schedules_by_id ON workflow_schedules (id)",
    "CREATE INDEX workflow_schedules_decided ON workflow_schedules (decided_ms)",
    "CREATE INDEX workflow_schedules_of_event ON workflow_schedules (event) WHERE event <> ''",
    """CREATE TABLE workflow_planned_firings (
        workspace TEXT {byte_order} NOT NULL,
        schedule_id TEXT {byte_order} NOT NULL,
        kind TEXT NOT NULL,
        key TEXT {byte_order} NOT NULL,
        slot_ms {bigint} NOT NULL,
        due_ms {bigint} NOT NULL,
        refusals {bigint} NOT NULL,
        event {blob} NOT NULL,
        PRIMARY KEY (workspace, schedule_id, kind, key)
    ) {clustered}""",
    "CREATE INDEX workflow_planned_firings_due ON workflow_planned_firings (workspace, schedule_id, due_ms)",
    """CREATE TABLE workflow_schedule_runs (
        run_id TEXT {byte_order} PRIMARY KEY,
        workspace TEXT {byte_order} NOT NULL,
        schedule_id TEXT {byte_order} NOT NULL
    ) {clustered}""",
    "CREATE INDEX workflow_schedule_runs_of ON workflow_schedule_runs (workspace, schedule_id)",
    """CREATE TABLE workflow_rules (
        id {bigint} PRIMARY KEY,
        workspace TEXT {byte_order} NOT NULL,
        name TEXT {byte_order} NOT NULL,
        document {blob} NOT NULL,
        digest TEXT NOT NULL,
        active INTEGER NOT NULL,
        owner TEXT NOT NULL,
        created_ms {bigint} NOT NULL,
        updated_ms {bigint} NOT NULL,
        source_event TEXT {byte_order} NOT NULL,
        source_agent TEXT NOT NULL,
        priority {bigint} NOT NULL,
        equalities TEXT NOT NULL,
        reach TEXT NOT NULL,
        changed {bigint} NOT NULL,
        deleted INTEGER NOT NULL
    )""",
    "CREATE UNIQUE INDEX workflow_rules_named ON workflow_rules (workspace, name) WHERE deleted = 0",
    "CREATE INDEX workflow_rules_listed ON workflow_rules (workspace, id) WHERE deleted = 0",
    "CREATE INDEX workflow_rules_changed ON workflow_rules (changed)",
    "CREATE INDEX workflow_rules_deleted ON workflow_rules (changed) WHERE deleted = 1",
    """CREATE TABLE workflow_changes (
        kind TEXT PRIMARY KEY,
        version {bigint} NOT NULL,
        floor {bigint} NOT NULL,
        members {bigint} NOT NULL
    ) {clustered}""",
    """CREATE TABLE workflow_waits (
        number {row_id},
        execution_id TEXT {byte_order} NOT NULL,
        step TEXT {byte_order} NOT NULL,
        item {bigint} NOT NULL,
        taker TEXT {byte_order} NOT NULL,
        workspace TEXT {byte_order} NOT NULL,
        event TEXT {byte_order} NOT NULL,
        key_hash TEXT {byte_order} NOT NULL,
        value_hash TEXT {byte_order} NOT NULL
    )""",
    "CREATE UNIQUE INDEX workflow_waits_of ON workflow_waits (execution_id, step, item)",
    "CREATE INDEX workflow_waits_found ON workflow_waits (workspace, event, key_hash, value_hash, number)",
    """CREATE TABLE workflow_interests (
        execution_id TEXT {byte_order} NOT NULL,
        workspace TEXT {byte_order} NOT NULL,
        event TEXT {byte_order} NOT NULL,
        key_hash TEXT {byte_order} NOT NULL,
        key_source TEXT NOT NULL,
        after_number {bigint} NOT NULL,
        PRIMARY KEY (execution_id, event, key_hash)
    ) {clustered}""",
    "CREATE INDEX workflow_interests_keys ON workflow_interests (workspace, event, key_hash)",
    "CREATE INDEX workflow_interests_oldest ON workflow_interests (workspace, event, after_number)",
    """CREATE TABLE workflow_kept_events (
        number {bigint} PRIMARY KEY,
        workspace TEXT {byte_order} NOT NULL,
        event TEXT {byte_order} NOT NULL,
        at_ms {bigint} NOT NULL,
        source {blob} NOT NULL,
        data {blob} NOT NULL
    )""",
    "CREATE INDEX workflow_kept_events_named ON workflow_kept_events (workspace, event, number)",
    """CREATE TABLE workflow_kept_keys (
        workspace TEXT {byte_order} NOT NULL,
        event TEXT {byte_order} NOT NULL,
        key_hash TEXT {byte_order} NOT NULL,
        value_hash TEXT {byte_order} NOT NULL,
        number {bigint} NOT NULL,
        PRIMARY KEY (workspace, event, key_hash, value_hash, number)
    ) {clustered}""",
    "CREATE INDEX workflow_kept_keys_of ON workflow_kept_keys (number, key_hash)",
    """CREATE TABLE workflow_taken_events (
        execution_id TEXT {byte_order} NOT NULL,
        taker TEXT {byte_order} NOT NULL,
        number {bigint} NOT NULL,
        PRIMARY KEY (execution_id, taker, number)
    ) {clustered}""",
    """CREATE TABLE workflow_machines (
        workspace TEXT {byte_order} NOT NULL,
        id TEXT {byte_order} NOT NULL,
        document {blob} NOT NULL,
        digest TEXT NOT NULL,
        owner TEXT NOT NULL,
        active INTEGER NOT NULL,
        created_ms {bigint} NOT NULL,
        updated_ms {bigint} NOT NULL,
        changed {bigint} NOT NULL,
        PRIMARY KEY (workspace, id)
    )""",
    "CREATE INDEX workflow_machines_changed ON workflow_machines (changed)",
    """CREATE TABLE workflow_instances (
        workspace TEXT {byte_order} NOT NULL,
        defined_in TEXT {byte_order} NOT NULL,
        machine_id TEXT {byte_order} NOT NULL,
        instance_id TEXT {byte_order} NOT NULL,
        state TEXT NOT NULL,
        data {blob} NOT NULL,
        transitions {bigint} NOT NULL,
        recent TEXT NOT NULL,
        timeout_ms {bigint} NOT NULL,
        completed_ms {bigint} NOT NULL,
        created_ms {bigint} NOT NULL,
        updated_ms {bigint} NOT NULL,
        PRIMARY KEY (workspace, defined_in, machine_id, instance_id)
    )""",
    "CREATE INDEX workflow_instances_by_id ON workflow_instances (workspace, instance_id)",
    "CREATE INDEX workflow_instances_of ON workflow_instances (defined_in, machine_id, completed_ms)",
    "CREATE INDEX workflow_instances_listed ON workflow_instances (workspace, machine_id, updated_ms)",
    "CREATE INDEX workflow_instances_changed ON workflow_instances (workspace, updated_ms)",
    """CREATE TABLE workflow_joins (
        join_id TEXT {byte_order} PRIMARY KEY,
        workspace TEXT {byte_order} NOT NULL,
        join_name TEXT {byte_order} NOT NULL,
        correlation_key TEXT {byte_order} NOT NULL,
        mode TEXT NOT NULL,
        arrived {bigint} NOT NULL,
        expected {bigint} NOT NULL,
        dirty INTEGER NOT NULL,
        status TEXT NOT NULL,
        deadline_ms {bigint} NOT NULL,
        linger_until_ms {bigint} NOT NULL,
        due_ms {bigint} NOT NULL,
        created_ms {bigint} NOT NULL,
        updated_ms {bigint} NOT NULL,
        state {blob} NOT NULL,
        kept {blob} NOT NULL
    )""",
    "CREATE INDEX workflow_joins_listed ON workflow_joins (workspace, status, updated_ms, join_id)",
    """CREATE TABLE workflow_join_members (
        join_id TEXT {byte_order} NOT NULL,
        kind TEXT NOT NULL,
        member TEXT {byte_order} NOT NULL,
        PRIMARY KEY (join_id, kind, member)
    ) {clustered}""",
    """CREATE TABLE workflow_join_actions (
        id TEXT {byte_order} PRIMARY KEY,
        workspace TEXT NOT NULL,
        join_name TEXT NOT NULL,
        correlation_key TEXT NOT NULL,
        owner TEXT NOT NULL,
        hops TEXT NOT NULL,
        action {blob} NOT NULL,
        refusals {bigint} NOT NULL
    )""",
    """CREATE TABLE workflow_unfinished_events (
        key TEXT {byte_order} PRIMARY KEY,
        event TEXT NOT NULL,
        payload {blob} NOT NULL,
        pending TEXT NOT NULL
    )""",
    """CREATE TABLE workflow_flows (
        owner TEXT {byte_order} PRIMARY KEY,
        kind TEXT NOT NULL,
        workspace TEXT {byte_order} NOT NULL,
        defined_in TEXT {byte_order} NOT NULL,
        id TEXT {byte_order} NOT NULL,
        gates TEXT NOT NULL
    )""",
    "CREATE INDEX workflow_flows_of ON workflow_flows (kind, defined_in, id)",
    """CREATE TABLE workflow_flow_gates (
        place TEXT {byte_order} PRIMARY KEY,
        state TEXT NOT NULL
    ) {clustered}""",
    """CREATE TABLE workflow_flow_runs (
        number {row_id},
        run_id TEXT {byte_order} NOT NULL,
        owner TEXT {byte_order} NOT NULL,
        gate INTEGER NOT NULL,
        place TEXT {byte_order} NOT NULL,
        waits INTEGER NOT NULL,
        priority DOUBLE PRECISION NOT NULL,
        keys TEXT NOT NULL,
        shown TEXT NOT NULL,
        pools TEXT NOT NULL,
        held INTEGER NOT NULL,
        origin TEXT {byte_order} NOT NULL,
        at_ms {bigint} NOT NULL
    )""",
    "CREATE UNIQUE INDEX workflow_flow_runs_by_id ON workflow_flow_runs (run_id)",
    "CREATE INDEX workflow_flow_runs_first ON workflow_flow_runs (place, waits, priority DESC, number)",
    "CREATE INDEX workflow_flow_runs_of ON workflow_flow_runs (owner, waits)",
    "CREATE INDEX workflow_flow_runs_from ON workflow_flow_runs (origin) WHERE origin <> ''",
    """CREATE TABLE workflow_flow_items (
        number {row_id},
        item_id TEXT {byte_order} NOT NULL,
        run_id TEXT {byte_order} NOT NULL,
        data {blob} NOT NULL
    )""",
    "CREATE UNIQUE INDEX workflow_flow_items_by_id ON workflow_flow_items (item_id)",
    "CREATE INDEX workflow_flow_items_of ON workflow_flow_items (run_id, number)",
    """CREATE TABLE workflow_flow_pools (
        name TEXT {byte_order} PRIMARY KEY,
        most {bigint} NOT NULL,
        running {bigint} NOT NULL
    ) {clustered}""",
    """CREATE TABLE workflow_made_operations (
        operation_id TEXT {byte_order} PRIMARY KEY,
        execution_id TEXT {byte_order} NOT NULL,
        at_ms {bigint} NOT NULL
    ) {clustered}""",
    "CREATE INDEX workflow_made_operations_of ON workflow_made_operations (execution_id, at_ms)",
    """CREATE TABLE workflow_usage (
        execution_id TEXT {byte_order} NOT NULL,
        task_id TEXT {byte_order} NOT NULL,
        epoch {bigint} NOT NULL,
        name TEXT {byte_order} NOT NULL,
        value DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (task_id, epoch, name)
    ) {clustered}""",
    "CREATE INDEX workflow_usage_of ON workflow_usage (execution_id)",
    """CREATE TABLE workflow_usage_totals (
        execution_id TEXT {byte_order} NOT NULL,
        name TEXT {byte_order} NOT NULL,
        total DOUBLE PRECISION NOT NULL,
        allowance DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (execution_id, name)
    ) {clustered}""",
    "CREATE TABLE workflow_cursors (name TEXT {byte_order} PRIMARY KEY, position {bigint} NOT NULL) {clustered}",
    "CREATE TABLE workflow_event_ids (id TEXT {byte_order} PRIMARY KEY, at_ms {bigint} NOT NULL) {clustered}",
    "CREATE INDEX workflow_event_ids_by_age ON workflow_event_ids (at_ms)",
    """CREATE TABLE workflow_sources (
        kind TEXT NOT NULL,
        key TEXT {byte_order} NOT NULL,
        workspace TEXT {byte_order} NOT NULL,
        event TEXT {byte_order} NOT NULL,
        PRIMARY KEY (kind, key, workspace, event)
    ) {clustered}""",
    "CREATE INDEX workflow_sources_of ON workflow_sources (event, workspace)",
    """CREATE TABLE workflow_webhooks (
        workspace TEXT {byte_order} NOT NULL,
        id TEXT {byte_order} NOT NULL,
        event TEXT NOT NULL,
        document {blob} NOT NULL,
        owner TEXT NOT NULL,
        active INTEGER NOT NULL,
        key_id TEXT NOT NULL,
        secrets {blob} NOT NULL,
        created_ms {bigint} NOT NULL,
        updated_ms {bigint} NOT NULL,
        PRIMARY KEY (workspace, id)
    )""",
    """CREATE TABLE workflow_webhook_ids (
        hash TEXT {byte_order} PRIMARY KEY,
        at_ms {bigint} NOT NULL
    ) {clustered}""",
    "CREATE INDEX workflow_webhook_ids_by_age ON workflow_webhook_ids (at_ms)",
    """CREATE TABLE workflow_relays (
        request_id TEXT {byte_order} PRIMARY KEY,
        engine_session TEXT NOT NULL,
        caller TEXT NOT NULL,
        operation {blob} NOT NULL,
        response {blob},
        asked_ms {bigint} NOT NULL
    )""",
)

WEBHOOK_BODIES: Final = ("ALTER TABLE workflow_webhook_ids ADD COLUMN body_hash TEXT NOT NULL DEFAULT ''",)
"""The second migration."""

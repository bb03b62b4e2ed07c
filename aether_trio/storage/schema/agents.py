"""Tables of agents that can be started, and of each identity's latest start.

The tables lie in the database of the tasks, because a start is a task. `agents.info` is an
AgentRegistrationInfo; what is searched for in it has separate columns. Names that clients choose
are byte strings where they may contain what a text column of an engine refuses. A row of
`orchestrator_profiles` counts while its session is the one of the orchestrator's row in
`task_workers`; of a profile, the row with the smallest `turn` is next. `agent_starts` has the
latest start of each identity: one row makes it one start, whichever node it was requested on.
`waits` is 1 while no orchestrator is found for it. Of starts that wait, the one with the greatest
`priority` is assigned first.

`lists` is 1 for an orchestrator that says which agents it has: they are its rows of
`orchestrator_agents`. `implementation` and `family` of a start are the names under which an
orchestrator may have its agent: with its version and without.

`agent_crashes` counts how often an agent has crashed (`times`) with the same first unread message
(`position`); `task_id` is the start that was counted last. `skip_to` is the number of a message
that is a dead letter already, and behind which the agent's cursor is still to move; 0 for none.
"""

from __future__ import annotations

from typing import Final

STATEMENTS: Final = (
    """CREATE TABLE agents (
        implementation TEXT {byte_order} PRIMARY KEY,
        profile {blob} NOT NULL,
        info {blob} NOT NULL,
        registered_ms {bigint} NOT NULL,
        updated_ms {bigint} NOT NULL
    )""",
    """CREATE TABLE agent_prefixes (
        prefix {blob} PRIMARY KEY,
        implementation TEXT {byte_order} NOT NULL
    ) {clustered}""",
    "CREATE INDEX agent_prefixes_of ON agent_prefixes (implementation)",
    """CREATE TABLE orchestrator_profiles (
        profile {blob} NOT NULL,
        orchestrator TEXT {byte_order} NOT NULL,
        session_id TEXT NOT NULL,
        connected_ms {bigint} NOT NULL,
        turn {bigint} NOT NULL,
        lists INTEGER NOT NULL,
        PRIMARY KEY (profile, orchestrator)
    ) {clustered}""",
    "CREATE INDEX orchestrator_profiles_of ON orchestrator_profiles (orchestrator)",
    "CREATE INDEX orchestrator_profiles_turns ON orchestrator_profiles (profile, turn)",
    """CREATE TABLE orchestrator_agents (
        orchestrator TEXT {byte_order} NOT NULL,
        implementation TEXT {byte_order} NOT NULL,
        PRIMARY KEY (orchestrator, implementation)
    ) {clustered}""",
    """CREATE TABLE agent_starts (
        identity TEXT {byte_order} PRIMARY KEY,
        task_id TEXT NOT NULL,
        profile {blob} NOT NULL,
        order_us {bigint} NOT NULL,
        waits INTEGER NOT NULL,
        priority INTEGER NOT NULL DEFAULT 30,
        implementation TEXT {byte_order} NOT NULL,
        family TEXT {byte_order} NOT NULL
    ) {clustered}""",
    "CREATE INDEX agent_starts_waiting ON agent_starts (profile, priority DESC, order_us) WHERE waits = 1",
    """CREATE TABLE agent_crashes (
        identity TEXT {byte_order} PRIMARY KEY,
        position {bigint} NOT NULL,
        times {bigint} NOT NULL,
        task_id TEXT NOT NULL,
        skip_to {bigint} NOT NULL,
        at_work TEXT NOT NULL DEFAULT '',
        excused {bigint} NOT NULL DEFAULT 0
    ) {clustered}""",
)

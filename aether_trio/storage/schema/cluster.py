"""Tables of nodes, identity locks, and what nodes tell each other (PostgreSQL).

`nodes` has a row for each gateway process. (node_id, epoch) is one lease; a node that was declared
dead comes back with the next epoch. `alive` turns false for an epoch once and never true again,
which makes a stale read of this table safe (below).

`identity_locks` has a row for each identity that is locked, or was lately: an ended lock stays as a
tombstone, so that a resume finds its history on any node. A lock is *void* when its lease has
ended: its node's row has a later epoch, or the same one and is not alive. That is evidence of
death, not absence of life, because a statement that waits for the lock of a row sees the row as it
is then, and `nodes` as it was when the statement began. `epoch` counts the owners of an identity.
`previous_id` is the session that this one has resumed, "" if none. `wanted_id` is the session that
the claim named; it is stored only because ON CONFLICT sees nothing but the columns of the row.
`workspace` is that of the identity; `place` is the workspace that the participant is in, which for
a user changes. `written_ms` is when one of the two was last written.

`lock_requests`: a node that wants an identity which another node has locked writes a row; the
owner's node answers. The table is not logged, because the request is repeated every second.

`disconnects`: the node `asker` wants a session of another node to end; that node sets `done`.

`ephemeral_interest`: the node has a listener of this ephemeral topic. It is written before that
listener is told that it is connected. `topic_interest`: the same for a topic of the log.
`nodes.token` is a secret of the node: it names the channel on which messages are pushed to it.

`ephemeral_updates`: an update of a topic, written by the node that it was reported to, for `nodes`,
the other nodes that had listeners then. `seq` grows, and a node writes one batch after another, so
a node that has seen a `seq` of another node has missed no earlier update.

The last four tables are not logged either: after a crash of the server they are empty, and the
nodes fill them again. The functions are called with the schema first in `search_path`, at READ
COMMITTED (except the fence). Rows of `identity_locks` are locked in the order of their identities,
so that two claims never deadlock.
"""

from __future__ import annotations

from typing import Final

from aether_trio.storage.schema.claim_within_workspace_quota import CLAIM

_NODES: Final = """CREATE TABLE nodes (
    node_id INT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    epoch {bigint} NOT NULL DEFAULT 1,
    alive BOOLEAN NOT NULL DEFAULT true,
    token TEXT NOT NULL,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    version TEXT NOT NULL,
    started_ms {bigint} NOT NULL,
    ended_ms {bigint}
)"""

_IDENTITY_LOCKS: Final = """CREATE TABLE identity_locks (
    identity TEXT {byte_order} PRIMARY KEY,
    kind TEXT NOT NULL,
    workspace TEXT NOT NULL,
    place TEXT NOT NULL,
    implementation TEXT NOT NULL,
    node_id INT NOT NULL,
    node_epoch {bigint} NOT NULL,
    session_id TEXT NOT NULL,
    previous_id TEXT NOT NULL DEFAULT '',
    wanted_id TEXT NOT NULL DEFAULT '',
    epoch {bigint} NOT NULL DEFAULT 1,
    takes_any BOOLEAN NOT NULL,
    connected_ms {bigint} NOT NULL,
    initial_ms {bigint} NOT NULL,
    reconnections {bigint} NOT NULL DEFAULT 0,
    peer TEXT NOT NULL,
    client_sdk TEXT NOT NULL,
    client_version TEXT NOT NULL,
    written_ms {bigint} NOT NULL,
    ended_ms {bigint}
)"""

_LOCK_REQUESTS: Final = """CREATE UNLOGGED TABLE lock_requests (
    identity TEXT {byte_order} NOT NULL,
    asker INT NOT NULL,
    session_id TEXT NOT NULL,
    resume_id TEXT NOT NULL,
    answer TEXT NOT NULL DEFAULT '',
    asked_ms {bigint} NOT NULL,
    PRIMARY KEY (identity, asker)
)"""

_NOW: Final = """CREATE FUNCTION aether_now_ms() RETURNS {bigint} LANGUAGE sql AS
$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000)::{bigint} $$"""

_FENCE: Final = """CREATE FUNCTION aether_fence(node INT, node_epoch {bigint}) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM nodes n WHERE n.node_id = node AND n.epoch = node_epoch AND n.alive FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the lease of node % (epoch %) has ended', node, node_epoch USING ERRCODE = 'AE001';
    END IF;
END $$"""

_DECLARE_DEAD: Final = """
CREATE FUNCTION aether_declare_dead(lease_class INT, node INT, node_epoch {bigint}) RETURNS BOOLEAN LANGUAGE plpgsql AS $$
BEGIN
    -- Shared, so that several nodes that find the node dead do not take each other for it.
    IF pg_try_advisory_xact_lock_shared(lease_class, node) THEN
        UPDATE nodes SET alive = false, ended_ms = aether_now_ms()
        WHERE nodes.node_id = node AND nodes.epoch = node_epoch AND nodes.alive;
        RETURN true;
    END IF;
    RETURN EXISTS (
        SELECT FROM nodes n WHERE n.node_id = node AND (n.epoch > node_epoch OR n.epoch = node_epoch AND NOT n.alive)
    );
END $$"""

# One row after another, by its key: a single statement would be planned over the index that
# statistics favour.
_RELEASE: Final = """
CREATE FUNCTION aether_release(
    me INT, identities TEXT[], sessions TEXT[], epochs {bigint}[], ends TEXT[], initials {bigint}[], counts {bigint}[]
) RETURNS SETOF TEXT LANGUAGE plpgsql AS $$
DECLARE
    c RECORD;
BEGIN
    FOR c IN
        SELECT * FROM unnest(identities, sessions, epochs, ends, initials, counts)
            AS u (identity, session_id, epoch, end_id, initial_ms, reconnections)
        ORDER BY u.identity COLLATE "C"
    LOOP
        UPDATE identity_locks h SET ended_ms = aether_now_ms(),
            session_id = CASE c.end_id WHEN '' THEN h.session_id ELSE c.end_id END,
            previous_id = CASE c.end_id WHEN '' THEN h.previous_id ELSE '' END,
            initial_ms = CASE c.end_id WHEN '' THEN h.initial_ms ELSE c.initial_ms END,
            reconnections = CASE c.end_id WHEN '' THEN h.reconnections ELSE c.reconnections END
        WHERE h.identity = c.identity AND h.node_id + 0 = me AND h.session_id || '' = c.session_id
            AND c.epoch IN (0, h.epoch) AND coalesce(h.ended_ms, 0) = 0;
        IF FOUND THEN
            RETURN NEXT c.identity;
        END IF;
    END LOOP;
END $$"""

# Called by the statement that appends the messages, behind its locks of their topics: a query of a
# volatile function sees what was committed until it begins. Returns how many (message, node) and
# how many payloads were pushed. The lines are those of log/pushed_messages.py; base64 has line ends
# in it. Only who reads `nodes` knows the channel.
_PUSH: Final = """CREATE FUNCTION aether_push(me INT, topics TEXT[], keys BIGINT[], parts INT[], frames BYTEA[])
RETURNS BIGINT[] LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT ARRAY[coalesce(sum(p.messages), 0), count(pg_notify(p.channel, p.payload))]::bigint[] FROM (
            SELECT 'aether_push_' || n.token AS channel, count(*) AS messages,
                string_agg(
                    w.key || ' ' || replace(encode(w.frame, 'base64'), chr(10), '') || ' ' || w.topic, chr(10)
                    ORDER BY w.key
                ) AS payload
            FROM unnest(topics, keys, parts, frames) AS w (topic, key, part, frame)
            CROSS JOIN LATERAL (
                SELECT x.node_id FROM topic_interest x WHERE x.topic = w.topic COLLATE "C" AND x.node_id <> me OFFSET 0
            ) AS i
            CROSS JOIN LATERAL (SELECT o.token FROM nodes o WHERE o.node_id = i.node_id OFFSET 0) AS n
            GROUP BY n.token, w.part
            ORDER BY w.part
        ) AS p
    );
END $$"""

# The same for a single message; returns to how many nodes it was pushed.
_PUSH_ONE: Final = """CREATE FUNCTION aether_push_one(me INT, topic TEXT, key BIGINT, frame BYTEA)
RETURNS BIGINT LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT count(pg_notify(
            'aether_push_' || n.token, key || ' ' || replace(encode(frame, 'base64'), chr(10), '') || ' ' || w.topic
        ))
        FROM (SELECT aether_push_one.topic) AS w
        CROSS JOIN LATERAL (
            SELECT x.node_id FROM topic_interest x WHERE x.topic = w.topic COLLATE "C" AND x.node_id <> me OFFSET 0
        ) AS i
        CROSS JOIN LATERAL (SELECT o.token FROM nodes o WHERE o.node_id = i.node_id OFFSET 0) AS n
    );
END $$"""

MIGRATIONS: Final = (
    (
        _NODES,
        _IDENTITY_LOCKS,
        "CREATE INDEX identity_locks_live_by_workspace ON identity_locks (workspace) WHERE ended_ms IS NULL",
        "CREATE INDEX identity_locks_live_by_node ON identity_locks (node_id) WHERE ended_ms IS NULL",
        "CREATE INDEX identity_locks_ended ON identity_locks (ended_ms) WHERE ended_ms IS NOT NULL",
        _LOCK_REQUESTS,
        _NOW,
        _FENCE,
        _DECLARE_DEAD,
        CLAIM,
        _RELEASE,
        "CREATE INDEX identity_locks_live_by_place ON identity_locks (place) WHERE ended_ms IS NULL",
        "CREATE INDEX identity_locks_live_by_session ON identity_locks (session_id) WHERE ended_ms IS NULL",
        "CREATE INDEX identity_locks_live_services ON identity_locks (identity) WHERE kind = 'service' AND takes_any AND ended_ms IS NULL",
        """CREATE UNLOGGED TABLE disconnects (
            session_id TEXT NOT NULL,
            asker INT NOT NULL,
            reason TEXT NOT NULL,
            done BOOLEAN NOT NULL DEFAULT false,
            asked_ms {bigint} NOT NULL,
            PRIMARY KEY (session_id, asker)
        )""",
        """CREATE UNLOGGED TABLE ephemeral_interest (
            topic TEXT {byte_order} NOT NULL,
            node_id INT NOT NULL,
            PRIMARY KEY (topic, node_id)
        )""",
        "CREATE INDEX ephemeral_interest_by_node ON ephemeral_interest (node_id)",
        """CREATE UNLOGGED TABLE topic_interest (
            topic TEXT {byte_order} NOT NULL,
            node_id INT NOT NULL,
            PRIMARY KEY (topic, node_id)
        )""",
        "CREATE INDEX topic_interest_by_node ON topic_interest (node_id)",
        _PUSH,
        _PUSH_ONE,
        """CREATE UNLOGGED TABLE ephemeral_updates (
            node_id INT NOT NULL,
            seq {bigint} NOT NULL,
            nodes INT[] NOT NULL,
            topic TEXT NOT NULL,
            source TEXT NOT NULL,
            recipient TEXT NOT NULL,
            frame {blob} NOT NULL,
            written_ms {bigint} NOT NULL,
            PRIMARY KEY (node_id, seq)
        )""",
    ),
)

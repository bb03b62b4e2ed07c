"""Nodes, identity locks, and what nodes tell each other: PostgreSQL only.

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

`ephemeral_updates`: an update of a topic, written by the node that it was reported to, for `nodes`,
the other nodes that had listeners then. `seq` grows, and a node writes one batch after another, so
a node that has seen a `seq` of another node has missed no earlier update.

The last four tables are not logged either: after a crash of the server they are empty, and the
nodes fill them again.

The functions are called with the schema first in `search_path`, at READ COMMITTED (except the
fence), so that each of their statements sees what was committed before it. Rows of `identity_locks`
are locked in the order of their identities, so that two claims never deadlock.
"""

from __future__ import annotations

from typing import Final

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

_HOLDS: Final = """CREATE TABLE identity_locks (
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

_ASKS: Final = """CREATE UNLOGGED TABLE lock_requests (
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

_CLAIM: Final = """
CREATE FUNCTION aether_claim(
    me INT, my_epoch {bigint}, quota_class INT, quota {bigint},
    identities TEXT[], kinds TEXT[], workspaces TEXT[], implementations TEXT[], sessions TEXT[], resumes TEXT[],
    takes BOOLEAN[], connected {bigint}[], peers TEXT[], sdks TEXT[], versions TEXT[]
) RETURNS TABLE (
    identity TEXT, verdict TEXT, epoch {bigint}, previous_id TEXT, initial_ms {bigint}, reconnections {bigint},
    holder INT, holder_epoch {bigint}, holder_session TEXT, answer TEXT
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    full_up TEXT[] := ARRAY[]::TEXT[];
    taken INT;
BEGIN
    PERFORM aether_fence(me, my_epoch);
    IF quota > 0 THEN
        -- Claims of one workspace are counted one after another, also those of different nodes.
        PERFORM pg_advisory_xact_lock(quota_class, key) FROM (
            SELECT DISTINCT hashtext(w) AS key FROM unnest(workspaces) AS w WHERE w <> '' ORDER BY key
        ) AS keys;
        full_up := ARRAY(
            WITH live AS (
                SELECT h.identity, h.workspace FROM identity_locks h JOIN nodes n
                ON n.node_id = h.node_id AND n.epoch = h.node_epoch AND n.alive
                WHERE h.workspace = ANY(workspaces) AND h.ended_ms IS NULL
            ), counts AS (
                SELECT workspace, count(*) AS size FROM live GROUP BY workspace
            ), fresh AS (
                SELECT c.identity, c.workspace, row_number() OVER (PARTITION BY c.workspace ORDER BY c.number) AS rank
                FROM unnest(identities, workspaces) WITH ORDINALITY AS c (identity, workspace, number)
                WHERE c.workspace <> '' AND NOT EXISTS (SELECT FROM live l WHERE l.identity = c.identity)
            )
            SELECT f.identity FROM fresh f LEFT JOIN counts k ON k.workspace = f.workspace
            WHERE f.rank + coalesce(k.size, 0) > quota
        );
    END IF;
    RETURN QUERY
    INSERT INTO identity_locks AS h (
        identity, kind, workspace, place, implementation, node_id, node_epoch, session_id, wanted_id, takes_any,
        connected_ms, initial_ms, peer, client_sdk, client_version, written_ms
    )
    SELECT c.identity, c.kind, c.workspace, c.workspace, c.implementation, me, my_epoch, c.session_id, c.resume_id,
        c.takes_any, c.connected_ms, c.connected_ms, c.peer, c.client_sdk, c.client_version, aether_now_ms()
    FROM unnest(
        identities, kinds, workspaces, implementations, sessions, resumes, takes, connected, peers, sdks, versions
    ) AS c (
        identity, kind, workspace, implementation, session_id, resume_id, takes_any, connected_ms, peer, client_sdk,
        client_version
    )
    WHERE c.identity <> ALL(full_up)
    ORDER BY c.identity COLLATE "C"
    ON CONFLICT (identity) DO UPDATE SET
        kind = excluded.kind, workspace = excluded.workspace, place = excluded.place,
        implementation = excluded.implementation, written_ms = excluded.written_ms,
        node_id = excluded.node_id, node_epoch = excluded.node_epoch, session_id = excluded.session_id,
        takes_any = excluded.takes_any, connected_ms = excluded.connected_ms, peer = excluded.peer,
        client_sdk = excluded.client_sdk, client_version = excluded.client_version, ended_ms = NULL,
        wanted_id = excluded.wanted_id, epoch = h.epoch + 1,
        -- A claim whose answer was lost is run again: then this session has the row already.
        previous_id = CASE WHEN h.session_id = excluded.session_id THEN h.previous_id
            WHEN excluded.wanted_id <> '' AND excluded.wanted_id IN (h.session_id, h.previous_id)
            THEN excluded.wanted_id ELSE '' END,
        initial_ms = CASE WHEN h.session_id = excluded.session_id
            OR excluded.wanted_id <> '' AND excluded.wanted_id IN (h.session_id, h.previous_id)
            THEN h.initial_ms ELSE excluded.initial_ms END,
        reconnections = CASE WHEN h.session_id = excluded.session_id THEN h.reconnections
            WHEN excluded.wanted_id <> '' AND excluded.wanted_id IN (h.session_id, h.previous_id)
            THEN h.reconnections + 1 ELSE 0 END
    WHERE h.ended_ms IS NOT NULL OR h.node_id = excluded.node_id OR EXISTS (
        SELECT FROM nodes n
        WHERE n.node_id = h.node_id AND (n.epoch > h.node_epoch OR n.epoch = h.node_epoch AND NOT n.alive)
    )
    RETURNING h.identity, 'taken'::TEXT, h.epoch, h.previous_id, h.initial_ms, h.reconnections,
        me, my_epoch, h.session_id, ''::TEXT;
    GET DIAGNOSTICS taken = ROW_COUNT;
    IF taken = cardinality(identities) THEN
        RETURN;
    END IF;
    RETURN QUERY SELECT f, 'full'::TEXT, 0::{bigint}, ''::TEXT, 0::{bigint}, 0::{bigint}, 0, 0::{bigint}, ''::TEXT, ''::TEXT
    FROM unnest(full_up) AS f;
    RETURN QUERY
    WITH held AS (
        SELECT c.identity, c.session_id, c.resume_id, h.node_id AS holder, h.node_epoch AS holder_epoch,
            h.session_id AS holder_session
        FROM unnest(identities, sessions, resumes) AS c (identity, session_id, resume_id)
        -- OFFSET 0: each by its key. The planner would go through all locks when it takes them for few.
        CROSS JOIN LATERAL (SELECT * FROM identity_locks x WHERE x.identity = c.identity OFFSET 0) AS h
        WHERE c.identity <> ALL(full_up) AND h.session_id <> c.session_id AND h.ended_ms IS NULL
    ), asked AS (
        INSERT INTO lock_requests AS a (identity, asker, session_id, resume_id, asked_ms)
        SELECT held.identity, me, held.session_id, held.resume_id, aether_now_ms() FROM held
        ORDER BY held.identity COLLATE "C"
        ON CONFLICT (identity, asker) DO UPDATE SET
            session_id = excluded.session_id, resume_id = excluded.resume_id, asked_ms = excluded.asked_ms,
            answer = CASE WHEN a.session_id = excluded.session_id THEN a.answer ELSE '' END
        RETURNING a.identity, a.answer
    )
    SELECT held.identity, 'held'::TEXT, 0::{bigint}, ''::TEXT, 0::{bigint}, 0::{bigint},
        held.holder, held.holder_epoch, held.holder_session, asked.answer
    FROM held JOIN asked ON asked.identity = held.identity;
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

MIGRATIONS: Final = (
    (
        _NODES,
        _HOLDS,
        "CREATE INDEX identity_locks_live_by_workspace ON identity_locks (workspace) WHERE ended_ms IS NULL",
        "CREATE INDEX identity_locks_live_by_node ON identity_locks (node_id) WHERE ended_ms IS NULL",
        "CREATE INDEX identity_locks_ended ON identity_locks (ended_ms) WHERE ended_ms IS NOT NULL",
        _ASKS,
        _NOW,
        _FENCE,
        _DECLARE_DEAD,
        _CLAIM,
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

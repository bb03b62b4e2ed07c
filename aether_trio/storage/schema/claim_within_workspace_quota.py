"""SQL function that locks identities within the client limit of each workspace.

`aether_claim` counts the clients of a workspace and takes the locks in one transaction, under one
advisory lock for each workspace, so that nodes that claim at the same time never exceed its quota.
`quotas` has the quota of each identity's workspace, 0 for none. The verdict of each identity is
"taken", "full" (its workspace has as many clients as it may), or "held" by another node, which is
asked for the lock in `lock_requests`. The tables are in cluster.py.
"""

from __future__ import annotations

from typing import Final

CLAIM: Final = """
CREATE FUNCTION aether_claim(
    me INT, my_epoch {bigint}, quota_class INT, quotas {bigint}[],
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
    IF 0 < ANY(quotas) THEN
        -- Claims of one workspace are counted one after another, also those of different nodes.
        PERFORM pg_advisory_xact_lock(quota_class, key) FROM (
            SELECT DISTINCT hashtext(c.workspace) AS key FROM unnest(workspaces, quotas) AS c (workspace, quota)
            WHERE c.workspace <> '' AND c.quota > 0 ORDER BY key
        ) AS keys;
        full_up := ARRAY(
            WITH live AS (
                SELECT h.identity, h.workspace FROM identity_locks h JOIN nodes n
                ON n.node_id = h.node_id AND n.epoch = h.node_epoch AND n.alive
                WHERE h.workspace = ANY(workspaces) AND h.ended_ms IS NULL
            ), counts AS (
                SELECT workspace, count(*) AS size FROM live GROUP BY workspace
            ), fresh AS (
                SELECT c.identity, c.workspace, c.quota,
                    row_number() OVER (PARTITION BY c.workspace ORDER BY c.number) AS rank
                FROM unnest(identities, workspaces, quotas) WITH ORDINALITY AS c (identity, workspace, quota, number)
                WHERE c.workspace <> '' AND c.quota > 0 AND NOT EXISTS (SELECT FROM live l WHERE l.identity = c.identity)
            )
            SELECT f.identity FROM fresh f LEFT JOIN counts k ON k.workspace = f.workspace
            WHERE f.rank + coalesce(k.size, 0) > f.quota
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

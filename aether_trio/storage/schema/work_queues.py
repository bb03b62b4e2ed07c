"""Tables of the messages of work queues that nodes have leased (PostgreSQL only).

Several nodes hand out work there. `work_queues` has a row for each queue. A statement that changes
anything of a queue locks this row first, so queues need no other order. `position` is the largest
offset that was ever given to a node, `done_upto` the one below which no node has a message.

`work_leases` says what a node has of a queue and is not done with: `offsets`, in their order. A
node has one row, changed in place, because rows that come and go with every message would leave as
many dead ones behind, in the index too. `request` is the number of the last request that gave it
messages, and `latest` has those messages: a request whose answer was lost is sent again unchanged,
and answered unchanged. A statement that was given up may still run, after later ones: its number is
smaller, so it does nothing. Messages that it took when no other came in between show in `held`, and
the node gives them back (`all_but`).

*Free* messages go first: those that a node has given back (they belong to the node RETURNED), and
those of a node whose lease has ended: it has a later epoch, is not alive, or is gone from `nodes`.
Node 0 is a gateway that is alone on this database; the epochs of its processes grow, and it and the
nodes of a cluster do not believe in each other.

`aether_work` is called at READ COMMITTED, where each of its statements sees what was committed
before: after the lock of a queue that is all there is of the queue. It is plpgsql for that reason,
and because a database without a cluster has no table `nodes`, which only matters when the statement
that names it is reached.
"""

from __future__ import annotations

from typing import Final

from aether_trio.storage.schema import ForPostgres

RETURNED: Final = -1
"""The number of no node: it has the messages that were given back."""

OFFSET_BITS: Final = 36
"""As in log/message_keys.py, which storage may not import; a test compares them."""

_WORK_QUEUES: Final = """CREATE TABLE work_queues (
    topic_id {bigint} PRIMARY KEY,
    position {bigint} NOT NULL,
    done_upto {bigint} NOT NULL
) WITH (fillfactor = 50)"""

_WORK_LEASES: Final = """CREATE TABLE work_leases (
    topic_id {bigint} NOT NULL,
    node_id {bigint} NOT NULL,
    node_epoch {bigint} NOT NULL,
    request {bigint} NOT NULL,
    latest {bigint}[] NOT NULL,
    offsets {bigint}[] NOT NULL,
    PRIMARY KEY (topic_id, node_id)
) WITH (fillfactor = 50)"""

_IS_FREE: Final = f"""CREATE FUNCTION aether_work_is_free(
    node {{bigint}}, its_epoch {{bigint}}, me {{bigint}}, my_epoch {{bigint}}
) RETURNS BOOLEAN LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF node = {RETURNED} THEN
        RETURN true;
    ELSIF node = me THEN
        RETURN its_epoch < my_epoch;
    ELSIF node = 0 OR me = 0 THEN
        RETURN true;
    ELSIF to_regclass('nodes') IS NULL THEN
        RETURN false;
    END IF;
    -- A node that has messages was alive when it took them, so one without a row was swept.
    RETURN NOT EXISTS (SELECT FROM nodes n WHERE n.node_id = node AND n.epoch = its_epoch AND n.alive);
END $$"""

# Reads only: for each of these queues, whether it has messages for this node, and how many offsets
# the node has.
_LOOK: Final = """CREATE FUNCTION aether_work_look(
    me {bigint}, my_epoch {bigint}, asked {bigint}[]
) RETURNS TABLE (topic {bigint}, waits BOOLEAN, held INT) LANGUAGE sql STABLE AS $$
    SELECT t.id, g.position IS NULL OR t.floor_offset > g.position OR EXISTS (
        SELECT FROM work_leases h WHERE h.topic_id = t.id AND cardinality(h.offsets) > 0
        AND aether_work_is_free(h.node_id, h.node_epoch, me, my_epoch)
    ), coalesce((
        SELECT cardinality(h.offsets) FROM work_leases h
        WHERE h.topic_id = t.id AND h.node_id = me AND h.node_epoch = my_epoch
    ), 0)
    FROM unnest(asked) AS a (topic_id) JOIN topics t ON t.id = a.topic_id
    LEFT JOIN work_queues g ON g.topic_id = t.id
$$"""

# For each queue in turn: strike out done messages, take back returned ones (or, with `all_but`, all
# that are not listed there), give wanted ones. Answers: a message (offset, 1, frame), messages
# whose frames the node has (first offset, how many, NULL), and one row at the end of each queue
# (position, -1 when it has more messages and 0 when not, NULL, how many offsets the node has now).
_WORK: Final = f"""CREATE FUNCTION aether_work(
    me {{bigint}}, my_epoch {{bigint}}, now_ms {{bigint}}, topic_ids {{bigint}}[], requests {{bigint}}[],
    wants {{bigint}}[], most_bytes {{bigint}}[], all_but BOOLEAN[], known_from {{bigint}}[], known_upto {{bigint}}[],
    done_counts {{bigint}}[], all_done {{bigint}}[], returned_counts {{bigint}}[], all_returned {{bigint}}[]
) RETURNS TABLE (topic {{bigint}}, first {{bigint}}, many INT, frame BYTEA, held INT) LANGUAGE plpgsql AS $$
DECLARE
    none CONSTANT {{bigint}}[] := ARRAY[]::{{bigint}}[];
    base {{bigint}};
    pos {{bigint}};
    old_pos {{bigint}};
    old_upto {{bigint}};
    upto {{bigint}};
    tail {{bigint}};
    size {{bigint}};
    lowest {{bigint}};
    room {{bigint}};
    number {{bigint}};
    last_done {{bigint}} := 0;
    last_returned {{bigint}} := 0;
    done {{bigint}}[];
    returned {{bigint}}[];
    mine {{bigint}}[];
    had {{bigint}}[];
    latest_mine {{bigint}}[];
    taken {{bigint}}[];
    free {{bigint}}[];
    ended {{bigint}}[];
    stale BOOLEAN;
    full_up BOOLEAN;
    asked {{bigint}};
    h RECORD;
    m RECORD;
BEGIN
    FOR i IN 1 .. cardinality(topic_ids) LOOP
        topic := topic_ids[i];
        done := all_done[last_done + 1 : last_done + done_counts[i]];
        last_done := last_done + done_counts[i];
        returned := all_returned[last_returned + 1 : last_returned + returned_counts[i]];
        last_returned := last_returned + returned_counts[i];
        frame := NULL; held := NULL;

        -- Most calls find no message where many nodes have workers: then nothing is locked, and nothing written.
        IF cardinality(done) = 0 AND cardinality(returned) = 0 AND NOT all_but[i] THEN
            SELECT g.position INTO pos FROM work_queues g JOIN topics t ON t.id = g.topic_id
            WHERE g.topic_id = topic AND t.floor_offset <= g.position AND NOT EXISTS (
                SELECT FROM work_leases w WHERE w.topic_id = topic AND cardinality(w.offsets) > 0
                AND (w.node_id = me AND w.request = requests[i] OR aether_work_is_free(w.node_id, w.node_epoch, me, my_epoch))
            );
            IF FOUND THEN
                first := pos; many := 0;
                held := coalesce((SELECT cardinality(w.offsets) FROM work_leases w
                    WHERE w.topic_id = topic AND w.node_id = me AND w.node_epoch = my_epoch), 0);
                RETURN NEXT;
                CONTINUE;
            END IF;
        END IF;

        SELECT g.position, g.done_upto INTO pos, old_upto FROM work_queues g WHERE g.topic_id = topic FOR UPDATE;
        IF NOT FOUND THEN
            INSERT INTO work_queues (topic_id, position, done_upto)
            SELECT topic, coalesce(max(c.msg_offset), 0), coalesce(max(c.msg_offset), 0)
            FROM cursors c WHERE c.topic_id = topic AND c.consumer = '*'
            ON CONFLICT DO NOTHING;
            SELECT g.position, g.done_upto INTO pos, old_upto FROM work_queues g WHERE g.topic_id = topic FOR UPDATE;
        END IF;
        SELECT t.floor_offset INTO tail FROM topics t WHERE t.id = topic;

        base := topic << {OFFSET_BITS};
        old_pos := pos;
        had := NULL; latest_mine := none; asked := 0; lowest := NULL;
        free := none; ended := none; taken := none; stale := false;
        FOR h IN SELECT w.* FROM work_leases w WHERE w.topic_id = topic LOOP
            IF h.node_id = me AND h.node_epoch = my_epoch THEN
                had := h.offsets; latest_mine := h.latest; asked := h.request;
            ELSIF h.node_id = me AND h.node_epoch > my_epoch THEN
                stale := true;
            ELSIF aether_work_is_free(h.node_id, h.node_epoch, me, my_epoch) THEN
                free := free || h.offsets;
                ended := ended || h.node_id;
            ELSE
                lowest := least(lowest, h.offsets[1]);
            END IF;
        END LOOP;
        IF stale OR requests[i] < asked THEN
            -- From an earlier epoch of this node, or a statement that was given up and still runs: it changes nothing.
            first := pos; many := 0; held := coalesce(cardinality(had), 0);
            RETURN NEXT;
            CONTINUE;
        END IF;

        mine := coalesce(had, none);
        IF asked = requests[i] THEN
            done := none;
            returned := none;
        ELSIF all_but[i] THEN
            returned := ARRAY(SELECT unnest(mine) EXCEPT SELECT unnest(returned) EXCEPT SELECT unnest(done));
        END IF;
        IF mine = done THEN
            mine := none;
        ELSIF cardinality(done) > 0 THEN
            mine := ARRAY(SELECT unnest(mine) EXCEPT SELECT unnest(done));
        END IF;
        IF cardinality(returned) > 0 THEN
            returned := ARRAY(SELECT unnest(returned) INTERSECT SELECT unnest(mine));
            free := free || returned;
            mine := ARRAY(SELECT unnest(mine) EXCEPT SELECT unnest(returned));
        END IF;
        IF cardinality(free) > 1 THEN
            free := ARRAY(SELECT o FROM unnest(free) AS u (o) ORDER BY o);
        END IF;

        IF asked = requests[i] THEN
            -- All this was done before, and the answer was lost.
            FOREACH number IN ARRAY latest_mine LOOP
                CONTINUE WHEN number <> ALL (mine);
                SELECT s.data INTO frame FROM messages s WHERE s.message_key = base | number;
                IF FOUND THEN
                    first := number; many := 1;
                    RETURN NEXT;
                ELSE
                    mine := array_remove(mine, number);
                END IF;
            END LOOP;
        ELSE
            room := wants[i]; size := 0; full_up := room <= 0;
            WHILE NOT full_up AND cardinality(free) > 0 LOOP
                SELECT s.data INTO frame FROM messages s WHERE s.message_key = base | free[1];
                IF FOUND THEN
                    size := size + length(frame);
                    IF size > most_bytes[i] AND cardinality(taken) > 0 THEN
                        full_up := true;
                        EXIT;
                    END IF;
                    taken := taken || free[1];
                    first := free[1]; many := 1;
                    RETURN NEXT;
                    room := room - 1;
                    full_up := room <= 0;
                END IF;
                free := free[2:];
            END LOOP;
            IF NOT full_up AND pos + 1 >= known_from[i] AND pos < least(known_upto[i], tail) THEN
                first := pos + 1; many := least(room, least(known_upto[i], tail) - pos); frame := NULL;
                RETURN NEXT;
                pos := pos + many;
                taken := taken || ARRAY(SELECT generate_series(first, pos));
            ELSIF NOT full_up AND pos < tail THEN
                FOR m IN
                    SELECT s.message_key - base AS o, s.data FROM messages s
                    WHERE s.message_key > base + pos AND s.message_key <= base + tail
                    ORDER BY s.message_key LIMIT room
                LOOP
                    size := size + length(m.data);
                    IF size > most_bytes[i] AND cardinality(taken) > 0 THEN
                        full_up := true;
                        EXIT;
                    END IF;
                    taken := taken || m.o;
                    pos := m.o;
                    first := m.o; many := 1; frame := m.data;
                    RETURN NEXT;
                    room := room - 1;
                END LOOP;
                IF NOT full_up AND room > 0 THEN
                    pos := tail;  -- retention took the rest
                END IF;
            END IF;
        END IF;

        IF cardinality(taken) > 0 OR had IS NOT NULL AND had <> mine THEN
            mine := ARRAY(SELECT o FROM unnest(mine || taken) AS u (o) ORDER BY o);
            INSERT INTO work_leases AS w (topic_id, node_id, node_epoch, request, latest, offsets)
            VALUES (topic, me, my_epoch, requests[i], taken, mine)
            ON CONFLICT (topic_id, node_id) DO UPDATE SET node_epoch = excluded.node_epoch,
                request = CASE WHEN cardinality(taken) > 0 THEN excluded.request ELSE w.request END,
                latest = CASE WHEN cardinality(taken) > 0 THEN taken ELSE w.latest END, offsets = excluded.offsets;
            ended := array_remove(ended, me);
        END IF;
        IF cardinality(free) > 0 THEN
            INSERT INTO work_leases AS w (topic_id, node_id, node_epoch, request, latest, offsets)
            VALUES (topic, {RETURNED}, 0, 0, none, free)
            ON CONFLICT (topic_id, node_id) DO UPDATE SET offsets = excluded.offsets;
            ended := array_remove(ended, {RETURNED}::{{bigint}});
        END IF;
        IF cardinality(ended) > 0 THEN
            DELETE FROM work_leases w WHERE w.topic_id = topic AND w.node_id = ANY (ended);
        END IF;

        upto := coalesce(least(lowest, mine[1], free[1]) - 1, pos);
        IF pos <> old_pos OR upto <> old_upto THEN
            UPDATE work_queues g SET position = pos, done_upto = upto WHERE g.topic_id = topic;
        END IF;
        IF upto <> old_upto OR cardinality(done) > 0 THEN
            INSERT INTO cursors AS c (topic_id, consumer, msg_offset, updated_ms) VALUES (topic, '*', upto, now_ms)
            ON CONFLICT (topic_id, consumer) DO UPDATE SET msg_offset = excluded.msg_offset, updated_ms = excluded.updated_ms
                WHERE excluded.msg_offset >= c.msg_offset;
        END IF;
        first := pos; frame := NULL; held := cardinality(mine);
        many := CASE WHEN cardinality(free) > 0 OR pos < tail THEN -1 ELSE 0 END;
        RETURN NEXT;
    END LOOP;
END $$"""  # noqa: S608  # constants

STATEMENTS: Final = tuple(ForPostgres(text) for text in (_WORK_QUEUES, _WORK_LEASES, _IS_FREE, _LOOK, _WORK))

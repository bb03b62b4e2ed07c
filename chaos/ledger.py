"""Record in triggers each change of a lock and each position that went back.

A trigger runs in the transaction that it is about, behind the row's lock: so what it writes is in
the order of the changes, and there exactly when they are.
"""

from __future__ import annotations

from typing import Final, Protocol

from aether_trio.log.message_keys import OFFSET_BITS
from chaos.history import Backwards, Held, History, Logged

OFFSETS: Final = (1 << OFFSET_BITS) - 1

INSTALL: Final = (
    """CREATE TABLE chaos_held (
        seq BIGINT GENERATED ALWAYS AS IDENTITY, identity TEXT, session TEXT, epoch BIGINT, node TEXT, live BOOLEAN, stolen BOOLEAN
    )""",
    "CREATE TABLE chaos_backwards (topic_id BIGINT, consumer TEXT, before BIGINT, after BIGINT)",
    # A hold whose lease has ended is void (storage/schema/cluster.py), and may be taken.
    """CREATE FUNCTION chaos_note_hold() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos_held (identity, session, epoch, node, live, stolen) VALUES (
            NEW.identity, NEW.session_id, NEW.epoch, NEW.node_id || ' ' || NEW.node_epoch, NEW.ended_ms IS NULL,
            TG_OP = 'UPDATE' AND OLD.ended_ms IS NULL AND OLD.node_id <> NEW.node_id AND EXISTS (
                SELECT FROM nodes n WHERE n.node_id = OLD.node_id AND n.epoch = OLD.node_epoch AND n.alive
            )
        );
        RETURN NULL;
    END $$""",
    "CREATE TRIGGER chaos_note_hold AFTER INSERT OR UPDATE ON identity_locks FOR EACH ROW EXECUTE FUNCTION chaos_note_hold()",
    """CREATE FUNCTION chaos_note_backwards() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos_backwards VALUES (NEW.topic_id, NEW.consumer, OLD.msg_offset, NEW.msg_offset);
        RETURN NULL;
    END $$""",
    """CREATE TRIGGER chaos_note_backwards AFTER UPDATE ON cursors FOR EACH ROW
    WHEN (NEW.msg_offset < OLD.msg_offset) EXECUTE FUNCTION chaos_note_backwards()""",
)
_HELD: Final = "SELECT identity, session, epoch, node, live, stolen FROM chaos_held ORDER BY seq"
_BACKWARDS: Final = """
    SELECT coalesce(t.name, b.topic_id::text), b.consumer, b.before, b.after
    FROM chaos_backwards b LEFT JOIN topics t ON t.id = b.topic_id
"""

_LOGGED: Final = f"""
    SELECT t.name, count(*), min(m.message_key & {OFFSETS}), max(m.message_key & {OFFSETS}), max(t.floor_offset)
    FROM messages m JOIN topics t ON t.id = m.message_key >> {OFFSET_BITS} GROUP BY t.name
"""  # the run is shorter than the retention


class Place(Protocol):
    """Where the nodes' tables are: a ProcessCluster."""

    async def sql(self, text: str) -> list[list[str]]:
        """Run statements; return the rows as text."""
        ...


async def install(cluster: Place) -> None:
    """Make the triggers, once the nodes have made their tables."""
    await cluster.sql("; ".join(INSTALL))


async def read(cluster: Place, history: History) -> None:
    """Add what the triggers recorded to the history."""
    history.held = [
        Held(identity, session, int(epoch), node, live == "t", stolen == "t")
        for identity, session, epoch, node, live, stolen in await cluster.sql(_HELD)
    ]
    history.backwards = [
        Backwards(topic, consumer, int(before), int(after))
        for topic, consumer, before, after in await cluster.sql(_BACKWARDS)
    ]
    history.logged = [
        Logged(topic, int(messages), int(first), int(last), int(counted))
        for topic, messages, first, last, counted in await cluster.sql(_LOGGED)
    ]

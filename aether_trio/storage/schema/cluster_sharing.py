"""What nodes show each other beside who holds what: orders to end a session, and progress updates on their way to another node.

Nothing here is needed after a crash of the server, so none of it is logged: the tables are empty then, and the nodes fill them again.

`disconnects`: the node `asker` wants a session ended that another node holds; that node sets `done`.

`ephemeral_interest`: the node has somebody who listens to this topic. Written before that somebody is told that it is connected.
`topic_interest`: the same for a topic of the log.
`ephemeral_updates`: an update of a topic, written by the node that it was reported to, for `nodes`, the others that had listeners then.
`seq` grows, and its node writes one batch after another, so whoever has seen a `seq` of a node has missed none before it.
"""

from __future__ import annotations

from typing import Final

STATEMENTS: Final = (
    "CREATE INDEX holds_live_by_place ON holds (place) WHERE ended_ms IS NULL",
    "CREATE INDEX holds_live_by_session ON holds (session_id) WHERE ended_ms IS NULL",
    "CREATE INDEX holds_live_services ON holds (identity) WHERE kind = 'service' AND takes_any AND ended_ms IS NULL",
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
)

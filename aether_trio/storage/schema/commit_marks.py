"""Table by which the PostgreSQL writer recognizes a commit without an answer.

`commit_marks` has a row for each connection of a writer: the number of the last group that it
committed, written by that group (storage/postgres/writer.py). The upsert reads nothing in the sense
of SERIALIZABLE, so transactions of different connections never conflict over it, and the page has
room enough that no index is touched.
"""

from __future__ import annotations

from typing import Final

FORGET_MS: Final = 24 * 3600 * 1000
"""A row that was not written for so long is deleted: its process has ended, or makes a new row."""

FORGET: Final = "DELETE FROM commit_marks WHERE written_ms < (extract(epoch FROM now()) * 1000)::bigint - $1::bigint"

MIGRATIONS: Final = (
    (
        """CREATE TABLE commit_marks (
    writer TEXT NOT NULL,
    connection INT NOT NULL,
    number {bigint} NOT NULL,
    written_ms {bigint} NOT NULL,
    PRIMARY KEY (writer, connection)
) WITH (fillfactor = 20)""",
        """CREATE FUNCTION aether_mark_commit(w TEXT, c INT, n {bigint}) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO commit_marks (writer, connection, number, written_ms) VALUES (w, c, n, (extract(epoch FROM now()) * 1000)::{bigint})
    ON CONFLICT (writer, connection) DO UPDATE SET number = excluded.number, written_ms = excluded.written_ms;
END $$""",
    ),
)

"""How a program's transaction is recognized when the answer to its COMMIT is lost: PostgreSQL only (storage/postgres/writer.py).

`commit_marks` has a row for each lane of a writer: the number of the last group that it has committed, written by that group. The upsert
reads nothing in the sense of SERIALIZABLE, so that transactions of different lanes never conflict over it, and the page has room enough
that no index is touched.
"""

from __future__ import annotations

from typing import Final

FORGET_MS: Final = 24 * 3600 * 1000
"""Rows of writers that have written nothing for so long are deleted: their process is gone, or begins anew."""

FORGET: Final = "DELETE FROM commit_marks WHERE written_ms < (extract(epoch FROM now()) * 1000)::bigint - $1::bigint"

MIGRATIONS: Final = (
    (
        """CREATE TABLE commit_marks (
    writer TEXT NOT NULL,
    lane INT NOT NULL,
    number {bigint} NOT NULL,
    written_ms {bigint} NOT NULL,
    PRIMARY KEY (writer, lane)
) WITH (fillfactor = 20)""",
        """CREATE FUNCTION aether_mark_commit(w TEXT, l INT, n {bigint}) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO commit_marks (writer, lane, number, written_ms) VALUES (w, l, n, (extract(epoch FROM now()) * 1000)::{bigint})
    ON CONFLICT (writer, lane) DO UPDATE SET number = excluded.number, written_ms = excluded.written_ms;
END $$""",
    ),
)

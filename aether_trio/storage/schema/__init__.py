"""The tables of each logical database, as portable DDL (storage/migrations.py)."""

from __future__ import annotations


class ForPostgres(str):
    """A schema statement for several nodes on PostgreSQL, left out on SQLite."""

    __slots__ = ()

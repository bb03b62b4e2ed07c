"""The tables of each logical database, as portable DDL (storage/migrations.py)."""

from __future__ import annotations


class ForPostgres(str):
    """A statement of a migration for several nodes on one database, not for SQLite."""

    __slots__ = ()

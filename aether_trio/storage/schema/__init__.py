"""The tables of each logical database, one module each, as portable DDL (see migrations.py)."""

from __future__ import annotations


class ForPostgres(str):
    """A statement of a migration that other engines leave out: what only several nodes on one database need."""

    __slots__ = ()

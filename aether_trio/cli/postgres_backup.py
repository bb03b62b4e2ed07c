"""Says which commands back a PostgreSQL database up, and which ones put it back.

PostgreSQL's own tools do it at one moment, for all tables together. The dump leaves out the row of
`log_identity`, so that the gateway on the restored database begins a log of its clients anew
(gateway/restored.py). Texts have no password.
"""

from __future__ import annotations

import re
import shlex
from typing import Final
from urllib.parse import parse_qsl, urlencode

from aether_trio.config import StorageSettings
from aether_trio.storage.postgres.hosts import is_misread

_URL: Final = re.compile(r"(?P<scheme>[a-z]+://)(?:(?P<user>[^@/?]*)@)?(?P<rest>[^?]*)(?:\?(?P<query>.*))?", re.DOTALL)
_ABOUT_PASSWORDS: Final = (
    "The password is not in these commands: the tools ask for it, or read it from ~/.pgpass or PGPASSWORD."
)


def url_without_password(dsn: str) -> str:
    """Return a PostgreSQL URL without its password."""
    match = _URL.fullmatch(dsn)
    if match is None or is_misread(dsn):
        return "URL"
    user = (match["user"] or "").partition(":")[0]
    query = [
        (key, value) for key, value in parse_qsl(match["query"] or "", keep_blank_values=True) if key != "password"
    ]
    pairs = urlencode(query, safe="/")
    return f"{match['scheme']}{user}{'@' if user else ''}{match['rest']}{'?' if pairs else ''}{pairs}"


def _quoted_url(storage: StorageSettings) -> str:
    assert storage.database is not None
    return shlex.quote(url_without_password(storage.database))


def backup_commands(storage: StorageSettings) -> str:
    """Return what to run for a backup of this database."""
    url, schema = _quoted_url(storage), storage.schema
    return "\n".join(
        (
            "this gateway's data is in PostgreSQL, and nothing was copied. While it runs, run either",
            "  the data of this cluster, of one moment:",
            f"    pg_dump --format=custom --no-owner --schema={schema} --no-unlogged-table-data \\",
            f"      --exclude-table-data={schema}.log_identity --file=aether.dump --dbname={url}",
            "  or the whole server, from which you can go to any moment if its WAL is archived:",
            f"    pg_basebackup --format=tar --gzip --checkpoint=fast --pgdata=DIRECTORY --dbname={url}",
            _ABOUT_PASSWORDS,
            f"`aether restore --database {url}` says how to put it back.",
        )
    )


def restore_commands(storage: StorageSettings) -> str:
    """Return what to run to put a backup of this database back."""
    url, schema = _quoted_url(storage), storage.schema
    return "\n".join(
        (
            "this gateway's data is in PostgreSQL, and nothing was changed. Stop all nodes, then run either",
            "  for a file of pg_dump:",
            f"    psql --dbname={url} --command='ALTER SCHEMA {schema} RENAME TO {schema}_before'",
            f"    pg_restore --single-transaction --exit-on-error --no-owner --dbname={url} aether.dump",
            "  or, once a base backup serves, at the moment that you have chosen:",
            f"    psql --dbname={url} --command='DELETE FROM {schema}.log_identity'",  # noqa: S608  # for a person
            "and start the nodes. The last command tells clients that the log is another one; a dump of",
            "`aether backup` needs none.",
            _ABOUT_PASSWORDS,
        )
    )

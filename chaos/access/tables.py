"""Reads the tables after a run; checks the log with `aether audit verify`."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from aether_trio.devtools.process_cluster import SCHEMA, ProcessCluster
from aether_trio.model.access.merkle import EMPTY
from aether_trio.model.audit import audit_id
from aether_trio.services.audit.checkpoints import parse_note, split_notes
from aether_trio.storage.postgres.embedded import SUPERUSER
from chaos.access.history import AccessHistory, Recorded

SEEDED: Final = 1
"""The version of the rules with which a database begins; their row is of another kind."""
_CHANGED: Final = (
    "acl_grant", "acl_revoke", "acl_add_group_member", "acl_remove_group_member", "acl_create_group", "lock", "unlock",
    "token_create", "token_revoke", "authority_grant_exchange", "authority_grant_derive", "authority_grant_revoke",
)  # fmt: skip
"""Operations of audit rows that are changes of access data, in a run."""

_NEW_GRANTS: Final = ("authority_grant_exchange", "authority_grant_derive")


async def read(cluster: ProcessCluster, history: AccessHistory) -> None:
    """Add the changes and the audit rows to the history."""
    for at_ms, items in await cluster.sql(
        f"SELECT at_ms, convert_from(items, 'UTF8') FROM access_changes WHERE version > {SEEDED} ORDER BY version"
    ):
        for kind, key, value in json.loads(items):
            history.recorded[Recorded(int(at_ms), *_change(kind, key, value))] += 1
    # A new grant is known to no node yet, so it is no change that nodes apply.
    for depth, grant_id in await cluster.sql("SELECT depth, grant_id FROM authority_grants"):
        operation = "authority_grant_exchange" if depth == "1" else "authority_grant_derive"
        history.recorded[Recorded(0, operation, grant_id)] += 1
    names = ", ".join(f"'{name}'" for name in _CHANGED)
    for at_ms, operation, resource_id, metadata in await cluster.sql(
        f"SELECT at_ms, operation, resource_id, metadata FROM audit_log WHERE success = 1 AND operation IN ({names}) "
        # Decisions are of that type as well.
        "AND (event_type <> 'authorization' OR resource_type = 'authority_grant')"
    ):
        moment = 0 if operation in _NEW_GRANTS else int(at_ms)
        history.audited[Recorded(moment, *_row(operation, resource_id, json.loads(metadata)))] += 1


def _change(kind: str, key: str, value: Any) -> tuple[str, str]:
    """Return the operation and key of the audit row that an item of a change has."""
    match kind:
        case "rule":
            return ("acl_revoke" if value is None else "acl_grant"), key
        case "group":
            return "acl_create_group", key.partition(":")[2]
        case "member":
            _, name, member_type, member_id = key.split("\x1f")
            return ("acl_remove_group_member" if value is None else "acl_add_group_member"), (
                f"{name}/{member_type}:{member_id}"
            )
        case "lock":
            return ("unlock" if value is None else "lock"), key
        case "token":
            return ("token_revoke" if value["revoked_ms"] else "token_create"), key
        case "grant":
            return "authority_grant_revoke", key
        case _:
            return kind, key


def _row(operation: str, resource_id: str, metadata: dict[str, Any]) -> tuple[str, str]:
    if "member" in metadata:
        return operation, f"{resource_id}/{metadata['member']}"
    return operation, str(metadata.get("rule_id", resource_id))


async def verify(cluster: ProcessCluster, history: AccessHistory, heads: Path) -> None:
    """Check the log with all heads that the nodes have signed."""
    history.heads = len(_notes(heads))
    history.verified_rows = int((await cluster.sql("SELECT count(*) FROM audit_log"))[0][0])
    code, said = await _verify(cluster, heads)
    if code != 0:
        history.verified = [f"exit code {code}: {line}" for line in said.splitlines()] or [f"exit code {code}"]


async def cut_tail(cluster: ProcessCluster, history: AccessHistory, heads: Path, node: str) -> None:
    """Cut the end of a node's tree as a thief of the database would, and look for it.

    The node is dead. The row of the tree fits what is left, and no head in the database tells.
    """
    tree, origin = (await cluster.sql(f"SELECT tree, origin FROM audit_trees WHERE node = '{node}'"))[0]
    sizes = [head.size for note in _notes(heads) for head in _heads(note) if head.origin == origin]
    if not sizes:
        history.cut = f"no head of {origin} was signed"
        return
    left = max(sizes) - 1
    leaves = await cluster.sql(
        f"SELECT encode(leaf_hash, 'hex') FROM audit_log WHERE audit_id >= {audit_id(int(tree), 0)} "
        f"AND audit_id < {audit_id(int(tree), left)} ORDER BY audit_id"
    )
    frontier = EMPTY.extend([bytes.fromhex(leaf) for (leaf,) in leaves]).encode().hex()
    await cluster.sql(
        f"DELETE FROM audit_log WHERE audit_id >= {audit_id(int(tree), left)} AND audit_id < {audit_id(int(tree) + 1, 0)}; "
        f"UPDATE audit_trees SET size = {left}, frontier = '\\x{frontier}' WHERE tree = {tree}; "
        "DELETE FROM audit_heads"
    )
    history.cut = f"rows of {origin} from the {left + 1}th on"
    history.found_cut, _ = await _verify(cluster, heads)


def _notes(heads: Path) -> list[str]:
    with heads.open(encoding="utf-8") as lines:
        return list(split_notes(lines))


def _heads(note: str) -> list[Any]:
    checkpoint = parse_note(note).checkpoint
    return [checkpoint.head, *checkpoint.others]


async def _verify(cluster: ProcessCluster, heads: Path) -> tuple[int, str]:
    dsn = f"postgresql://{SUPERUSER}@127.0.0.1:{cluster.postgres.port}/postgres"
    command = [
        sys.executable,
        "-m",
        "aether_trio",
        "audit",
        "verify",
        "--database",
        dsn,
        "--schema",
        SCHEMA,
        "--heads",
        str(heads),
    ]
    done = await trio.to_thread.run_sync(partial(subprocess.run, command, capture_output=True, text=True, check=False))
    return done.returncode, f"{done.stdout}{done.stderr}"

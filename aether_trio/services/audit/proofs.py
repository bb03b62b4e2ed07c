"""Proves that one row is in the audit log, to someone who has a public key alone.

The proof is the bytes of the row's leaf, an inclusion proof (RFC 9162, 2.1.3), and the first signed
head that covers the row. It shows no other row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from aether_trio.model.access.merkle import HASH_BYTES, Frontier, LeafRange, leaf_hash, verify_inclusion
from aether_trio.model.audit import audit_id, leaf_bytes, place_of
from aether_trio.services.audit.checkpoints import PublicKey, check_note
from aether_trio.services.audit.trees import TEXT_COLUMNS
from aether_trio.services.audit.verify import AuditSource, RawRow


class RowSource(AuditSource, Protocol):
    """A snapshot whose rows can be read as they are."""

    def rows(self, first: int, last: int) -> Iterable[Sequence[RawRow]]:
        """Return the rows with ids from `first` to `last`, in order, in chunks."""


def prove_row(source: RowSource, row_id: int) -> dict[str, Any]:
    """Return the proof of a row, for JSON. Raises LookupError: no row, or no head."""
    number, index = place_of(row_id)
    tree = next((one for one in source.trees if one.number == number), None)
    rows = [row for chunk in source.rows(row_id, row_id) for row in chunk]
    if tree is None or not rows:
        raise LookupError(f"there is no row {row_id}")
    heads = [head for head in source.heads if head.tree == number and head.size > index]
    if not heads:
        raise LookupError(f"no signed head covers the row {row_id} yet: one is signed each minute")
    head = min(heads, key=lambda one: one.size)
    row = rows[0]
    leaf = leaf_bytes(row[1], row[2], row[3], row[TEXT_COLUMNS])
    leaves: list[bytes] = []
    for block in source.blocks(audit_id(number, tree.floor_size), audit_id(number, head.size - 1)):
        hashes = block.leaves
        leaves += [hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES)]
    if len(leaves) != head.size - tree.floor_size:
        raise LookupError(f"rows of the tree {tree.origin} are missing: run `aether audit verify`")
    known = LeafRange(Frontier.decode(tree.floor_size, tree.floor_frontier), leaves)
    return {
        "audit_id": row_id,
        "leaf": leaf.hex(),
        "index": index,
        "size": head.size,
        "proof": [one.hex() for one in known.inclusion_proof(index, head.size)],
        "note": head.note,
        "key": str(PublicKey(tree.origin, tree.public_key)),
    }


def proves(proof: dict[str, Any], key: PublicKey) -> bool:
    """Whether a proof shows that its leaf is in the tree whose head `key` has signed.

    Raises NoteError for a note that is none.
    """
    checkpoint, signed = check_note(proof["note"], {key.name: key})
    hashed = leaf_hash(bytes.fromhex(proof["leaf"]))
    path = [bytes.fromhex(one) for one in proof["proof"]]
    head = checkpoint.head
    return (
        signed and head.size == proof["size"] and verify_inclusion(hashed, proof["index"], head.size, path, head.root)
    )

"""The Merkle tree of RFC 6962 and RFC 9162: roots, and proofs that others check.

    hash of a leaf        SHA-256(0x00 || leaf)
    hash of two subtrees  SHA-256(0x01 || left || right); the left one is the largest full tree
                          that is smaller than both together
    root of no leaves     SHA-256 of nothing

A `Frontier` is what a writer keeps of its tree: the roots of its largest full subtrees, one for
each 1 in the binary size, at most 63 hashes. With it leaves are appended and roots computed, and
none of the leaves is needed any more. A `LeafRange` has the leaves behind a frontier, and makes
proofs about them: so the oldest leaves may be deleted, and those that remain stay provable.

Hashes are 32 bytes. Nothing here trusts its input: a proof of a wrong shape is not valid, and
raises nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = sha256().digest()
_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf."""
    return sha256(_LEAF + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the root of a tree that consists of two subtrees with these roots."""
    return sha256(_NODE + left + right).digest()


def _pairs(hashes: Sequence[bytes]) -> list[bytes]:
    return [sha256(b"\x01" + left + right).digest() for left, right in zip(hashes[::2], hashes[1::2], strict=True)]


@dataclass(frozen=True, slots=True)
class Frontier:
    """The roots of a tree's largest full subtrees, the largest and leftmost first.

    Invariant: the sizes of the subtrees are the powers of two whose sum is `size`.
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 0 or self.size.bit_count() != len(self.hashes):
            raise ValueError(f"a tree of {self.size} leaves has no frontier of {len(self.hashes)} hashes")

    @classmethod
    def decode(cls, size: int, data: bytes) -> Frontier:
        """Read what `encode` wrote. Raises ValueError."""
        if len(data) % HASH_BYTES:
            raise ValueError(f"a frontier of {len(data)} bytes is no sequence of hashes")
        return cls(size, tuple(data[start : start + HASH_BYTES] for start in range(0, len(data), HASH_BYTES)))

    def encode(self) -> bytes:
        """Return the hashes one after another."""
        return b"".join(self.hashes)

    def extend(self, leaves: Iterable[bytes]) -> Frontier:
        """Return the frontier with the hashes of further leaves appended."""
        added = leaves if isinstance(leaves, list) else list(leaves)
        size, stack, start = self.size, list(self.hashes), 0
        while start < len(added):
            # The largest full subtree that may begin here, and that the leaves fill.
            largest = size & -size or 1 << 62
            count = min(largest, 1 << (len(added) - start).bit_length() - 1)
            level = added[start : start + count]
            while len(level) > 1:
                level = _pairs(level)
            start += count
            [top] = level
            carry = size
            size += count
            while carry & count:  # as in a binary addition: two subtrees of one size become one
                top = node_hash(stack.pop(), top)
                carry &= ~count
                count <<= 1
            stack.append(top)
        return Frontier(size, tuple(stack))

    def root(self) -> bytes:
        """Return the root of the tree."""
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for left in self.hashes[-2::-1]:
            root = node_hash(left, root)
        return root


EMPTY: Final = Frontier()


class LeafRange:
    """The leaves of a tree from `before.size` on; makes proofs about them.

    `before` stands for the leaves that are not there any more, `leaves` are hashes.
    """

    def __init__(self, before: Frontier, leaves: Sequence[bytes]) -> None:
        self._leaves = leaves
        self._first = before.size
        self._known: dict[tuple[int, int], bytes] = {}
        start = 0
        for bit, root in zip(_bits(before.size), before.hashes, strict=True):
            self._known[start, start + bit] = root
            start += bit

    @property
    def size(self) -> int:
        """The size of the tree."""
        return self._first + len(self._leaves)

    def root(self, size: int) -> bytes:
        """Return the root that the tree had at a size, which is not before the range."""
        self._check(size)
        return self._subtree(0, size) if size else EMPTY_ROOT

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """Prove that a leaf of this range is in the tree of `size` (RFC 9162, 2.1.3.1)."""
        self._check(size)
        if not self._first <= index < size:
            raise ValueError(f"there is no leaf {index} in the leaves {self._first} to {size}")
        path: list[bytes] = []
        low, high = 0, size
        while high - low > 1:
            middle = low + _split(high - low)
            if index < middle:
                path.append(self._subtree(middle, high))
                high = middle
            else:
                path.append(self._subtree(low, middle))
                low = middle
        return path[::-1]

    def consistency_proof(self, first: int, second: int) -> list[bytes]:
        """Prove that the tree of `first` begins the tree of `second` (RFC 9162, 2.1.4.1)."""
        self._check(second)
        if not max(self._first, 1) <= first <= second:
            raise ValueError(f"there is no proof from {first} to {second} in a range from {self._first}")
        path: list[bytes] = []
        low, high, whole = 0, second, True
        while first != high:
            middle = low + _split(high - low)
            if first <= middle:
                path.append(self._subtree(middle, high))
                high = middle
            else:
                path.append(self._subtree(low, middle))
                low, whole = middle, False
        if not whole:
            path.append(self._subtree(low, high))
        return path[::-1]

    def _check(self, size: int) -> None:
        if not self._first <= size <= self.size:
            raise ValueError(f"the leaves {self._first} to {self.size} are known, and {size} is none of these sizes")

    def _subtree(self, low: int, high: int) -> bytes:
        known = self._known.get((low, high))
        if known is not None:
            return known
        if high - low == 1:
            return self._leaves[low - self._first]
        if low >= self._first:
            return Frontier().extend(self._leaves[low - self._first : high - self._first]).root()
        middle = low + _split(high - low)
        return node_hash(self._subtree(low, middle), self._subtree(middle, high))


def _bits(size: int) -> list[int]:
    """Return the powers of two whose sum is `size`, the largest first."""
    return [1 << place for place in range(size.bit_length() - 1, -1, -1) if size >> place & 1]


def _split(count: int) -> int:
    """Return the largest power of two below `count`, which is 2 or more."""
    return 1 << (count - 1).bit_length() - 1


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether a proof shows that `leaf` (a hash) has number `index` in a tree.

    RFC 9162, 2.1.3.2.
    """
    if not 0 <= index < size:
        return False
    node, last, found = index, size - 1, leaf
    for one in proof:
        if not last:
            return False
        if node & 1 or node == last:
            found = node_hash(one, found)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            found = node_hash(found, one)
        node >>= 1
        last >>= 1
    return not last and found == root


def verify_consistency(first: int, first_root: bytes, second: int, second_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the tree of a first size and root begins the second.

    RFC 9162, 2.1.4.2. The empty tree begins every tree.
    """
    if not 0 <= first <= second or (not first and (proof or first_root != EMPTY_ROOT)):
        return False
    if first == second:
        return not proof and first_root == second_root
    if not first:
        return True
    path = list(proof) if first & (first - 1) else [first_root, *proof]
    if not path:
        return False
    node, last = first - 1, second - 1
    while node & 1:
        node >>= 1
        last >>= 1
    old = new = path[0]
    for one in path[1:]:
        if not last:
            return False
        if node & 1 or node == last:
            old, new = node_hash(one, old), node_hash(one, new)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            new = node_hash(new, one)
        node >>= 1
        last >>= 1
    return not last and old == first_root and new == second_root

"""The tree against published vectors, and against RFC 9162's own definition."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.access.merkle import (
    EMPTY,
    EMPTY_ROOT,
    Frontier,
    LeafRange,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

# The test tree of Certificate Transparency's implementations.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
HASHES = [leaf_hash(leaf) for leaf in LEAVES]
ALL = LeafRange(EMPTY, HASHES)


def as_bytes(texts: Sequence[str]) -> list[bytes]:
    return [bytes.fromhex(text) for text in texts]


@pytest.mark.parametrize("size", range(9))
def test_published_roots(size: int) -> None:
    assert EMPTY.extend(HASHES[:size]).root() == ALL.root(size) == bytes.fromhex(ROOTS[size])


@pytest.mark.parametrize("place", INCLUSION)
def test_published_inclusion_proofs(place: tuple[int, int]) -> None:
    index, size = place
    proof = ALL.inclusion_proof(index, size)
    assert proof == as_bytes(INCLUSION[place])
    assert verify_inclusion(HASHES[index], index, size, proof, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize("sizes", CONSISTENCY)
def test_published_consistency_proofs(sizes: tuple[int, int]) -> None:
    first, second = sizes
    proof = ALL.consistency_proof(first, second)
    assert proof == as_bytes(CONSISTENCY[sizes])
    assert verify_consistency(first, bytes.fromhex(ROOTS[first]), second, bytes.fromhex(ROOTS[second]), proof)


# RFC 9162, 2.1.1, 2.1.3.1 and 2.1.4.1, as they are written.


def naive_root(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return sha256(b"\0" + leaves[0]).digest()
    k = split(len(leaves))
    return sha256(b"\1" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def split(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def naive_path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    n = len(leaves)
    if n == 1:
        return []
    k = split(n)
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_proof(m: int, leaves: Sequence[bytes], whole: bool = True) -> list[bytes]:
    n = len(leaves)
    if m == n:
        return [] if whole else [naive_root(leaves)]
    k = split(n)
    if m <= k:
        return [*naive_proof(m, leaves[:k], whole), naive_root(leaves[k:])]
    return [*naive_proof(m - k, leaves[k:], False), naive_root(leaves[:k])]


trees = st.lists(st.binary(max_size=3), min_size=1, max_size=70)


@given(st.data(), trees)
def test_a_range_of_leaves_proves_as_the_whole_tree_does(data: st.DataObject, leaves: list[bytes]) -> None:
    size = data.draw(st.integers(1, len(leaves)))
    gone = data.draw(st.integers(0, size - 1))
    hashes = [leaf_hash(leaf) for leaf in leaves]
    before = EMPTY.extend(hashes[:gone])
    kept = LeafRange(before, hashes[gone:])
    assert kept.size == len(leaves)
    root = naive_root(leaves[:size])
    assert kept.root(size) == root == before.extend(hashes[gone:size]).root()

    index = data.draw(st.integers(gone, size - 1))
    path = kept.inclusion_proof(index, size)
    assert path == naive_path(index, leaves[:size])
    assert verify_inclusion(hashes[index], index, size, path, root)

    first = data.draw(st.integers(max(gone, 1), size))
    proof = kept.consistency_proof(first, size)
    assert proof == naive_proof(first, leaves[:size])
    assert verify_consistency(first, naive_root(leaves[:first]), size, root, proof)


@given(st.data(), trees)
def test_appending_in_any_portions_gives_one_frontier(data: st.DataObject, leaves: list[bytes]) -> None:
    hashes = [leaf_hash(leaf) for leaf in leaves]
    frontier = EMPTY
    cuts = sorted(data.draw(st.lists(st.integers(0, len(leaves)), max_size=5)))
    for start, end in zip([0, *cuts], [*cuts, len(leaves)], strict=True):
        frontier = frontier.extend(iter(hashes[start:end]))
    assert frontier == EMPTY.extend(hashes)
    assert Frontier.decode(frontier.size, frontier.encode()) == frontier


@given(st.data(), trees)
def test_a_proof_of_anything_else_is_not_valid(data: st.DataObject, leaves: list[bytes]) -> None:
    """Another leaf, number, size, root, or a proof with a hash more, less or changed."""
    hashes = [leaf_hash(leaf) for leaf in leaves]
    tree = LeafRange(EMPTY, hashes)
    size = len(leaves)
    index = data.draw(st.integers(0, size - 1))
    root, path = tree.root(size), tree.inclusion_proof(index, size)
    other = sha256(b"other").digest()
    assert not verify_inclusion(other, index, size, path, root)
    assert not verify_inclusion(hashes[index], index, size, path, other)
    assert not verify_inclusion(hashes[index], index, size, [*path, other], root)
    assert not verify_inclusion(hashes[index], size, size, path, root)
    assert not verify_inclusion(hashes[index], -1, size, path, root)
    for place in range(len(path)):
        assert not verify_inclusion(hashes[index], index, size, path[:place] + path[place + 1 :], root)
        assert not verify_inclusion(hashes[index], index, size, [*path[:place], other, *path[place + 1 :]], root)

    first = data.draw(st.integers(1, size))
    old, proof = tree.root(first), tree.consistency_proof(first, size)
    assert not verify_consistency(first, other, size, root, proof)
    assert not verify_consistency(first, old, size, other, proof)
    assert not verify_consistency(first, old, size, root, [*proof, other])
    assert not verify_consistency(size + 1, old, size, root, proof)
    for place in range(len(proof)):
        assert not verify_consistency(first, old, size, root, proof[:place] + proof[place + 1 :])
        assert not verify_consistency(first, old, size, root, [*proof[:place], other, *proof[place + 1 :]])


def test_the_empty_tree_begins_every_tree() -> None:
    root = bytes.fromhex(ROOTS[8])
    assert verify_consistency(0, EMPTY_ROOT, 8, root, [])
    assert not verify_consistency(0, root, 8, root, [])
    assert not verify_consistency(0, EMPTY_ROOT, 8, root, [root])


@pytest.mark.parametrize(("size", "hashes"), [(1, ()), (0, (b"x",)), (3, (b"x",)), (-1, ())])
def test_a_frontier_has_a_hash_for_each_bit_of_its_size(size: int, hashes: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="has no frontier"):
        Frontier(size, hashes)
    with pytest.raises(ValueError, match="frontier"):
        Frontier.decode(1, b"short")


def test_no_proof_of_what_is_not_there() -> None:
    kept = LeafRange(EMPTY.extend(HASHES[:3]), HASHES[3:])
    for index, size in [(2, 8), (8, 8), (3, 9), (3, 2)]:
        with pytest.raises(ValueError, match=r"leaf|leaves"):
            kept.inclusion_proof(index, size)
    for first, second in [(2, 8), (8, 7), (4, 9)]:
        with pytest.raises(ValueError, match=r"proof|known"):
            kept.consistency_proof(first, second)


def test_a_leaf_is_not_a_node() -> None:
    left, right = HASHES[:2]
    assert leaf_hash(left + right) != node_hash(left, right)

"""Signed notes: the published example, round trips, and what is no note."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.services.audit.checkpoints import (
    NoteError,
    PublicKey,
    SigningKey,
    TreeCheckpoint,
    TreeHead,
    check_note,
    parse_note,
    split_notes,
)
from aether_trio.services.audit.keys import open_signing_key
from aether_trio.storage.errors import StorageSetupError

# The example of golang.org/x/mod/sumdb/note and of C2SP's signed-note.
PETER_NEUMANN = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)

heads = st.builds(
    TreeHead,
    st.from_regex(r"[a-z][a-z0-9./-]{0,20}", fullmatch=True),
    st.integers(0, 2**62),
    st.binary(min_size=32, max_size=32),
)
checkpoints = st.builds(TreeCheckpoint, heads, st.integers(0, 2**50), st.lists(heads, max_size=3).map(tuple))
seeds = st.binary(min_size=32, max_size=32)


def test_the_published_example() -> None:
    key = PublicKey.parse(PETER_NEUMANN)
    note = parse_note(NOTE)
    assert str(key) == PETER_NEUMANN
    assert key.has_signed(note)
    assert not key.has_signed(parse_note(NOTE.replace("answer", "cause")))
    with pytest.raises(NoteError, match="three lines"):
        _ = note.checkpoint


@given(checkpoints, seeds)
def test_what_was_signed_is_read_again(checkpoint: TreeCheckpoint, seed: bytes) -> None:
    key = SigningKey.from_seed(seed)
    public = PublicKey(checkpoint.head.origin, key.public_raw)
    note = key.sign(checkpoint)
    assert check_note(note, {public.name: public}) == (checkpoint, True)
    assert PublicKey.parse(str(public)) == public
    lines = note.split("\n")
    assert lines[:2] == [checkpoint.head.origin, str(checkpoint.head.size)]


@given(checkpoints, seeds, st.data())
def test_a_changed_byte_of_the_text_is_not_signed(checkpoint: TreeCheckpoint, seed: bytes, data: st.DataObject) -> None:
    key = SigningKey.from_seed(seed)
    public = PublicKey(checkpoint.head.origin, key.public_raw)
    note = key.sign(checkpoint)
    text = note[: note.rindex("\n\n") + 1]
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("0aA+ \n").filter(lambda one: one != text[place]))
    changed = note[:place] + letter + note[place + 1 :]
    try:
        found, signed = check_note(changed, {public.name: public})
    except NoteError:
        return
    assert not signed or found == checkpoint


@given(checkpoints, seeds, seeds)
def test_another_key_of_the_same_name_has_not_signed(checkpoint: TreeCheckpoint, seed: bytes, other: bytes) -> None:
    public = PublicKey(checkpoint.head.origin, SigningKey.from_seed(other).public_raw)
    _, signed = check_note(SigningKey.from_seed(seed).sign(checkpoint), {public.name: public})
    assert signed == (seed == other)


def test_a_cosignature_does_not_harm_and_a_wrong_one_of_ours_does() -> None:
    key, witness = SigningKey.from_seed(bytes(32)), SigningKey.from_seed(bytes([1] * 32))
    checkpoint = TreeCheckpoint(TreeHead("tree", 1, bytes(32)), 7)
    public = PublicKey("tree", key.public_raw)
    note = key.sign(checkpoint)
    line = witness.sign(TreeCheckpoint(TreeHead("witness", 1, bytes(32)), 7)).splitlines()[-1]
    assert check_note(f"{note}{line}\n", {"tree": public}) == (checkpoint, True)
    wrong = key.sign(TreeCheckpoint(TreeHead("tree", 2, bytes(32)), 7)).splitlines()[-1]
    assert check_note(f"{note}{wrong}\n", {"tree": public}) == (checkpoint, False)


@given(st.lists(st.tuples(checkpoints, seeds), max_size=4), st.integers(0, 2))
def test_a_file_of_notes_is_split_into_them(signed: list[tuple[TreeCheckpoint, bytes]], gaps: int) -> None:
    notes = [SigningKey.from_seed(seed).sign(checkpoint) for checkpoint, seed in signed]
    text = "".join(note + "\n" * (1 + gaps) for note in notes)
    assert list(split_notes(text.splitlines(keepends=True))) == notes
    assert list(split_notes(text.rstrip("\n").splitlines(keepends=True))) == notes


@pytest.mark.parametrize(
    "note",
    [
        "",
        "text",
        "text\n\n",
        "text\n\n— name",
        "text\n\n— name AAAA\n",
        "text\n\n- name AAAAAAAAAAAA\n",
        "text\n\n— na+me AAAAAAAAAAAA\n",
        "text\n\n— name !!!\n",
        "te\x07xt\n\n— name AAAAAAAAAAAA\n",
        "x" * 2_000_000,
    ],
)
def test_what_is_no_note(note: str) -> None:
    with pytest.raises(NoteError):
        parse_note(note)


@pytest.mark.parametrize(
    "text",
    [
        "origin\n1\n",
        "origin\n01\n" + "A" * 43 + "=\n",
        "origin\n-1\n" + "A" * 43 + "=\n",
        "origin\n1\nAAAA\n",
        "origin\n1\n" + "A" * 43 + "=\n\nmore\n",
        "origin\n1\n" + "A" * 43 + "=\naether-head other 1 AAAA\n",
    ],
)
def test_what_is_no_checkpoint(text: str) -> None:
    with pytest.raises(NoteError):
        check_note(f"{text}\n— origin AAAAAAAAAAAA\n", {})


@pytest.mark.parametrize("text", ["", "a+b", "a+00000000+AAAA", PETER_NEUMANN.replace("c74f", "c74e"), "a b+1+AQ=="])
def test_what_is_no_public_key(text: str) -> None:
    with pytest.raises(NoteError):
        PublicKey.parse(text)


def test_a_key_file_is_made_for_its_user_alone_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "audit.key"
    with open_signing_key(path) as key:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with open_signing_key(path) as again:
        assert again.public_raw == key.public_raw


def test_two_processes_never_share_a_key(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    with open_signing_key(path) as one, open_signing_key(path) as two:
        assert one.public_raw != two.public_raw
        assert sorted(found.name for found in tmp_path.iterdir()) == ["audit-2.key", "audit.key"]
    with open_signing_key(path) as one_again:
        assert one_again.public_raw == one.public_raw


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    with open_signing_key(path):
        pass
    path.chmod(0o640)
    with pytest.raises(StorageSetupError, match="chmod 600"), open_signing_key(path):
        pass


@pytest.mark.parametrize("content", ["nothing\n", "aether-audit-key-1\nAAAA\n", "aether-audit-key-1\n%\n"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "audit.key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(StorageSetupError, match="has no key"), open_signing_key(path):
        pass


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "audit.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageSetupError, match="cannot use"), open_signing_key(tmp_path / "audit.key"):
        pass
    with pytest.raises(StorageSetupError, match="cannot use"), open_signing_key(Path("/proc/nowhere/audit.key")):
        pass

"""Signed heads of trees: C2SP checkpoints, which are signed notes, with Ed25519.

    aether-audit/gateway-1/1f0c9a52             the origin: the name of a tree, and of its key
    1742                                        its size
    qINS1GRFhWHwdkUeqLEoP4yEMkTBBzxBkGwGQlVkVcs=  its root (RFC 6962)
    aether-time 1764380460000                   extension: when it was signed, Unix ms
    aether-head ORIGIN SIZE ROOT                extension: the newest head of another tree
    (an empty line)
    — ORIGIN base64(key id, signature)

So a head fixes the rows of all trees that it names, not of one alone. The formats are those of
c2sp.org/tlog-checkpoint and c2sp.org/signed-note, so other tools and witnesses read and cosign
them. A public key is written as they write it: NAME+KEYID+BASE64.

What retention deletes is signed too (`floor_text`). That note is no checkpoint, so neither can be
taken for the other.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from aether_trio.model.access.merkle import HASH_BYTES

ED25519: Final = b"\x01"
"""The signature type of C2SP's signed notes."""
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
MAX_NOTE_BYTES: Final = 1024 * 1024
_DASH: Final = "\N{EM DASH} "
_TIME: Final = "aether-time"
_HEAD: Final = "aether-head"
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_NAME: Final = re.compile(r"[^\s+]+")


class NoteError(ValueError):
    """A text is no signed note of a checkpoint, or no public key; says why."""


@dataclass(frozen=True, slots=True)
class TreeHead:
    """The size and root of the tree with a name."""

    origin: str
    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class TreeCheckpoint:
    """What a node signs: the head of its tree, the time, and heads of other trees."""

    head: TreeHead
    at_ms: int
    others: tuple[TreeHead, ...] = ()

    def text(self) -> str:
        """Return the text that is signed."""
        head = self.head
        lines = [head.origin, str(head.size), _base64(head.root), f"{_TIME} {self.at_ms}"]
        lines += (f"{_HEAD} {other.origin} {other.size} {_base64(other.root)}" for other in self.others)
        return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A text, and its signatures as (key name, key id and signature)."""

    text: str
    signatures: tuple[tuple[str, bytes], ...]

    @property
    def checkpoint(self) -> TreeCheckpoint:
        """Read the text as a checkpoint. Raises NoteError."""
        return _read_checkpoint(self.text)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The name and the Ed25519 public key of a tree."""

    name: str
    raw: bytes

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.raw) != KEY_BYTES:
            raise NoteError("a public key has a name without spaces and plus signs, and 32 bytes")

    @property
    def key_id(self) -> bytes:
        """The four bytes that name the key in a signature."""
        return sha256(self.name.encode() + b"\n" + ED25519 + self.raw).digest()[:4]

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Read NAME+KEYID+BASE64. Raises NoteError."""
        parts = text.strip().split("+", 2)
        if len(parts) != 3:  # the base64 may have more of them
            raise NoteError("a public key is NAME+KEYID+BASE64, as `aether audit keys` prints it")
        data = _unbase64(parts[2])
        if data[:1] != ED25519:
            raise NoteError(f"the key of {parts[0]} is no Ed25519 key")
        key = cls(parts[0], data[1:])
        if key.key_id.hex() != parts[1].lower():
            raise NoteError(f"the key of {parts[0]} has the id {key.key_id.hex()}, not {parts[1]}")
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{_base64(ED25519 + self.raw)}"

    def has_signed(self, note: SignedNote) -> bool:
        """Whether this key has signed a note: at least one valid signature, none invalid."""
        found = [data[4:] for name, data in note.signatures if name == self.name and data[:4] == self.key_id]
        public = Ed25519PublicKey.from_public_bytes(self.raw)
        try:
            for signature in found:
                public.verify(signature, note.text.encode())
        except InvalidSignature:
            return False
        return bool(found)


class SigningKey:
    """The Ed25519 key with which a node signs the heads of its tree."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_raw: bytes = private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """Make the key of 32 secret bytes (RFC 8032)."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes."""
        return self._private.private_bytes_raw()

    def sign(self, checkpoint: TreeCheckpoint) -> str:
        """Return a checkpoint as a signed note; the key has the name of its origin."""
        return self.sign_text(checkpoint.head.origin, checkpoint.text())

    def sign_text(self, name: str, text: str) -> str:
        """Return a text as a signed note; the key has this name."""
        public = PublicKey(name, self.public_raw)
        signature = public.key_id + self._private.sign(text.encode())
        return f"{text}\n{_DASH}{public.name} {_base64(signature)}\n"


def floor_text(floor: TreeHead) -> str:
    """Return what is signed when retention deletes the rows before `floor.size`."""
    return f"aether-floor\n{floor.origin} {floor.size} {_base64(floor.root)}\n"


def parse_note(note: str) -> SignedNote:
    """Split a signed note into its text and signatures. Raises NoteError."""
    if len(note) > MAX_NOTE_BYTES or any(one < " " and one != "\n" for one in note):
        raise NoteError("a signed note has at most 1 MiB and no control characters")
    text, gap, signed = note.rpartition("\n\n")
    if not gap or not signed.endswith("\n"):
        raise NoteError("a signed note is a text, an empty line, and signatures")
    signatures = []
    for line in signed[:-1].split("\n"):
        name, space, data = line.removeprefix(_DASH).partition(" ")
        raw = _unbase64(data)
        if not line.startswith(_DASH) or not space or not _NAME.fullmatch(name) or len(raw) <= 4:
            raise NoteError("a line behind the empty line of a signed note is no signature")
        signatures.append((name, raw))
    return SignedNote(f"{text}\n", tuple(signatures))


def split_notes(lines: Iterable[str]) -> Iterator[str]:
    """Split a file of notes, with an empty line behind each, into its notes."""
    current: list[str] = []
    signed = False
    for line in lines:
        stripped = line.rstrip("\n")
        if not stripped and (signed or not current):
            if current:
                yield "".join(current)
            current, signed = [], False
            continue
        signed = signed or stripped.startswith(_DASH)
        current.append(f"{stripped}\n")
    if current:
        yield "".join(current)


def _read_checkpoint(text: str) -> TreeCheckpoint:
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
        raise NoteError("a checkpoint has three lines or more, none of them empty")
    at_ms, others = 0, []
    for line in lines[3:-1]:
        word, *rest = line.split(" ")
        match word, rest:
            case "aether-time", [moment] if _SIZE.fullmatch(moment):
                at_ms = int(moment)
            case "aether-head", [origin, size, root]:
                others.append(_read_head(origin, size, root))
    return TreeCheckpoint(_read_head(*lines[:3]), at_ms, tuple(others))


def _read_head(origin: str, size: str, root: str) -> TreeHead:
    raw = _unbase64(root)
    if not _SIZE.fullmatch(size) or len(raw) != HASH_BYTES:
        raise NoteError(f"a checkpoint of {origin} has no size or no root of 32 bytes")
    return TreeHead(origin, int(size), raw)


def check_note(note: str, keys: Mapping[str, PublicKey]) -> tuple[TreeCheckpoint, bool]:
    """Return a note's checkpoint, and whether the key of its origin has signed it.

    `keys` are by name. Raises NoteError.
    """
    signed = parse_note(note)
    checkpoint = signed.checkpoint
    key = keys.get(checkpoint.head.origin)
    return checkpoint, key is not None and key.has_signed(signed)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteError("a part of a signed note is no base64") from None

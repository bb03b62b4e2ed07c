"""Reads a recording (recorder.c), and makes the files that a power loss leaves.

A disk may lose what was not synced, in any part: after a power loss a file has the bytes of all
writes before the last completed sync began, and of later ones any selection, in sectors. That a
file was made or unlinked is taken as durable at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

HEAD: Final = struct.Struct("=cIQI")
SECTOR_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Record:
    """One operation of the recorded process; recorder.c has the kinds."""

    kind: str
    name: str
    offset: int
    data: bytes


def read_records(path: Path) -> list[Record]:
    """Read all records, each with the name of its file."""
    content = path.read_bytes()
    names: dict[int, str] = {}
    found = []
    at = 0
    while at < len(content):
        kind, file, offset, length = HEAD.unpack_from(content, at)
        at += HEAD.size
        data = content[at : at + length]
        at += length
        if kind in b"ou":
            names[file] = data.decode()
        found.append(Record(kind.decode(), names[file], offset, data))
    return found


@dataclass
class _File:
    durable: bytearray
    later: list[tuple[int, Record]]
    """Writes and cuts that are not surely durable, with their numbers."""


class Disk:
    """The files of a recording up to some record, with what is durable of them."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._number = 0
        self._begun: dict[int, tuple[str, int]] = {}

    def apply(self, record: Record) -> None:
        """Take the next record."""
        self._number += 1
        if record.kind == "u":
            self._files.pop(record.name, None)
            return
        file = self._files.setdefault(record.name, _File(bytearray(), []))
        if record.kind in "wt":
            file.later.append((self._number, record))
        elif record.kind in "as":
            self._begun[self._number] = (record.name, self._number)
        elif record.kind == "e":
            name, begun = self._begun.pop(record.offset)
            assert name == record.name
            for number, write in file.later:
                if number < begun:
                    _change(file.durable, write)
            file.later = [(number, write) for number, write in file.later if number > begun]

    def without_power(self, random: Random, share: float) -> dict[str, bytes]:
        """The content of each file if a share of the sectors that were not synced is kept."""
        return {name: _survivor(file, random, share) for name, file in self._files.items()}

    def all_written(self, name: str) -> bytes:
        """The content of one file as the process saw it."""
        return _survivor(self._files[name], Random(0), 1.0)


def _survivor(file: _File, random: Random, share: float) -> bytes:
    content = bytearray(file.durable)
    for _, write in file.later:
        if write.kind == "t":
            if random.random() < share:
                _change(content, write)
            continue
        for start, part in _sectors(write.offset, write.data):
            if random.random() < share:
                _change(content, Record("w", write.name, start, part))
    return bytes(content)


def _sectors(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        size = SECTOR_BYTES - (offset + at) % SECTOR_BYTES
        yield offset + at, data[at : at + size]
        at += size


def _change(content: bytearray, record: Record) -> None:
    end = record.offset + len(record.data)
    if record.kind == "t":
        del content[record.offset :]
        end = record.offset
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    content[record.offset : end] = record.data


def crash_points(records: Sequence[Record], random: Random, count: int) -> list[int]:
    """Choose records after which the power goes, most of them answers."""
    answers = [n for n, record in enumerate(records, 1) if record.kind == "w" and record.name == "answers"]
    anywhere = range(answers[0], len(records) + 1)
    chosen = {random.choice(answers) for _ in range(count * 2 // 3)} | {
        random.choice(anywhere) for _ in range(count // 3)
    }
    return sorted(chosen)

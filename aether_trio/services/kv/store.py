"""Performs operations on single keys, from memory or in the database.

An operation that writes nothing needs no transaction, and none that waits for a disk. Where the
entry of its key is remembered (cache.py) it needs no statement either: a GET, but also a SET_NX of
a key that exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from aether_trio.services.kv.cache import Change, EntryCache, Name
from aether_trio.services.kv.entries import UNKNOWN, Entry, Result, Unknown
from aether_trio.services.kv.programs import KeyRequest, Performed, perform, read
from aether_trio.services.kv.ranges import Deleted
from aether_trio.storage.base import CommitUnknown, Database, Program, StorageUnavailable

SMALL_VALUE_BYTES: Final = 16 * 1024
"""The longest value written in the event loop: a longer one blocks it for too long."""


class KeyStore:
    """The single keys of the "state" database."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._cache = None if db.shared else EntryCache()

    @property
    def takes_many(self) -> bool:
        """Whether operations on several keys may share a transaction.

        Not where other processes write too: their transactions could wait for each other's keys.
        """
        return self._cache is not None

    def entry(self, request: KeyRequest) -> Entry | Unknown | None:
        """Return the committed entry of a request's key, if memory has it."""
        return UNKNOWN if self._cache is None else self._cache.entry(request.name)

    def remembered(self, request: KeyRequest) -> Result | None:
        """Return the result of an operation that writes nothing, if memory has it."""
        entry = self.entry(request)
        if isinstance(entry, Unknown):
            return None
        result, new = request.decide(entry)
        return result if new is entry else None

    async def read(self, request: KeyRequest) -> Result:
        """Perform an operation that never writes. Raises StorageUnavailable."""
        program = partial(read, request)
        cache = self._cache
        if cache is None:
            return (await self._db.read_small(program))[0]
        reading = cache.begin_read(request.name)
        result, entry = await self._db.read_small(program)
        cache.end_read(reading, entry)
        return result

    async def write(self, requests: Sequence[KeyRequest], *, small: bool) -> list[Result]:
        """Perform operations in one transaction, in order. Raises StorageUnavailable.

        `small`: none has a value longer than SMALL_VALUE_BYTES.
        """
        run = self._db.run_small if small else self._db.run
        cache = self._cache
        if cache is None:
            return [result for result, _ in await run(partial(perform, requests))]
        changes: dict[Name, Change] = {}
        for request in requests:
            name = request.name
            change = changes.get(name)
            if change is None:
                change = changes[name] = cache.begin_write(name)
            request.change = change
        try:
            stamp, performed = await run(partial(_perform_stamped, cache, requests))
        except BaseException as error:
            nothing_written = isinstance(error, StorageUnavailable) and not isinstance(error, CommitUnknown)
            for change in changes.values():
                (cache.abandoned if nothing_written else cache.lost)(change)
            raise
        results: list[Result] = []
        left: dict[Name, Entry | None] = {}
        for request, (result, entry) in zip(requests, performed, strict=True):
            results.append(result)
            left[request.name] = entry
        for name, change in changes.items():
            cache.committed(change, stamp, left[name])
        return results

    async def delete_many(self, program: Callable[[], Program[Deleted]]) -> Deleted:
        """Run a program that deletes a page of keys. Raises StorageUnavailable."""
        cache = self._cache
        if cache is None:
            return await self._db.run(program)
        cache.begin_deletion()
        try:
            stamp, deleted = await self._db.run(partial(_delete_stamped, cache, program))
        except BaseException:
            cache.deletion_lost()
            raise
        cache.deleted(stamp, deleted.names)
        return deleted


def _perform_stamped(cache: EntryCache, requests: Sequence[KeyRequest]) -> Program[tuple[int, list[Performed]]]:
    stamp = cache.stamp()
    return stamp, (yield from perform(requests))


def _delete_stamped(cache: EntryCache, program: Callable[[], Program[Deleted]]) -> Program[tuple[int, Deleted]]:
    stamp = cache.stamp()
    return stamp, (yield from program())

"""Large documents are compiled outside of transactions, which others wait for."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

from aether_trio.model.limits import KIB
from aether_trio.services.tasks.transaction.interface import NotReadyError
from aether_trio.services.workflows.documents.compilation_thread import compile_in_thread

LARGE_BYTES: Final = 16 * KIB
"""The size of a document from which on it is compiled outside of transactions."""


class NotCompiledError(NotReadyError):
    """A transaction needs a large document that is not compiled.

    `compile_it` compiles it and keeps the result where the transaction looks for it.
    """

    def __init__(self, compile_it: Callable[[], object], size: int) -> None:
        super().__init__()
        self._compile_it = compile_it
        self._size = size

    async def prepare(self) -> None:
        await compile_in_thread(self._compile_it, self._size)


class LargeDocuments:
    """Asks for the compilation of large documents outside of transactions.

    A transaction that needs more of them than are kept compiles those itself that it has asked for
    before; else it would ask for ever.
    """

    def __init__(self) -> None:
        self._asked: set[Hashable] = set()

    def ask(self, key: Hashable, size: int, compile_it: Callable[[], object]) -> None:
        """Raise NotCompiledError if a document of this size is to be compiled elsewhere."""
        if size <= LARGE_BYTES:
            return
        if key in self._asked:
            self._asked.discard(key)
            return
        self._asked.add(key)
        raise NotCompiledError(compile_it, size)

"""Remembers rows of live tasks, where no other process writes to their table.

CLAIM and COMPLETE of a task find its row here, as the commit before them has left it, instead of
reading it from the database: a tenth of the CPU of a task.

Invariants, for a database that runs one program after the other:

* a row that is here is the row that the table has, also within a transaction;
* a row is unknown from when a program writes it (`writes`) until that program is committed, and if
  another program has written it since, until that one is (`committed`);
* a row that a statement changes besides, is unknown until a program writes it (`forget_row`);
* a program whose writes are not all known here forgets all rows when it begins (`forget`), and what
  was written before it is not remembered after it.

Programs may run in another thread, and may run again.
"""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from typing import Final

from aether_trio.model.tasks import TaskRow
from aether_trio.model.tasks.status import HELD
from aether_trio.model.tasks.task import NO_WORKER

MAX_ROWS: Final = 2_000
MAX_SPEC_BYTES: Final = 4_096
"""The longest `spec` of a row that is remembered; other parts of a row are short."""


class LiveRows:
    """Remembers the committed rows of live tasks; forgets all of them beyond MAX_ROWS."""

    def __init__(self) -> None:
        self._rows: dict[str, TaskRow] = {}
        self._writers: dict[str, object] = {}
        """The last transaction to write each task, until it is committed."""
        self._lock = Lock()
        self.generation = 0
        """How often all rows were forgotten."""

    def get(self, task_id: str) -> TaskRow | None:
        """Return the row of a task, if it is known."""
        return self._rows.get(task_id)

    def writes(self, task_id: str, writer: object) -> None:
        """Note that the running transaction `writer` writes a task's row."""
        with self._lock:
            self._rows.pop(task_id, None)
            self._writers[task_id] = writer

    def forget_row(self, task_id: str) -> None:
        """Forget a task's row, also if it is being written."""
        with self._lock:
            self._rows.pop(task_id, None)
            self._writers.pop(task_id, None)

    def forget(self) -> None:
        """Forget all rows, and those that are being written."""
        with self._lock:
            self._rows.clear()
            self._writers.clear()
            self.generation += 1

    def committed(self, rows: Iterable[TaskRow], writer: object, generation: int) -> None:
        """Remember the live ones of the rows that a committed transaction has written.

        `generation`: that of the moment when the transaction began.
        """
        with self._lock:
            if generation != self.generation:
                return
            for row in rows:
                if self._writers.get(row.task_id) is writer:
                    del self._writers[row.task_id]
                    if row.status in HELD and not row.workflow & NO_WORKER and len(row.spec) <= MAX_SPEC_BYTES:
                        self._rows[row.task_id] = row
            full = len(self._rows) > MAX_ROWS or len(self._writers) > MAX_ROWS
        if full:
            self.forget()

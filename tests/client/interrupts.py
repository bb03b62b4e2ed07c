"""KeyboardInterrupt at every place where Python may raise it, one after the other.

for number in count(1):
    interrupt = Interrupt(number, FILES)
    with suppress(KeyboardInterrupt), interrupt.armed():
        body()
    if not interrupt.came:
        break
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

__all__ = ["Interrupt"]

LOOKS: Final = frozenset({"RESUME", "CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD"})
"""Instructions behind which Python looks for signals."""
FINALIZERS: Final = frozenset({"__del__", "abandon"})
"""Python ignores an interrupt in these functions, and pytest reports it."""


class Interrupt:
    """Interrupts this thread at the n-th check for signals in these files."""

    def __init__(self, number: int, files: tuple[str, ...]) -> None:
        self._left = number
        self._files = files
        self._behind: dict[FrameType, str] = {}

    @property
    def came(self) -> bool:
        return self._left <= 0

    @contextmanager
    def armed(self) -> Iterator[None]:
        before = sys.gettrace()
        # Python 3.12 looks whether a frame wants them when tracing begins.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)
            self._behind.clear()

    def _call(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        if not code.co_filename.endswith(self._files) or code.co_name in FINALIZERS:
            return None
        self._behind[frame] = "RESUME"
        # Python 3.13 looks whether there is one when opcodes are asked for.
        frame.f_trace = self._step
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "opcode":
            behind = self._behind.get(frame)
            self._behind[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if behind in LOOKS:
                self._left -= 1
                if not self._left:
                    raise KeyboardInterrupt
        elif event == "return":
            self._behind.pop(frame, None)
        return self._step

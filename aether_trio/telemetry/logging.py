"""Configures logging: structlog and the standard library write to one output.

Lines go to standard error, so that a command's standard output stays for its result. Never log
credentials, payloads or message metadata; so tracebacks come without the values of variables, which
structlog would show (and which take most of a second, in which no client is served).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from typing import Final, TextIO, cast

import structlog
from structlog.typing import EventDict, ExcInfo, Processor

from aether_trio.config import LoggingSettings
from aether_trio.model.text import escaped

MAX_VALUE: Final = 2048
"""Characters of one value in a line. Our longest, a list of hosts with errors, has some hundred."""
_TRACES: Final = frozenset({"stack", "exception"})
"""Made by us, and of many lines."""
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(settings: LoggingSettings, stream: TextIO | None = None, *, node: str | None = None) -> None:
    """Send every log line of this process to `stream`, standard error if None."""
    output = _LogOutput(stream or sys.stderr)
    level = _LEVELS[settings.level]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=settings.format == "json"),
        structlog.processors.StackInfoRenderer(),
        one_line,
    ]
    if node is not None:
        shared.append(_NodeNameAdder(node))
    final: list[Processor]
    if settings.format == "json":
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        final = [structlog.processors.ExceptionRenderer(frames), structlog.processors.JSONRenderer()]
    else:
        colours = (stream or sys.stderr).isatty() and not os.environ.get("NO_COLOR")
        final = [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=_traceback)]
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", output)),
        cache_logger_on_first_use=False,
    )
    handler: logging.Handler = logging.StreamHandler(cast("TextIO", output))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries are quieter than we are: their debug lines describe every frame.
    root.setLevel(max(level, logging.INFO))


def one_line(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Shorten and escape client-chosen texts of a log event (a structlog processor)."""
    for name, value in event.items():
        if type(value) is str and name not in _TRACES and (len(value) > MAX_VALUE or not value.isprintable()):
            event[name] = escaped(value, MAX_VALUE)
    return event


def _traceback(to: TextIO, failure: ExcInfo) -> None:
    """Write a traceback line by line, escaped: an exception may quote a client."""
    told = io.StringIO()
    structlog.dev.plain_traceback(told, failure)
    to.write("\n".join(escaped(line, MAX_VALUE) for line in told.getvalue().split("\n")))


class _LogOutput:
    """Writes log lines to a stream; drops what a full disk or a gone reader refuses."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


class _NodeNameAdder:
    """A structlog processor that adds the node's name to each event."""

    def __init__(self, node: str) -> None:
        self._node = node

    def __call__(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        event["node"] = self._node
        return event

"""Makes each line of a serving command JSON, from its start to its end.

With `logging.format=json` a collector reads the output of `aether serve`, `aether dev` or `aether
orchestrate` line by line, from the first one to the last. So everything goes through the log, to
standard error.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import structlog

from aether_trio.cli.output import Announcements, announce
from aether_trio.config import LoggingSettings
from aether_trio.telemetry.logging import configure_logging

if TYPE_CHECKING:
    from aether_trio.orchestrator import Reporter

JSON: Final = "json"
LOG_FORMATS: Final = ("console", JSON)
_VARIABLES: Final = ("AETHER_LOG_FORMAT", "AETHER_LOGGING__FORMAT", "AETHER_LOGGING_FORMAT")

logger = structlog.get_logger("aether.cli")


def begin_log(settings: LoggingSettings, *, node: str | None = None) -> None:
    """Set the log of a serving command up; with JSON, all that it prints goes there."""
    configure_logging(settings, node=node)
    if settings.format != JSON:
        return
    Announcements.log = _announced
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_a_thread
    sys.unraisablehook = _not_raised


def begin_log_early(flags: Mapping[str, Any], sets: Sequence[str], environ: Mapping[str, str]) -> None:
    """Do so before the settings are read, as far as options and environment say it.

    Errors of the settings are then JSON as well.
    """
    wanted = [environ[name] for name in _VARIABLES if name in environ]
    wanted += [str(flags.get("logging.format") or "")]
    wanted += [text.partition("=")[2] for text in sets if text.partition("=")[0].strip() == "logging.format"]
    said = [text.strip() for text in wanted if text.strip()]
    if said and said[-1] == JSON:
        begin_log(LoggingSettings(format=JSON))


def agents_reporter() -> Reporter:
    """Return the reporter of started agents, for this command's output."""
    from aether_trio.orchestrator import LogReporter, TextReporter

    if Announcements.log is None:
        return TextReporter(announce)
    return LogReporter(lambda text, agent, kind: announce(text, fields={"agent": agent, "kind": kind}))


def _announced(level: str, text: str, fields: Mapping[str, object]) -> None:
    getattr(logger, level)(text, **fields)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logger.critical("the command has failed unexpectedly", exc_info=(kind, error, trace))


def _uncaught_in_a_thread(caught: threading.ExceptHookArgs) -> None:
    if caught.exc_type is SystemExit:
        return
    failure = (caught.exc_type, caught.exc_value, caught.exc_traceback)
    logger.critical("a thread has failed unexpectedly", exc_info=failure)


def _not_raised(caught: sys.UnraisableHookArgs) -> None:
    failure = (caught.exc_type, caught.exc_value, caught.exc_traceback)
    logger.error(caught.err_msg or "an exception was ignored", object=repr(caught.object), exc_info=failure)

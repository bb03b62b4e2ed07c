"""`agent.progress`: reports progress; receivers that cannot keep up miss some."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from aether_trio.client.operations.enums import ProgressKind
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.records import Millis, Wire, read, write
from aether_trio.wire.pb import aether_pb2 as pb

UNKNOWN_COMPLETION = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressStep:
    """The current step of some work; `sequence` is its place in `total_steps`."""

    name: str
    detail: str = ""
    sequence: int = 0
    total_steps: int = 0
    step_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressUpdate:
    """A progress report, as other participants receive it."""

    source: str
    task_id: str
    state: str
    completion: float
    """From 0 to 1; -1 when unknown."""
    summary: str
    step: ProgressStep | None
    timestamp: Annotated[Millis, Wire("timestamp_ms", "ms")]
    """When the gateway took the report."""
    workspace: str
    request_id: str
    metadata: Mapping[str, str]
    recipient: str
    kind: ProgressKind


class Progress(Namespace):
    """Reports progress of any work to other participants."""

    async def report(
        self,
        task_id: str,
        *,
        state: str = "",
        completion: float = UNKNOWN_COMPLETION,
        summary: str = "",
        step: ProgressStep | None = None,
        recipient: str = "",
        request_id: str = "",
        metadata: Mapping[str, str] | None = None,
        kind: ProgressKind = ProgressKind.UNSPECIFIED,
        confirm: bool = False,
    ) -> None:
        """Report the progress of `task_id`, which may be any name.

        `completion` is from 0 to 1, or -1 when unknown. `recipient` is an identity, or "us::ann"
        for all windows of a user; "" is everyone in the workspace but the sender. Agents, tasks and
        services may report; others raise PermissionDenied. The protocol does not answer a report,
        so a refusal is in the client's `errors`; with `confirm` it is asked for, and raised.
        """
        if not math.isfinite(completion):
            raise ValueError(
                f"completion is {completion:g}; it must be from 0 to 1, or {UNKNOWN_COMPLETION:g} when unknown"
            )
        report = pb.ProgressReport(
            task_id=task_id,
            state=state,
            completion=completion,
            summary=summary,
            recipient=recipient,
            request_id=request_id,
            metadata=dict(metadata or {}),
            kind=pb.ProgressKind.ValueType(kind),
        )
        if step is not None:
            write(step, report.step)
        await (self._tell_confirmed if confirm else self._tell)("progress", report)


def progress_update(message: pb.ProgressUpdate) -> ProgressUpdate:
    """Convert the protobuf message of a received progress report to its value."""
    return read(ProgressUpdate, message)

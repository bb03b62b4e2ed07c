"""Publishes progress reports to ephemeral topics (reference: core.md section 8).

A report for a user (`us::uid` or `us::uid::window`) goes to that user's topic, any other report to
the topic of the reporter's workspace. It needs the access that a message to that user, or to the
participants of the workspace, needs. A report that is published gets no reply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aether_trio.delivery.ephemeral_topics import EphemeralTopics
from aether_trio.delivery.rates import Rates
from aether_trio.delivery.router import TargetRules
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity, IdentityError, Kind
from aether_trio.model.tasks.task import ASSIGNMENT
from aether_trio.model.topics import agents_of, parse_topic, progress_of, progress_of_user, user_everywhere
from aether_trio.session.dispatch import NO_ANSWER
from aether_trio.session.session import Session
from aether_trio.wire.delivery import encode_progress
from aether_trio.wire.pb import aether_pb2 as pb

REPORTERS = frozenset({Kind.AGENT, Kind.UNIQUE_TASK, Kind.TASK, Kind.SERVICE})
MAX_REPORT_BYTES = 64 * 1024
"""A line for people and a few tags; the reference gateway has no bound."""


class ProgressService:
    """Handles clients' `progress` reports; `reported` is called with each one."""

    def __init__(
        self,
        ephemeral_topics: EphemeralTopics,
        rates: Rates,
        clock: Clock,
        rules: TargetRules,
        reported: Callable[[Session, pb.ProgressReport], None],
    ) -> None:
        self._ephemeral_topics = ephemeral_topics
        self._rates = rates
        self._clock = clock
        self._rules = rules
        self._reported = reported

    async def handle(self, session: Session, report: pb.ProgressReport) -> Sequence[pb.DownstreamMessage]:
        """Publish one progress report. Raises RequestError."""
        identity = session.identity
        if identity.kind not in REPORTERS:
            raise RequestError(Code.INVALID_PRINCIPAL, f"{identity.kind.with_article} may not report progress")
        self._rates.take_connection(session.sender.bucket)
        size = report.ByteSize()
        if size > MAX_REPORT_BYTES:
            why = f"the report has {size} bytes; at most {MAX_REPORT_BYTES} are allowed"
            raise RequestError(Code.PAYLOAD_TOO_LARGE, why)
        topic = self._topic(session, report.recipient)
        update = pb.ProgressUpdate(
            source=identity.topic,
            task_id=report.task_id,
            state=report.state,
            completion=report.completion,
            summary=report.summary,
            step=report.step if report.HasField("step") else None,
            timestamp_ms=self._clock.now_ms(),
            workspace=session.workspace,
            request_id=report.request_id,
            metadata=report.metadata,
            recipient=report.recipient,
            kind=report.kind,
        )
        update.metadata.pop(ASSIGNMENT, None)
        self._ephemeral_topics.publish(topic, identity.topic, report.recipient, encode_progress(update))
        self._reported(session, report)
        return NO_ANSWER

    def _topic(self, session: Session, recipient: str) -> str:
        """Return the ephemeral topic of a report. Raises RequestError."""
        if recipient and (user_id := _user_of(recipient)) is not None:
            self._require_access(session, user_everywhere(user_id))
            return progress_of_user(user_id)
        if not session.workspace:
            raise RequestError(
                Code.INVALID_ARGUMENT,
                f"{session.identity.kind.with_article} has no workspace to report to; name a recipient such as us::USER",
            )
        self._require_access(session, agents_of(session.workspace))
        return progress_of(session.workspace)

    def _require_access(self, session: Session, target: str) -> None:
        topic = parse_topic(target, strict=False)
        decision = self._rules.check_send(session, topic, workspace=session.workspace, declared_workspace="")
        if not decision.allowed:
            raise RequestError(Code.PERMISSION_DENIED, decision.reason)


def _user_of(recipient: str) -> str | None:
    """Return the user id of a user's topic, else None. Raises RequestError."""
    prefix, _, rest = recipient.partition("::")
    try:
        if prefix == "us" and "::" not in rest:
            return Identity.user(rest, "any").user_id
        identity = Identity.parse(recipient)
    except IdentityError as error:
        raise RequestError(Code.INVALID_ARGUMENT, f"recipient: {error}") from None
    return identity.user_id if identity.kind is Kind.USER else None

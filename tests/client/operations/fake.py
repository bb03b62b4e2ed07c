"""Answer requests without a gateway: as a test says, or with success."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aether_trio.client.feeds import Feed, Feeds
from aether_trio.client.operation_table import OPERATIONS
from aether_trio.client.options import REQUEST_TIMEOUT_S
from aether_trio.wire.pb import aether_pb2 as pb


class FakeRequester:
    """Answers requests from `answers`: payloads by case, or functions of a request."""

    workspace = "prod"
    topic = "ag::prod::planner::1"

    def __init__(self) -> None:
        self.sent: list[pb.UpstreamMessage] = []
        """Everything, in its order."""
        self.asked: list[pb.UpstreamMessage] = []
        self.told: list[pb.UpstreamMessage] = []
        self.confirmed: list[pb.UpstreamMessage] = []
        self.idempotent: list[bool] = []
        self.timeouts: list[float | None] = []
        self.answers: dict[str, Any] = {}
        self.feeds = Feeds()
        self.on_tell: Callable[[pb.UpstreamMessage], None] = lambda message: None

    async def request(
        self,
        message: pb.UpstreamMessage,
        *,
        timeout: float | None = REQUEST_TIMEOUT_S,
        idempotent: bool = False,
        check: bool = True,
    ) -> Any:
        """The answer that the test has set, or an empty success."""
        self.asked.append(message)
        self.sent.append(message)
        self.idempotent.append(idempotent)
        self.timeouts.append(timeout)
        case = str(message.WhichOneof("payload"))
        answer = self.answers.get(case)
        if callable(answer):
            answer = answer(getattr(message, case))
        return answer if answer is not None else getattr(pb.DownstreamMessage(), OPERATIONS[case].response)

    async def tell(self, message: pb.UpstreamMessage) -> None:
        self.told.append(message)
        self.sent.append(message)
        self.on_tell(message)

    async def tell_confirmed(self, message: pb.UpstreamMessage, *, timeout: float | None = REQUEST_TIMEOUT_S) -> None:
        self.confirmed.append(message)
        self.sent.append(message)
        self.timeouts.append(timeout)
        self.on_tell(message)

    @contextmanager
    def open_feed(
        self, *cases: str, match: Callable[[Any], bool] | None = None, capacity: int = 1024, lossy: bool = False
    ) -> Iterator[Feed[Any]]:
        """A real feed, which `publish` fills."""
        with self.feeds.opened(Feed(capacity, lossy=lossy, match=match), *cases) as feed:
            yield feed

    def publish(self, message: pb.DownstreamMessage) -> None:
        case = str(message.WhichOneof("payload"))
        self.feeds.publish(case, getattr(message, case))

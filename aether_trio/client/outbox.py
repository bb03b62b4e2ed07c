"""What is to be sent, in one order: publications, and envelopes around everything else.

The writer of a connection pulls from it whenever its socket takes more, so many frames leave in one write. What was written
and is not settled is kept for the next connection; `reopen` says what becomes of it.

Invariants: publications are settled once, with None or an error; numbers grow in the order of the queue and are never
used twice; what is behind a publication that the window has no room for waits with it, so an answer stays a barrier.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import anyio
import anyio.lowlevel

from aether_trio.client.errors import AetherError, ConnectionLost

__all__ = ["Encoder", "Outbox", "Publication", "Upstream"]


class Publication:
    """A message on its way. `error` is why it was refused; None while it is not `settled`, and when it is committed."""

    __slots__ = (
        "_event",
        "confirm",
        "error",
        "extra",
        "message_type",
        "payload",
        "seen",
        "seq",
        "settled",
        "topic",
        "withdrawn",
        "written",
    )

    def __init__(self, seq: int, topic: str, payload: bytes, message_type: int, extra: bytes, *, confirm: bool) -> None:
        self.seq = seq
        self.topic = topic
        self.payload = payload
        self.message_type = message_type
        self.extra = extra
        self.confirm = confirm
        """Somebody waits for this one; a lane without acknowledgements must find out by other means."""
        self.written = False
        self.withdrawn = False
        self.settled = False
        self.seen = False
        """Somebody has waited for it, so its refusal is known."""
        self.error: AetherError | None = None
        self._event: anyio.Event | None = None

    def settle(self, error: AetherError | None = None) -> None:
        """It is known what became of it."""
        if not self.settled:
            self.settled = True
            self.error = error
            if self._event is not None:
                self._event.set()

    async def committed(self) -> None:
        """Return when the gateway has it on its disk. Raises why it was refused, or ConnectionLost."""
        self.seen = True
        if self.settled:
            await anyio.lowlevel.checkpoint()
        else:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
        if self.error is not None:
            raise self.error


class Upstream:
    """A serialized UpstreamMessage on its way.

    `on_written` is called when a connection has taken it, or with why none will. `answer`: it may go out while the gateway
    leaves. `unanswered`: the gateway says nothing to it, or an ErrorResponse without an id; with `settle` somebody
    waits to know which.
    """

    __slots__ = ("answer", "data", "on_written", "settle", "unanswered", "withdrawn")

    def __init__(
        self,
        data: bytes,
        on_written: Callable[[AetherError | None], None],
        *,
        answer: bool = False,
        unanswered: bool = False,
        settle: Callable[[AetherError | None], None] | None = None,
    ) -> None:
        self.data = data
        self.on_written = on_written
        self.withdrawn = False
        self.answer = answer
        self.unanswered = unanswered
        self.settle = settle


class Encoder(Protocol):
    """How a lane writes what it pulls."""

    def encode_publication(self, publication: Publication) -> bytes | None:
        """None when the window has no room. Raises AetherError when this message can never be sent on this lane."""
        ...

    def encode_upstream(self, upstream: Upstream) -> bytes:
        """Raises AetherError when it can never be sent on this lane."""
        ...


class Outbox:
    """See the module docstring. At most `max_unsettled` publications, of `max_unsettled_bytes`, are on their way."""

    def __init__(self, max_unsettled: int, max_unsettled_bytes: int) -> None:
        if max_unsettled < 1 or max_unsettled_bytes < 1:
            raise ValueError("at least one message must be on its way")
        self.max_unsettled = max_unsettled
        self.max_unsettled_bytes = max_unsettled_bytes
        self.wake: Callable[[], None] = lambda: None
        self._queue: deque[Publication | Upstream] = deque()
        self._written: deque[Publication] = deque()
        self._refused: dict[int, AetherError] = {}
        self._last_seq = 0
        self._open = 0
        self._open_bytes = 0
        self._room = anyio.Event()
        self._closed: BaseException | None = None
        self._unseen: deque[Publication] = deque(maxlen=max_unsettled)
        """Refused, and nobody has waited for them."""

    # -- from the application

    @property
    def unsettled(self) -> int:
        """Publications that are on their way."""
        return self._open

    @property
    def written_unsettled(self) -> int:
        """Those that this connection has written."""
        return len(self._written)

    def has_room(self, size: int) -> bool:
        """Whether one more message of this size may be on its way. A single one always may."""
        return not self._open or (
            self._open < self.max_unsettled and self._open_bytes + size <= self.max_unsettled_bytes
        )

    async def publish(
        self, topic: str, payload: bytes, message_type: int, extra: bytes, *, confirm: bool
    ) -> Publication:
        """Take a message as soon as there is room for it. A checkpoint."""
        await anyio.lowlevel.checkpoint()
        self._check_open()
        while not self.has_room(len(payload)):
            if self._room.is_set():
                self._room = anyio.Event()
            await self._room.wait()
            self._check_open()
        self._last_seq += 1
        publication = Publication(self._last_seq, topic, payload, message_type, extra, confirm=confirm)
        self._open += 1
        self._open_bytes += len(payload)
        self._queue.append(publication)
        self.wake()
        return publication

    def put(self, upstream: Upstream) -> None:
        """Queue an envelope. Whoever does so waits for something, which bounds the queue."""
        self._check_open()
        self._queue.append(upstream)
        self.wake()

    def put_first(self, upstream: Upstream) -> None:
        """Queue an envelope in front of everything."""
        self._queue.appendleft(upstream)

    async def flush(self) -> None:
        """Return when everything that was published so far is settled. Raises the first refusal that nobody has seen."""
        await anyio.lowlevel.checkpoint()
        target = self._last_seq
        while self._open and self._first_open() <= target:
            if self._room.is_set():
                self._room = anyio.Event()
            await self._room.wait()
        unseen = [publication for publication in self._unseen if not publication.seen]
        self._unseen.clear()
        if unseen:
            error = unseen[0].error
            assert error is not None
            if len(unseen) > 1:
                error.add_note(f"and {len(unseen) - 1} more messages since the last flush")
            raise error

    def _first_open(self) -> int:
        """The number of the first publication that is not settled."""
        for publication in self._written:
            if not publication.settled:
                return publication.seq
        for item in self._queue:
            if isinstance(item, Publication) and not item.settled:
                return item.seq
        return self._last_seq + 1

    def withdraw(self, publication: Publication) -> None:
        """Nobody waits for it any more: if it has not been written, it will not be."""
        if not publication.written and not publication.settled:
            publication.withdrawn = True
            self._settle(publication, ConnectionLost("the message was withdrawn before it was sent", in_doubt=False))

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    # -- from the connection

    def pull(self, encoder: Encoder, max_bytes: int, *, starting: bool) -> list[bytes]:
        """The next frames, about `max_bytes` of them. With `starting` False only answers: the gateway is leaving."""
        if not starting:
            return self._pull_answers(encoder)
        frames: list[bytes] = []
        size = 0
        queue = self._queue
        while queue and size < max_bytes:
            item = queue[0]
            frame: bytes | None
            try:
                if item.withdrawn:
                    frame = b""
                elif isinstance(item, Publication):
                    frame = encoder.encode_publication(item)
                    if frame is None:
                        break
                    item.written = True
                    self._written.append(item)
                else:
                    frame = encoder.encode_upstream(item)
                    item.on_written(None)
            except AetherError as error:
                frame = b""
                self._fail(item, error)
            queue.popleft()
            if frame:
                frames.append(frame)
                size += len(frame)
        return frames

    def _pull_answers(self, encoder: Encoder) -> list[bytes]:
        frames = []
        for item in [item for item in self._queue if isinstance(item, Upstream) and item.answer]:
            self._queue.remove(item)
            if not item.withdrawn:
                frames.append(encoder.encode_upstream(item))
                item.on_written(None)
        return frames

    def _fail(self, item: Publication | Upstream, error: AetherError) -> None:
        if isinstance(item, Publication):
            self._settle(item, error)
        else:
            item.on_written(error)

    def ack(self, seq: int) -> None:
        """Everything up to this number is settled."""
        written, refused = self._written, self._refused
        while written and written[0].seq <= seq:
            publication = written.popleft()
            self._settle(publication, refused.pop(publication.seq, None) if refused else None)

    def nack(self, seq: int, error: AetherError) -> None:
        """This number was refused. Known to its sender at once when nothing in front of it is open."""
        if self._written and self._written[0].seq == seq:
            self._settle(self._written.popleft(), error)
        else:
            self._refused[seq] = error

    def settle(self, publication: Publication, error: AetherError | None) -> None:
        """This one is settled: of lanes that find out by themselves, in order."""
        self._settle(publication, error)
        while self._written and self._written[0].settled:
            self._written.popleft()

    def _settle(self, publication: Publication, error: AetherError | None) -> None:
        if publication.settled:
            return
        self._open -= 1
        self._open_bytes -= len(publication.payload)
        publication.settle(error)
        if error is not None and not publication.confirm and not publication.seen:
            self._unseen.append(publication)
        self._room.set()

    def reopen(self, *, repeat: bool) -> None:
        """A new connection: what the last one has left unsettled is sent again first, or fails as in doubt."""
        for seq, error in self._refused.items():
            for publication in self._written:
                if publication.seq == seq:
                    self._settle(publication, error)
        self._refused.clear()
        for publication in reversed(self._written):
            if publication.settled:
                continue
            if repeat:
                publication.written = False
                self._queue.appendleft(publication)
            else:
                text = "the connection was cut before the message was confirmed"
                self._settle(publication, ConnectionLost(text, in_doubt=True))
        self._written.clear()

    def close(self, error: AetherError) -> None:
        """Nothing is sent any more: what is on its way fails with `error`, or as in doubt if it was written."""
        self._closed = error
        self.reopen(repeat=False)
        for item in self._queue:
            if isinstance(item, Publication):
                self._settle(item, error)
            else:
                item.on_written(error)
        self._queue.clear()
        self._room.set()

"""Serves one client's stream, from its handshake to its close.

    handshake (handshake.py) -> read loop (read_loop.py) -> detach -> close the stream with a status

Invariant: the stream is closed exactly once, in bounded time.
"""

from __future__ import annotations

import trio

from aether_trio.model.containment import DEFECT, report, tell_all
from aether_trio.model.errors import Status, StatusError
from aether_trio.session.dependencies import SessionDependencies
from aether_trio.session.handshake import Handshake
from aether_trio.session.read_loop import ReadLoop
from aether_trio.session.session import Session
from aether_trio.session.subscriptions import Subscriptions
from aether_trio.transport.link import Link, LinkBroken
from aether_trio.wire.pb import aether_pb2 as pb

CLOSE_S = 5.0  # for a client to read its last answers at the end of its stream


class SessionServer:
    """Serves the client streams of a gateway; `serve` runs once per stream."""

    def __init__(self, dependencies: SessionDependencies) -> None:
        self._parts = dependencies
        self._read_loop = ReadLoop(dependencies)
        self.handshake = Handshake(dependencies)

    async def serve(self, link: Link) -> None:
        """Serve one client's stream to its close; raise nothing but cancellation."""
        session: Session | None = None
        ending: Exception | None = None
        try:
            try:
                session, claim, early, resumed = await self.handshake.admit(link)
                async with trio.open_nursery() as nursery:
                    session.start(nursery, self._subscriptions(session, nursery))
                    try:
                        await self.handshake.acknowledge(session, claim, resumed=resumed)
                        run = self._read_loop.run(session, early)
                        del claim, early  # not kept for as long as the session lasts
                        await run
                        session.finish()
                    except StatusError as error:
                        session.fail(error)
                    except LinkBroken as error:
                        ending = error
                    finally:
                        # The nursery is still open: a lagging subscription starts a task in it.
                        session.detach()
                    if nursery.child_tasks:
                        nursery.cancel_scope.cancel()
                if ending is None or session.ending is not None:
                    await self._send_last_answers(session)
                    ending = session.ending
            except Exception as error:
                ending = error
            await self._close(link, ending, session)
        finally:
            if session is not None:
                tell_all(session, self._release_publisher, Session.forget)

    async def ask_to_reconnect(self, reason: str, within_s: float = 0.0) -> None:
        """Ask every client, in slices, to connect to another node.

        Waits for no end; sessions that stay end with UNAVAILABLE after `within_s`. The published
        Python SDK's blocking client takes GRACEFUL_DISCONNECT for the end of everything, so Python
        clients get the status alone: both clients of that SDK answer it by reconnecting.
        """
        self.handshake.turn_away()
        for count, session in enumerate(self._parts.registry):
            signal = None if session.client.sdk == "python" else pb.Signal.GRACEFUL_DISCONNECT
            session.leave(reason, within_s, signal)
            if count % 64 == 63:
                await trio.lowlevel.checkpoint()

    async def _close(self, link: Link, ending: Exception | None, session: Session | None) -> None:
        """Close the stream with the status of its end; log an unexpected exception."""
        status, text = Status.OK, ""
        if isinstance(ending, StatusError):
            status, text = ending.status, ending.message
        elif ending is not None and not isinstance(ending, LinkBroken):
            status, text = Status.UNKNOWN, DEFECT
            report(ending, session or _who(link))
        if ending is not None:
            # Sessions are freed by counting references, not by the cycle collector (cli/running.py
            # makes that one rare). A traceback holds the frames that hold the session that holds
            # the error.
            ending.__traceback__ = None
        if isinstance(ending, LinkBroken):
            return
        try:
            await link.close(status, text)
        except Exception as error:  # the caller closes the socket
            report(error, session or _who(link))

    def _subscriptions(self, session: Session, nursery: trio.Nursery) -> Subscriptions:
        parts = self._parts
        return Subscriptions(
            session.identity,
            session.outbox,
            parts.log,
            parts.ephemeral_topics,
            parts.work_queues,
            nursery,
            session,
        )

    async def _send_last_answers(self, session: Session) -> None:
        """Let the client read its last answers, signals and refusals."""
        log, outbox, last_append = self._parts.log, session.outbox, session.sender.last_append
        if outbox.control_bytes or not log.is_settled(last_append):
            with trio.move_on_after(CLOSE_S):
                await log.wait_settled(last_append)
                await outbox.wait_control_sent()

    def _release_publisher(self, session: Session) -> None:
        receipts = session.receipts
        if receipts is not None and receipts.publisher is not None:
            self._parts.publishers.release(receipts.publisher, receipts)


def _who(link: Link) -> str:
    return f"not admitted yet, {link.peer.transport} from {link.peer.address}"

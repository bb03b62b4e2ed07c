"""The load's event loop: what it writes, and how it ends a side of a connection."""

from __future__ import annotations

import socket
from time import perf_counter

from bench.loop import Loop

WAIT_SECONDS = 30.0


class Talker:
    def __init__(self, raw: socket.socket) -> None:
        self.socket = raw
        self.out = b""
        self.heard = b""

    def take(self) -> bytes:
        data, self.out = self.out, b""
        return data

    def readable(self) -> None:
        self.heard += self.socket.recv(65_536)


def pair() -> tuple[Talker, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return Talker(ours), theirs


def test_the_end_of_our_side_comes_behind_everything_that_the_kernel_did_not_take_at_once() -> None:
    talker, peer = pair()
    with peer, Loop() as loop:
        loop.add(talker)
        talker.out = sent = bytes(8 * 1024 * 1024)
        loop.ends_writing(talker)
        loop.run(perf_counter())
        got = 0
        ended = False

        def read_on() -> bool:
            nonlocal got, ended
            try:
                data = peer.recv(1024 * 1024)
            except BlockingIOError:
                return False
            got += len(data)
            ended = not data
            return ended

        assert loop.run(perf_counter() + WAIT_SECONDS, read_on, pulse=lambda now: now)
        assert got == len(sent)
        peer.send(b"still listening")
        assert loop.run(perf_counter() + WAIT_SECONDS, lambda: talker.heard == b"still listening")


def test_a_side_without_anything_to_say_ends_at_once() -> None:
    talker, peer = pair()
    with peer, Loop() as loop:
        loop.add(talker)
        loop.ends_writing(talker)
        loop.run(perf_counter())
        assert peer.recv(1) == b""


def test_a_discarded_connection_is_forgotten_whatever_it_waited_for() -> None:
    talker, peer = pair()
    with peer, Loop() as loop:
        loop.add(talker)
        talker.out = bytes(8 * 1024 * 1024)
        loop.ends_writing(talker)
        loop.run(perf_counter())
        loop.discard(talker)
        loop.discard(talker)
        assert loop.watched == []
        loop.run(perf_counter())

"""Test that the blocking client behaves in a thread as the async one does."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from aether_trio.client import (
    ClientClosed,
    IncomingMessage,
    MessageType,
    NotImplementedByGateway,
    OrchestratorClient,
    PermissionDenied,
    RequestTimeout,
    ServiceClient,
    SessionEnded,
    State,
    Unavailable,
    UserClient,
)
from aether_trio.client.blocking.client import SyncClient, connect_sync
from tests.client.gateways import QUICK, SCHEMES, in_a_thread, with_gateway

SILENCE_S = 0.2
"""Only where nothing is to come."""


def agent(address: str, specifier: str, **options: Any) -> Any:
    options.setdefault("retry", QUICK)
    return connect_sync(address, workspace="w", implementation="i", specifier=specifier, **options)


def first(client: SyncClient[Any], count: int) -> list[IncomingMessage]:
    return list(itertools.islice(client.messages(timeout=30), count))


@with_gateway(backends=["thread"], schemes=SCHEMES)
def test_a_script_talks(address: str) -> None:
    with agent(address, "a") as a, agent(address, "b") as b:
        assert (a.topic, a.workspace, a.client.state) == ("ag::w::i::a", "w", State.CONNECTED)
        a.send(b.topic, "one", type=MessageType.CHAT)
        publication = a.publish(b.topic, b"two")
        publication.committed()
        assert publication.settled
        assert publication.error is None
        a.publish(b.topic, b"three")
        a.flush()
        got = []
        for message in b.messages(timeout=30):
            got.append(message.text)
            if message.type is MessageType.CHAT:
                b.reply(message, "answer")
            if len(got) == 3:
                break
        assert got == ["one", "two", "three"]
        assert [message.payload for message in first(a, 1)] == [b"answer"]
        with pytest.raises(RequestTimeout):
            a.receive(timeout=SILENCE_S)
    with agent(address, "b") as b:
        assert list(b.messages(timeout=SILENCE_S)) == [], "what was acknowledged came again"
    assert a.client.state is State.CLOSED
    with pytest.raises(ClientClosed):
        a.send(b.topic, b"")


@in_a_thread
def test_what_a_script_was_not_done_with_comes_again(address: str) -> None:
    with agent(address, "a") as a:
        with pytest.raises(ZeroDivisionError), agent(address, "b") as b:
            for payload in (b"done with", b"in hand", b"never seen"):
                a.send(b.topic, payload)
            for message in b.messages():
                if message.payload == b"in hand":
                    raise ZeroDivisionError
        with agent(address, "b") as b:
            assert [one.payload for one in first(b, 2)] == [b"in hand", b"never seen"]


@in_a_thread
def test_acknowledging_by_hand(address: str) -> None:
    with agent(address, "a") as a:
        with agent(address, "b", manual_acks=True) as b:
            a.send(b.topic, b"1")
            a.send(b.topic, b"2")
            one, two = b.receive(30), b.receive(30)
            assert not two.acknowledged
            one.ack()
            assert one.acknowledged
        two.ack()  # too late, and harmless
        with agent(address, "b") as b:
            assert [one.payload for one in first(b, 1)] == [b"2"]


@in_a_thread
def test_a_script_uses_the_namespaces(address: str) -> None:
    with agent(address, "a") as a, agent(address, "b") as b:
        a.kv.put("k/1", b"v", ttl_s=60)
        a.kv.within(30).put("k/2", b"w")
        assert b.kv.get("k/1") == b"v"
        assert list(b.kv.items("k/", page_size=1)) == [("k/1", b"v"), ("k/2", b"w")]
        a.checkpoints.save(b"state")
        assert a.checkpoints.list() == ("default",)
        a.progress.report("t", completion=0.5, confirm=True)
        assert b.progress_updates.get(30).task_id == "t"
        with b.open_feed("progress_update") as feed:
            a.progress.report("u", confirm=True)
            assert feed.get(30).task_id == "u"
            assert list(feed.within(SILENCE_S)) == []
            with pytest.raises(RequestTimeout):
                feed.get(SILENCE_S)
        with pytest.raises(LookupError):
            feed.get(30)
        task_id = a.tasks.create("t").task_id
        with b.tasks.follow(task_id) as events:
            a.tasks.complete(task_id)
            assert events.get(30).task_id == task_id
        with pytest.raises(NotImplementedByGateway), a.tunnels.open("sv::db"):
            pass
        with pytest.raises(NotImplementedByGateway):
            a.proxy.request("sv::x", "GET", "/")
        with a.tasks.assignments() as assignments, pytest.raises(RequestTimeout):
            assignments.get(SILENCE_S)
        with pytest.raises(PermissionDenied):
            a.workspaces.switch("elsewhere")
        with pytest.raises(AttributeError, match="switch_workspace"):
            a.switch_workspace("elsewhere")


@with_gateway(backends=["thread"], schemes=["ws"])
def test_other_kinds_of_participants(address: str) -> None:
    with (
        connect_sync(address, UserClient, user_id="ann", window_id="1") as ann,
        connect_sync(address, ServiceClient, implementation="s", specifier="1") as service,
    ):
        ann.switch_workspace("w")
        assert ann.workspace == "w"
        service.send_to_user_everywhere("ann", "hello")
        assert ann.receive(30).text == "hello"


def test_no_gateway_is_there() -> None:
    with pytest.raises(Unavailable), agent("aether://127.0.0.1:1", "a", connect_timeout_s=0.1):
        raise AssertionError("it was let in")


@in_a_thread
def test_who_is_thrown_out_is_told_in_the_loop(address: str) -> None:
    with (
        connect_sync(address, OrchestratorClient, implementation="o", profiles=["p"]) as admin,
        pytest.raises(SessionEnded, match="enough"),
        agent(address, "a") as a,
    ):
        admin.sessions.disconnect(a.client.session_id, reason="enough")
        for message in a.messages():
            raise AssertionError(message)


@in_a_thread
def test_threads_may_share_a_client(address: str) -> None:
    with agent(address, "a") as a:
        results: list[int] = []

        def count() -> None:
            results.extend(a.kv.increment("n") for _ in range(20))

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == list(range(1, 81))


def test_an_interrupted_call_takes_nothing(tmp_path: Path) -> None:
    """The script is another process, because only a main thread is interrupted."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["interrupted", "kept"]


SCRIPT = f"""
import faulthandler, os, signal, threading
faulthandler.dump_traceback_later(100, exit=True)  # says where it hangs, should it
from aether_trio.client import State
from aether_trio.client.blocking.client import connect_sync
from tests.helpers.gateway import start_gateway

assert signal.SIGINT == {int(signal.SIGINT)}
with start_gateway(ephemeral=True) as gateway:
    address = "aether://" + gateway.address
    with connect_sync(address, workspace="w", implementation="i", specifier="a") as a:
        waiting = threading.Event()
        original = a._receive

        async def told(timeout):
            waiting.set()
            return await original(timeout)

        a._receive = told
        threading.Thread(target=lambda: (waiting.wait(), os.kill(os.getpid(), signal.SIGINT))).start()
        try:
            a.receive()
        except KeyboardInterrupt:
            print("interrupted")
        a._receive = original
        a.send(a.topic, b"kept")
        print(a.receive(30).text)
"""

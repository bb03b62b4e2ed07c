"""Webhooks: signed messages over HTTP become events, each once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from standardwebhooks import Webhook

from aether_trio.gateway.core import Core
from aether_trio.gateway.gateway import Gateway
from aether_trio.services.workflows.webhooks.accepting import CHANGE_WEBHOOK, LIST_WEBHOOKS
from aether_trio.transport.http1 import hooks
from aether_trio.transport.http1.hooks import BODY_BYTES
from tests.client.gateways import open_test_gateway
from tests.helpers.engines import PostgresEngine
from tests.services.workflows.helpers import Client, client, let_only

APPLY = 107
EMBEDDED: dict[str, Any] = {"workflow": {"engine": "embedded"}}
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # that of the specification's examples
HOOK = {"kind": "webhook", "name": "shop", "event": "order.paid", "headers": ["X-Shop"]}


def rule(name: str = "seen", event: str = "order.paid") -> dict[str, Any]:
    """Return a rule that creates a task of type "seen" with what it sees."""
    sees = {"input": {"$expr": "input"}, "source": {"$expr": "source"}}
    destination = {"type": "create_task", "task_type": "seen", "target_implementation": "none", "payload": sees}
    return {"rule_name": name, "source_event": event, "destination_template": destination}


@asynccontextmanager
async def gateway_and_boss(**changes: Any) -> AsyncIterator[tuple[Gateway, Client]]:
    """Open a gateway with a client of workspace w; the rule is applied."""
    with trio.fail_after(300):
        async with open_test_gateway(**EMBEDDED, **changes) as gateway, client(gateway.core) as boss:
            await boss.do(APPLY, data={"documents": [rule()]}, workspace="w")
            yield gateway, boss


async def made(boss: Client, **more: Any) -> str:
    """Apply the webhook; return the secret that the gateway has made."""
    answer = await boss.do(APPLY, data={"documents": [{**HOOK, **more}]}, workspace="w")
    secret: str = answer["applied"][0]["secret"]
    return secret


def signed(body: bytes, *secrets: str, message_id: str = "msg_1", age_s: int = 0) -> dict[str, str]:
    """Return the headers of a message, signed by an independent implementation."""
    moment = datetime.now(tz=UTC) - timedelta(seconds=age_s)
    signatures = " ".join(Webhook(secret).sign(message_id, moment, body.decode()) for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": signatures,
    }


def head_of(path: str, length: int, headers: dict[str, str], method: str = "POST") -> bytes:
    """Return the head of a request; headers without a value are left out."""
    lines = {"Host": "gateway", "Content-Type": "application/json", "Content-Length": str(length), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode()


async def dial(gateway: Gateway, sender: str = "127.0.0.1") -> trio.SocketStream:
    """Connect from an address of this host."""
    [address] = set(gateway.addresses.values())
    host, _, port = address.rpartition(":")
    return await trio.open_tcp_stream(host, int(port), local_address=sender)


async def answer_to(gateway: Gateway, request: bytes, sender: str = "127.0.0.1") -> str:
    """Send a request over a new connection; return its answer, which ends with a line."""
    async with await dial(gateway, sender) as stream:
        await stream.send_all(request)
        answer = b""
        while not (b"\r\n\r\n" in answer and answer.endswith(b"\n")):
            piece = await stream.receive_some()
            assert piece, "the connection was closed without an answer"
            answer += piece
    return answer.decode()


async def post(
    gateway: Gateway,
    path: str,
    body: bytes,
    headers: dict[str, str],
    method: str = "POST",
    sender: str = "127.0.0.1",
) -> int:
    """Send a request over a new connection; return the status of the answer."""
    answer = await answer_to(gateway, head_of(path, len(body), headers, method) + body, sender)
    return int(answer.split()[1])


async def seen(core: Core, count: int) -> list[dict[str, Any]]:
    """Return what the rule has seen, once there are at least `count`."""
    sql = """SELECT COALESCE(t.payload, p.payload) FROM tasks t LEFT JOIN task_payloads p ON p.task_id = t.task_id
        WHERE task_type = 'seen' ORDER BY created_ms, t.task_id"""
    while True:
        found = await core.tasks.engine.database.fetch(sql)
        outbox = await core.tasks.engine.database.fetch("SELECT task_id FROM task_outbox")
        if len(found) >= count and not outbox and not (await core.workflows.intake.progress()).lag:
            return [json.loads(payload) for (payload,) in found]
        await trio.sleep(0.05)


PATIENT = {"max_failures": 1_000, "max_failures_per_address": 1_000}
BODY = b'{"order": "o1", "amount": 12.5}'


async def test_a_signed_message_is_an_event(postgres_engine: PostgresEngine) -> None:
    for storage in ({}, {"database": postgres_engine.server.dsn(), "schema": postgres_engine.schema}):
        async with gateway_and_boss(storage=storage) as (gateway, boss):
            secret = await made(boss)
            headers = {**signed(BODY, secret), "X-Shop": "a", "X-Other": "b"}
            assert await post(gateway, "/hooks/w/shop", BODY, headers) == 202
            assert await post(gateway, "/hooks/w/shop", BODY, headers) == 200
            assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret, message_id="msg_2")) == 202
            first, second = await seen(gateway.core, 2)
            assert first["source"] == {
                "agent": "webhook", "workspace": "w", "event": "order.paid", "principal": "webhook::w/shop",
            }  # fmt: skip
            assert first["input"] == {
                "id": "msg_1", "timestamp": int(headers["webhook-timestamp"]), "headers": {"x-shop": "a"},
                "body": {"order": "o1", "amount": 12.5},
            }  # fmt: skip
            assert (second["input"]["id"], second["input"]["headers"]) == ("msg_2", {})


async def test_what_is_refused_causes_nothing() -> None:
    async with gateway_and_boss(auth=PATIENT) as (gateway, boss):
        secret = await made(boss)
        good = signed(BODY, secret)
        signature = good["webhook-signature"]
        for headers, status in (
            ({}, 401),
            ({**good, "webhook-signature": ""}, 401),
            ({**good, "webhook-id": "msg_3"}, 401),
            ({**good, "webhook-timestamp": str(int(good["webhook-timestamp"]) + 1)}, 401),
            ({**good, "webhook-timestamp": "now"}, 401),
            ({**good, "webhook-signature": signature.replace("v1,", "v1a,")}, 401),
            ({**good, "webhook-signature": signature[:-4] + "AAA="}, 401),
            (signed(BODY, SECRET), 401),
            (signed(BODY, secret, age_s=400), 401),
            (signed(BODY, secret, age_s=-400), 401),
            ({**good, "Content-Type": "text/plain"}, 415),
            ({**good, "Content-Type": ""}, 415),
            ({**good, "Content-Length": str(BODY_BYTES + 1)}, 413),
        ):
            assert await post(gateway, "/hooks/w/shop", BODY, headers) == status, headers
        changed = BODY.replace(b"12.5", b"99.5")
        assert await post(gateway, "/hooks/w/shop", changed, good) == 401
        for bad in (b"{", b"[" * 100 + b"]" * 100, b'{"a": 1e999}', b"\xff"):
            text = bad if bad != b"\xff" else b"{'"
            assert await post(gateway, "/hooks/w/shop", text, signed(text, secret)) == 400, bad
        for path in (
            "/hooks/w/other",
            "/hooks/nowhere/shop",
            "/hooks/w",
            "/hooks/",
            "/hooks/w/shop/more",
            "/hooks/w/%00",
        ):
            assert await post(gateway, path, BODY, good) == 404, path
        assert await post(gateway, "/hooks/w/shop", b"", good, "GET") == 405
        assert await post(gateway, "/aether.js", BODY, {}) == 413
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, SECRET, secret)) == 202
        assert len(await seen(gateway.core, 1)) == 1


async def test_secrets_are_rotated_and_never_shown_again() -> None:
    async with gateway_and_boss() as (gateway, boss):
        first = await made(boss)
        again = await boss.do(APPLY, data={"documents": [HOOK]}, workspace="w")
        assert again["applied"][0] == {
            "kind": "webhook", "workspace": "w", "id": "shop", "version": 0, "change": "unchanged",
        }  # fmt: skip
        second = (await boss.do(CHANGE_WEBHOOK, "shop", "rotate"))["secret"]
        assert second != first
        for number, secret in enumerate((first, second)):
            assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret, message_id=f"a{number}")) == 202
        third = (await boss.do(CHANGE_WEBHOOK, "shop", "rotate"))["secret"]
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, first, message_id="b1")) == 401
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, third, message_id="b2")) == 202
        given = await boss.do(APPLY, data={"documents": [{**HOOK, "secrets": [SECRET]}]}, workspace="w")
        assert (given["applied"][0]["change"], "secret" in given["applied"][0]) == ("updated", False)
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, SECRET, message_id="c1")) == 202
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, third, message_id="c2")) == 401
        [shown] = await boss.do(LIST_WEBHOOKS)
        assert shown["address"] == "/hooks/w/shop"
        stored = await gateway.core.tasks.engine.database.fetch("SELECT document, secrets FROM workflow_webhooks")
        for secret in (first, second, third, SECRET):
            assert secret not in json.dumps(shown)
            assert all(secret[6:].encode() not in bytes(value) for row in stored for value in row)


async def test_a_change_counts_from_its_answer_on() -> None:
    async with gateway_and_boss() as (gateway, boss):
        secret = await made(boss)
        await boss.do(APPLY, data={"documents": [{**HOOK, "event": "other"}, rule("two", "other")]}, workspace="w")
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret)) == 202
        assert [one["source"]["event"] for one in await seen(gateway.core, 1)] == ["other"]
        await boss.do(APPLY, data={"documents": [{**HOOK, "active": False}]}, workspace="w")
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret, message_id="2")) == 404
        await boss.do(APPLY, data={"documents": [HOOK]}, workspace="w")
        await boss.do(CHANGE_WEBHOOK, "shop", "delete")
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret, message_id="3")) == 404
        assert await boss.do(LIST_WEBHOOKS) == []


async def test_the_owner_must_be_allowed_to_write() -> None:
    async with gateway_and_boss() as (gateway, boss):
        secret = await made(boss)
        let_only(gateway.core, boss="v")
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret)) == 404
        let_only(gateway.core, boss="w")
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret)) == 202


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"kind": "webhook", "event": "e"}, "name"),
        ({"kind": "webhook", "name": "a"}, "event"),
        ({"kind": "webhook", "name": "a/b", "event": "e"}, "name"),
        ({"kind": "webhook", "name": "a", "event": "e", "secrets": ["abc"]}, "a secret begins with whsec_"),
        ({"kind": "webhook", "name": "a", "event": "e", "secrets": ["whsec_AAAA"]}, "a secret has 24 to 64 bytes"),
        ({"kind": "webhook", "name": "a", "event": "e", "headers": ["Cookie"]}, "is not passed on"),
        ({"kind": "webhook", "name": "a", "event": "e", "workspace": "*"}, "workspace"),
    ],
)
async def test_bad_documents_are_refused(document: dict[str, Any], problem: str) -> None:
    async with gateway_and_boss() as (_, boss):
        answer = await boss.ask(APPLY, data={"documents": [document]}, workspace="w")
        assert not answer.success
        assert problem in answer.error


async def test_slow_senders_hold_up_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "READING_OF_ONE", 3)
    async with gateway_and_boss() as (gateway, boss):
        secret = await made(boss)
        [address] = set(gateway.addresses.values())
        host, _, port = address.rpartition(":")
        head = head_of("/hooks/w/shop", 9, signed(BODY, SECRET)).decode()
        slow = [await trio.open_tcp_stream(host, int(port)) for _ in range(3)]
        for stream in slow:
            await stream.send_all(head.encode())
        while await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret)) != 429:
            await trio.sleep(0.05)
        await slow.pop().aclose()
        while (status := await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret, message_id="2"))) == 429:
            await trio.sleep(0.05)
        assert status == 202
        for stream in slow:
            await stream.aclose()


async def test_messages_of_two_nodes_are_accepted_once(postgres_engine: PostgresEngine) -> None:
    storage = {"database": postgres_engine.server.dsn(), "schema": postgres_engine.schema}
    async with (
        gateway_and_boss(storage=storage) as (one, boss),
        open_test_gateway(**EMBEDDED, storage=storage) as two,
    ):
        secret = await made(boss)
        statuses: list[int] = []

        async def send(gateway: Gateway) -> None:
            statuses.append(await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret)))

        async with trio.open_nursery() as nursery:
            for gateway in (one, two) * 3:
                nursery.start_soon(send, gateway)
        assert sorted(statuses) == [200] * 5 + [202]
        assert len(await seen(one.core, 1)) == 1


async def test_a_body_is_not_waited_for_in_vain() -> None:
    async with gateway_and_boss(auth=PATIENT) as (gateway, boss):
        secret = await made(boss)
        good = signed(BODY, secret)
        for path, headers, status in (
            ("/hooks/w/shop", {}, 401),
            ("/hooks/w/shop", {**good, "webhook-id": ""}, 401),
            ("/hooks/w/shop", {**good, "webhook-id": "x" * 257}, 401),
            ("/hooks/w/shop", {**good, "webhook-timestamp": "soon"}, 401),
            ("/hooks/w/shop", signed(BODY, secret, age_s=400), 401),
            ("/hooks/w/shop", {**good, "webhook-signature": "v1,AAAA v2," + "A" * 44}, 401),
            ("/hooks/w/other", good, 404),
            ("/hooks/w/other", {}, 401),
            ("/hooks/w/shop", {**good, "Content-Length": str(BODY_BYTES + 1)}, 413),
        ):
            answer = await answer_to(gateway, head_of(path, 9, headers))
            assert answer.startswith(f"HTTP/1.1 {status} "), (path, headers)


async def test_a_refused_message_that_has_come_whole_ends_no_connection() -> None:
    async with gateway_and_boss() as (gateway, boss):
        secret = await made(boss)
        async with await dial(gateway) as stream:
            refused = head_of("/hooks/w/shop", len(BODY), {}) + BODY
            await stream.send_all(refused * 6 + head_of("/hooks/w/shop", 9, {}) + b"{")
            answers = b""
            while piece := await stream.receive_some():
                answers += piece
        statuses = [line.split()[1] for line in answers.splitlines() if line.startswith(b"HTTP/1.1 ")]
        assert statuses == [b"401"] * 5 + [b"429"] * 2
        assert answers.count(b"Connection: close") == 1
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret), sender="127.0.0.2") == 202


async def test_a_flood_without_the_secret_is_refused_unread_and_shuts_out_no_other_sender() -> None:
    async with gateway_and_boss() as (gateway, boss):
        secret = await made(boss)
        await boss.do(APPLY, data={"documents": [{**HOOK, "name": "bank"}]}, workspace="w")
        for number in range(5):
            assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, SECRET, message_id=str(number))) == 401
        refused = await answer_to(gateway, head_of("/hooks/w/shop", 9, signed(BODY, SECRET)))
        assert refused.startswith("HTTP/1.1 429 ")
        [after] = [line for line in refused.splitlines() if line.startswith("Retry-After: ")]
        assert 1 <= int(after.split()[1]) <= 30
        # A new sender at that address is refused like the flood, and no other one is.
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret)) == 429
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret), sender="127.0.0.2") == 202
        assert await post(gateway, "/hooks/w/bank", BODY, signed(BODY, secret)) == 401
        for number in range(20):
            headers = signed(BODY, SECRET, message_id=str(number))
            assert await post(gateway, "/hooks/w/shop", BODY, headers, sender="127.0.0.2") == 401
        headers = signed(BODY, secret, message_id="2")
        assert await post(gateway, "/hooks/w/shop", BODY, headers, sender="127.0.0.2") == 202


async def test_a_flood_at_many_addresses_is_refused_but_for_known_senders() -> None:
    async with gateway_and_boss(auth={"max_failures_per_address": 12}) as (gateway, boss):
        secret = await made(boss)
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret)) == 202
        statuses = [await post(gateway, f"/hooks/w/x{one}", BODY, signed(BODY, secret)) for one in range(14)]
        assert statuses == [404] * 12 + [429] * 2
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret, message_id="2")) == 202


async def test_bodies_that_do_not_come_are_refused_messages() -> None:
    async with gateway_and_boss() as (gateway, boss):
        secret = await made(boss)
        for number in range(5):
            async with await dial(gateway) as stream:
                headers = signed(BODY, secret, message_id=str(number))
                await stream.send_all(head_of("/hooks/w/shop", len(BODY), headers) + BODY[:3])
                await stream.send_eof()
                assert (await stream.receive_some()).split()[1] == b"400"
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret)) == 429


async def test_slow_new_senders_do_not_hold_up_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "READING", 2)
    async with gateway_and_boss() as (gateway, boss):
        secret = await made(boss)
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret)) == 202
        slow = [await dial(gateway, "127.0.0.2") for _ in range(2)]
        for stream in slow:
            await stream.send_all(head_of("/hooks/w/shop", 9, signed(BODY, SECRET)) + b"{")
        while await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret), sender="127.0.0.3") != 429:
            await trio.sleep(0.05)
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret, message_id="2")) == 202
        for stream in slow:
            await stream.aclose()


async def test_an_id_of_another_message_is_refused(postgres_engine: PostgresEngine) -> None:
    for storage in ({}, {"database": postgres_engine.server.dsn(), "schema": postgres_engine.schema}):
        async with gateway_and_boss(storage=storage) as (gateway, boss):
            secret = await made(boss)
            assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret)) == 202
            other = b'{"order": "o2", "amount": 12.5}'
            answer = await answer_to(gateway, head_of("/hooks/w/shop", len(other), signed(other, secret)) + other)
            assert answer.startswith("HTTP/1.1 409 ")
            assert answer.endswith("accepted before: send this one with another id\n")
            same = b'{"amount":12.5,"order":"o1"}'
            assert await post(gateway, "/hooks/w/shop", same, signed(same, secret)) == 200
            assert await post(gateway, "/hooks/w/shop", other, signed(other, secret, message_id="msg_2")) == 202
            assert [one["input"]["body"]["order"] for one in await seen(gateway.core, 2)] == ["o1", "o2"]


async def test_large_bodies_are_events_or_refused_beside_the_loop() -> None:
    async with gateway_and_boss() as (gateway, boss):
        secret = await made(boss)
        for name, body, status in (
            ("large", b"[" + b"1," * 20_000 + b"1]", 202),
            ("large", b"[" + b"1," * 20_000 + b"2]", 409),
            ("infinite", b"[" + b"1," * 20_000 + b"1e400]", 400),
            ("deep", b"[" * 20_000 + b"]" * 20_000, 400),
            ("nested", b"[" * 900 + b"1," * 20_000 + b"1" + b"]" * 900, 400),
            ("half", b"[" + b"1," * 20_000 + b'"\\ud800"]', 400),
            ("no text", b"[" + b"1," * 20_000 + b'"\\u12"]', 400),
        ):
            assert await post(gateway, "/hooks/w/shop", body, signed(body, secret, message_id=name)) == status, name
        [event] = await seen(gateway.core, 1)
        assert event["input"]["body"] == [1] * 20_001


async def test_a_message_from_before_hashes_is_known_by_its_id() -> None:
    async with gateway_and_boss() as (gateway, boss):
        secret = await made(boss)
        assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, secret)) == 202
        database = gateway.core.tasks.engine.database
        assert await database.execute("UPDATE workflow_webhook_ids SET body_hash = ''") == 1
        assert await post(gateway, "/hooks/w/shop", b"[1]", signed(b"[1]", secret)) == 200


async def test_a_rotation_with_a_key_is_done_once(postgres_engine: PostgresEngine) -> None:
    for storage in ({}, {"database": postgres_engine.server.dsn(), "schema": postgres_engine.schema}):
        async with gateway_and_boss(storage=storage) as (gateway, boss), client(gateway.core, "other") as other:
            first = await made(boss)

            async def rotated(key: str, by: Client = boss) -> str:
                answer = await by.do(CHANGE_WEBHOOK, "shop", "rotate", status_filter=key)
                secret: str = answer["secret"]
                return secret

            second = await rotated("a")
            assert await rotated("a") == second
            assert await post(gateway, "/hooks/w/shop", BODY, signed(BODY, first)) == 202, "rotated once"
            third = await rotated("a", other)
            assert third not in (first, second), "the key is that of another participant"
            assert await rotated("a") == second, "it is valid still"
            fourth = await rotated("b")
            assert len({first, second, third, fourth}) == 4
            refused = await boss.ask(CHANGE_WEBHOOK, "shop", "rotate", status_filter="a")
            assert refused.error == "webhook shop was rotated with this key, but not last: use another key"
            stored = await gateway.core.tasks.engine.database.fetch("SELECT key_hash, task_id, request FROM task_keys")
            assert all(secret[6:] not in str(row) for secret in (second, third, fourth) for row in stored)

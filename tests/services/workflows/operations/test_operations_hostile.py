"""Hostile operations on workflows: each is answered, and delays no other client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from aether_trio.client import AetherError, AgentClient, Job, MessageType
from aether_trio.client.operations.workflow import APPLY, Workflow
from aether_trio.gateway import Gateway
from tests.client.gateways import QUICK, open_test_gateway

LIMIT_S = 120.0
TEXT = "ab" * 60_000


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with open_test_gateway(workflow={"engine": "embedded"}) as opened:
        yield opened


def agent(gateway: Gateway, name: str) -> AgentClient:
    address = f"aether://{gateway.address}"
    return AgentClient(address, workspace="w", implementation=name, specifier="1", retry=QUICK)


class Siblings:
    """Clients that send, and create tasks, while another one is hostile."""

    def __init__(self) -> None:
        self.echoes = 0
        self.tasks = 0

    async def echo(self, one: AgentClient) -> None:
        """Send messages to itself."""
        while True:
            await one.send("ag::w::echo::1", "x")
            (await one.receive()).ack()
            self.echoes += 1

    async def create(self, one: AgentClient) -> None:
        """Create tasks."""
        while True:
            await one.tasks.create("x", b"", workspace="w", pool="absent")
            self.tasks += 1
            await trio.sleep(0.01)

    async def answered(self) -> None:
        """Wait until both were answered what they ask for after this call."""
        before = self.echoes, self.tasks
        while self.echoes < before[0] + 2 or self.tasks < before[1] + 2:
            await trio.sleep(0.005)


@asynccontextmanager
async def siblings_of(gateway: Gateway) -> AsyncIterator[Siblings]:
    async with agent(gateway, "echo") as one, agent(gateway, "maker") as other, trio.open_nursery() as nursery:
        made = Siblings()
        nursery.start_soon(made.echo, one)
        nursery.start_soon(made.create, other)
        yield made
        nursery.cancel_scope.cancel()


def documents(*of: dict[str, Any]) -> bytes:
    return json.dumps({"documents": of}).encode()


def step(output: Any, **more: Any) -> dict[str, Any]:
    return {"id": "d", "steps": [{"id": "a", "output": output}], **more}


def refused() -> Iterator[tuple[str, bytes, str]]:
    """Yield what APPLY refuses: what it is, its data, and a part of the error."""
    deep = "[" * 100_000 + "]" * 100_000
    yield "a deep list", deep.encode(), "data is not JSON: 'maximum recursion depth"
    yield "deep maps", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "data is not JSON"
    yield "a deep document", documents(step("X")).replace(b'"X"', deep[:150].encode() + b"]" * 150), "64 levels"
    yield "a deeper one", documents(step("X")).replace(b'"X"', deep[:900].encode() + b"]" * 900), "200 levels"
    for number in (b"1e400", b"NaN", b"-Infinity"):
        yield f"the number {number!r}", documents(step("X")).replace(b'"X"', number), "is not a number of JSON"
    yield "a number of 100,000 digits", documents(step("X")).replace(b'"X"', b"9" * 100_000), "4300 digits"
    surrogate, zero = rb'"\ud800"', rb'"a\u0000b"'
    yield "half a character", documents(step("X")).replace(b'"X"', surrogate), "a lone surrogate"
    yield "half a character as an id", documents(step(1)).replace(b'"d"', surrogate), "a lone surrogate"
    yield "a zero byte", documents(step("X")).replace(b'"X"', zero), "/steps/0/output: a text has a zero byte"
    yield "a zero byte in an id", documents(step(1)).replace(b'"d"', zero), "/id: a text has a zero byte"
    for long in ("9999999999999h", "1000000d"):
        yield f"waiting for {long}", documents({"id": "d", "steps": [{"id": "a", "wait": long}]}), "a hundred years"
    yield "a timeout of centuries", documents(step(1, timeout="900000000h")), "a hundred years"
    bomb = {"$expr": "'a' matches '((a{1000}){1000}){1000}'"}
    yield "a pattern that repeats itself", documents(step(bomb)), "invalid repetition size"
    yield "deep brackets", documents(step({"$expr": "(" * 5_000 + "1" + ")" * 5_000})), "nested more than 60 deep"
    yield "a long sum", documents(step({"$expr": "+".join(["1"] * 30_000)})), "more than 10000 parts"
    yield "a long template", documents(step("{{if 1}}" * 5_000 + "{{end}}" * 5_000)), "at most 65536"
    yield "10 MB of text", documents(step(1, description="x" * 10_000_000)), "at most 1048576 are allowed"
    yield "many documents", documents(*({**step(1), "id": f"d{one}"} for one in range(2_000))), "at most 1000"
    yield "a schema elsewhere", documents(step(1, inputs={"$ref": "http://127.0.0.1:1/x"})), "leads out of the document"
    never = {"id": "n", "workflow_id": "d", "schedule_type": "cron", "schedule_expr": "0 0 30 2 *"}
    yield "a day that never comes", documents(never), "no day has all that"


async def test_what_apply_refuses_is_said_and_delays_no_one(gateway: Gateway) -> None:
    with trio.fail_after(LIMIT_S):
        async with siblings_of(gateway) as siblings, agent(gateway, "bad") as bad:
            workflow = Workflow(bad, timeout_s=LIMIT_S)
            for what, data, text in refused():
                with pytest.raises(AetherError) as caught:
                    await workflow._do(APPLY, data=data)
                assert text in str(caught.value), what
                assert len(str(caught.value)) < 2_000, what
                await siblings.answered()


def levels(width: int, depth: int) -> dict[str, Any]:
    """Make a schema whose work is multiplied at each level."""
    parts: dict[str, Any] = {f"d{one}": {"anyOf": [{"$ref": f"#/$defs/d{one + 1}"}] * width} for one in range(depth)}
    return {"$ref": "#/$defs/d0", "$defs": {**parts, f"d{depth}": {"type": "string"}}}


RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "regex": (step({"$expr": f"'{'a' * 50}!' matches '^(a+)+$'"}), ""),
    "many_matches": (step({"$expr": "map(1..3000, {trigger.s matches '(a|b)*c'})"}), "too many operations"),
    "many_sorts": (step({"$expr": "map(1..3000, {sort(trigger.l)[0]})"}), "too many operations"),
    "range": ({"id": "", "steps": [{"id": "a", "for_each": {"$expr": "1..100000000"}, "output": 1}]}, "too many operations"),
    "doubling": (step({"$expr": "reduce(1..40, #acc + #acc, 'xxxxxxxxxx')"}), "too much data"),
    "repeat": (step({"$expr": "repeat('x', 2000000000)"}), "repeats at most 1000000 times"),
    "power": (step({"$expr": "9**9**9**9"}), "is not JSON"),
    "loops": (step("{{range .trigger.l}}{{range $.trigger.l}}x{{end}}{{end}}"), "more than 10,000 operations"),
    "prints": (step("{{range .trigger.l}}{{printf \"%v\" $.trigger.s}}{{end}}"), "more than 1,048,576 bytes"),
    "width": (step('{{printf "%1000000000d" 1}}'), ""),
    "far": ({"id": "", "steps": [{"id": "a", "wait": {"until": "9999-12-31T23:59:59Z"}}]}, "100 years ahead"),
}  # fmt: skip


async def test_executions_that_would_take_for_ever_end_and_delay_no_one(gateway: Gateway) -> None:
    given = {"s": TEXT, "l": list(range(4_000))}
    with trio.fail_after(LIMIT_S):
        async with siblings_of(gateway) as siblings, agent(gateway, "bad") as bad:
            for name, (document, text) in RUNS.items():
                await bad.workflow.apply([{**document, "id": name}], workspace="w")
                execution = await bad.workflow.wait(await bad.workflow.run(name, given))
                assert execution.status == ("failed" if text else "completed"), (name, execution.error)
                assert text in execution.error, name
                await siblings.answered()


async def test_inputs_that_a_schema_could_check_for_ever_are_refused(gateway: Gateway) -> None:
    """The texts of errors do not grow with the value: each would have all of it."""
    given = {"s": TEXT, "l": list(range(4_000))}
    schemas = {
        "doubling": (levels(10, 20), "the check takes more than 5000 steps"),
        "itself": ({"$ref": "#"}, "refers to itself without an end"),
        "patterns": (
            {"properties": {"s": {"oneOf": [{"pattern": f"(a|b)*{one}$"} for one in range(2_000)]}}},
            "is not valid under any of the given schemas",
        ),
    }
    with trio.fail_after(LIMIT_S):
        async with siblings_of(gateway) as siblings, agent(gateway, "bad") as bad:
            for name, (schema, text) in schemas.items():
                await bad.workflow.apply([{**step(1, inputs=schema), "id": name}], workspace="w")
                with pytest.raises(AetherError, match=text):
                    await bad.workflow.run(name, given)
                await siblings.answered()


async def test_a_client_that_leaves_amid_a_refused_start_is_no_defect(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    with trio.fail_after(LIMIT_S):
        async with siblings_of(gateway) as siblings:
            async with agent(gateway, "bad") as bad:
                await bad.workflow.apply([{**step(1, inputs=levels(10, 20)), "id": "slow"}], workspace="w")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(bad.workflow.run, "slow", {"s": TEXT})
                    await trio.sleep(0.05)
                    nursery.cancel_scope.cancel()
            await siblings.answered()
    assert "defect" not in "".join(capsys.readouterr())


async def test_ids_with_separators_are_ids_and_no_paths(gateway: Gateway) -> None:
    with trio.fail_after(LIMIT_S):
        async with agent(gateway, "odd") as odd:
            for name in ("../../etc/passwd", "a/b\\c", "-rf", "💥", "a\u202eb", "x" * 128):
                await odd.workflow.apply([{**step(1), "id": name}], workspace="w")
                assert (await odd.workflow.wait(await odd.workflow.run(name))).result == {"a": 1}
                assert (await odd.workflow.definition(name)).id == name
                with pytest.raises(AetherError, match="not found"):
                    await odd.workflow.execution(name)
                await odd.workflow.delete_workflow(name)


EVENTS: dict[str, str] = {
    "deep": '{"event_names": ["e"], "data": ' + "[" * 50_000 + "]" * 50_000 + "}",
    "nested": '{"event_names": ["e"], "data": ' + "[" * 900 + "]" * 900 + "}",
    "infinite": '{"event_names": ["e"], "data": {"a": 1e400}}',
    "long number": '{"event_names": ["e"], "data": {"a": ' + "9" * 5_000 + "}}",
    "half a character": r'{"event_names": ["e"], "data": {"a": "\ud800"}}',
    "zero byte": r'{"event_names": ["e"], "data": {"a": "x\u0000y"}}',
    "zero byte in its name": r'{"event_names": ["e\u0000"], "data": {}}',
    "many names": json.dumps({"event_names": [f"n{one}" for one in range(50_000)], "data": {}}),
    "one name often": json.dumps({"event_names": ["e"] * 50_000, "data": {}}),
    "large": json.dumps({"event_names": ["e"], "data": {"a": "ab" * 300_000}}),
    "keys twice": '{"event_names": ["x"], "event_names": ["e"], "data": {}}',
    "no JSON": "\x00{",
    "a list": "[]",
    "nothing": "",
}


async def test_hostile_events_delay_neither_events_nor_clients(gateway: Gateway) -> None:
    seen: dict[Any, Any] = {}
    came = trio.Event()

    async def take(job: Job) -> None:
        nonlocal came
        given = json.loads(job.payload)
        seen[str(given["a"])] = given
        came.set()
        came = trio.Event()

    action = {"type": "create_task", "task_type": "t", "target_implementation": "hand"}
    rules = [
        {
            "rule_name": "take",
            "source_event": "e",
            "destination_template": {**action, "payload": {"a": {"$expr": "input.a"}, "by": {"$expr": "source"}}},
        },
        {
            "rule_name": "slow",
            "source_event": "e",
            "priority": 5,
            "trigger_condition": "len(filter(1..9000, {input.a matches '(a|b)*c'})) > 0",
            "destination_template": action,
        },
    ]
    forged = {
        "event_names": ["e"], "workspace": "other", "principal": "us::admin", "source_agent": "admin",
        "source": {"principal": "us::admin", "workspace": "other"},
        "data": {"a": "}\nagent: evil\n{{.x}} {$expr: 1} &a *a !!python/object:os.system"},
    }  # fmt: skip
    with trio.fail_after(LIMIT_S):
        async with siblings_of(gateway) as siblings, agent(gateway, "bad") as bad, agent(gateway, "hand") as hand:
            await bad.workflow.apply(rules, workspace="w")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hand.run_tasks, take)
                for number, text in enumerate([*EVENTS.values(), json.dumps(forged)]):
                    await bad.send("event::*", text, type=MessageType.EVENT)
                    await bad.send_event(json.dumps({"event_names": ["e"], "data": {"a": f"good {number}"}}))
                    while f"good {number}" not in seen:
                        await came.wait()
                    await siblings.answered()
                nursery.cancel_scope.cancel()
    found = seen[forged["data"]["a"]]  # type: ignore[index]
    assert found["by"] == {"agent": "bad", "workspace": "w", "event": "e", "principal": "ag::w::bad::1"}

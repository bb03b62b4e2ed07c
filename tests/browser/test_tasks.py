"""Tasks and registered agents in aether.js, with a real worker and orchestrator."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Page, WebSocketRoute

from aether_trio.client import OrchestratorClient, connect_sync
from aether_trio.client.blocking.job import SyncJob
from aether_trio.client.operations.agents import Registration
from aether_trio.wire.browser.json_mapping import MapConverter
from aether_trio.wire.pb import aether_pb2 as pb
from tests.browser.conftest import Run, let_in
from tests.browser.test_authority_prompt import filled
from tests.helpers.gateway import GatewayProcess

Work = Callable[[SyncJob], None]


@pytest.fixture
def workers(gateway: GatewayProcess) -> Iterator[Callable[[str, str, Work], None]]:
    """Start a worker of a pool in a workspace, which does its first task in a thread."""
    with ExitStack() as stack:

        def start(workspace: str, pool: str, work: Work) -> None:
            worker = stack.enter_context(
                connect_sync(f"aether://{gateway.address}", workspace=workspace, implementation=pool, specifier="1")
            )

            def serve() -> None:
                for task in worker.work(timeout=60):
                    with task:
                        work(task)
                    break

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join)

        yield start


def test_a_page_follows_a_task_and_gives_the_answer_that_it_waits_for(
    page: Page, run: Run, workers: Callable[[str, str, Work], None]
) -> None:
    def pay(task: SyncJob) -> None:
        task.progress(0.5, "half of it")
        task.wait_for_input({"approved": "yes"}, expected_principal="maya")
        task.progress(0.9, "nearly")

    workers("follow", "payer", pay)
    found = run(
        page,
        """async ({ connect }) => {
          const client = await connect({ userId: "maya", workspace: "follow", storage: null });
          const events = [];
          let happened;
          client.addEventListener("task_event", ({ detail }) => { events.push(detail); happened?.(); });
          const until = async (is) => {
            while (!events.some(is)) await new Promise((resolve) => { happened = resolve; });
          };
          const began = new Date(Date.now() - 60_000);
          const id = await client.tasks.create("pay", "1,000", { pool: "payer", metadata: { note: "rent" } });
          const subscription = await client.tasks.subscribe(id, { since: began });
          await until(({ type, to }) => type === "status" && to === "WAITING_INPUT");
          const { tasks: [waiting], pageToken } = await client.tasks.list({ statuses: ["WAITING_INPUT"] });
          await client.tasks.sendInput(id, { approved: "no" }); // is none of what it waits for
          await client.tasks.answer(waiting, { decision: "approve", text: "go" });
          await until(({ type, to }) => type === "status" && to === "COMPLETED");
          await client.tasks.unsubscribe(subscription);
          const task = await client.tasks.get(id);
          const missing = await client.tasks.get("none").catch(({ message }) => message);
          client.close();
          return {
            waiting: [waiting.taskId === id, waiting.type, waiting.assignedTo, waiting.creator === client.identity, pageToken,
              waiting.wait, waiting.metadata.note, waiting.pausedAt !== null],
            status: task.status, failures: task.failures, missing,
            progress: events.filter(({ type }) => type === "progress").map(({ completion, summary }) => [completion, summary]),
            mine: events.every((one) => one.taskId === id && one.subscriptionId === subscription && one.emittedAt >= began),
          };
        }""",
    )
    assert found == {
        "waiting": [
            True,
            "pay",
            "ag::follow::payer::1",
            True,
            "",
            {
                "reason": "INPUT",
                "expectedPrincipal": "maya",
                "pairs": {"approved": "yes"},
                "form": None,
                "dependsOn": [],
                "authorityRequestId": "",
                "timeoutMs": 0,
                "wakeAt": None,
            },
            "rent",
            True,
        ],
        "status": "COMPLETED",
        "failures": 0,
        "missing": "task not found",
        "progress": [[0.5, "half of it"], [0.9, "nearly"]],
        "mine": True,
    }


def test_a_page_cancels_a_task_and_has_it_tried_again(page: Page, run: Run) -> None:
    states = run(
        page,
        """async ({ connect }) => {
          const client = await connect({ userId: "maya", workspace: "retry", storage: null });
          const id = await client.tasks.create("wait", "", { pool: "absent", idempotencyKey: "once" });
          const again = await client.tasks.create("wait", "", { pool: "absent", idempotencyKey: "once" });
          const cancelled = await client.tasks.cancel(id, "not today");
          const retried = await client.tasks.retry(id);
          const refused = await client.tasks.resume(id).catch(({ name }) => name);
          const both = await client.tasks.create("x", "", { pool: "a", target: "b" }).catch(({ name }) => name);
          const status = await client.tasks.list({ statuses: ["DONE"] }).catch(({ name }) => name);
          client.close();
          return [id === again, cancelled.status, cancelled.error, retried.status, refused, both, status];
        }""",
    )
    assert states == [True, "CANCELLED", "task cancelled", "QUEUED", "AetherError", "TypeError", "TypeError"]


def test_a_page_sees_what_can_be_started_and_starts_it(page: Page, run: Run, gateway: GatewayProcess) -> None:
    with connect_sync(
        f"aether://{gateway.address}", OrchestratorClient, implementation="mine", profiles=["threads"]
    ) as orchestrator:
        orchestrator.registry.register(
            Registration(implementation="clerk", orchestrator_profile="threads", description="files letters")
        )
        found = run(
            page,
            """async ({ connect }) => {
              const client = await connect({ userId: "maya", workspace: "starts", storage: null });
              const { agents, total } = await client.agents.list({ profile: "threads" });
              const orchestrators = await client.agents.orchestrators();
              const denied = await client.agents.launch("clerk", "7").catch(({ code }) => code);
              const admin = await connect({ userId: "admin", workspace: "starts", storage: null });
              const start = await admin.agents.launch("clerk", "7", { params: { style: "short" } });
              const { type, target } = await admin.tasks.get(start);
              const again = await admin.agents.launch("clerk", "7").catch(({ message }) => message);
              const one = await client.agents.get("clerk");
              const none = await client.agents.get("absent").catch(({ message }) => message);
              client.close();
              return [agents.map(({ implementation, profile, description, registeredAt }) =>
                [implementation, profile, description, registeredAt !== null]), total,
                orchestrators.map(({ id, profiles }) => [id.startsWith("orc::mine::"), profiles]),
                denied, type, target, again.includes("is being started already"), one.implementation, none];
            }""",
        )
    assert found == [
        [["clerk", "threads", "files letters", True]],
        1,
        [[True, ["threads"]]],
        "ERR_PERMISSION_DENIED",
        "agent_startup",
        "ag::starts::clerk::7",
        True,
        "clerk",
        "no agent implementation 'absent' is registered",
    ]


def test_a_send_that_is_confirmed_alone_has_its_own_refusal(page: Page, run: Run) -> None:
    found = run(
        page,
        """async ({ connect }) => {
          const client = await connect({ userId: "maya", workspace: "alone", storage: null });
          client.send("no such topic", "one");
          const bad = client.sendAndConfirm("zz::x", "two").catch(({ code }) => code);
          const good = client.sendAndConfirm(client.identity, "three").then(() => "kept");
          const flushed = await client.flush().catch((error) => error.refusalCount);
          const results = [await bad, await good, flushed];
          const late = client.sendAndConfirm(client.identity, "four").catch(({ code }) => code);
          client.close();
          return [...results, await late];
        }""",
    )
    assert found[0].startswith("ERR_")
    assert found[1:] == ["kept", 1, "CLOSED"]


def test_an_answer_that_was_cut_off_is_not_sent_again(page: Page, run: Run) -> None:
    sends: list[str] = []

    def answer(socket: WebSocketRoute, message: dict[str, Any]) -> None:
        if "send" in message:
            sends.append(message["send"]["target_topic"])
            if sends == ["ag::w::a::1", "tk::w::t::input"]:
                socket.close(code=4114, reason="the gateway stops")
        elif "connection_status_request" in message and len(sends) != 1:
            request_id = message["connection_status_request"]["request_id"]
            socket.send(json.dumps({"connection_status_response": {"ok": True, "request_id": request_id}}))

    let_in(page, answer)
    found = run(
        page,
        """async ({ connect }) => {
          const client = await connect({ userId: "maya", storage: null });
          const kept = client.sendAndConfirm("ag::w::a::1", "again if need be").then(() => "kept");
          const answered = client.tasks.sendInput("t", {}, { workspace: "w" }).catch(({ code, message }) => [code, message]);
          return [await kept, await answered, client.statistics().unconfirmedBytes];
        }""",
    )
    assert sends == ["ag::w::a::1", "tk::w::t::input", "ag::w::a::1"]
    assert found[0] == "kept"
    assert found[1][0] == "DISCONNECTED"
    assert "whether it arrived is not known" in found[1][1]
    assert found[2] == 0


def test_a_message_has_the_same_id_in_all_windows_and_when_it_comes_again(page: Page, run: Run) -> None:
    found = run(
        page,
        """async ({ connect, topics }) => {
          const open = (more) => connect({ userId: "maya", workspace: "ids", storage: null, ...more });
          const [one, two] = [await open(), await open()];
          await one.sendAndConfirm(topics.userIn("maya", "ids"), "to both");
          await one.sendAndConfirm(two.identity, "to the second");
          const next = async (messages) => (await messages.next()).value;
          const [first, second] = [one.messages(), two.messages()];
          const [a, b, c] = [await next(first), await next(second), await next(second)];
          const { windowId } = two;
          two.close(); // it is not done with the last one
          const later = await open({ windowId });
          const again = await next(later.messages());
          return [a.id === b.id, a.topic, b.id !== c.id, c.id.length > 10, c.topic === two.identity, again.id === c.id];
        }""",
    )
    assert found == [True, "uw::maya::ids", True, True, True, True]


def test_a_task_and_its_events_have_all_that_the_protocol_says(page: Page, run: Run) -> None:
    form = '{"question": "Pay?", "choices": ["all", 7, "half"], "text": "Why?"}'
    task = filled(pb.TaskInfo())
    task.wait_spec.input_match.clear()
    task.wait_spec.input_match.update({"a": "b", "_form": form})
    to_map = MapConverter(json=True).to_map
    events = []
    for kind in ("status_changed", "progress", "child_lifecycle", "authority_request"):
        event = pb.TaskEvent(task_id="t", subscription_id="s", workspace="w", emitted_at_unix_ms=2000)
        filled(getattr(event, kind))
        events.append(to_map(pb.DownstreamMessage(task_event=event)))
    events.append(to_map(pb.DownstreamMessage(task_event=pb.TaskEvent(task_id="t"))))

    def answer(socket: Any, message: dict[str, Any]) -> None:
        asked = message.get("task_query")
        if asked is not None:
            response = pb.TaskQueryResponse(success=True, task=task, request_id=asked["request_id"])
            socket.send(json.dumps(to_map(pb.DownstreamMessage(task_query=response))))

    let_in(page, answer, said=events)
    got = run(
        page,
        """async ({ Client }) => {
          const client = new Client({ userId: "maya", storage: null });
          const events = [];
          client.addEventListener("task_event", ({ detail }) => events.push(detail));
          await client.open();
          return JSON.parse(JSON.stringify([await client.tasks.get("task_id"), events]));
        }""",
    )
    moment = "1970-01-01T00:00:02.000Z"
    found, told = got
    assert found == {
        "taskId": "task_id",
        "type": "task_type",
        "status": "RUNNING",
        "workspace": "workspace",
        "target": "target_topic",
        "assignedTo": "assigned_to",
        "creator": "creator_actor_id",
        **dict.fromkeys(("createdAt", "startedAt", "completedAt", "pausedAt"), moment),
        "failures": 2,
        "maxAttempts": 2,
        "error": "error",
        "metadata": {"name": "value"},
        "parentTaskId": "parent_task_id",
        "dependsOn": ["depends_on"],
        "wait": {
            "reason": "AUTHORITY",
            "expectedPrincipal": "expected_principal",
            "pairs": {"a": "b"},
            "form": {"question": "Pay?", "choices": ["all", "half"], "text": True, "textLabel": "Why?"},
            "dependsOn": ["depends_on"],
            "authorityRequestId": "authority_request_id",
            "timeoutMs": 2,
            "wakeAt": "1970-01-01T00:00:00.002Z",
        },
    }
    assert [(one["type"], one["taskId"]) for one in told] == [
        (kind, "t") for kind in ("status", "progress", "child", "authority", "other")
    ]
    assert [told[0][name] for name in ("from", "to", "reason", "emittedAt")] == ["RUNNING", "RUNNING", "reason", moment]
    assert [told[1][name] for name in ("completion", "summary", "state")] == [2, "message", "state"]
    assert [told[2][name] for name in ("child", "status", "lifecycle")] == ["child_task_id", "RUNNING", "lifecycle"]
    assert told[3]["event"]["request"]["requestId"] == "request_id"

"""A task asks a person: its question, the inputs that answer, what it reads."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.tasks.form import MAX_FORM_BYTES
from aether_trio.model.tasks.wait import Wait
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error, let_manage, message_to
from tests.services.tasks.peers import Op, create, get, operate, own
from tests.services.tasks.peers import answer as received

RUNNING, WAITING = pb.TASK_STATUS_RUNNING, pb.TASK_STATUS_WAITING_INPUT
QUESTION = {"question": "Pay?", "choices": ["now", "later"], "text": "Why?"}


def answer(peer: MemoryLink, task_id: str, payload: str = "", **metadata: str) -> None:
    """Send an input."""
    document = {"metadata": metadata, "payload_base64": payload}
    peer.send(message_to(f"tk::w::{task_id}::input", json.dumps(document).encode()))


async def ask(peer: MemoryLink, task_id: str, form: Any = QUESTION, **match: str) -> pb.TaskOperationResponse:
    text = form if isinstance(form, str) else json.dumps(form)
    wait = pb.WaitSpec(reason=1, input_match={"_form": text, **match})
    return await operate(peer, Op.PAUSE, task_id, wait_spec=wait)


async def question_id(peer: MemoryLink, task_id: str) -> str:
    """The id of the question that a task asks."""
    return (await get(peer, task_id)).wait_spec.input_match["question_id"]


async def until_running(peer: MemoryLink, task_id: str) -> dict[str, Any]:
    """The input that ended the wait, when it has ended."""
    while (task := await get(peer, task_id)).status != RUNNING:
        await trio.sleep(1)
    found: dict[str, Any] = json.loads(task.metadata["_input"])
    return found


async def test_an_answer_ends_the_wait_and_is_read_by_the_worker(world: World) -> None:
    async with deadlock_is_an_error():
        async with world.open() as core, connect(core, agent("w", "c", "1")) as peer:
            task_id = await own(peer)
            assert (await ask(peer, task_id, id="7")).task.status == WAITING
            shown = await get(peer, task_id)
            assert json.loads(shown.wait_spec.input_match["_form"]) == QUESTION
            assert shown.metadata["_queued_because"] == "waits for the answer to: Pay?"
        async with world.open() as core, connect(core, agent("w", "c", "1")) as peer:
            async with connect(core, agent("w", "p", "1")) as person:
                pairs = {"id": "7", "question_id": await question_id(person, task_id)}
                answer(person, task_id, decision="approve", question_id=pairs["question_id"])
                answer(person, task_id, decision="approve", id="7")
                answer(person, task_id, decision="approve", id="7", question_id="_1-0")
                answer(person, task_id, **pairs)
                answer(person, task_id, **pairs, decision="perhaps")
                answer(person, task_id, **pairs, decision="approve", choice="never")
                await barrier(person)
                assert (await get(peer, task_id)).status == WAITING
                payload = base64.b64encode(b"\0").decode()
                answer(person, task_id, payload, **pairs, decision="reject", choice="now", text="too dear")
            assert await until_running(peer, task_id) == {
                "by": "ag::w::p::1",
                "metadata": {**pairs, "decision": "reject", "choice": "now", "text": "too dear"},
                "payload_base64": payload,
            }


async def test_an_answer_that_came_before_the_question_is_used_if_it_names_it(core: Core) -> None:
    """The worker has told the id of its question before it asks."""
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        answer(peer, task_id, decision="reject")
        answer(peer, task_id, "AA==", decision="approve", question_id="order 7")
        await barrier(peer)
        await trio.sleep(10)
        assert (await ask(peer, task_id, question_id="order 7")).task.status == RUNNING
        assert (await until_running(peer, task_id))["payload_base64"] == "AA=="


async def test_the_input_of_one_wait_is_not_shown_after_the_next(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        assert (await ask(peer, task_id)).task.status == WAITING
        answer(peer, task_id, decision="approve", question_id=await question_id(peer, task_id))
        await until_running(peer, task_id)
        paused = await operate(peer, Op.PAUSE, task_id, wait_spec=pb.WaitSpec(reason=1))
        assert paused.task.status == WAITING
        assert "_input" not in (await get(peer, task_id)).metadata
        assert (await operate(peer, Op.RESUME, task_id)).success
        assert "_input" not in (await get(peer, task_id)).metadata


async def test_a_late_answer_ends_no_later_wait(core: Core, world: World) -> None:
    """Two people approve at one moment; the same is asked again, after a retry too."""
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        policy = pb.RetryPolicy(max_attempts=2, backoff=pb.BACKOFF_STRATEGY_FIXED)
        task_id = (await create(creator, retry_policy=policy)).task_id
        old: list[str] = []
        for attempt in (1, 2):
            while not (await operate(worker, Op.CLAIM, task_id)).success:
                await trio.sleep(1)
            for _ in range(2):
                # A client whose request ids begin anew in each process asks with the same one.
                assert (await ask(worker, task_id)).task.status == WAITING
                for late in old:
                    answer(creator, task_id, decision="approve", question_id=late)
                await barrier(creator)
                await trio.sleep(10)
                assert (await get(creator, task_id)).status == WAITING
                old.append(await question_id(creator, task_id))
                for _ in range(2):
                    answer(creator, task_id, decision="reject", question_id=old[-1])
                assert (await until_running(worker, task_id))["metadata"]["decision"] == "reject"
            plain = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT)
            assert (await operate(worker, Op.PAUSE, task_id, wait_spec=plain)).task.status == WAITING
            answer(creator, task_id, decision="approve", question_id=old[0])
            await barrier(creator)
            await trio.sleep(10)
            assert (await operate(worker, Op.RESUME, task_id)).success
            if attempt == 1:
                assert (await operate(worker, Op.FAIL, task_id)).success
        assert len(set(old)) == 4
        assert world.databases["tasks"].query("SELECT COUNT(*) FROM task_inputs") == [(0,)], "void answers take no room"


async def test_an_answer_with_a_lone_surrogate_reaches_the_worker(core: Core) -> None:
    """JSON can spell what no message can carry; the worker's GET must not fail of it."""
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        await ask(peer, task_id)
        answer(
            peer,
            task_id,
            decision="reject",
            text="\ud800!",
            question_id=await question_id(peer, task_id),
            **{"\udfff": ""},
        )
        found = (await until_running(peer, task_id))["metadata"]
        assert found["text"] == "\N{REPLACEMENT CHARACTER}!"
        assert found["\N{REPLACEMENT CHARACTER}"] == ""


async def test_a_repeated_question_has_the_same_id(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        wait = pb.WaitSpec(reason=1, input_match={"_form": json.dumps(QUESTION)})
        found = []
        for _ in range(2):
            peer.send(pb.UpstreamMessage(task_op=Op(op=Op.PAUSE, task_id=task_id, request_id="p", wait_spec=wait)))
            found.append((await received(peer, "task_op", "p")).task.wait_spec)
        assert found[0] == found[1]
        assert found[0].input_match["question_id"]


async def test_a_question_is_answered_and_not_resumed(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        let_manage(core)
        task_id = await own(peer)
        await ask(peer, task_id)
        assert "send it an input whose decision" in (await operate(other, Op.RESUME, task_id)).error
        assert (await operate(peer, Op.RESUME, task_id)).success, "its worker may give up the wait"


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ("Pay?", "not JSON text"),
        ([], "not a JSON object"),
        ('{"question": "?", "x": ' + "[" * 200 + "]" * 200 + "}", "nested too deep"),
        ({}, "no question"),
        ({"question": " "}, "no question"),
        ({"question": "a\0b"}, "no question"),
        ('{"question": "\\ud800"}', "no question"),
        ('{"question": "?", "choices": ["\\udfff"]}', "choices"),
        ('{"question": "?", "text": "\\ud800"}', "true, false or a label"),
        ({"question": "?", "choices": "ab"}, "choices"),
        ({"question": "?", "choices": ["a", "a"]}, "choices"),
        ({"question": "?", "choices": [""]}, "choices"),
        ({"question": "?", "text": 1}, "true, false or a label"),
        ({"question": "x" * MAX_FORM_BYTES}, "at most 16384"),
    ],
)
async def test_a_malformed_question_is_refused(core: Core, form: Any, why: str) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        assert why in (await ask(peer, task_id, form)).error
        assert (await get(peer, task_id)).status == RUNNING


async def test_other_names_of_the_gateway_are_refused_in_a_match(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        refused = await operate(peer, Op.PAUSE, task_id, wait_spec=pb.WaitSpec(reason=1, input_match={"_x": "1"}))
        assert "only _form is known" in refused.error
        for own_id in ("", "_1-0"):
            assert "question_id" in (await ask(peer, task_id, question_id=own_id)).error


def test_a_form_is_read_once_for_all_inputs_that_come(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Wait(1, input_match={"_form": json.dumps({"question": "Read once?", "choices": ["now", "later"]})})
    read = 0
    loads = json.loads

    def counted(text: str) -> Any:
        nonlocal read
        read += 1
        return loads(text)

    monkeypatch.setattr(json, "loads", counted)
    assert not any(wait.takes({"decision": "approve", "choice": f"{number}"}) for number in range(100))
    assert wait.takes({"decision": "approve", "choice": "now"})
    assert read == 1

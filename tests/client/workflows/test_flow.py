"""What durable functions may do, and what is said of those that do something else."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.client.workflows import Flow, StepFailed, StepRetry, workflow
from aether_trio.testing.workflows import NothingComes, replay, run_in_memory


async def double(n: int) -> int:
    return 2 * n


async def test_a_function_runs_with_fakes_in_virtual_time() -> None:
    asked: list[Any] = []

    def search(given: Any) -> Any:
        asked.append(given)
        if given["topic"] == "bad":
            raise ValueError("nothing found")
        return [given["topic"]]

    @workflow
    async def report(flow: Flow, topics: list[str], pages: int = 3) -> dict[str, Any]:
        begun = flow.now()
        found = []
        for one in topics:
            try:
                found += await flow.call("searcher", "search", {"topic": one, "pages": pages})
            except StepFailed as error:
                found.append(f"{error.error_type}: {error.error}")
        await flow.sleep(days=2)
        answer = await flow.ask("Publish?", choices=["now"])
        late = "in time"
        try:
            await flow.wait("paid", timeout=60)
        except StepFailed as error:
            late = error.error_type
        days = (flow.now() - begun).days
        return {"found": found, "choice": answer.choice, "late": late, "days": days, "below": await flow.run("sub")}

    found = await run_in_memory(
        report,
        {"topics": ["tea", "bad"]},
        calls={"searcher.search": search, "sub": lambda given: 7},
        answers={"Publish?": {"choice": "now"}},
    )
    assert (found.outcome, found.result) == (
        "completed",
        {"found": ["tea", "ValueError: nothing found"], "choice": "now", "late": "TIMEOUT", "days": 2, "below": 7},
    )
    assert asked == [{"topic": "tea", "pages": 3}, {"topic": "bad", "pages": 3}]
    assert report.schema == {
        "type": "object",
        "properties": {"topics": {"type": "array", "items": {"type": "string"}}, "pages": {"type": "integer"}},
        "required": ["topics"],
        "additionalProperties": False,
    }
    for missing, text in (({}, "searcher.search"), ({"searcher.search": search}, "ask 'ask'")):
        with pytest.raises(NothingComes, match=text):
            await run_in_memory(report, {"topics": ["tea"]}, calls=missing)


async def test_code_that_does_not_fit_is_found_by_a_replay() -> None:
    def made(*names: str, patch: bool = False, new: str = "") -> Any:
        @workflow(name="f")
        async def f(flow: Flow) -> list[Any]:
            found = [await flow.step(double, 1, name=one) for one in names]
            if patch:
                found.append(flow.patched("v2"))
            if new:
                async with flow.nursery() as branches:
                    branches.start(flow.step, double, 3, name=new)
            return [*found, await flow.step(double, 2, name="last")]

        return f

    async def diverged(changed: Any, history: Any) -> str:
        found = await replay(changed, history)
        assert found.outcome == "diverged", found
        return found.error

    old = (await run_in_memory(made("a", "b"))).history
    assert (await replay(made("a", "b"), old)).result == [2, 2, 4]
    assert "recorded step 'b' at test_flow.py:" in await diverged(made("a", "c"), old)
    assert "got step 'c' at test_flow.py:" in await diverged(made("a", "c"), old)
    assert "recorded step 'b' at" in await diverged(made("a"), old)
    assert "got step 'last' at" in await diverged(made("a"), old)
    assert "recorded the end" in await diverged(made("a", "b", patch=True), old)
    new = await run_in_memory(made("a", "b", patch=True))
    assert new.result == [2, 2, True, 4]
    assert (await replay(made("a", "b", patch=True), new.history)).result == [2, 2, True, 4]
    assert "recorded patch 'patched:v2'" in await diverged(made("a", "b"), new.history)
    branched = (await run_in_memory(made("a", new="x"))).history
    assert "recorded step '1.1/x'" in await diverged(made("a"), branched)
    assert "got step '1.1/y'" in await diverged(made("a", new="y"), branched)
    unended = [one for one in old if one["type"] != "Ended"][:-1]
    assert (await replay(made("a", "b"), unended)).outcome == "open"


async def test_mistakes_are_said_where_they_are_made() -> None:
    @workflow
    async def parallel(flow: Flow) -> None:
        async def inner() -> None:
            await flow.sleep(1)

        await flow.step(inner)

    @workflow
    async def nameless(flow: Flow) -> None:
        await flow.step(lambda: 1)

    @workflow
    async def unsendable(flow: Flow) -> None:
        await flow.call("a", "b", {"x": object()})

    @workflow
    async def results(flow: Flow, n: int) -> Any:
        found = [{1, 2}, float("nan"), "x" * 600_000][n]

        async def give() -> Any:
            return found

        return await flow.step(give)

    @workflow
    async def end(flow: Flow) -> Any:
        return object()

    for function, given, text in (
        (parallel, {}, "two steps of a function at once in one branch"),
        (nameless, {}, "a lambda has no name"),
        (unsendable, {}, "not JSON serializable"),
        (results, {"n": 0}, "the result of step give is not JSON"),
        (results, {"n": 1}, "the result of step give is not JSON"),
        (results, {"n": 2}, "at most 524288 are allowed"),
        (end, {}, "the result of function end is not JSON"),
    ):
        found = await run_in_memory(function, given)
        assert found.outcome == "failed"
        assert text in found.error
    with pytest.raises(TypeError, match="no async function"):
        workflow(lambda flow: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(RuntimeError, match="used in its function"):
        await Flow(None).sleep(1)  # type: ignore[arg-type]


async def test_a_step_in_a_thread_is_tried_again() -> None:
    tries: list[int] = []

    def flaky() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("away")
        return len(tries)

    @workflow
    async def patient(flow: Flow) -> Any:
        found = [await flow.step(flaky, retry=StepRetry(attempts=3, first_s=0))]
        tries.clear()
        try:
            await flow.step(flaky, retry=StepRetry(attempts=3, first_s=0, final=(OSError,)))
        except StepFailed as error:
            found.append(error.error_type)
        return [*found, len(tries), flow.random() == flow.random(), str(flow.uuid())[14]]

    found = await run_in_memory(patient)
    assert found.result == [3, "OSError", 1, False, "4"]


async def test_events_and_continuing_in_memory() -> None:
    @workflow(events={"paid": "input.order", "any": ""})
    async def order(flow: Flow, number: int, left: int = 1) -> Any:
        async with flow.nursery() as branches:
            found = [branches.start(flow.wait, event="paid", equals=number) for _ in range(2)]
        first = await flow.wait(event="any")
        if left:
            return flow.continue_as(number=number, left=left - 1)
        return [one.result for one in found] + [first]

    events = {"paid": [{"sum": 1}, {"sum": 2}], "any": ["x"]}
    found = await run_in_memory(order, {"number": 5}, events=events)
    assert (found.outcome, found.result) == ("continued", {"number": 5, "left": 0})
    assert (await replay(order, found.history)).outcome == "continued"
    found = await run_in_memory(order, found.result, events=events)
    assert found.result == [{"sum": 1}, {"sum": 1}, "x"]
    with pytest.raises(TypeError, match="key of event 'paid'"):
        workflow(events={"paid": 1})(order.body)  # type: ignore[dict-item]

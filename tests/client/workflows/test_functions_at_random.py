"""Random durable functions in memory, with crashes and cancellations."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.client.workflows import Cancelled, Flow, StepFailed, StepRetry, workflow
from aether_trio.client.workflows.run import Advance, Command
from aether_trio.testing.workflows import MemoryHistory, MemoryLedger, move_on, outcome_of, replay

Program = list[Any]


class Crash(Exception):
    """The worker's process has ended."""


class FaultyLedger(MemoryLedger):
    """A ledger whose requests end the process, or are sent twice, by their numbers."""

    def __init__(self, history: MemoryHistory, faults: dict[int, str], requests: list[int]) -> None:
        history.assignment += 1
        super().__init__(history, history.assignment)
        self._faults = faults
        self._requests = requests

    async def advance(self, after: int, commands: Sequence[Command]) -> Advance:
        self._requests[0] += 1
        fault = self._faults.get(self._requests[0], "")
        if fault == "before":
            raise Crash
        if fault == "cancel":
            self.history.cancel()
        if fault == "twice":
            await super().advance(after, commands)
        answer = await super().advance(after, commands)
        if fault == "after":
            raise Crash
        return answer


def leaves() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.tuples(st.sampled_from(["step", "once", "call", "fails", "tried"]), st.sampled_from("ab")),
        st.tuples(st.just("sleep"), st.sampled_from([0, 5, 5000])),
        st.tuples(st.just("wait"), st.just("")),
        st.tuples(st.just("patched"), st.sampled_from("ab")),
    )


programs = st.recursive(
    st.lists(leaves(), max_size=4),
    lambda inner: st.lists(st.one_of(leaves(), st.tuples(st.just("nursery"), st.lists(inner, max_size=3))), max_size=4),
    max_leaves=12,
)
faults = st.dictionaries(st.integers(1, 30), st.sampled_from(["before", "after", "twice"]), max_size=6)


class Play:
    """A random program as a function, with all that it does."""

    def __init__(self, program: Program, answer: str = "again") -> None:
        self.history = MemoryHistory(
            {"agent.tool": lambda given: self.called.update([given["n"]]) or given["n"]},
            {"go": list(range(100))},
            {},
        )
        self.program = program
        self.answer = answer
        self.done: Counter[int] = Counter()
        self.called: Counter[int] = Counter()
        self.undone = 0

        async def program_(flow: Flow) -> Any:
            try:
                return await self.perform(flow, program, [0])
            finally:
                await flow.step(self.undo)

        self.function = workflow(name="program")(program_)

    async def undo(self) -> None:
        self.undone += 1

    async def effect(self, number: int) -> int:
        assert f'"result":{number}}}' not in self.told(number), "the step was recorded before"
        self.done[number] += 1
        await anyio.lowlevel.checkpoint()
        return number

    def told(self, number: int) -> str:
        return "".join(
            json.dumps(one.entry, separators=(",", ":"))
            for one in self.history.entries
            if one.entry["type"] == "StepClosed"
            and one.entry.get("kind") == "step"
            and one.entry.get("result") == number
        )

    async def raises(self, number: int) -> None:
        self.done[number] += 1
        raise ValueError(f"no {number}")

    async def perform(self, flow: Flow, program: Program, counter: list[int]) -> list[Any]:
        found: list[Any] = []
        for kind, detail in program:
            counter[0] += 1
            number = counter[0]
            match kind:
                case "step":
                    found.append(await flow.step(self.effect, number, name=detail))
                case "once":
                    found.append(await flow.step(self.effect, number, name=detail, once=True))
                case "call":
                    found.append(await flow.call("agent", "tool", {"n": number}))
                case "fails":
                    try:
                        await flow.step(self.raises, number, name=detail)
                    except StepFailed as error:
                        found.append(error.error)
                case "tried":
                    try:
                        await flow.step(self.raises, number, retry=StepRetry(attempts=2, first_s=0))
                    except StepFailed as error:
                        found.append(error.error_type)
                case "sleep":
                    before = flow.now()
                    await flow.sleep(detail / 1000)
                    assert (flow.now() - before).total_seconds() >= detail / 1000
                case "wait":
                    await flow.wait("go", name=f"wait {number}")
                case "patched":
                    found.append(flow.patched(f"{detail}{number}"))
                case "nursery":
                    async with flow.nursery() as branches:
                        results = []
                        for part in detail:
                            results.append(branches.start(self.perform, flow, part, [counter[0]]))
                            counter[0] += size_of(part)
                    found.append([one.result for one in results])
        return found

    async def play(self, planned: dict[int, str], hibernate_after: float | None = None) -> int:
        """Let workers run it until it has ended; return how many have crashed."""
        self.history.begin("program", {})
        requests, crashes = [0], 0
        while not self.history.ended:
            self.history.answers = _Again(self.answer)
            try:
                ledger = FaultyLedger(self.history, planned, requests)
                if hibernate_after is not None:
                    ledger.listen = forever  # type: ignore[method-assign]
                if await move_on(self.function, self.history, ledger, hibernate_after) == "hibernated":
                    assert await self.history.happen()
            except Crash:
                crashes += 1
        return crashes


async def forever(news: Any) -> None:
    await anyio.sleep_forever()


class _Again(dict[str, Any]):
    """Answers each question about a step that was begun."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def get(self, key: str, default: Any = None) -> Any:
        return {"choice": self.answer, "data": 0}


def size_of(program: Program) -> int:
    return sum(1 + (sum(map(size_of, detail)) if kind == "nursery" else 0) for kind, detail in program)


def expected(program: Program, counter: list[int]) -> list[Any]:
    found: list[Any] = []
    for kind, detail in program:
        counter[0] += 1
        number = counter[0]
        match kind:
            case "step" | "once" | "call":
                found.append(number)
            case "fails":
                found.append(f"no {number}")
            case "tried":
                found.append("ValueError")
            case "patched":
                found.append(True)
            case "nursery":
                found.append([expected(part, counter) for part in detail])
    return found


def kinds(program: Program, counter: list[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    for kind, detail in program:
        counter[0] += 1
        found[counter[0]] = kind
        if kind == "nursery":
            for part in detail:
                found |= kinds(part, counter)
    return found


@settings(max_examples=100)
@given(program=programs, planned=faults)
def test_crashes_change_no_result(program: Program, planned: dict[int, str]) -> None:
    check_crashes("trio", program, planned)


@settings(max_examples=10)
@given(program=programs, planned=faults)
def test_crashes_change_no_result_on_asyncio(program: Program, planned: dict[int, str]) -> None:
    check_crashes("asyncio", program, planned)


@settings(max_examples=60)
@given(program=programs, planned=faults)
def test_runs_that_sleep_lose_nothing(program: Program, planned: dict[int, str]) -> None:
    check_crashes("trio", program, planned, 0.0)


def check_crashes(
    backend: str, program: Program, planned: dict[int, str], hibernate_after: float | None = None
) -> None:
    async def main() -> None:
        play = Play(program)
        crashes = await play.play(planned, hibernate_after)
        found = outcome_of(play.history)
        assert (found.outcome, found.result) == ("completed", expected(program, [0]))
        numbers = kinds(program, [0])
        for number, kind in numbers.items():
            if kind == "call":
                assert play.called[number] == 1
            elif kind in ("step", "once", "fails"):
                assert 1 <= play.done[number] <= 1 + crashes
            elif kind == "tried":
                assert 2 <= play.done[number] <= 2 + crashes
        again = await replay(play.function, found.history)
        assert (again.outcome, again.result) == ("completed", found.result), again.error
        for end in range(1, len(found.history)):
            assert (await replay(play.function, found.history[:end])).outcome in ("open", "completed")
        assert play.undone <= 1 + crashes

    anyio.run(main, backend=backend)


@settings(max_examples=100)
@given(program=programs, planned=faults, at=st.integers(2, 20))
def test_a_cancelled_function_undoes_its_work_once(program: Program, planned: dict[int, str], at: int) -> None:
    async def main() -> None:
        play = Play(program)
        await play.play(planned | {at: "cancel"})
        found = outcome_of(play.history)
        ends = [one for one in found.history if one["type"] == "StepClosed" and one["step"] == "undo"]
        assert len(ends) == 1
        asked = any(one["type"] == "CancelAsked" for one in found.history)
        if not asked:
            assert found.outcome == "completed"
        elif found.outcome != "cancelled":
            assert found.outcome == "completed", found.error
            assert found.result == expected(program, [0])
        again = await replay(play.function, found.history)
        assert again.outcome == found.outcome, again.error

    anyio.run(main, backend="trio")


@settings(max_examples=100)
@given(program=programs, planned=faults, failing=st.integers(0, 2))
def test_a_branch_that_fails_cancels_its_siblings(program: Program, planned: dict[int, str], failing: int) -> None:
    async def main() -> None:
        parts: list[Program] = [program, [("sleep", 5), ("step", "a")], [("wait", "")]]
        play = Play(program)

        async def fail(flow: Flow) -> None:
            for _ in range(failing):
                await flow.sleep(0.001)
            await flow.step(play.raises, -1)

        async def body(flow: Flow) -> Any:
            cancelled = 0

            async def guarded(part: Program, first: int) -> None:
                nonlocal cancelled
                try:
                    await play.perform(flow, part, [first])
                except Cancelled:
                    cancelled += 1
                    raise

            try:
                async with flow.nursery() as branches:
                    branches.start(fail, flow)
                    for number, part in enumerate(parts):
                        branches.start(guarded, part, 1000 * number)
                    await flow.sleep(3600)
            except* StepFailed as group:
                errors = [str(one) for one in group.exceptions]
            assert errors == ["step 1.1/raises: no -1"]
            return await flow.step(play.effect, 5000)

        play.function = workflow(name="program")(body)
        await play.play(planned)
        found = outcome_of(play.history)
        assert (found.outcome, found.result) == ("completed", 5000), found.error
        again = await replay(play.function, found.history)
        assert (again.outcome, again.result) == ("completed", 5000), again.error

    anyio.run(main, backend="trio")

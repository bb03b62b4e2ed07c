"""The demo's workflow: an event starts a graph, and the gateway is killed in it.

The planner says that something has happened, by an event; what follows is in `tour.yaml`. The
user's phone applies that file, watches the execution and answers its question, with this package's
client.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import yaml

from aether_trio.client import AetherError, UserClient
from aether_trio.client.operations.workflow_values import Execution
from aether_trio.demo import texts
from aether_trio.demo.checks import TourFacts
from aether_trio.demo.planner_and_window import LIMIT_S, Line, Missed, Planner
from aether_trio.demo.processes import GatewayProcess
from aether_trio.demo.screen import Screen

FILE: Final = Path(__file__).with_name("tour.yaml")
_PHONE: Final = "phone"
_LOOK_S: Final = 0.05


class Tour:
    """Plays the workflow, once; `pace_s` is the pause between two lines."""

    def __init__(
        self,
        screen: Screen,
        gateway: GatewayProcess,
        planner: Planner,
        aether: str,
        pace_s: float,
    ) -> None:
        self._screen = screen
        self._gateway = gateway
        self._planner = planner
        self._aether = aether
        self._pace_s = pace_s
        self._told: set[str] = set()
        self.execution_id = ""
        self.facts = TourFacts()

    async def perform(self) -> TourFacts:
        """Run the workflow to its end; return what was seen. Raises Missed."""
        address = f"aether://{self._gateway.address}"
        try:
            async with (
                asyncio.timeout(2 * LIMIT_S),
                UserClient(address, user_id=texts.USER, window_id=_PHONE) as phone,
            ):
                await phone.switch_workspace(texts.WORKSPACE)
                await self._begin(phone)
                await self._lose_the_gateway(phone)
                await self._decide(phone)
                await self._report(await self._until(phone, lambda execution: execution.has_ended))
        except (AetherError, TimeoutError) as error:
            raise Missed(f"the workflow did not end: {str(error) or 'it took too long'}") from error
        return self.facts

    async def _breathe(self, breaths: float) -> None:
        await asyncio.sleep(breaths * self._pace_s)

    async def _begin(self, phone: UserClient) -> None:
        screen, event = self._screen, {"event_names": [texts.SUMMIT_EVENT], "data": texts.SUMMIT_WISH}
        await phone.workflow.apply([yaml.safe_load(FILE.read_text(encoding="utf-8"))])
        screen.event(f"aether workflows apply {FILE.name}", "upon an event it searches, asks and reports")
        await self._breathe(2)
        screen.line(Line(texts.PLANNER_TOPIC, "event", f"{texts.SUMMIT_EVENT}: {texts.SUMMIT_WISH['summit']}"))
        await self._planner.client.send_event(json.dumps(event).encode())
        found: tuple[Execution, ...] = ()
        while not found:
            await asyncio.sleep(_LOOK_S)
            found = await phone.workflow.executions(texts.WORKSPACE, workflow=texts.TOUR)
        self.execution_id = found[0].execution_id
        screen.event("an execution begins", "its first step needs a scout, and none runs")
        self._draw(found[0])
        self.facts.scouts.append(await self._gateway.starts(texts.SCOUT_TOPIC, 0))
        screen.event(f"the gateway starts process {self.facts.scouts[-1]}")

    async def _lose_the_gateway(self, phone: UserClient) -> None:
        execution = await self._until(phone, lambda execution: _searched(execution) > 0)
        self.facts.before = _searched(execution)
        pid = await self._gateway.kill()
        self._screen.event(f"kill -9 {pid}", "the gateway is gone, in the middle of the workflow")
        await self._breathe(2)
        await self._gateway.start()
        self._screen.event(f"aether dev, process {self._gateway.pid}", "the execution goes on")

    async def _decide(self, phone: UserClient) -> None:
        execution = await self._until(phone, lambda execution: _question(execution) != "")
        self.facts.question = _question(execution)
        screen, step = self._screen, "decide"
        screen.line(Line(texts.TOUR_TOPIC, texts.USER, self.facts.question))
        screen.event("it waits for maya, for days if need be", "by hand, the answer is")
        screen.suggest(
            f"{self._aether} workflows answer {self.execution_id} {step} --approve --text 'with a rope' "
            f"--gateway {self._gateway.address}"
        )
        await self._breathe(4)
        screen.line(Line(texts.WINDOW_TOPIC, texts.TOUR, f"Approve: {texts.SUMMIT_CONSENT}"))
        await phone.workflow.answer(self.execution_id, step, text=texts.SUMMIT_CONSENT)

    async def _report(self, execution: Execution) -> None:
        self.facts.status, self.facts.report = execution.status, execution.result
        self.facts.searches = [
            task.attempt
            for task in execution.steps
            if task.step == "search" and task.item is not None and task.status == "completed"
        ]
        self._screen.event(f"the execution is {execution.status}", execution.error or "its result, the report")
        self._screen.freeze()
        if isinstance(execution.result, list):
            self._screen.page([str(line) for line in execution.result])

    def _draw(self, execution: Execution) -> None:
        done, total = _searched(execution), len(texts.FOUND)
        self._screen.draw(texts.TOUR, done, total, done / total, "searches")

    async def _until(self, phone: UserClient, happened: Callable[[Execution], bool]) -> Execution:
        """Show what is found meanwhile, until `happened`; return the execution."""
        while True:
            with suppress(AetherError):  # the gateway is away
                execution = await phone.workflow.execution(self.execution_id)
                for one in execution.steps:
                    if one.item is not None and one.status == "completed" and one.name not in self._told:
                        self._told.add(one.name)
                        found = (await phone.workflow.execution(self.execution_id, step=one.name)).step(one.name)
                        self._screen.line(Line(texts.SCOUT_TOPIC, texts.TOUR, _finding(found.result)))
                        self._draw(execution)
                if happened(execution):
                    return execution
                if execution.has_ended:
                    raise Missed(f"the workflow has {execution.status}: {execution.error}")
            await asyncio.sleep(_LOOK_S)


def _searched(execution: Execution) -> int:
    return sum(one.step == "search" and one.item is not None and one.status == "completed" for one in execution.steps)


def _question(execution: Execution) -> str:
    for one in execution.steps:
        if one.waits_for.get("for") == "answer":
            return str(one.waits_for.get("question", ""))
    return ""


def _finding(result: Any) -> str:
    return f"{result['topic']}? {result['says']}" if isinstance(result, dict) else str(result)

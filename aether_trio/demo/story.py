"""Runs the demo's story: which participant starts or is killed when."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from aether_trio.demo import texts
from aether_trio.demo.booking import book
from aether_trio.demo.checks import BookingFacts, DemoCheck, DemoFacts, tour_verdict, verdict
from aether_trio.demo.planner_and_window import Line, Missed, Planner, Window
from aether_trio.demo.processes import GatewayProcess, Process
from aether_trio.demo.screen import Screen
from aether_trio.demo.tour import Tour

LATE_S: Final = 9.0  # seconds after which pauses get shorter: the machine is busy


class Play:
    """Runs the demo's story once; `pace_s` is the pause between two lines."""

    def __init__(self, screen: Screen, scratch: Path, pace_s: float) -> None:
        self.screen = screen
        self.gateway = GatewayProcess(scratch)
        self.researcher = Process(scratch / "researcher.log")
        self.planner = Planner(pace_s)
        self.window = Window(screen.line, screen.progress)
        self._normal_pace_s = pace_s
        self._waiting: list[str] = []
        self._booking = BookingFacts()
        self._aether = aether_command(sys.executable, os.environ)

    async def perform(self) -> list[DemoCheck]:
        """Run the whole story, and check its claims. Raises Missed if a step fails."""
        await self._enter()
        await self._first_wish()
        await self._lose_the_researcher()
        await self._lose_the_gateway()
        await self._finish()
        await self._write_to_the_keeper()
        await self._breathe(2)
        self._booking = await book(self.gateway.address, self.screen, self._breathe)
        checks = await self._judge()
        await self._breathe(2)
        tour = Tour(self.screen, self.gateway, self.planner, self._aether, self._normal_pace_s)
        return [*checks, *tour_verdict(await tour.perform())]

    @property
    def _pace_s(self) -> float:
        return self._normal_pace_s if self.screen.elapsed_s < LATE_S else self._normal_pace_s / 4

    async def _breathe(self, breaths: float = 1.0) -> None:
        await asyncio.sleep(breaths * self._pace_s)

    async def _enter(self) -> None:
        screen, gateway = self.screen, self.gateway
        screen.title("aether-trio: planning a day trip, through a gateway that gets killed")
        await gateway.start()
        screen.introduce("gateway", gateway.address, f"process {gateway.pid}, in {gateway.data.parent}")
        await self.window.client.connect(gateway.address)
        await self.window.until(lambda: self.window.connections == 1, "the user's window is connected")
        await self.planner.client.connect(gateway.address)
        await self.planner.until(lambda: self.planner.connections == 1, "the planner is connected")
        await self._start_the_researcher()
        screen.introduce(texts.PLANNER, texts.PLANNER_TOPIC, "an agent, written with the published SDK")
        screen.introduce(texts.RESEARCHER, texts.RESEARCHER_TOPIC, f"another one, in process {self.researcher.pid}")
        keeper = "of the hut; no process yet: agents.yaml says how to start one"
        screen.introduce(texts.KEEPER, texts.KEEPER_TOPIC, keeper)
        screen.introduce(texts.USER, texts.WINDOW_TOPIC, "her window; below is what it receives")
        screen.blank()
        await self.window.until(
            lambda: self.window.saw(texts.RESEARCHER_TOPIC, texts.ARRIVED), "the researcher says that it is there"
        )

    async def _start_the_researcher(self) -> None:
        await self.researcher.start_module("aether_trio.demo.researcher", self.gateway.address, str(self._pace_s))

    async def _wish(self, text: str) -> None:
        self.screen.line(Line(texts.WINDOW_TOPIC, texts.PLANNER, text))
        await self.window.ask(text)

    async def _first_wish(self) -> None:
        await self._wish(texts.FIRST_WISH)
        await self.window.until(
            lambda: any(update.summary == texts.RINGING for update in self.window.progress),
            "the progress line says that the researcher rings the hut",
        )

    async def _lose_the_researcher(self) -> None:
        await self._breathe()
        pid = await self.researcher.kill()
        self.screen.event(f"kill -9 {pid}", "the researcher is gone, in the middle of a question")
        await self._breathe(2)
        await self._wish(texts.SECOND_WISH)
        planner, total = self.planner, len(texts.QUESTIONS)
        await planner.until(lambda: planner.asked == total, "the planner has asked everything")
        await planner.barrier()
        await self.window.until(
            lambda: self.window.saw(texts.PLANNER_TOPIC, texts.BACK, texts.PACK), "the window saw the new questions"
        )
        in_log = await self.gateway.log_of(texts.RESEARCHER_TOPIC, total)
        self._waiting = [entry["text"] for entry in in_log]
        offsets = " and ".join(str(entry["offset"]) for entry in in_log[3:])
        self.screen.event("no process reads that", f"messages {offsets} of its topic wait on the disk")
        await self._breathe(3)

    async def _lose_the_gateway(self) -> None:
        pid = await self.gateway.kill()
        self.screen.event(f"kill -9 {pid}", "the gateway is gone too, without a word to its clients")
        await self._breathe(2)
        await self.gateway.start()
        self.screen.event(f"aether dev, process {self.gateway.pid}", f"the same data, again at {self.gateway.address}")
        await self.planner.until(lambda: self.planner.connections == 2, "the planner is connected again")
        await self.window.until(lambda: self.window.connections == 2, "the window is connected again")
        self.screen.event("planner and window have reconnected")
        await self._breathe()
        await self._start_the_researcher()
        self.screen.event(f"the researcher's second life, process {self.researcher.pid}")

    async def _finish(self) -> None:
        await self.window.until(lambda: self.window.saw(texts.PLANNER_TOPIC, texts.PLAN), "the window got the plan")
        total = len(texts.QUESTIONS)
        await self.window.until(
            lambda: any(update.step.sequence == total for update in self.window.progress), "the progress line ended"
        )

    async def _write_to_the_keeper(self) -> None:
        await self._breathe(2)
        self.screen.event("the keeper does not run", "a message to it is enough")
        await self._breathe()
        pid = await self._wake_the_keeper(texts.BEDS, "the gateway starts process {}")
        await self._breathe(2)
        os.kill(pid, signal.SIGKILL)
        self.screen.event(f"kill -9 {pid}", "the keeper is gone")
        await self._breathe(2)
        await self._wake_the_keeper(texts.MORE_BEDS, "the next message starts process {}")

    async def _wake_the_keeper(self, text: str, told: str) -> int:
        before = len(self.gateway.started(texts.KEEPER_TOPIC))
        self.screen.line(Line(texts.WINDOW_TOPIC, texts.KEEPER, text))
        await self.window.ask(text, texts.KEEPER)
        pid = await self.gateway.starts(texts.KEEPER_TOPIC, before)
        self.screen.event(told.format(pid))
        answer = texts.KEEPER_SAYS[text]
        await self.window.until(lambda: self.window.saw(texts.KEEPER_TOPIC, answer), "the keeper answers")
        return pid

    async def _judge(self) -> list[DemoCheck]:
        counter = await self.planner.barrier()
        window = self.window
        return verdict(
            DemoFacts(
                waiting=self._waiting,
                connections=[self.planner.connections, window.connections],
                answers=self.planner.answers,
                counter=counter,
                planner_said=window.heard(texts.PLANNER_TOPIC),
                researcher_said=window.heard(texts.RESEARCHER_TOPIC),
                repeated=window.repeated,
                reports=[(update.step.sequence, update.step.total_steps) for update in window.progress],
                keeper_pids=self.gateway.started(texts.KEEPER_TOPIC),
                keeper_said=window.heard(texts.KEEPER_TOPIC),
                booking=self._booking,
            )
        )

    def tell_what_to_try(self) -> None:
        """Show commands for another terminal."""
        screen, gateway, ops = self.screen, self.gateway.address, self.gateway.ops_address
        aether = self._aether
        screen.note("It goes on. In another terminal:")
        screen.suggest(
            f'{aether} send {texts.RESEARCHER_TOPIC} "Is there a bus?" --gateway {gateway}',
            "the answer goes to the sender, and its copy appears here",
        )
        screen.suggest(f"{aether} tail {texts.RESEARCHER_TOPIC} --from start --ops {ops}", "its topic in the log")
        screen.suggest(
            f"{aether} workflows executions --workspace {texts.WORKSPACE} --gateway {gateway}", "its workflows"
        )
        screen.suggest(f"{aether} sessions --gateway {gateway}", "who is connected")
        screen.suggest(f"{aether} kv list --workspace {texts.WORKSPACE} --gateway {gateway}", "the shared counter")
        screen.suggest(f"curl -s http://{ops}/metrics", "what the gateway counts")
        screen.note("Ctrl-C ends it.")
        screen.blank()


def aether_command(python: str, environment: Mapping[str, str]) -> str:
    """Return how to call `aether` in another terminal: by name, path or module."""
    script = Path(python).with_name("aether")
    if not script.exists():
        return f"{python} -m aether_trio"
    # nox puts its own environment first on the PATH, but not on that of other terminals.
    found = None if "NOX_CURRENT_SESSION" in environment else shutil.which("aether", path=environment.get("PATH", ""))
    if found and Path(found).samefile(script):
        return "aether"
    relative = os.path.relpath(script)
    return str(script) if relative.startswith("..") else relative


@asynccontextmanager
async def open_play(screen: Screen, pace_s: float) -> AsyncIterator[Play]:
    """Open the demo's story; at exit, end its processes and delete its files."""
    with tempfile.TemporaryDirectory(prefix="aether-demo-") as scratch:
        # The SDK logs lost connections; its log goes to a file, not to the screen.
        logging.basicConfig(filename=Path(scratch) / "clients.log", level=logging.INFO, force=True)
        play = Play(screen, Path(scratch), pace_s)
        try:
            yield play
        finally:
            for client in (play.planner.client, play.window.client):
                await client.close()  # type: ignore[no-untyped-call]
            await play.researcher.kill()
            await play.gateway.stop()
            logging.shutdown()


async def run(screen: Screen, *, once: bool, pace_s: float, stop: asyncio.Event) -> bool:
    """Run the demo, until `stop` unless `once`; return whether all claims are true."""
    async with open_play(screen, pace_s) as play:
        planner = asyncio.create_task(play.planner.work())
        stopped = asyncio.create_task(stop.wait())
        try:
            with screen:
                performance = asyncio.create_task(play.perform())
                await asyncio.wait({performance, planner, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not performance.done():
                    performance.cancel()
                    if planner.done():
                        planner.result()
                    return False
                checks = performance.result()
        except Missed as missed:
            screen.failure(f"{missed}\n{play.researcher.printed()}".rstrip())
            return False
        else:
            good = screen.judged(checks)
            if good and not once:
                play.tell_what_to_try()
                await stop.wait()
            return good
        finally:
            planner.cancel()
            stopped.cancel()

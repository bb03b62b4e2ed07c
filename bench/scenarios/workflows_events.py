"""What an event costs, when there is one rule and when there are ten thousand.

Each event finds one rule, whose condition then does not hold, so nothing is done: what an event
costs more than beside the one rule is its matching. The rules differ in the names of their events,
or in a literal of their conditions. After BATCH events one comes for which a message is sent back:
the engine takes events in order, so the others are handled by then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter, perf_counter_ns
from typing import Any, ClassVar, Final

from aether_trio.wire.pb import aether_pb2 as pb
from bench import wire
from bench.scenarios.base import Scenario, variant
from bench.world import Participant, ScenarioFailed

APPLY: Final = 107
APPLIED: Final = 1_000
"""Rules that are applied at once."""
BATCH: Final = 50
MARK: Final = "bench.mark"
GROUP: Final = "workflows-events"
MATCHING_US: Final = 50.0


class Events(Scenario):
    """Scenario: events that find one rule of many, in a closed loop."""

    unit = "event"
    gated = ()
    one_transport = True
    beside = GROUP
    separate = True
    by: ClassVar[str] = ""
    """What is different in the rules: name, literal, or nothing, as there is one."""

    def prepare(self) -> None:
        world = self.world
        name = world.implementation("sender")
        # Messages of rules go to the agent "default" of an implementation.
        init = wire.agent_init(world.workspace, name, "default", self.options.credentials)
        (self.sender,) = world.open([init], name)
        self.sender.handler = self._take
        self.told = self.sent = 0
        self.applied: list[pb.WorkflowResponse] = []
        self.count = self.options.event_rules if self.by else 1
        rules = list(self._rules())
        for start in range(0, len(rules), APPLIED):
            self._apply(rules[start : start + APPLIED])
        self._events = [self._event(number) for number in range(self.count)]
        self._mark = self._encoded(MARK, {})
        for start in range(0, self.count, BATCH):  # each rule is compiled when it is first found
            self._batch(range(start, min(start + BATCH, self.count)))
        self.next = 0

    def _rules(self) -> Iterator[Mapping[str, Any]]:
        back = {"agent": self.world.implementation("sender"), "tool_name": "mark"}
        yield {"rule_name": "mark", "source_event": MARK, "destination_template": back}
        for number in range(self.count):
            condition = "input.amount > 1000"
            if self.by != "name":
                condition = f'input.kind == "kind-{number}" && {condition}'
            yield {
                "rule_name": f"rule-{number}",
                "source_event": self._name(number),
                "trigger_condition": condition,
                "destination_template": back,
            }

    def _name(self, number: int) -> str:
        return f"bench.made-{number}" if self.by == "name" else "bench.made"

    def _apply(self, rules: Sequence[Mapping[str, Any]]) -> None:
        before = len(self.applied)
        data = json.dumps({"documents": rules}).encode()
        operation = pb.WorkflowOperation(
            op=APPLY,  # type: ignore[arg-type]
            data=data,
            workspace=self.world.workspace,
            request_id=str(before),
        )
        self.sender.send(pb.UpstreamMessage(workflow_op=operation).SerializeToString())
        self.world.wait(lambda: len(self.applied) > before, f"{len(rules)} rules")
        if not self.applied[-1].success:
            raise ScenarioFailed(f"rules were refused: {self.applied[-1].error[:200]}")

    def _event(self, number: int) -> bytes:
        return self._encoded(self._name(number), {"kind": f"kind-{number}", "amount": 1, "text": "x" * 100})

    def _encoded(self, name: str, data: Mapping[str, Any]) -> bytes:
        payload = json.dumps({"event_names": [name], "data": data}).encode()
        event = pb.SendMessage(target_topic="event::*", payload=payload, message_type=pb.EVENT)
        return pb.UpstreamMessage(send=event).SerializeToString()

    def _take(self, participant: Participant, messages: list[bytes]) -> None:
        for message in messages:
            found = pb.DownstreamMessage.FromString(message)
            match found.WhichOneof("payload"):
                case "workflow_response":
                    self.applied.append(found.workflow_response)
                case "msg" if found.msg.message_type == pb.CONTROL:
                    self.told += 1
                case _:
                    self.world.other(participant, message)

    def _batch(self, numbers: Sequence[int]) -> None:
        """Send events, and wait until they are handled."""
        before = self.told
        begun = perf_counter_ns()
        for number in numbers:
            self.sender.send(self._events[number])
        self.sender.send(self._mark)
        self.sent += len(numbers)
        self.world.wait(lambda: self.told > before, "the message that follows events")
        self.latencies.pending.append(perf_counter_ns() - begun)

    def window(self, seconds: float) -> int:
        until, before = perf_counter() + seconds, self.sent
        while self.sent == before or perf_counter() < until:
            self._batch([(self.next + place) % self.count for place in range(BATCH)])
            self.next = (self.next + BATCH) % self.count
        return self.sent - before

    def finish(self) -> None:
        self.verdict.counts = {"events": self.sent, "batches": self.told, "rules": self.count}

    def parameters(self) -> dict[str, Any]:
        return {"rules": self.count, "batch": BATCH}


_DOC: Final = "events that find one rule whose condition does not hold, 50 at a time; latency is that of the 50"
EVENTS: Sequence[type[Scenario]] = (
    variant(Events, GROUP, f"{_DOC}: there is one rule"),
    *(
        variant(Events, f"{GROUP}-{by}s", text, by=by, against=GROUP, most_more_us=MATCHING_US)
        for by, text in (
            ("name", "the same with 10,000 rules of as many names of events"),
            ("literal", "the same with 10,000 rules of one name that differ in a literal"),
        )
    ),
)

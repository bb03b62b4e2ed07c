"""Revoke tokens while ten thousand sessions are live.

The sessions are real sockets of one gateway, SESSIONS_OF_TOKEN for each token. A revocation is
timed from the request to its answer, which says that no session of the token is left that may do
anything; and until the last of their streams has ended at the client. In the end one lock ends a
whole workspace, a tenth of all sessions.

The load reads the ends of the streams on the loop on which it waits for the answer, so the second
time is as exact as a round of that loop.
"""

from __future__ import annotations

from time import perf_counter, perf_counter_ns
from typing import Any, Final

from bench import control, wire
from bench.goals import Goal
from bench.latency import Latencies
from bench.scenarios.base import Scenario
from bench.world import Participant, ScenarioFailed

WORKSPACES: Final = 10
SESSIONS_OF_TOKEN: Final = 10
OF_WINDOW: Final = 20
"""Revocations of a window, at most."""
P50_MS: Final = 50.0
P99_MS: Final = 1000.0


class Revoke(Scenario):
    """Scenario: revocations of tokens one after another, each with ten sessions."""

    name = "access-revoke"
    doc = "revocation of a token with 10 of 10,000 live sessions; latency from the request to the answer"
    unit = "revocation"
    one_transport = True
    gated = ()

    def prepare(self) -> None:
        self._administrator = control.UserWindow(self.world)
        self._until_ended = Latencies()
        self._number = 0
        self._places = [f"{self.world.workspace}-{number}" for number in range(WORKSPACES)]
        self._live: list[tuple[str, list[Participant]]] = []
        """Tokens, and the sessions that each has let in."""
        self.revoked = 0
        self._fill()

    def _fill(self) -> None:
        """Connect as many sessions as have ended, with new tokens."""
        wanted = max(OF_WINDOW, self.options.sessions // SESSIONS_OF_TOKEN) - len(self._live)
        tokens = control.create_tokens(self._administrator, wanted, f"{self.world.workspace}*")
        inits = []
        for _, secret in tokens:
            for _ in range(SESSIONS_OF_TOKEN):
                workspace = self._places[self._number % WORKSPACES]
                inits.append(wire.agent_init(workspace, "revoked", str(self._number), {"api_key": secret}))
                self._number += 1
        sessions = self.world.open(inits, "revoked")
        for place, (token_id, _) in enumerate(tokens):
            start = place * SESSIONS_OF_TOKEN
            self._live.append((token_id, sessions[start : start + SESSIONS_OF_TOKEN]))

    def window(self, seconds: float) -> int:
        until, done = perf_counter() + seconds, 0
        while done < OF_WINDOW and perf_counter() < until:
            token_id, sessions = self._live.pop(0)
            answer_ns, end_ns = self._end("token_op", control.revoke_token(token_id), sessions)
            self.latencies.pending.append(answer_ns)
            self._until_ended.pending.append(end_ns)
            done += 1
        self.revoked += done
        return done

    def _end(self, case: str, operation: Any, sessions: list[Participant]) -> tuple[int, int]:
        """Make a request that ends sessions; return when it was answered, when they ended."""
        world, begun, answered_ns = self.world, perf_counter_ns(), 0
        answers: list[Any] = []

        def answered(answer: Any) -> None:
            nonlocal answered_ns
            answered_ns = perf_counter_ns()
            answers.append(answer)

        world.expect_ends(sessions)
        self._administrator.begin(case, operation, answered)
        world.wait(lambda: bool(answers), f"{case}: the answer")
        world.wait(lambda: not world.busy, "the ends of the sessions")
        ended_ns = perf_counter_ns()
        if not answers[0].success:
            raise ScenarioFailed(f"{case} is refused: {answers[0].error}")
        return answered_ns - begun, ended_ns - begun

    def reset(self) -> None:
        self._until_ended.close_window()
        self._fill()

    def finish(self) -> None:
        sessions = [one for _, some in self._live for one in some]
        locked = [one for one in sessions if one.index % WORKSPACES == 0]
        answer_ns, end_ns = self._end("acl_op", control.lock(f"ag::{self._places[0]}::*"), locked)
        answer, ended = self.latencies.summary()["all"], self._until_ended.summary()["all"]
        self.goals = [
            Goal("request to answer, p50", answer["p50"] / 1000, "ms", P50_MS),
            Goal("request to answer, p99", answer["p99"] / 1000, "ms", P99_MS),
            Goal("request to the last session's end, p50", ended["p50"] / 1000, "ms"),
            Goal("request to the last session's end, p99", ended["p99"] / 1000, "ms"),
            Goal(f"a lock of {len(locked):,} sessions: to the answer", answer_ns / 1e6, "ms"),
            Goal("the same, to the last session's end", end_ns / 1e6, "ms"),
        ]
        self.verdict.counts = {"revoked": self.revoked, "sessions": len(sessions), "locked": len(locked)}

    def parameters(self) -> dict[str, Any]:
        return {"sessions": self.options.sessions}

"""The table of moves against the tables of the reference, cell by cell."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from aether_trio.model.tasks import (
    Facts,
    Mode,
    Move,
    MoveRefusal,
    MoveStep,
    Reason,
    RefusedMove,
    Repeat,
    RetrySchedule,
    StoredStatus,
    TaskRow,
    Wait,
)
from aether_trio.model.tasks.status import HELD, PAUSED, TERMINAL
from aether_trio.model.tasks.transitions import RULES, decide

S = StoredStatus
WORKER, CREATOR, OTHER = "ag::w::i::worker", "ag::w::c::creator", "ag::w::i::other"
NOW = 1_700_000_100_000

# Reference, tasks.md 1.4: the validator's map, which binds PAUSE, WAIT_FOR, RESUME and REJECT.
VALIDATOR = {
    S.PENDING: "assigned starting cancelled rejected waiting_dependency",
    S.ASSIGNED: "starting running failed cancelled rejected pending",
    S.STARTING: "running failed cancelled",
    S.RUNNING: "completed failed cancelled waiting_input waiting_authority waiting_dependency hibernated",
    S.WAITING_INPUT: "running failed cancelled rejected",
    S.WAITING_AUTHORITY: "running failed cancelled rejected",
    S.WAITING_DEPENDENCY: "running pending failed cancelled",
    S.HIBERNATED: "running pending failed cancelled",
    S.FAILED: "pending",
    S.CANCELLED: "pending",
    S.COMPLETED: "",
    S.DLQ: "",
    S.REJECTED: "",
}
# Reference, tasks.md 1.5: guards of the moves that the validator does not bind.
CLAIMABLE = {S.PENDING, S.ASSIGNED, S.STARTING, S.RUNNING}


def make(status: S, **fields: Any) -> TaskRow:
    """A task as it is when it has come to `status` in the usual way."""
    usual: dict[str, Any] = {"mode": Mode.POOL, "creator": CREATOR, "created_ms": NOW - 5000, "pending_ms": NOW - 5000}
    if status is not S.PENDING:
        usual |= {"assigned_to": WORKER, "epoch": 1, "assigned_ms": NOW - 4000}
    if status is S.RUNNING or status in PAUSED:
        usual |= {"started_ms": NOW - 3000}
    if status in PAUSED:
        reason = next(one for one in Reason if one and one.status is status)
        usual |= {"wait": Wait(reason, checkpoint_key="k").to_json(), "paused_ms": NOW - 2000}
    if status in TERMINAL:
        usual |= {"ended_by": WORKER, "updated_ms": NOW - 1000}
    return TaskRow("t", "work", "w", status=status, **(usual | fields))


def facts(caller: str = WORKER, **fields: Any) -> Facts:
    return Facts(NOW, caller, 1 if caller == WORKER else None, **fields)


def facts_of(task: TaskRow, **fields: Any) -> Facts:
    """A report of the task's worker, or of any session while it has none."""
    return Facts(NOW, WORKER, task.epoch or None, **fields)


def leads_to(task: TaskRow, move: Move, told: Facts) -> StoredStatus | None:
    """The status afterwards, None for a refusal."""
    match decide(task, move, told):
        case MoveStep(after):
            return after.status
        case Repeat():
            return task.status
        case _:
            return None


def step_of(task: TaskRow, move: Move, told: Facts) -> MoveStep:
    step = decide(task, move, told)
    assert isinstance(step, MoveStep)
    return step


def after_of(task: TaskRow, move: Move, told: Facts) -> TaskRow:
    return step_of(task, move, told).after


def refusal_of(task: TaskRow, move: Move, told: Facts) -> RefusedMove:
    refused = decide(task, move, told)
    assert isinstance(refused, RefusedMove)
    return refused


def validator_allows(before: S, after: S) -> bool:
    return before is after or after.value in VALIDATOR[before].split()


@pytest.mark.parametrize(("status", "reason"), list(itertools.product(S, [one for one in Reason if one])))
def test_pause_goes_where_the_validator_lets_it(status: S, reason: Reason) -> None:
    wait = Wait(reason, checkpoint_key="k", depends_on=("d",))
    wanted = reason.status if validator_allows(status, reason.status) else None
    assert leads_to(make(status), Move.PAUSE, facts_of(make(status), wait=wait)) is wanted


@pytest.mark.parametrize("status", S)
def test_resume_goes_where_the_validator_lets_it_but_a_hibernated_task_has_no_worker(status: S) -> None:
    wanted = S.RUNNING if validator_allows(status, S.RUNNING) else None
    if status is S.HIBERNATED:
        wanted = S.PENDING
    if status is S.STARTING:
        wanted = S.STARTING  # its agent begins it
    assert leads_to(make(status), Move.RESUME, facts()) is wanted


@pytest.mark.parametrize("status", sorted(HELD))
def test_a_resume_by_another_participant_begins_nothing(status: S) -> None:
    assert leads_to(make(status), Move.RESUME, facts(OTHER)) is status


@pytest.mark.parametrize("policy", [RetrySchedule(max_attempts=3), None])
@pytest.mark.parametrize(("failures", "attempts"), [(0, 3), (1, 3), (2, 3), (0, 1)])
def test_a_lost_delivery_is_an_attempt(policy: RetrySchedule | None, failures: int, attempts: int) -> None:
    text = "" if policy is None else policy.to_json()
    task = make(S.ASSIGNED, retry_count=failures, max_attempts=attempts, retry_policy=text, deliveries=7)
    step = step_of(task, Move.LOSE, Facts(NOW, reason="gone"))
    last = failures + 1 >= attempts
    assert step.after.status is (S.DLQ if last else S.FAILED if policy else S.PENDING)
    assert step.after.retry_count == failures + 1
    if step.after.status is S.PENDING:
        assert step.after.deliveries == 0, "the next attempt is counted anew"


@pytest.mark.parametrize("move", Move)
def test_a_task_that_waits_for_a_worker_keeps_nothing_of_its_last_one(move: Move) -> None:
    """No field about the worker, its times or its excuses stays."""
    of_a_worker = {"assigned_ms": NOW - 9, "disconnected_ms": NOW - 8, "attached": 1, "excused_ms": NOW + 7, "begun": 1}
    seen: set[StoredStatus] = set()
    for status in (*HELD, *PAUSED, *TERMINAL):
        task = make(status, retry_policy=RetrySchedule(max_attempts=9).to_json(), **of_a_worker)
        for told in (facts_of(task), Facts(NOW, reason="gone"), Facts(NOW, present=False, lost=True)):
            step = decide(task, move, told)
            if isinstance(step, MoveStep) and step.after.status is S.PENDING:
                seen.add(status)
                after = step.after
                assert (after.assigned_to, after.assigned_ms, after.disconnected_ms) == ("", 0, 0)
                assert (after.attached, after.excused_ms, after.begun) == (0, 0, 0)
    assert seen or move not in {Move.UNASSIGN, Move.RETRY, Move.RESUME}


@pytest.mark.parametrize(("status", "bound"), [(S.ASSIGNED, 16), (S.STARTING, 3)])
def test_deliveries_are_bounded(status: S, bound: int) -> None:
    task = make(status, deliveries=bound - 2)
    for wanted in (S.PENDING, S.DLQ):
        step = step_of(task, Move.UNASSIGN, Facts(NOW, lost=True))
        assert step.after.status is wanted
        task = task.changed({"deliveries": step.after.deliveries})
    assert leads_to(make(status, deliveries=99), Move.UNASSIGN, Facts(NOW)) is S.PENDING


# What a move leads to, and from where.
GOALS = {
    Move.REJECT: (S.REJECTED, {status for status in S if validator_allows(status, S.REJECTED)}),
    Move.CLAIM: (S.RUNNING, CLAIMABLE),
    Move.COMPLETE: (S.COMPLETED, {*S} - TERMINAL | {S.COMPLETED}),
    Move.FAIL: (S.FAILED, {*S} - TERMINAL | {S.FAILED}),
    Move.CANCEL: (S.CANCELLED, {*S} - TERMINAL | {S.CANCELLED}),
    Move.RETRY: (S.PENDING, {S.FAILED, S.CANCELLED, S.DLQ}),
}


@pytest.mark.parametrize(("status", "move"), list(itertools.product(S, GOALS)))
def test_a_move_leads_to_its_goal_from_where_it_may_and_nowhere_else(status: S, move: Move) -> None:
    goal, starts = GOALS[move]
    assert leads_to(make(status), move, facts_of(make(status))) is (goal if status in starts else None)


def test_cancel_ends_a_failed_task_that_would_be_tried_again() -> None:
    step = step_of(make(S.FAILED, next_retry_ms=NOW + 1), Move.CANCEL, facts(CREATOR))
    assert (step.after.status, step.after.next_retry_ms, step.after.is_final) == (S.CANCELLED, 0, True)


@pytest.mark.parametrize(("status", "move"), list(itertools.product(S, Move)))
def test_whatever_is_left_of_a_terminal_task_is_pending_cancelled_or_a_dead_letter(status: S, move: Move) -> None:
    told = facts(OTHER, wait=Wait(Reason.INPUT))
    got = leads_to(make(status), move, told)
    if status in TERMINAL:
        assert got in {None, status, S.PENDING, S.DLQ}
    if got is not None:
        assert status in RULES[move].allowed


@pytest.mark.parametrize("move", [Move.COMPLETE, Move.FAIL, Move.CANCEL, Move.REJECT])
def test_a_repeat_by_the_same_caller_changes_nothing_and_by_another_is_refused(move: Move) -> None:
    ended = {Move.COMPLETE: S.COMPLETED, Move.FAIL: S.FAILED, Move.CANCEL: S.CANCELLED, Move.REJECT: S.REJECTED}[move]
    assert isinstance(decide(make(ended), move, facts()), Repeat)
    refused = refusal_of(make(ended), move, facts(CREATOR))
    assert refused.why is MoveRefusal.ENDED
    assert ended.value in refused.text


@pytest.mark.parametrize("move", [Move.CLAIM, Move.COMPLETE, Move.FAIL, Move.PAUSE, Move.REJECT])
@pytest.mark.parametrize(
    "task",
    [
        make(S.ASSIGNED, assigned_to=OTHER, epoch=2),
        make(S.RUNNING, assigned_to=OTHER, epoch=2),
        make(S.RUNNING, epoch=2),
        make(S.PENDING, epoch=1),
    ],
)
def test_a_worker_that_lost_the_task_is_told_so(move: Move, task: TaskRow) -> None:
    refused = refusal_of(task, move, facts(wait=Wait(Reason.INPUT)))
    assert refused.why is MoveRefusal.STALE
    assert "over" in refused.text


@pytest.mark.parametrize("status", [S.RUNNING, *sorted(PAUSED)])
def test_the_same_pause_changes_nothing_and_another_one_waits(status: S) -> None:
    again = {"wait": Wait(Reason.INPUT), "pause_key": "k"}
    assert isinstance(decide(make(status, pause_key="k"), Move.PAUSE, facts(**again)), Repeat)
    assert isinstance(decide(make(status, pause_key="k"), Move.PAUSE, facts(CREATOR, **again)), Repeat)
    for before in (make(status, pause_key="j"), make(status)):
        if status in (S.RUNNING, S.WAITING_INPUT):
            assert leads_to(before, Move.PAUSE, facts(**again)) is S.WAITING_INPUT
        else:
            assert isinstance(decide(before, Move.PAUSE, facts(**again)), RefusedMove)
    assert refusal_of(make(status, pause_key="k", epoch=2), Move.PAUSE, facts(**again)).why is MoveRefusal.STALE


@pytest.mark.parametrize("status", sorted({*S} - {S.RUNNING} - PAUSED))
def test_the_same_pause_of_what_neither_runs_nor_waits_is_no_repeat(status: S) -> None:
    again = facts(wait=Wait(Reason.INPUT), pause_key="k")
    assert not isinstance(decide(make(status, pause_key="k"), Move.PAUSE, again), Repeat)


def test_a_worker_that_lost_the_task_may_still_cancel_it() -> None:
    assert leads_to(make(S.RUNNING, assigned_to=OTHER, epoch=2), Move.CANCEL, facts()) is S.CANCELLED


def test_claiming_what_waits_is_an_assignment_for_whom_it_is_for() -> None:
    step = step_of(make(S.PENDING, epoch=4), Move.CLAIM, facts(OTHER))
    assert (step.after.assigned_to, step.after.epoch, step.after.status) == (OTHER, 5, S.RUNNING)
    targeted = make(S.PENDING, mode=Mode.TARGETED, target=WORKER)
    assert refusal_of(targeted, Move.CLAIM, facts(OTHER)).why is MoveRefusal.NOT_YOURS


def test_no_worker_claims_what_another_was_assigned() -> None:
    assert refusal_of(make(S.ASSIGNED), Move.CLAIM, facts(OTHER)).why is MoveRefusal.NOT_YOURS


def test_a_second_claim_changes_nothing_unless_its_worker_was_missed() -> None:
    assert isinstance(decide(make(S.RUNNING), Move.CLAIM, facts()), Repeat)
    step = step_of(make(S.RUNNING, disconnected_ms=NOW - 1), Move.CLAIM, facts())
    assert (step.after.disconnected_ms, step.after.started_ms) == (0, NOW - 3000)


@pytest.mark.parametrize(("status", "move"), list(itertools.product(S, Move)))
def test_only_an_assignment_raises_the_epoch_and_it_names_the_worker(status: S, move: Move) -> None:
    before = make(status)
    told = Facts(NOW, OTHER, None, wait=Wait(Reason.INPUT))
    match decide(before, move, told):
        case MoveStep(after):
            if after.epoch != before.epoch:
                assert after.epoch == before.epoch + 1
                assert after.assigned_to == OTHER
            if after.status in HELD:
                assert after.assigned_to


@pytest.mark.parametrize("failures", range(3))
def test_failure_without_a_policy_is_final(failures: int) -> None:
    step = step_of(make(S.RUNNING, retry_count=failures), Move.FAIL, facts(reason="boom"))
    assert (step.after.retry_count, step.after.next_retry_ms, step.after.is_final) == (failures + 1, 0, True)
    assert step.after.error == step.reason == "boom"


def test_failure_with_a_policy_is_final_at_its_last_attempt() -> None:
    policy = RetrySchedule(max_attempts=3, backoff=1, initial_delay_ms=700).to_json()
    nexts = []
    for failures in range(3):
        task = make(S.RUNNING, retry_policy=policy, max_attempts=3, retry_count=failures)
        step = step_of(task, Move.FAIL, facts())
        nexts.append((step.after.next_retry_ms, step.after.is_final))
    assert nexts == [(NOW + 700, False), (NOW + 700, False), (0, True)]


def test_retry_clears_what_the_reference_clears_and_keeps_the_rest() -> None:
    failed = make(S.FAILED, retry_count=2, completed_ms=5, failed_ms=6, error="boom", error_type="X", next_retry_ms=NOW)
    after = after_of(failed, Move.RETRY, facts(CREATOR))
    assert (after.started_ms, after.failed_ms, after.assigned_ms, after.next_retry_ms) == (0, 0, 0, 0)
    assert (after.assigned_to, after.error, after.error_type, after.ended_by) == ("", "", "", "")
    assert (after.retry_count, after.completed_ms, after.epoch) == (2, 5, 1)
    assert after.pending_ms == NOW


def test_hibernation_needs_its_checkpoint_and_lets_the_worker_go() -> None:
    assert refusal_of(make(S.RUNNING), Move.PAUSE, facts(wait=Wait(Reason.HIBERNATION))).why is MoveRefusal.WAIT_SPEC
    wait = Wait(Reason.HIBERNATION, checkpoint_key="half", resume_session_id="s")
    slept = step_of(make(S.RUNNING, attached=1), Move.PAUSE, facts(wait=wait))
    assert (slept.after.attached, slept.after.paused_ms, slept.reason) == (0, NOW, "hibernation")
    after = after_of(slept.after, Move.WAKE, Facts(NOW + 5))
    assert (after.status, after.assigned_to, after.wait, after.paused_ms) == (S.PENDING, "", "", 0)
    assert (after.checkpoint_key, after.resume_session_id) == ("half", "s")


@pytest.mark.parametrize("status", [S.WAITING_INPUT, S.WAITING_AUTHORITY, S.WAITING_DEPENDENCY])
def test_what_wakes_goes_on_where_it_is_and_without_a_worker_there_starts_its_grace(status: S) -> None:
    step = step_of(make(status), Move.WAKE, Facts(NOW))
    assert (step.after.status, step.after.assigned_to, step.after.disconnected_ms) == (S.RUNNING, WORKER, 0)
    gone = step_of(make(status), Move.WAKE, Facts(NOW, present=False))
    assert (gone.after.status, gone.after.disconnected_ms) == (S.RUNNING, NOW)
    assert after_of(make(status, assigned_to=""), Move.WAKE, Facts(NOW)).status is S.PENDING


def test_pause_without_a_wait_spec_is_refused() -> None:
    assert refusal_of(make(S.RUNNING), Move.PAUSE, facts()).why is MoveRefusal.WAIT_SPEC


def test_a_token_binds_its_worker_after_any_other() -> None:
    step = step_of(make(S.RUNNING), Move.ATTACH, Facts(NOW, OTHER))
    assert (step.after.assigned_to, step.after.epoch, step.after.attached) == (OTHER, 2, 1)
    waiting = step_of(make(S.WAITING_INPUT), Move.ATTACH, Facts(NOW, WORKER))
    assert (waiting.after.status, waiting.after.epoch, waiting.after.attached) == (S.WAITING_INPUT, 1, 1)


@pytest.mark.parametrize(("failures", "wanted"), [(0, S.FAILED), (1, S.FAILED), (2, S.DLQ)])
def test_a_deadline_leads_to_another_attempt_or_to_the_dead_letters(failures: int, wanted: S) -> None:
    told = Facts(NOW, reason="too late", error_type="TIMEOUT", delay_ms=1500)
    step = step_of(make(S.RUNNING, retry_count=failures), Move.TIME_OUT, told)
    assert (step.after.status, step.after.retry_count, step.reason) == (wanted, failures + 1, "too late")
    assert step.after.next_retry_ms == (0 if wanted is S.DLQ else NOW + 1500)


# What each move leaves of an earlier attempt: no field of it may be there by accident.
EARLIER = {
    "disconnected_ms": NOW - 7,
    "attached": 1,
    "heartbeat_ms": NOW - 6,
    "deliveries": 5,
    "excused_ms": NOW + 9,
    "begun": 1,
    "started_ms": NOW - 3000,
    "running_ms": NOW - 1500,
    "worked_ms": 250,
    "failed_ms": NOW - 11,
    "next_retry_ms": NOW + 12,
    "opened_ms": NOW - 13,
    "fresh_ms": NOW - 14,
}


@pytest.mark.parametrize(("move", "status"), [(Move.ASSIGN, S.ASSIGNED), (Move.START, S.STARTING)])
def test_an_assignment_begins_with_nothing_of_an_earlier_worker(move: Move, status: S) -> None:
    after = after_of(make(S.PENDING, **EARLIER), move, Facts(NOW, OTHER))
    assert (after.status, after.assigned_to, after.assigned_ms) == (status, OTHER, NOW)
    assert (after.disconnected_ms, after.attached, after.heartbeat_ms, after.begun) == (0, 0, 0, 0)
    assert after.deliveries == 5, "how often it was given is counted on"


@pytest.mark.parametrize(
    ("move", "status"),
    [
        (Move.CLAIM, S.PENDING),
        (Move.CLAIM, S.ASSIGNED),
        (Move.RESUME, S.ASSIGNED),
        (Move.RESUME, S.WAITING_INPUT),
        (Move.WAKE, S.WAITING_DEPENDENCY),
        (Move.ATTACH, S.STARTING),
    ],
)
def test_what_begins_to_run_is_alive_and_its_deliveries_are_over(move: Move, status: S) -> None:
    task = make(status, **EARLIER)
    after = after_of(task, move, facts_of(task))
    assert (after.status, after.running_ms, after.heartbeat_ms) == (S.RUNNING, NOW, NOW)
    assert (after.disconnected_ms, after.deliveries, after.excused_ms, after.begun) == (0, 0, 0, 0)
    assert (after.started_ms, after.worked_ms) == (NOW - 3000, 250), "the attempt is the same one"
    assert after_of(make(S.ASSIGNED), Move.CLAIM, facts()).started_ms == NOW


def test_what_runs_already_has_run_since_then() -> None:
    after = after_of(make(S.RUNNING, **EARLIER), Move.CLAIM, facts())
    assert (after.running_ms, after.heartbeat_ms, after.disconnected_ms) == (NOW - 1500, NOW, 0)


@pytest.mark.parametrize("reason", [Reason.INPUT, Reason.HIBERNATION])
def test_a_pause_counts_what_was_worked_until_then(reason: Reason) -> None:
    told = facts(wait=Wait(reason, checkpoint_key="k"), pause_key="p")
    after = after_of(make(S.RUNNING, **EARLIER), Move.PAUSE, told)
    assert (after.worked_ms, after.paused_ms, after.pause_key) == (1750, NOW, "p")
    assert (after.disconnected_ms, after.excused_ms) == (0, 0)
    assert after.heartbeat_ms == NOW, "its worker knows of it"
    by_other = after_of(make(S.RUNNING, **EARLIER), Move.PAUSE, facts(OTHER, wait=told.wait))
    assert by_other.heartbeat_ms == NOW - 6
    assert after_of(make(S.RUNNING), Move.PAUSE, told).worked_ms == 3000, "since its start, where nothing else is known"
    again = after_of(after, Move.PAUSE, facts(wait=Wait(reason, checkpoint_key="other")))
    assert again.worked_ms == 1750, "a task that waits does not work"


@pytest.mark.parametrize(("timeout_ms", "alive_ms"), [(0, NOW - 6), (5000, NOW)])
def test_what_wakes_without_its_worker_gives_it_its_heartbeat_timeout_to_return(timeout_ms: int, alive_ms: int) -> None:
    task = make(S.WAITING_INPUT, heartbeat_timeout_ms=timeout_ms, **EARLIER)
    after = after_of(task, Move.WAKE, Facts(NOW, present=False))
    assert (after.disconnected_ms, after.heartbeat_ms, after.fresh_ms) == (NOW, alive_ms, NOW)
    assert (after.wait, after.paused_ms) == ("", 0)


@pytest.mark.parametrize("status", [S.HIBERNATED, S.WAITING_DEPENDENCY])
def test_what_wakes_without_a_worker_is_given_to_one_as_if_for_the_first_time(status: S) -> None:
    after = after_of(make(status, assigned_to="", **EARLIER), Move.WAKE, Facts(NOW))
    assert (after.status, after.pending_ms, after.fresh_ms, after.deliveries) == (S.PENDING, NOW, NOW, 0)
    assert (after.wait, after.paused_ms) == ("", 0)


@pytest.mark.parametrize("status", [S.FAILED, S.CANCELLED, S.DLQ])
@pytest.mark.parametrize("caller", [CREATOR, ""])
def test_another_attempt_begins_its_times_anew(status: S, caller: str) -> None:
    after = after_of(make(status, retry_count=4, **EARLIER), Move.RETRY, Facts(NOW, caller))
    assert (after.pending_ms, after.fresh_ms) == (NOW, NOW)
    assert (after.started_ms, after.failed_ms, after.heartbeat_ms, after.running_ms, after.worked_ms) == (0,) * 5
    assert (after.deliveries, after.next_retry_ms, after.wait, after.paused_ms) == (0, 0, "", 0)
    assert after.opened_ms == (NOW if caller else NOW - 13), "a participant opens it again; a policy does not"
    assert after.retry_count == (0 if status is S.DLQ else 4)


@pytest.mark.parametrize(
    ("move", "status", "at"),
    [
        (Move.COMPLETE, S.COMPLETED, "completed_ms"),
        (Move.CANCEL, S.CANCELLED, "completed_ms"),
        (Move.FAIL, S.FAILED, "failed_ms"),
        (Move.BURY, S.DLQ, "failed_ms"),
    ],
)
def test_an_end_has_its_time_and_its_author_and_nothing_is_due_any_more(move: Move, status: S, at: str) -> None:
    after = after_of(make(S.RUNNING, **EARLIER | {"next_retry_ms": 0}), move, facts())
    assert (after.status, getattr(after, at), after.ended_by) == (status, NOW, WORKER)
    assert (after.disconnected_ms, after.next_retry_ms) == (0, 0)


@pytest.mark.parametrize("move", [Move.CANCEL, Move.BURY])
def test_what_would_have_been_tried_again_is_not(move: Move) -> None:
    task = make(S.RUNNING, retry_policy=RetrySchedule(max_attempts=3).to_json(), max_attempts=3)
    waiting = after_of(task, Move.FAIL, facts())
    assert waiting.next_retry_ms > NOW
    assert after_of(waiting, move, Facts(NOW)).next_retry_ms == 0


def test_a_token_of_another_worker_is_an_assignment_and_of_the_same_one_is_not() -> None:
    assert after_of(make(S.WAITING_INPUT, **EARLIER), Move.ATTACH, Facts(NOW, OTHER)).assigned_ms == NOW
    same = after_of(make(S.WAITING_INPUT, **EARLIER), Move.ATTACH, Facts(NOW, WORKER))
    assert (same.assigned_ms, same.disconnected_ms, same.running_ms) == (NOW - 4000, 0, NOW - 1500)


def test_the_last_delivery_that_is_lost_is_a_dead_letter_which_says_so() -> None:
    lost = Facts(NOW, lost=True)
    task = make(S.ASSIGNED, deliveries=15, retry_count=1)
    after = after_of(task, Move.UNASSIGN, lost)
    assert (after.status, after.deliveries, after.error_type) == (S.DLQ, 16, "NEVER_BEGUN")
    assert after.error == "given 16 times and never begun"
    assert after_of(task, Move.UNASSIGN, Facts(NOW)).deliveries == 15, "it was not lost"

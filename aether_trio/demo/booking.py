"""The demo's booking: a task that fails once, asks a person, and has a result.

The user's phone creates the task with this package's client, on asyncio, and follows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aether_trio.client import AetherError, UserClient
from aether_trio.client.operations import RetryPolicy
from aether_trio.client.operations.task_values import RETRY, Task
from aether_trio.demo import texts
from aether_trio.demo.checks import BookingFacts
from aether_trio.demo.planner_and_window import LIMIT_S, Line, Missed
from aether_trio.demo.screen import Screen

_PHONE: Final = "phone"
_DELAY_S: Final = 0.5


async def book(address: str, screen: Screen, breathe: Callable[[], Any]) -> BookingFacts:
    """Have the hut booked, and return what was seen. Raises Missed if it is not."""
    facts = BookingFacts()
    try:
        async with (
            asyncio.timeout(LIMIT_S),
            UserClient(f"aether://{address}", user_id=texts.USER, window_id=_PHONE) as phone,
        ):
            await phone.switch_workspace(texts.WORKSPACE)
            made = await phone.tasks.create(
                "book",
                texts.BOOKING.encode(),
                workspace=texts.WORKSPACE,
                target=texts.KEEPER_TOPIC,
                retry_policy=RetryPolicy(max_attempts=3, initial_delay_s=_DELAY_S),
            )
            screen.event("a task for the keeper", texts.BOOKING)
            async with phone.tasks.follow(made.task_id) as events:
                while not (task := await phone.tasks.get(made.task_id)).has_ended:
                    await _look(phone, task, facts, screen, breathe)
                    await anext(events)
    except (AetherError, TimeoutError) as error:
        raise Missed(f"the hut was not booked: {str(error) or 'it took too long'}") from error
    facts.attempts, facts.result = task.attempt, task.result
    screen.event(f"the task is {task.status.name}", f"its result: {task.result}")
    return facts


async def _look(phone: UserClient, task: Task, facts: BookingFacts, screen: Screen, breathe: Callable[[], Any]) -> None:
    if task.outcome == RETRY and len(facts.failures) < task.failures:
        facts.failures.append(task.error)
        screen.event(
            f"its attempt {task.failures} has failed", f"{task.error}; retry {task.failures + 1} of {task.max_attempts}"
        )
    if (question := task.question) is not None and not facts.questions:
        facts.questions.append(question.question)
        screen.line(Line(texts.KEEPER_TOPIC, texts.USER, question.question))
        screen.event(f"the task is {task.status.name}", "it waits for maya, however long that takes")
        await breathe()
        screen.line(Line(texts.WINDOW_TOPIC, texts.KEEPER, f"Approve: {texts.CONSENT}"))
        await phone.answer(task, True, text=texts.CONSENT)

"""All participants do everything to tasks in any order, with restarts.

The gateway must do what the model of the reference does.

TESTS_FULL=1 for many more examples.
"""

from __future__ import annotations

import os
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.core import run_in_virtual_time
from tests.helpers.direct import Store
from tests.tasks.play import DEADLINES, OPS, PEOPLE, POLICIES, REASONS, run_steps

FULL = os.environ.get("TESTS_FULL") == "1"
EXAMPLES = 2_000 if FULL else 100
MOVERS = ["a", "b", "creator", "manager", "outsider"]
TASK = st.integers(0, 3)
WORKERS = st.sampled_from(["a", "b"])

STEPS = st.one_of(
    st.tuples(
        st.just("create"),
        st.sampled_from(["pool", "pool", "pool", "targeted", "self"]),
        WORKERS,
        st.integers(0, 3),
        st.sampled_from([10, 30, 40]),
        st.integers(0, len(POLICIES) - 1),
        st.sampled_from([0, 0, 0, *range(len(DEADLINES))]),
        st.sampled_from([0, 0, 1, 2]),
        st.sampled_from([0, 0, 0, 1, 2]),
    ),
    st.tuples(st.just("op"), st.sampled_from(MOVERS), st.sampled_from(sorted(OPS)), TASK),
    st.tuples(st.just("op"), WORKERS, st.sampled_from(["claim", "claim", "complete", "fail"]), TASK),
    st.tuples(
        st.just("pause"),
        st.sampled_from(["a", "b", "creator"]),
        st.sampled_from(sorted(REASONS)),
        TASK,
        st.lists(TASK, max_size=3),
        st.booleans(),
        st.sampled_from([0, 0, 5_001, 90_000]),
        st.sampled_from([0, 0, 2_003, 70_000]),
        st.sampled_from(["", "fail", "retry", "alert"]),
    ),
    st.tuples(st.just("report"), st.sampled_from(MOVERS), TASK),
    st.tuples(st.just("pass"), st.sampled_from([40, 1_013, 5_017, 31_019])),
    st.tuples(st.just("disconnect"), st.sampled_from(["a", "b", "manager"]), st.booleans()),
    st.tuples(st.just("connect"), st.sampled_from(["a", "b", "manager"]), st.booleans()),
    st.tuples(st.just("connect"), WORKERS, st.booleans()),
    st.tuples(st.just("restart"), st.sampled_from([10, 3_001, 40_003]), st.booleans()),
)


@pytest.mark.timeout(3_600 if FULL else 300)
def test_random_steps_match_the_model(store: Store) -> None:
    assert set(MOVERS) == set(PEOPLE)

    @settings(max_examples=store.examples(EXAMPLES), print_blob=True)
    @given(st.lists(STEPS, min_size=5, max_size=40))
    def play(steps: list[tuple[object, ...]]) -> None:
        run_in_virtual_time(partial(run_steps, store, steps))

    play()

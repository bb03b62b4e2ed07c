"""Pages end before an answer is too large for a client."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.limits import CLIENT_MESSAGE_BYTES
from aether_trio.wire.pages import PAGE_BYTES, page_that_fits


class Entry:
    def __init__(self, size: int) -> None:
        self.size = size

    def ByteSize(self) -> int:  # noqa: N802
        return self.size


@given(st.lists(st.integers(0, 10)), st.integers(0, 30))
def test_a_page_has_the_first_entries_that_fit_and_one_at_least(sizes: list[int], most: int) -> None:
    entries = [Entry(size) for size in sizes]
    page = page_that_fits(entries, most)
    assert page == entries[: len(page)]
    assert len(page) >= min(1, len(entries))
    assert len(page) <= 1 or sum(one.size for one in page) <= most
    behind = entries[len(page) :]
    assert not behind or sum(one.size for one in page) + behind[0].size > most


def test_a_page_and_its_frame_fit_into_an_answer() -> None:
    assert 2 * PAGE_BYTES - 1024 <= CLIENT_MESSAGE_BYTES

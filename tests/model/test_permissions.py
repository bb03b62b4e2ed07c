"""The sender matrix, cell by cell, against a table written out from the reference."""

from __future__ import annotations

import pytest

from aether_trio.model.identity import Kind
from aether_trio.model.permissions import may_send, sendable
from aether_trio.model.topics import TopicKind

EXPECTED = """
                 ag  tu  ta  tb  us  uw  uu  ga  gu  pg  tk  event metric br  sv
agent            yes yes yes yes yes yes -   yes yes -   yes yes   yes    yes yes
unique_task      yes yes yes yes yes yes -   yes yes -   yes yes   yes    yes yes
task             yes yes yes yes yes yes -   yes yes -   yes yes   yes    yes yes
user             yes yes yes yes yes yes -   yes yes -   yes -     -      yes yes
orchestrator     yes yes yes yes -   -   -   -   -   -   -   -     -      -   -
workflow_engine  yes yes yes yes yes yes yes yes yes -   yes yes   yes    yes yes
metrics_bridge   -   -   -   -   -   -   -   -   -   -   -   -     -      -   -
bridge           yes yes yes yes yes yes yes yes yes -   yes yes   yes    yes yes
service          yes yes yes yes yes yes yes yes yes -   yes yes   yes    yes yes
"""


def cells() -> list[tuple[str, str, bool]]:
    header, *rows = (line.split() for line in EXPECTED.strip().splitlines())
    return [(sender, topic, cell == "yes") for sender, *row in rows for topic, cell in zip(header, row, strict=True)]


@pytest.mark.parametrize(("sender", "topic", "allowed"), cells())
def test_cell(sender: str, topic: str, allowed: bool) -> None:
    assert may_send(Kind(sender), TopicKind(topic)) is allowed
    assert (TopicKind(topic) in sendable(Kind(sender))) is allowed


def test_the_expected_table_has_every_cell_once() -> None:
    assert {(sender, topic) for sender, topic, _ in cells()} == {(kind, topic) for kind in Kind for topic in TopicKind}
    assert len(cells()) == 9 * 15

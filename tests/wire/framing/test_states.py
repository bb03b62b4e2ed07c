"""The tables of states: complete, closed, and the specification's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.wire import framing
from aether_trio.wire.framing import ConnectionState, Side
from aether_trio.wire.framing.states import BY_FRAME, BY_PAIR, LOCALLY_ILLEGAL, START, States

EVENTS: tuple[type, ...] = get_args(framing.Event)
FRAME_OF = {"ClientHello": "HELLO", "ServerHello": "HELLO", "GrantCredit": "CREDIT", "ChannelClosed": "CHANNEL"}
PAGE = Path(__file__).parents[3] / "docs" / "wire.md"


def specified(side: str) -> dict[str, set[str]]:
    """ConnectionState → frames, from the page's table of one side."""
    table = PAGE.read_text().partition(f"| {side} is | until | may send |")[2].partition("\n\n")[0]
    return {
        cells[0]: set(re.findall(r"[A-Z]{2,}", cells[2]))
        for line in table.splitlines()[2:]
        if (cells := [cell.strip() for cell in line.strip("|").split("|")])
    }


@pytest.mark.parametrize(("role", "side"), [(Side.CLIENT, "client"), (Side.SERVER, "gateway")])
def test_the_tables_are_those_of_the_page(role: Side, side: str) -> None:
    page = specified(side)
    if side == "gateway":
        page["leaving"] = page["live"] - {"GOAWAY"}  # the page says it in words
    table = {
        state.value: {FRAME_OF.get(kind.__name__, kind.__name__.upper()) for kind in moves} - {"SKIPPED"}
        for state, moves in BY_FRAME[role].items()
        if state is not ConnectionState.DONE
    }
    assert table == page


def test_optional_frames_may_come_wherever_pings_may() -> None:
    for role in Side:
        for moves in BY_FRAME[role].values():
            assert (framing.Ping in moves) == (framing.Skipped in moves)


def test_each_frame_is_legal_in_some_state_of_its_side_only() -> None:
    by_role = {role: {kind for moves in BY_FRAME[role].values() for kind in moves} for role in Side}
    both = {framing.Envelope, framing.Ping, framing.Pong, framing.GoAway, framing.Error, framing.Skipped}
    assert by_role[Side.CLIENT] & by_role[Side.SERVER] == both
    assert by_role[Side.CLIENT] | by_role[Side.SERVER] == set(EVENTS)
    for role, kinds in LOCALLY_ILLEGAL.items():
        assert kinds <= by_role[role]


def test_no_frame_leads_to_idle_and_every_next_state_is_one_of_that_side() -> None:
    for role in Side:
        for moves in BY_FRAME[role].values():
            assert ConnectionState.IDLE not in moves.values()
            assert set(moves.values()) <= set(BY_FRAME[role])
    for pair in (*BY_PAIR, *BY_PAIR.values(), (START[Side.CLIENT], START[Side.SERVER])):
        assert pair[0] in BY_FRAME[Side.CLIENT]
        assert pair[1] in BY_FRAME[Side.SERVER]


@given(st.data())
def test_any_walk_stays_in_the_tables_and_no_side_is_ever_stuck(data: st.DataObject) -> None:
    states = States()
    for _ in range(data.draw(st.integers(0, 12))):
        role = data.draw(st.sampled_from(Side))
        moves = states.moves(role)
        if not moves:
            continue
        kind = data.draw(st.sampled_from(sorted(moves, key=lambda one: one.__name__)))
        states.move(role, moves[kind])
    client, server = states[Side.CLIENT], states[Side.SERVER]
    assert client in BY_FRAME[Side.CLIENT]
    assert server in BY_FRAME[Side.SERVER]
    # A side that waits for the other side waits for one that can still move.
    if server is ConnectionState.IDLE:
        assert client in {ConnectionState.GREETING, ConnectionState.DONE}
    if client is ConnectionState.WAITING:
        assert server in {ConnectionState.GREETING, ConnectionState.DONE}

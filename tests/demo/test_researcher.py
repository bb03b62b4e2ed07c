"""What the researcher keeps for its next life."""

from __future__ import annotations

from aether_trio.demo.researcher import Notebook


def test_a_question_that_comes_again_is_not_taken_twice() -> None:
    notes = Notebook()
    assert notes.take("Why?", "ag::trip::planner::1")
    assert not notes.take("Why?", "ag::trip::planner::1")
    notes.done.append(notes.todo.pop())
    assert not notes.take("Why?", "ag::trip::planner::1")
    assert notes.todo == []


def test_the_same_question_of_another_sender_is_another_one() -> None:
    notes = Notebook()
    assert notes.take("Why?", "ag::trip::planner::1")
    assert notes.take("Why?", "ag::trip::cli::2")
    assert [sender for _, sender in notes.todo] == ["ag::trip::planner::1", "ag::trip::cli::2"]


def test_a_checkpoint_gives_the_notebook_back() -> None:
    notes = Notebook(todo=[["Wie spät?", "us::ä::w"]], done=[["Why?", "ag::a::b::c"]], rung=True)
    assert Notebook.decode(notes.encode()) == notes
    assert Notebook.decode(b"") == Notebook()

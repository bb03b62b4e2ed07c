"""The texts of the demo's story, and its participants' names.

Questions end with "?", so an answer is "QUESTION? answer".
"""

from __future__ import annotations

from typing import Final

WORKSPACE: Final = "trip"
PLANNER: Final = "planner"
RESEARCHER: Final = "researcher"
KEEPER: Final = "keeper"
SCOUT: Final = "scout"
TOUR: Final = "tour"
USER: Final = "maya"
WINDOW: Final = "window"

PLANNER_TOPIC: Final = f"ag::{WORKSPACE}::{PLANNER}::1"
RESEARCHER_TOPIC: Final = f"ag::{WORKSPACE}::{RESEARCHER}::1"
KEEPER_TOPIC: Final = f"ag::{WORKSPACE}::{KEEPER}::1"
SCOUT_TOPIC: Final = f"ag::{WORKSPACE}::{SCOUT}::default"  # as steps of workflows start agents
WINDOW_TOPIC: Final = f"us::{USER}::{WINDOW}"
TOUR_TOPIC: Final = f"wfe::{TOUR}::0"  # the speaker of a workflow's question

COUNTER: Final = "steps"  # a key: one up for each question asked, and for each answered
NOTEBOOK: Final = "notebook"  # the researcher's checkpoint

WEATHER: Final = "How is the weather on Saturday?"
TRAIN: Final = "When does a train go up?"
HUT: Final = "Is the hut open?"
BACK: Final = "And the last train down?"
PACK: Final = "What goes into the bag?"

BOOK: Final = {
    WEATHER: "Sun until four, then thunder.",
    TRAIN: "7:12 from platform 3.",
    HUT: "It is, and there is cake.",
    BACK: "18:40. With that thunder, better 15:40.",
    PACK: "Water, and a rain jacket.",
}
UNKNOWN: Final = "I have asked around, without success."

FIRST_WISH: Final = "Up to the hut on Saturday! What do I need to know?"
SECOND_WISH: Final = "Oh, and how do I get down again, and what do I pack?"
WISHES: Final = {FIRST_WISH: (WEATHER, TRAIN, HUT), SECOND_WISH: (BACK, PACK)}
QUESTIONS: Final = (WEATHER, TRAIN, HUT, BACK, PACK)

BEDS: Final = "Two beds for Saturday night, please!"
MORE_BEDS: Final = "Sorry, there are three of us now."
KEEPER_SAYS: Final = {BEDS: "Two by the window. They are yours.", MORE_BEDS: "Three, then. Those were the last ones."}

BOOKING: Final = "three beds, Saturday"
BUSY: Final = "the bank's line is busy"
PAY: Final = "Pay 84 euros for three beds?"
CONSENT: Final = "yes, from the kitty"
BOOKED: Final = {"booking": "HUT-12", "beds": 3, "euros": 84}

SUMMIT_EVENT: Final = "summit.wished"
FOUND: Final = {"snow": "none below 2,400 m.", "rope": "yes, on the last ridge.", "view": "as far as Venice."}
SUMMIT_WISH: Final = {"summit": "Grauspitze", "topics": list(FOUND)}
SUMMIT_CONSENT: Final = "with a rope"
REPORT: Final = ["Grauspitze, with a rope", *(f"{topic}: {says}" for topic, says in FOUND.items())]

ARRIVED: Final = "I am here."
RINGING: Final = "ringing the hut"
PLAN: Final = "Up at 7:12, cake at the hut, down at 15:40. Take a rain jacket."


def came_back(done: int, question: str) -> str:
    """Return what the researcher says after a restart, from its checkpoint."""
    return f"Back! My notebook: {done} answered, next: {question}"

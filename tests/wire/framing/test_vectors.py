"""The framing's vectors, written from the specification, mean what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aether_trio.wire.framing import (
    ErrorCode,
    Event,
    FramedConnection,
    FrameDecoder,
    RemoteProtocolError,
    Side,
    Skipped,
    encode,
)
from aether_trio.wire.framing.constants import PREFACE

VECTORS = Path(__file__).parents[1] / "vectors"


def load(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())


def as_data(event: Event) -> dict[str, Any]:
    """An event as the vectors say it: its type, and bytes in hex."""
    fields = msgspec.structs.asdict(event)
    return {"type": type(event).__name__} | {
        name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()
    }


FRAMES: dict[str, dict[str, Any]] = {item["name"]: item for item in load("frames")["frames"]}
INVALID: dict[str, dict[str, Any]] = {item["name"]: item for item in load("invalid")["streams"]}
CONVERSATIONS: dict[str, dict[str, Any]] = {item["name"]: item for item in load("conversations")["conversations"]}


def test_names_are_unique_and_every_code_of_the_decoder_is_there() -> None:
    assert len(FRAMES) == len(load("frames")["frames"])
    assert len(INVALID) == len(load("invalid")["streams"])
    assert len(CONVERSATIONS) == len(load("conversations")["conversations"])
    met = {item.get("error") for item in (*INVALID.values(), *CONVERSATIONS.values())}
    # The last three are no matter of bytes.
    assert {code.name for code in ErrorCode} - met == {"TRUNCATED", "CALM", "TIMEOUT"}


def test_the_preface_is_the_specifications() -> None:
    assert bytes.fromhex(load("frames")["preface"]) == PREFACE


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_decodes_to_its_event(name: str) -> None:
    found = FrameDecoder().receive(PREFACE + bytes.fromhex(FRAMES[name]["hex"]))
    assert [as_data(event) for event in found] == FRAMES[name]["events"]


@pytest.mark.parametrize("name", [name for name in FRAMES if "optional" not in name])
def test_an_event_encodes_to_its_frame(name: str) -> None:
    (event,) = FrameDecoder(preface=False).receive(bytes.fromhex(FRAMES[name]["hex"]))
    frame = encode(event)
    if "HELLO" in name:
        # A map may be written in many ways; ours says every key.
        assert FrameDecoder(preface=False).receive(frame) == [event]
    else:
        assert frame.hex() == FRAMES[name]["hex"]


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("name", INVALID)
def test_a_mistake_is_found_however_it_comes(name: str, step: int) -> None:
    stream = bytes.fromhex(INVALID[name]["hex"])
    decoder = FrameDecoder()
    found: list[dict[str, Any]] = []
    with pytest.raises(RemoteProtocolError) as raised:
        for at in range(0, len(stream), step or len(stream)):
            found += map(as_data, decoder.receive(stream[at : at + (step or len(stream))]))
    found += map(as_data, raised.value.events)
    assert raised.value.code.name == INVALID[name]["error"]
    assert found == INVALID[name]["events"]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_is_legal_up_to_its_mistake(name: str) -> None:
    steps, mistake = CONVERSATIONS[name]["steps"], CONVERSATIONS[name].get("error")
    # Each end hears one side from the vector, and says the other one.
    ends = {"gateway": FramedConnection(Side.CLIENT), "client": FramedConnection(Side.SERVER)}
    other = {"gateway": "client", "client": "gateway"}
    for number, step in enumerate(steps):
        hears, says = ends[step["from"]], ends[other[step["from"]]]
        data = bytes.fromhex(step["hex"])
        if mistake is not None and number == len(steps) - 1:
            with pytest.raises(RemoteProtocolError) as raised:
                hears.receive(data)
            assert raised.value.code.name == mistake
            assert [type(event).__name__ for event in raised.value.events] == step["events"]
            return
        found = hears.receive(data)
        assert [type(event).__name__ for event in found] == step["events"]
        for event in found:
            if not isinstance(event, Skipped):
                says.send(event)

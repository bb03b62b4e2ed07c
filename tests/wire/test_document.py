"""The tables of docs/wire.md agree with those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aether_trio.config import load_settings
from aether_trio.model.errors import RETRYABLE, RETRYABLE_STATUSES, Code, Status
from aether_trio.model.identity import Kind
from aether_trio.model.permissions import sendable
from aether_trio.model.topics import _SHAPES, TopicKind, _describe, parse_topic
from aether_trio.session.init_connection import KNOWN_EXTENSIONS
from aether_trio.transport.framed import link as framed_link
from aether_trio.transport.websocket import close_codes
from aether_trio.transport.websocket.deliveries import MOST_NOT_DONE
from aether_trio.transport.websocket.handshake import _SUBPROTOCOLS
from aether_trio.wire import framing
from aether_trio.wire.framing import ClientHello, ErrorCode, FrameType, RemoteProtocolError, ServerHello, constants
from aether_trio.wire.framing.bodies import reader_of
from aether_trio.wire.framing.encode import encode
from aether_trio.wire.pb import aether_pb2 as pb

PAGE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()
UNITS = {"bytes": 1, "KiB": 1024, "MiB": 1024 * 1024, "GiB": 1024**3, "s": 1, "a second": 1}


def rows(header: str) -> list[list[str]]:
    """The cells of the first table whose header begins like this, without backticks."""
    found = PAGE.partition(f"\n{header}")[2].partition("\n\n")[0].splitlines()[2:]
    assert found, header
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in found]


def number(text: str) -> int:
    return int(text.replace(",", ""))


def takes(kind: FrameType, length: int) -> bool:
    """Tell whether a body of this length is taken; hot frames are judged whole."""
    try:
        reader_of(length, kind << 8)
    except RemoteProtocolError:
        return False
    return True


def test_the_frames_and_their_lengths() -> None:
    table = rows("| type | name | from | body has |")
    assert {(int(value, 16), name) for value, name, _, _ in table} == {(kind.value, kind.name) for kind in FrameType}
    judged = 0
    for _, name, _, body in table:
        kind = FrameType[name]
        if body == "any" or kind in {FrameType.SEND, FrameType.DELIVER}:
            continue
        least, *greatest = (number(one) for one in re.findall(r"[\d,]*\d", body))
        most = (
            greatest[-1] if greatest else least
        )  # of CHANNEL the flag decides between 4 and the rest, after the header
        assert takes(kind, least), name
        assert takes(kind, most), name
        assert not takes(kind, least - 1), name
        assert not takes(kind, most + 1), name
        judged += 1
    assert judged == len(FrameType) - 3


@pytest.mark.parametrize(
    ("hello", "heading"),
    [(ClientHello, "From a client (flags `00`):\n"), (ServerHello, "From a gateway (flags `01`):\n")],
)
def test_the_keys_of_hello(hello: Any, heading: str) -> None:
    table = PAGE.partition(heading)[2].partition("|")[2].partition("\n\n")[0].splitlines()[2:]
    said = {}
    for line in table:
        key, _, default, _ = (cell.strip().replace("`", "") for cell in line.strip("|").split("|"))
        said[key] = default
    meant = {"none": None, "empty": "", "no bytes": b"", "true": True}
    known = {field.name: field.default for field in msgspec.structs.fields(hello)}
    assert {key: meant.get(text, text) if text in meant else number(text) for key, text in said.items()} == known


def test_the_codes_of_the_framing() -> None:
    table = rows("| code | name | |")
    assert {(int(value, 16), name) for value, name, _ in table} == {(code.value, code.name) for code in ErrorCode}
    sentence = re.search(r"Of them ([A-Z, ]+ and [A-Z]+) are retryable", PAGE)
    assert sentence is not None
    assert set(re.findall(r"[A-Z]+", sentence[1])) == {code.name for code in framed_link.RETRYABLE_MISTAKES}


def test_the_statuses_and_who_comes_back() -> None:
    """On all transports, and in our client, by the one list that the page has."""
    table = rows("| status | number | when | again |")
    for name, value, _, _, _ in table:
        assert Status[name] == int(value), name
    again = {Status[name] for name, _, _, comes_back, _ in table if comes_back == "yes"}
    unused = re.search(r"not used today ([A-Z]+) \((\d+)\) and ([A-Z]+) \((\d+)\) would mean \"again\"", PAGE)
    assert unused is not None
    again |= {Status(int(unused[2])), Status(int(unused[4]))}
    assert {Status[unused[1]], Status[unused[3]]} <= again
    assert again == RETRYABLE_STATUSES
    for status in set(Status) - {Status.OK}:
        assert (4100 < close_codes.close_code(status) < 4200) == (status in again)


def test_the_forms_of_topics() -> None:
    said = set()
    for forms, _ in rows("| topic | owner |"):
        said |= set(forms.split(", "))
    assert said == {_describe(kind, shape) for kind, shapes in _SHAPES.items() for shape in shapes}
    for form in said:
        parse_topic(re.sub(r"\{[^}]*\}", "x", form))


def test_who_may_send_where() -> None:
    said = {}
    for senders, prefixes in rows("| sender | may send to |"):
        for sender in senders.split(", "):
            said[Kind(sender.replace(" ", "_"))] = {TopicKind(prefix) for prefix in prefixes.split()}
    assert said == {kind: set(sendable(kind)) for kind in Kind}


def test_the_codes_of_a_send() -> None:
    for codes, _, retryable in rows("| code of a send or a switch | means | retryable |"):
        first = ""
        for code in codes.split(", "):
            first = first or code.removesuffix("_INVALID")
            whole = Code(code if code[0] != "_" else first + code)
            if "the latter" not in retryable:
                assert (whole in RETRYABLE) == (retryable == "yes"), whole


def test_the_subprotocols() -> None:
    assert {name for name, _, _ in rows("| `Sec-WebSocket-Protocol` | messages are | |")} == set(_SUBPROTOCOLS)


def test_the_extensions() -> None:
    assert {name for name, _ in rows("| extension | |")} == KNOWN_EXTENSIONS


def test_how_many_deliveries_may_not_be_done() -> None:
    assert f"at most {MOST_NOT_DONE:,} deliveries are not done" in " ".join(PAGE.split())


def test_the_limits_are_the_defaults() -> None:
    """Of each row that names one setting and begins with a number."""
    settings, seen = load_settings(), 0
    tables = re.findall(r"\n\| \| default \| setting \|\n.*?\n\n", PAGE, re.DOTALL)
    assert len(tables) == 4
    for line in "".join(tables).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        found = re.fullmatch(r"`(\w+)\.(\w+)`", cells[-1])
        value = re.match(r"(?:for )?([\d,]+) ?(bytes|KiB|MiB|GiB|s\b|a second)?", cells[1]) if len(cells) == 3 else None
        if found is None or value is None or ";" in cells[1]:
            continue
        default = getattr(getattr(settings, found[1]), found[2])
        assert default == number(value[1]) * UNITS.get(value[2], 1), line
        seen += 1
    assert seen >= 12


def test_numbers_of_the_framing_in_the_text() -> None:
    text = " ".join(PAGE.split())
    for said in (
        f"from a client, until it has read its ConnectionAck | {constants.OPENING_FRAME_BYTES:,} |",
        f"`max_frame`, which is at least {constants.LEAST_MAX_FRAME_BYTES:,}",
        f"nested deeper than {constants.MAX_HELLO_NESTING} arrays and maps",
        f"At most {constants.MAX_CHANNELS:,} channels are open",
        f"explanation, at most {constants.MAX_TEXT_BYTES:,} bytes of text",
        f"bin of {constants.PUBLISHER_BYTES} bytes",
        f"str of at most {constants.MAX_AGENT_BYTES} characters",
        f"int, 1 to {constants.MAX_PUBLISH_WINDOW:,}",
        "reason: {} leaving, {} draining, {} the connection has reached its age".format(*constants.GoAwayReason),
        f"`{constants.FIRST_OPTIONAL_TYPE:x}` on are optional",
        " ".join(f"{byte:02X}" for byte in constants.MAGIC),
    ):
        assert said in text, said


def test_the_examples_in_bytes() -> None:
    init = pb.UpstreamMessage(
        init=pb.InitConnection(agent=pb.AgentIdentity(workspace="default", implementation="raw", specifier="1"))
    )
    ack = pb.DownstreamMessage(connection_ack=pb.ConnectionAck(session_id="s"))
    incoming = pb.IncomingMessage(source_topic="us::a::1", payload=b"hi", message_type=pb.CHAT)
    topic = "ag::w::b::1"
    expected = [
        framing.ClientHello(),
        framing.ServerHello(max_payload=1_048_576),
        framing.Envelope(init.SerializeToString()),
        framing.Envelope(ack.SerializeToString()),
        framing.Channel(5, topic, 117),
        framing.ChannelClosed(5),
        framing.Send(1, topic, b"hello", pb.CHAT),
        framing.Ack(1),
        framing.Nack(2, "ERR_RATE_LIMITED", "slow", retryable=True, retry_after_ms=250),
        framing.Deliver(5, 118, pb.DownstreamMessage(msg=incoming).SerializeToString()),
        framing.Delivered(5, 118),
        framing.GrantCredit(10, 0),
        framing.Ping(7),
        framing.Pong(7),
        framing.GoAway(framing.GoAwayReason.DRAINING, 9000, "bye"),
        framing.Error(int(Status.UNAVAILABLE), "bye", retryable=True),
    ]
    table = rows("| from | frame | bytes |")
    assert bytes.fromhex(table[0][2]) == constants.PREFACE
    for (_, what, text), event in zip(table[1:], expected, strict=True):
        assert framing.FrameDecoder(preface=False).receive(bytes.fromhex(text)) == [event], what
        if not isinstance(event, framing.ClientHello | framing.ServerHello):
            assert encode(event) == bytes.fromhex(text), what


def test_the_frames_that_must_be_refused() -> None:
    for what, text, code in rows("| frame | bytes | refused with |"):
        client, gateway = framing.FramedConnection(framing.Side.CLIENT), framing.FramedConnection(framing.Side.SERVER)
        init = framing.Envelope(pb.UpstreamMessage(init=pb.InitConnection()).SerializeToString())
        gateway.receive(client.send(framing.ClientHello()) + client.send(init))
        gateway.send(framing.ServerHello())
        gateway.send(framing.Envelope(pb.DownstreamMessage(connection_ack=pb.ConnectionAck()).SerializeToString()))
        with pytest.raises(RemoteProtocolError) as refused:
            gateway.receive(bytes.fromhex(text))
        assert refused.value.code is ErrorCode[code], what

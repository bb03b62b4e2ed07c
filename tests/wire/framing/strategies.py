"""Arbitrary events that an encoder accepts."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from aether_trio.wire import framing

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
counted = st.integers(1, 2**63 - 1)
u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
payloads = st.binary(max_size=300)
credits_ = st.none() | st.integers(0, 2**62)
max_frames = st.integers(4 * 1024 * 1024, 2**31 - 1)

hellos = st.builds(
    framing.ClientHello,
    minor=u16,
    max_frame=max_frames,
    agent=texts,
    credit_messages=credits_,
    credit_bytes=credits_,
    delivery_acks=st.booleans(),
    publisher=st.none() | st.binary(min_size=16, max_size=16),
) | st.builds(
    framing.ServerHello,
    minor=u16,
    max_frame=max_frames,
    max_payload=st.integers(0, 2**63 - 1),
    publish_window=st.integers(1, 2**20),
    dedup_s=u32,
    agent=texts,
    log=st.binary(max_size=64),
)
sends = st.builds(framing.Send, counted, texts, payloads, u16, st.binary(max_size=20))
delivers = st.builds(framing.Deliver, u32, counted, payloads)
events: st.SearchStrategy[framing.Event] = st.one_of(
    hellos,
    sends,
    delivers,
    st.builds(framing.Ack, counted),
    st.builds(
        framing.Nack, counted, texts.filter(lambda code: 0 < len(code.encode()) <= 64), texts, st.booleans(), u32
    ),
    st.builds(framing.Delivered, u32, counted),
    st.builds(framing.GrantCredit, st.integers(1, 2**63 - 1), st.integers(0, 2**63 - 1)),
    st.builds(framing.Envelope, payloads),
    st.builds(framing.Ping, u64),
    st.builds(framing.Pong, u64),
    st.builds(framing.GoAway, u16, u32, texts),
    st.builds(framing.Error, st.integers(1, 2**16 - 1), texts, st.booleans(), u32),
    st.builds(
        framing.Channel,
        u32,
        texts.filter(lambda topic: 0 < len(topic.encode()) <= 256),
        st.integers(0, 2**63 - 1),
        st.booleans(),
    ),
    st.builds(framing.ChannelClosed, u32),
)


@st.composite
def splits(draw: st.DrawFn, stream: bytes) -> Sequence[bytes]:
    """The stream in parts, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

"""The SDK reads what our classes write as the same message, and vice versa."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from scitrera_aether_client.proto import aether_pb2 as sdk

from aether_trio.wire.pb import aether_pb2 as pb
from tests.wire.messages import Plan, build, enveloped_plans, plans

UP, DOWN = pb.UpstreamMessage.DESCRIPTOR, pb.DownstreamMessage.DESCRIPTOR


def assert_exchangeable(name: str, plan: Plan) -> None:
    our_class: type[Message] = getattr(pb, name)
    sdk_class: type[Message] = getattr(sdk, name)
    ours, theirs = build(plan, our_class()), build(plan, sdk_class())
    assert sdk_class.FromString(ours.SerializeToString()) == theirs
    assert our_class.FromString(theirs.SerializeToString()) == ours
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


@given(
    st.one_of(
        st.tuples(st.just("UpstreamMessage"), enveloped_plans(UP)),
        st.tuples(st.just("DownstreamMessage"), enveloped_plans(DOWN)),
    )
)
def test_any_envelope(drawn: tuple[str, Plan]) -> None:
    assert_exchangeable(*drawn)


@given(st.data())
def test_any_message_by_itself(data: st.DataObject) -> None:
    message: Descriptor = data.draw(st.sampled_from(list(pb.DESCRIPTOR.message_types_by_name.values())))
    assert_exchangeable(message.name, data.draw(plans(message)))


@pytest.mark.parametrize("envelope", [UP, DOWN], ids=lambda envelope: envelope.name)
def test_every_variant_of_an_envelope(envelope: Descriptor) -> None:
    for member in envelope.oneofs_by_name["payload"].fields:
        theirs = getattr(sdk, envelope.name)()
        getattr(theirs, member.name).SetInParent()
        ours = getattr(pb, envelope.name).FromString(theirs.SerializeToString())
        assert ours.WhichOneof("payload") == member.name


def test_fields_of_a_newer_peer_survive_a_round_trip() -> None:
    unknown = b"\xfa\x3f\x03new"  # field 1023, length-delimited
    sent = pb.UpstreamMessage(send=pb.SendMessage(target_topic="ga::w")).SerializeToString() + unknown
    assert pb.UpstreamMessage.FromString(sent).SerializeToString() == sent

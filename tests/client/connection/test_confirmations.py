"""Test barriers: each message is settled once, by its own refusal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aether_trio.client.connection.confirmations import Confirmations
from aether_trio.client.errors import AetherError, ConnectionLost
from aether_trio.wire.pb import aether_pb2 as pb


@given(
    st.lists(
        st.tuples(st.sampled_from(["alone", "alone with a number", "together", "plain"]), st.booleans()), max_size=30
    ),
    st.integers(0, 60),
)
def test_refusals_find_their_messages(things: list[tuple[str, bool]], cut_after: int) -> None:
    confirmations = Confirmations(pb.PrincipalRef(principal_type="user", principal_id="us::a::b"))
    outcomes: dict[int, list[AetherError | None]] = {number: [] for number in range(len(things))}
    order: list[bytes | int] = []  # what is on the wire: barriers, and numbers of messages

    def frame(barrier: bytes) -> bytes:
        order.append(barrier)
        return barrier

    for number, (how, _) in enumerate(things):
        settle = outcomes[number].append
        if how.startswith("alone"):
            confirmations.guard(frame)
            order.append(number)
            confirmations.alone(b"", settle, frame, number + 1 if how == "alone with a number" else 0)
        else:
            order.append(number)
            if how == "together":
                confirmations.together(settle, number + 1)
            else:
                confirmations.plain()
    confirmations.guard(frame)
    for step in order[:cut_after]:
        if isinstance(step, bytes):
            question = pb.UpstreamMessage.FromString(step).connection_status_request
            assert question.principal.principal_id == "us::a::b"
            assert confirmations.answered(question.request_id)
            assert not confirmations.answered(question.request_id)
        elif isinstance(step, int) and things[step][1]:
            response = pb.ErrorResponse(code="ERR_X", message=str(step))
            if things[step][0] in {"together", "alone with a number"}:
                response.request_id = f"send-{step + 1}"
                assert confirmations.refused_send(response)
                assert not confirmations.refused_send(pb.ErrorResponse(code="ERR_X", request_id="send-1000"))
            else:
                confirmations.refused(response)
    confirmations.cut()
    for number, (how, bad) in enumerate(things):
        if how == "plain":
            assert outcomes[number] == []
            continue
        (outcome,) = outcomes[number]
        if isinstance(outcome, ConnectionLost):
            assert cut_after < len(order)
        else:
            assert (outcome is not None) == bad
            assert outcome is None or outcome.message == str(number)

"""Three buckets in a row: what each refuses, and what a refusal costs."""

from __future__ import annotations

import pytest

from aether_trio.delivery import rates
from aether_trio.delivery.rates import Rates
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.limits import Limits
from aether_trio.model.quotas import WorkspaceQuotas
from tests.helpers.clocks import ManualClock


def code_of(limiter: Rates, bucket: object, workspace: str = "w", identity: str = "i") -> Code | None:
    try:
        limiter.take(bucket, workspace, identity)  # type: ignore[arg-type]
    except RequestError as error:
        return error.code
    return None


def test_a_message_that_an_earlier_bucket_refused_takes_nothing_from_the_next() -> None:
    clock = ManualClock()
    limiter = Rates(Limits(send_rate_per_s=1, send_burst=1, workspace_rate_per_s=2), clock)
    one, two, three = (limiter.connection_bucket() for _ in range(3))
    assert code_of(limiter, one) is None
    assert [code_of(limiter, one) for _ in range(5)] == [Code.RATE_LIMITED] * 5
    assert code_of(limiter, two) is None
    assert code_of(limiter, three) == Code.WORKSPACE_RATE_LIMITED


def test_a_sender_without_a_workspace_has_no_workspace_rate() -> None:
    limiter = Rates(Limits(send_rate_per_s=0, workspace_rate_per_s=1), ManualClock())
    bucket = limiter.connection_bucket()
    assert [code_of(limiter, bucket, workspace="") for _ in range(10)] == [None] * 10


def test_identities_do_not_share_their_rate() -> None:
    limiter = Rates(Limits(send_rate_per_s=0, identity_rate_per_s=1), ManualClock())
    bucket = limiter.connection_bucket()
    assert [code_of(limiter, bucket, identity=name) for name in "aabb"] == [None, Code.QUOTA, None, Code.QUOTA]


def test_a_rate_below_one_a_second_still_lets_something_through() -> None:
    clock = ManualClock()
    limiter = Rates(Limits(send_rate_per_s=0, workspace_rate_per_s=0.5), clock)
    bucket = limiter.connection_bucket()
    assert [code_of(limiter, bucket) for _ in range(2)] == [None, Code.WORKSPACE_RATE_LIMITED]
    clock.advance(2000)
    assert code_of(limiter, bucket) is None


def test_without_rates_nothing_is_counted() -> None:
    limiter = Rates(Limits(send_rate_per_s=0, workspace_rate_per_s=0, identity_rate_per_s=0), ManualClock())
    assert limiter.unlimited
    limiter.take(limiter.connection_bucket(), "w", "i")
    assert len(limiter._workspaces) == len(limiter._identities) == 0


def test_full_buckets_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MAX_BUCKETS", 10)
    clock = ManualClock()
    limiter = Rates(Limits(send_rate_per_s=0, workspace_rate_per_s=10), clock)
    bucket = limiter.connection_bucket()
    for number in range(100):
        limiter.take(bucket, f"{number}", "i")
        clock.advance(1000)
    assert len(limiter._workspaces) <= 10


def test_quotas_of_a_workspace_override_the_limits_at_once() -> None:
    clock = ManualClock()
    limits = Limits(send_rate_per_s=0)
    quotas = WorkspaceQuotas(limits)
    limiter = Rates(limits, clock, quotas)
    bucket = limiter.connection_bucket()
    assert limiter.unlimited
    quotas.apply([("w", "workspace_rate_per_s", 2.0), ("v", "identity_rate_per_s", 1.0)], everything=False)
    assert not limiter.unlimited
    assert [code_of(limiter, bucket) for _ in range(3)] == [None, None, Code.WORKSPACE_RATE_LIMITED]
    assert [code_of(limiter, bucket, "v", "j") for _ in range(2)] == [None, Code.QUOTA]
    assert [code_of(limiter, bucket, "u") for _ in range(9)] == [None] * 9
    quotas.apply([("w", "workspace_rate_per_s", 5.0)], everything=False)
    assert [code_of(limiter, bucket) for _ in range(6)] == [None] * 5 + [Code.WORKSPACE_RATE_LIMITED]
    quotas.apply([("w", "workspace_rate_per_s", None), ("v", "identity_rate_per_s", None)], everything=False)
    assert limiter.unlimited


def test_an_override_may_lift_a_limit() -> None:
    limits = Limits(send_rate_per_s=0, workspace_rate_per_s=1)
    quotas = WorkspaceQuotas(limits)
    limiter = Rates(limits, ManualClock(), quotas)
    quotas.apply([("w", "workspace_rate_per_s", 0.0)], everything=False)
    bucket = limiter.connection_bucket()
    assert [code_of(limiter, bucket) for _ in range(9)] == [None] * 9
    assert [code_of(limiter, bucket, "v") for _ in range(2)] == [None, Code.WORKSPACE_RATE_LIMITED]

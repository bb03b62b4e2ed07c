"""Topics: each form, each refusal, the aliases, and topics that no receiver owns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model import topics
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity
from aether_trio.model.topics import TopicKind, parse_topic, resolve_target, rewrite_alias
from tests.model.strategies import identities, inner_tokens, raw_tokens

# text, kind, parts, workspace for access rules
FORMS = [
    ("ag::ws::impl::one", "ag", ("ws", "impl", "one"), "ws"),
    ("tu::ws::impl::job", "tu", ("ws", "impl", "job"), "ws"),
    ("ta::ws::impl::6f1c", "ta", ("ws", "impl", "6f1c"), "ws"),
    ("tb::ws::impl", "tb", ("ws", "impl"), "ws"),
    ("us::ada::w1", "us", ("ada", "w1"), ""),
    ("uw::ada::ws", "uw", ("ada", "ws"), "ws"),
    ("uu::ada", "uu", ("ada",), ""),
    ("ga::ws", "ga", ("ws",), "ws"),
    ("gu::ws", "gu", ("ws",), "ws"),
    ("pg::ws", "pg", ("ws",), "ws"),
    ("pg::us::ada", "pg", ("us", "ada"), ""),
    ("pg::us", "pg", ("us",), "us"),
    ("pg::us::us", "pg", ("us", "us"), ""),
    ("tk::ws::t1::events", "tk", ("ws", "t1", "events"), "ws"),
    ("tk::ws::t1::msg", "tk", ("ws", "t1", "msg"), "ws"),
    ("tk::ws::t1::input", "tk", ("ws", "t1", "input"), "ws"),
    ("event::receiver0", "event", ("receiver0",), ""),
    ("metric::receiver0", "metric", ("receiver0",), ""),
    ("br::impl::main", "br", ("impl", "main"), ""),
    ("sv::impl", "sv", ("impl",), ""),
    ("sv::impl::one", "sv", ("impl", "one"), ""),
    ("ag::a.b@c/d::im:pl::工作", "ag", ("a.b@c/d", "im:pl", "工作"), "a.b@c/d"),
    ("ag::a:::b:::c:", "ag", ("a", ":b", ":c:"), "a"),
    ("us::ada:::", "us", ("ada", ":"), ""),
    ("ga:::ws", "ga", (":ws",), ":ws"),
]


@pytest.mark.parametrize(("text", "kind", "parts", "workspace"), FORMS)
def test_every_form(text: str, kind: str, parts: tuple[str, ...], workspace: str) -> None:
    topic = parse_topic(text)
    assert (topic.kind, topic.text, topic.parts, topic.workspace) == (kind, text, parts, workspace)
    assert str(topic) == text
    assert "::".join([topic.kind, *topic.parts]) == text


def test_every_kind_is_among_the_forms() -> None:
    assert {form[1] for form in FORMS} == set(TopicKind)
    assert len(TopicKind) == 15


NO_KIND = ["", "ag", "::", "::ag::ws", ":", "ag:ws:impl:spec", "ag.ws.impl.spec", "wfe::shard0", "_aether::x"]
NO_KIND += ["AG::ws::impl::spec", " ag::ws::impl::spec", "orc::impl::spec", "metrics::shard0", "events::receiver0"]
FORBIDDEN = ["ag::ws::*::spec", "ag::>::impl::spec", "ag::ws::impl::a b", "ag::ws::impl::spec\n", "ga::*"]
MALFORMED = [
    *((text, "not allowed") for text in FORBIDDEN),
    *((text, "must begin with one of") for text in NO_KIND),
    ("ag::", r"expected ag::\{workspace\}::\{implementation\}::\{specifier\}"),
    ("ag::ws::impl", "expected ag::"),
    ("ag::::impl::spec", "workspace is empty"),
    ("ag::ws::::spec", "implementation is empty"),
    ("tu::ws::impl", "expected tu::"),
    ("ta::ws::impl", "expected ta::"),
    ("tb::ws", r"expected tb::\{workspace\}::\{implementation\}"),
    ("tb::ws::impl::", "expected tb::"),
    ("us::ada", r"expected us::\{user id\}::\{window id\}"),
    ("uw::ada", r"expected uw::\{user id\}::\{workspace\}"),
    ("uw::ada::ws:", "workspace 'ws:' ends with"),
    ("uu::ada::w", r"expected uu::\{user id\}"),
    ("uu::ada:", "user id 'ada:' ends with"),
    ("ga::ws::impl", r"expected ga::\{workspace\}"),
    ("ga::ws:", "workspace 'ws:' ends with"),
    ("gu::ws::x", r"expected gu::\{workspace\}"),
    ("pg::ws::ada", r"expected pg::\{workspace\} or pg::us::\{user id\}"),
    ("pg::us::ada:", "user id 'ada:' ends with"),
    ("tk::ws::t1", r"expected tk::\{workspace\}::\{task id\}::events or tk::.*::msg or tk::.*::input"),
    ("tk::ws::t1::other", "expected tk::"),
    ("tk::ws::::msg", "task id is empty"),
    ("tk::::t1::msg", "workspace is empty"),
    ("event::*", "expected event::receiver0"),
    ("event::ws", "expected event::receiver0"),
    ("event::receiver1", "expected event::receiver0"),
    ("metric::*", "expected metric::receiver0"),
    ("metric::receiver01", "expected metric::receiver0"),
    ("br::impl", r"expected br::\{implementation\}::\{specifier\}"),
    ("sv::impl:", "implementation 'impl:' ends with"),
    ("sv::impl::a::b", r"expected sv::\{implementation\} or sv::\{implementation\}::\{specifier\}"),
    ("ga::\ud800", "lone surrogate"),
    (f"ga::{'w' * 129}", "129 bytes long"),
    (f"ga::{'é' * 65}", "130 bytes long"),
]


@pytest.mark.parametrize(("text", "message"), MALFORMED)
def test_malformed_topics(text: str, message: str) -> None:
    for _ in range(2):  # a refusal must not be remembered as something else
        with pytest.raises(RequestError, match=message) as caught:
            parse_topic(text)
        assert caught.value.code is Code.INVALID_TOPIC
        assert not caught.value.retryable
        caught.value.message.encode()  # fit for the wire, even when the topic was not


@pytest.mark.parametrize(("kind", "parts"), [form[1:3] for form in FORMS if ":" not in "".join(form[2])])
def test_a_part_too_many_or_an_empty_last_one_is_refused(kind: str, parts: tuple[str, ...]) -> None:
    wrong = ["::".join([kind, *parts[:-1], ""]), "::".join([kind, *parts, *["more"] * (4 - len(parts))])]
    for text, why in zip(wrong, (f"{kind}::.* is empty$|expected {kind}::", f"expected {kind}::"), strict=True):
        with pytest.raises(RequestError, match=why):
            parse_topic(text)


def agent_topic(size: int, tail: str = "") -> str:
    """An agent topic of exactly `size` bytes, ending with `tail`."""
    head = f"ag::{'w' * 100}::{'i' * 100}::"
    return head + "s" * (size - len(head) - len(tail.encode())) + tail


@pytest.mark.parametrize("tail", ["", "é", "工", "🙂"])
def test_up_to_256_bytes(tail: str) -> None:
    for size in (255, 256):
        text = agent_topic(size, tail)
        assert len(text.encode()) == size
        assert parse_topic(text).text == text
        assert resolve_target(text, "ws").topic.text == text
    text = agent_topic(257, tail)
    for refused in (lambda: parse_topic(text), lambda: resolve_target(text, "ws")):
        with pytest.raises(RequestError, match=r"257 bytes long; at most 256|longer than 256 bytes") as caught:
            refused()
        assert caught.value.code is Code.INVALID_TOPIC


def test_a_huge_topic_is_refused_with_a_short_message() -> None:
    for refused in (lambda: parse_topic("ag::" + "x" * 1_000_000), lambda: resolve_target("x" * 1_000_000, "")):
        with pytest.raises(RequestError, match="longer than 256 bytes") as caught:
            refused()
        assert len(caught.value.message) < 400


def test_the_character_rule_can_be_switched_off_but_not_the_shape() -> None:
    assert parse_topic("ag::w s::im*pl::>", strict=False).parts == ("w s", "im*pl", ">")
    assert resolve_target("event::w s", "", strict=False).declared_workspace == "w s"
    for text in ("ag::ws::impl", "ag::ws::impl::", "ga::ws:"):
        with pytest.raises(RequestError):
            parse_topic(text, strict=False)
    # what one setting let through is not remembered for the other
    with pytest.raises(RequestError):
        parse_topic("ag::w s::im*pl::>")


# text, sender's workspace, rewritten text, declared workspace
ALIASES = [
    ("event::*", "ws", "event::receiver0", "ws"),
    ("event::", "ws", "event::receiver0", "ws"),
    ("event::other", "ws", "event::receiver0", "other"),
    ("event::*", "", "event::receiver0", ""),
    ("event::other", "", "event::receiver0", "other"),
    ("event::receiver0", "ws", "event::receiver0", "ws"),
    ("event::receiver0", "", "event::receiver0", ""),
    ("event::receivers", "ws", "event::receiver0", "receivers"),
    ("event::receiver", "ws", "event::receiver0", "receiver"),
    ("event::receiver0-eu", "ws", "event::receiver0", "receiver0-eu"),
    ("metric::*", "ws", "metric::receiver0", "ws"),
    ("metric::", "ws", "metric::receiver0", "ws"),
    ("metric::other", "ws", "metric::receiver0", "other"),
    ("metric::receiver0", "ws", "metric::receiver0", "ws"),
    ("metric::receiver-team", "ws", "metric::receiver0", "receiver-team"),
    ("ta::ws::impl::", "own", "tb::ws::impl", ""),
    ("ta::ws::impl::", "", "tb::ws::impl", ""),
    ("ta::ws:::impl::", "", "tb::ws:::impl", ""),
    ("ta::ws::impl::6f", "own", "ta::ws::impl::6f", ""),
    ("ag::ws::impl::one", "own", "ag::ws::impl::one", ""),
    ("sv::impl", "own", "sv::impl", ""),
    ("tb::ws::impl", "own", "tb::ws::impl", ""),
]


@pytest.mark.parametrize(("text", "sender", "rewritten", "declared"), ALIASES)
def test_aliases(text: str, sender: str, rewritten: str, declared: str) -> None:
    assert rewrite_alias(text, sender) == (rewritten, declared)
    target = resolve_target(text, sender)
    assert target.topic == parse_topic(rewritten)
    assert target.declared_workspace == declared
    assert rewrite_alias(rewritten, sender)[0] == rewritten


NO_ALIASES = ["", "ag", "event", "nonsense", "::", "tu::ws::impl::", "ag::ws::impl::", "sv::impl::", "ta::ws::"]


@pytest.mark.parametrize("text", [*NO_ALIASES, "ta::ws::impl::x::"])
def test_what_is_no_alias_is_left_as_it_is(text: str) -> None:
    assert rewrite_alias(text, "ws") == (text, "")
    with pytest.raises(RequestError) as caught:
        resolve_target(text, "ws")
    assert caught.value.code is Code.INVALID_TOPIC


@pytest.mark.parametrize("plane", ["event", "metric"])
@pytest.mark.parametrize("workspace", ["a::b", "w s", "**", "a*", "ws:", ":", "w" * 129, "\ud800", ">", "receiver0::x"])
def test_an_alias_for_an_impossible_workspace_is_refused(plane: str, workspace: str) -> None:
    for call in (rewrite_alias, resolve_target):
        with pytest.raises(RequestError, match="workspace") as caught:
            call(f"{plane}::{workspace}", "ws")
        assert caught.value.code is Code.INVALID_TOPIC
        caught.value.message.encode()


@pytest.mark.parametrize("text", ["event::receiver1", "event::receiver00", "metric::receiver17"])
def test_a_receiver_that_does_not_exist_is_refused_not_lost(text: str) -> None:
    assert rewrite_alias(text, "ws") == (text, "ws")
    with pytest.raises(RequestError, match="::receiver0"):
        resolve_target(text, "ws")


def test_the_class_alias_needs_both_its_parts() -> None:
    for text in ("ta::::impl::", "ta::ws::::", "ta::::::"):
        with pytest.raises(RequestError, match="is empty"):
            resolve_target(text, "ws")


def test_a_remembered_target_depends_on_the_sender() -> None:
    assert resolve_target("event::*", "one").declared_workspace == "one"
    assert resolve_target("event::*", "two").declared_workspace == "two"
    assert resolve_target("event::*", "one").declared_workspace == "one"


def test_a_known_topic_is_remembered_and_memory_is_bounded() -> None:
    assert parse_topic("ag::ws::impl::remembered") is parse_topic("ag::ws::impl::remembered")
    first = parse_topic("ag::ws::impl::evicted")
    for number in range(topics.CACHE_SIZE):
        parse_topic(f"ag::ws::impl::{number}")
    assert parse_topic("ag::ws::impl::evicted") is not first


@given(identities)
def test_every_participants_own_topic_can_be_sent_to(identity: Identity) -> None:
    if not identity.topic or len(identity.topic.encode()) > topics.MAX_TOPIC_BYTES:
        return
    topic = parse_topic(identity.topic)
    assert topic.text == identity.topic
    if identity.workspace:
        assert (topic.workspace, *topic.parts[1:]) == (identity.workspace, identity.implementation, identity.specifier)
    else:
        assert topic.workspace == ""


@given(st.sampled_from(list(TopicKind)), st.lists(raw_tokens, max_size=4))
def test_any_text_is_kept_exactly_or_refused(kind: TopicKind, parts: list[str]) -> None:
    text = "::".join([kind, *parts])
    try:
        topic = parse_topic(text)
    except RequestError:
        with pytest.raises(RequestError) as caught:
            parse_topic(text)
        assert caught.value.code is Code.INVALID_TOPIC
        caught.value.message.encode()
        return
    assert topic.text == text
    assert "::".join([topic.kind, *topic.parts]) == text
    assert topic.workspace in ("", *topic.parts)


@given(st.sampled_from(["event", "metric", "ta", "ag"]), st.lists(raw_tokens, max_size=4), inner_tokens)
def test_resolving_is_rewriting_then_parsing(prefix: str, parts: list[str], sender: str) -> None:
    text = "::".join([prefix, *parts])
    try:
        rewritten, declared = rewrite_alias(text, sender)
        expected = parse_topic(rewritten), declared
    except RequestError:
        with pytest.raises(RequestError):
            resolve_target(text, sender)
    else:
        assert resolve_target(text, sender) == expected


@given(inner_tokens, inner_tokens)
def test_builders_spell_the_protocols_forms(one: str, two: str) -> None:
    for built, text in [
        (topics.agents_of(one), f"ga::{one}"),
        (topics.users_of(one), f"gu::{one}"),
        (topics.user_in(one, two), f"uw::{one}::{two}"),
        (topics.user_everywhere(one), f"uu::{one}"),
        (topics.progress_of(one), f"pg::{one}"),
        (topics.progress_of_user(one), f"pg::us::{one}"),
        (topics.workers_of(one, two), f"tb::{one}::{two}"),
        (topics.any_service(one), f"sv::{one}"),
        *((topics.task_topic(one, "t1", word), f"tk::{one}::t1::{word}") for word in topics.TASK_TOPICS),
    ]:
        assert built == text
        if len(text.encode()) <= topics.MAX_TOPIC_BYTES:
            assert parse_topic(text).text == text
    assert Identity.workflow_engine().topic == topics.EVENT_INTAKE
    assert Identity.metrics_bridge().topic == topics.METRIC_INTAKE

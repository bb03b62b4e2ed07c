"""Identities: each form, each rule and its message, and that all texts differ."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.identity import Identity, IdentityError, Kind, check_token, parse_principal_type
from tests.model.strategies import identities, raw_tokens

# identity, text, topic, canonical id, type name, wire type
FORMS = [
    (Identity.agent("ws", "impl", "one"), "ag::ws::impl::one", "ag::ws::impl::one", "ag::ws::impl::one", "agent", 1),
    (Identity.unique_task("ws", "impl", "j"), "tu::ws::impl::j", "tu::ws::impl::j", "tu::ws::impl::j", "task", 2),
    (Identity.task("ws", "impl", "6f"), "ta::ws::impl::6f", "ta::ws::impl::6f", "ta::ws::impl::6f", "task", 2),
    (Identity.user("ada@x.org", "w1"), "us::ada@x.org::w1", "us::ada@x.org::w1", "ada@x.org", "user", 3),
    (Identity.orchestrator("k8s", "east"), "orc::k8s::east", "", "orc::k8s::east", "orchestrator", 4),
    (Identity.workflow_engine(), "wfe::shard0", "event::receiver0", "wfe::shard0", "workflow_engine", 5),
    (Identity.metrics_bridge(), "metrics::shard0", "metric::receiver0", "metrics::shard0", "metrics_bridge", 6),
    (Identity.bridge("slack", "main"), "br::slack::main", "br::slack::main", "br::slack::main", "bridge", 7),
    (Identity.service("memory", "a"), "sv::memory::a", "sv::memory::a", "sv::memory::a", "service", 8),
]


@pytest.mark.parametrize(("identity", "text", "topic", "canonical_id", "type_name", "wire_type"), FORMS)
def test_every_form_is_written_and_named_as_the_protocol_says(
    identity: Identity, text: str, topic: str, canonical_id: str, type_name: str, wire_type: int
) -> None:
    assert (identity.text, str(identity), identity.topic) == (text, text, topic)
    assert (identity.canonical_id, identity.type_name, identity.wire_type) == (canonical_id, type_name, wire_type)
    assert Identity.parse(text) == identity


def test_every_kind_is_among_the_forms() -> None:
    assert {form[0].kind for form in FORMS} == set(Kind)


def test_user_and_window_ids_are_a_users_alone() -> None:
    user = Identity.user("ada", "w1")
    assert (user.user_id, user.window_id, user.workspace) == ("ada", "w1", "")
    agent = Identity.agent("ws", "impl", "spec")
    assert (agent.user_id, agent.window_id) == ("", "")


def test_identities_are_values() -> None:
    one, two = Identity.agent("ws", "impl", "spec"), Identity.parse("ag::ws::impl::spec")
    assert one == two
    assert hash(one) == hash(two)
    assert one != Identity.unique_task("ws", "impl", "spec")
    assert copy.deepcopy(one) == one
    assert pickle.loads(pickle.dumps(one)).text == one.text
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.workspace = "other"  # type: ignore[misc]


@given(identities)
def test_reading_what_was_written_gives_the_same_identity(identity: Identity) -> None:
    assert Identity.parse(str(identity)) == identity


def test_no_two_identities_share_a_string() -> None:
    # Small scope, all of it: every combination of parts of up to three characters around the
    # separator.
    texts = ["".join(chars) for size in range(4) for chars in itertools.product("a:", repeat=size)]
    found: dict[str, Identity] = {}
    for kind, one, two, three in itertools.product(Kind, texts, texts, texts):
        try:
            identity = Identity(kind, one, two, three)
        except IdentityError:
            continue
        assert identity.text not in found
        found[identity.text] = identity
    assert len(found) > 1_000
    assert all(Identity.parse(text) == identity for text, identity in found.items())


@given(st.lists(raw_tokens, max_size=5).map("::".join) | st.text(alphabet="agtuserviceorcwf:0.", max_size=20))
def test_any_text_is_read_back_exactly_or_refused(text: str) -> None:
    for candidate in (text, f"ag::{text}", f"us::{text}", f"orc::{text}"):
        try:
            identity = Identity.parse(candidate)
        except IdentityError:
            continue
        assert identity.text == candidate


def test_a_colon_before_the_separator_is_refused_and_a_colon_after_it_is_kept() -> None:
    agents = [(Kind.AGENT, ("a:", "b", "c")), (Kind.AGENT, ("a", "b:", "c"))]
    for kind, parts in [*agents, (Kind.USER, ("", "a:", "b")), (Kind.SERVICE, ("", ":", "b"))]:
        with pytest.raises(IdentityError, match='ends with ":", which would merge with the "::"'):
            Identity(kind, *parts)
    agent = Identity.agent("a", ":b", ":c:")
    assert agent.text == "ag::a:::b:::c:"
    assert Identity.parse(agent.text) == agent
    assert Identity.parse("us::a:::") == Identity.user("a", ":")


@pytest.mark.parametrize("character", [*map(chr, range(1, 0x21)), "\x7f", "*", ">"])
def test_forbidden_characters(character: str) -> None:
    for text in (character, f"{character}a", f"a{character}", f"a{character}b"):
        with pytest.raises(IdentityError, match=r"workspace .* contains .* are not allowed"):
            check_token(text, "workspace")
        assert check_token(text, "workspace", strict=False) == text
    with pytest.raises(IdentityError):
        Identity.agent("ws", f"a{character}b", "spec")
    assert Identity.agent("ws", f"a{character}b", "spec", strict=False).implementation == f"a{character}b"
    with pytest.raises(IdentityError):
        Identity.parse(f"us::ada::a{character}b")
    assert Identity.parse(f"us::ada::a{character}b", strict=False).window_id == f"a{character}b"


@pytest.mark.parametrize(
    "text", ["a.b", "ada@example.org", "a/b", "a:b", ":a", "Zoë", "工作", "a|b", "a<b", "🙂", "\x80", "-", "%2A"]
)
def test_everything_else_is_allowed(text: str) -> None:
    assert check_token(text, "specifier") == text


@pytest.mark.parametrize(
    ("text", "size"), [("a" * 127, 127), ("a" * 128, 128), ("é" * 63 + "a", 127), ("é" * 64, 128), ("🙂" * 32, 128)]
)
def test_up_to_128_bytes(text: str, size: int) -> None:
    assert len(text.encode()) == size
    assert check_token(text, "part") == text


@pytest.mark.parametrize(
    ("text", "size"), [("a" * 129, 129), ("é" * 64 + "a", 129), ("é" * 65, 130), ("工" * 43, 129), ("🙂" * 33, 132)]
)
@pytest.mark.parametrize("strict", [True, False])
def test_not_more_than_128_bytes(text: str, size: int, strict: bool) -> None:
    with pytest.raises(IdentityError, match=f"is {size} bytes long; at most 128"):
        check_token(text, "part", strict=strict)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "window id is empty"),
        ("a::b", 'contains "::"'),
        ("::", 'contains "::"'),
        (":::", 'contains "::"'),
        ("a::", 'contains "::"'),
        ("\ud800", "lone surrogate"),
        ("a\udfffb", "lone surrogate"),
        ("a:", 'ends with ":"'),
        ("a\x00b", "contains .*(x00|zero byte)"),
    ],
)
def test_rules_that_hold_without_the_character_rule_too(text: str, message: str, strict: bool) -> None:
    with pytest.raises(IdentityError, match=message) as caught:
        check_token(text, "window id", strict=strict)
    assert str(caught.value).startswith("window id")
    str(caught.value).encode()  # the message itself must be fit for the wire


PARTS = [
    (form[0], part) for form in FORMS for part in ("workspace", "implementation", "specifier") if getattr(form[0], part)
]


@pytest.mark.parametrize(("identity", "part"), PARTS)
def test_no_part_may_be_empty(identity: Identity, part: str) -> None:
    parts = {
        "workspace": identity.workspace,
        "implementation": identity.implementation,
        "specifier": identity.specifier,
    }
    with pytest.raises(IdentityError, match="is empty"):
        Identity(identity.kind, **{**parts, part: ""})


@pytest.mark.parametrize("text", [form[1] for form in FORMS])
def test_a_part_too_few_or_too_many_or_an_empty_one_is_refused(text: str) -> None:
    head = text.rpartition("::")[0]
    shape = rf"expected {text.partition('::')[0]}::\{{.*\}}$|the only .* is {text}$"
    for wrong, why in (
        (head, shape),
        (f"{text}::more", shape),
        (f"{head}::", rf"(specifier|window id) is empty$|{shape}"),
    ):
        with pytest.raises(IdentityError, match=why):
            Identity.parse(wrong)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        (Kind.USER, ("ws", "ada", "w")),
        (Kind.SERVICE, ("ws", "impl", "s")),
        (Kind.BRIDGE, ("ws", "impl", "s")),
        (Kind.ORCHESTRATOR, ("ws", "impl", "s")),
        (Kind.WORKFLOW_ENGINE, ("", "impl", "")),
        (Kind.METRICS_BRIDGE, ("", "", "s")),
    ],
)
def test_a_part_that_the_kind_does_not_have_is_refused(kind: Kind, parts: tuple[str, str, str]) -> None:
    with pytest.raises(IdentityError, match=f"{kind} has no"):
        Identity(kind, *parts)


NO_KIND = ["", "metric::shard0", "event::receiver0", "AG::ws::impl::spec", "tb::ws::impl"]
NO_KIND += ["::ws::impl::spec", "ag:ws:impl:spec", "ag.ws.impl.spec", " ag::ws::impl::spec", "\ud800::ws"]
FORBIDDEN = ["ag::w s::impl::spec", "ag::ws::impl::spec\n", "ag::ws::*::spec", "ag::ws::>::spec"]
MALFORMED = [
    *((text, "not allowed") for text in FORBIDDEN),
    *((text, "begins with none of") for text in NO_KIND),
    ("ag", r"expected ag::\{workspace\}::\{implementation\}::\{specifier\}"),
    ("ag::", "expected ag::"),
    ("ag::ws", "expected ag::"),
    ("ag::::impl::spec", "agent workspace is empty"),
    ("ag::ws::::spec", "agent implementation is empty"),
    ("us::ada", r"expected us::\{user id\}::\{window id\}"),
    ("us::ada::", "user window id is empty"),
    ("us::::w", "user user id is empty"),
    ("wfe::shard1", "the only workflow_engine is wfe::shard0"),
    ("metrics::shard1", "the only metrics_bridge is metrics::shard0"),
    ("ag::ws::impl::\ud800", "lone surrogate"),
    (f"ag::{'w' * 129}::impl::spec", "129 bytes long"),
]


@pytest.mark.parametrize(("text", "message"), MALFORMED)
def test_malformed_identity_strings(text: str, message: str) -> None:
    with pytest.raises(IdentityError, match=message) as caught:
        Identity.parse(text)
    str(caught.value).encode()


def test_an_identity_of_three_longest_parts_is_valid() -> None:
    identity = Identity.agent("w" * 128, "i" * 128, "s" * 128)
    assert len(identity.text) == 2 + 3 * (2 + 128)
    assert Identity.parse(identity.text) == identity


PRINCIPAL_TYPES = [
    ("agent", 1),
    ("task", 2),
    ("unique_task", 2),
    ("non_unique_task", 2),
    ("user", 3),
    ("orchestrator", 4),
    ("workflow_engine", 5),
    ("workflowengine", 5),
    ("metrics_bridge", 6),
    ("metricsbridge", 6),
    ("bridge", 7),
    ("service", 8),
]


@pytest.mark.parametrize(("name", "number"), PRINCIPAL_TYPES)
def test_principal_type_names_in_any_case(name: str, number: int) -> None:
    assert parse_principal_type(name) == number
    assert parse_principal_type(name.upper()) == number
    assert parse_principal_type(name.title()) == number


@pytest.mark.parametrize(
    "name", ["", "agents", "uniquetask", " agent", "agent ", "1", "principal_agent", "workflow engine"]
)
def test_unknown_principal_type_names(name: str) -> None:
    with pytest.raises(IdentityError, match=r"unknown principal type .* known are agent, task, user"):
        parse_principal_type(name)


def test_kinds_have_their_article_in_sentences() -> None:
    said = {kind.with_article for kind in Kind}
    assert {"an agent", "an orchestrator", "a user", "a unique task", "a workflow engine", "a metrics bridge"} < said
    assert all(" " in text and "_" not in text for text in said)

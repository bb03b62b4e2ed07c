"""The router: checks a SendMessage in the protocol's order, and appends it.

What stays the same from one message of a sender to the next (the topic's syntax, permission and
access rule, the topic in memory) is decided once for each target, and kept in the sender's
`ResolvedTarget` until its workspace changes. What remains for each message is a look-up, the rate
limits, six joined byte strings and an append to a list.

Success is silent on the wire; every refusal is a RequestError with the protocol's code. Nothing
here waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Protocol, TypeAlias

from google.protobuf.message import DecodeError

from aether_trio.delivery.rates import Rates
from aether_trio.log.topic_cache import CachedTopic
from aether_trio.log.topic_log import AppendAuthor, TopicLog
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity, IdentityError, check_token
from aether_trio.model.limits import Limits
from aether_trio.model.metric import check_metric
from aether_trio.model.permissions import may_send
from aether_trio.model.token_bucket import TokenBucket
from aether_trio.model.topics import Target, Topic, TopicKind, resolve_target
from aether_trio.wire.delivery import delivery_suffix, encode_delivery
from aether_trio.wire.pb import aether_pb2 as pb
from aether_trio.wire.upstream import UNCOUNTED_BYTES, too_many_fields

MAX_TARGETS = 1024
"""Targets remembered per sender (about 300 bytes each)."""
MAX_SERIES = 1000
"""Workspaces and types that are counted apart; further ones are counted together as OTHER."""
OTHER = "_other"
UNKNOWN_TYPE = -1
"""Stands for all types that the protocol does not know: a client may send any of 2**32 numbers."""
_KNOWN_TYPES = frozenset(pb.MessageType.values())
MAX_FLOWS = 20_000
"""Pairs of sender and target that are counted apart (about 300 bytes each)."""
MAX_WORKSPACE_FLOWS = 1000
"""The same of one workspace; further pairs are counted together as (OTHER, OTHER)."""
MAX_COUNTED_TARGET = 512
"""Characters of a refused target, and of a claimed grant or subject, that are counted apart."""
MAX_ENCODED_BYTES = 512
"""Of what says in whose name messages are, and is remembered; usually it has some 120."""
MAX_SUFFIXES = 64
"""Remembered (type, workspace) suffixes of frames per sender: more than a well-behaved one has."""

_DECLARED = frozenset({TopicKind.EVENT, TopicKind.METRIC})
"""Topics whose messages are about a workspace that their sender declares."""
_STARTABLE = frozenset({TopicKind.AGENT, TopicKind.UNIQUE_TASK})
"""Receivers that may be started when a message for them arrives."""


Forwarded: TypeAlias = pb.ForwardedAuthorization | RequestError | None
"""The authority that a message passes on to its receiver, or why it passes none on."""


class SendActor(Protocol):
    """Who sends: a session, or a part of the gateway."""

    identity: Identity
    allows_workspace: Callable[[str], bool]


class SendDecision(Protocol):
    """The answer of access rules to a send."""

    @property
    def allowed(self) -> bool: ...
    @property
    def reason(self) -> str:
        """Why it is refused, as a sentence."""


class SendAuthority(Protocol):
    """In whose name a message is sent."""

    @property
    def is_direct(self) -> bool:
        """Whether the sender sends in its own name."""

    @property
    def grant_id(self) -> str: ...
    @property
    def subject(self) -> tuple[str, str]:
        """The principal in whose name it is sent: (type, id)."""


class TargetRules(Protocol):
    """Access rules of targets, asked synchronously."""

    def check_send(
        self, actor: Any, topic: Topic, *, workspace: str, declared_workspace: str, authority: Any = ...
    ) -> SendDecision:
        """Whether this sender, who is in `workspace`, may send to a topic."""


class SendRules(TargetRules, Protocol):
    """Access rules of sends, asked synchronously for each message."""

    def check_app_workspace(self, actor: Any, workspace: str, authority: Any = ...) -> SendDecision:
        """Whether this sender may name a workspace that its message is about."""

    def send_authority(self, actor: Any, context: pb.AuthorizationContext) -> SendAuthority:
        """Resolve a message's authorization context. Raises RequestError."""

    def holds(self, authority: Any) -> bool:
        """Whether a resolved authority is still good; if not, it is to be resolved anew."""

    def checked_receipt(
        self, actor: Any, asked: pb.ResourceAccessRequest, authority: Any, target: str
    ) -> pb.AccessDecisionReceipt:
        """Make the receipt of an access; raise RequestError if it is not allowed."""

    def may_credit_metrics(self, actor: Any) -> bool:
        """Whether this sender may report metrics with negative quantities."""


def send_refusal(
    rules: TargetRules,
    actor: SendActor,
    target: Target,
    text: str,
    *,
    workspace: str,
    authority: SendAuthority | None = None,
) -> str | None:
    """Say in a sentence why a sender, in `workspace`, may not send to target `text`.

    `authority` None: it sends in its own name.
    """
    why = _final_refusal(actor, target, text)
    return _rule_refusal(rules, actor, target, workspace, authority) if why is None else why


def _final_refusal(actor: SendActor, target: Target, text: str) -> str | None:
    """Say why a sender may not send to a target, whatever rules and grants say."""
    topic, declared = target
    kind = actor.identity.kind
    if not may_send(kind, topic.kind):
        return f"{kind.with_article} may not send to {topic.kind} topics"
    if topic.kind is TopicKind.TASK_TOPIC and topic.parts[-1] == "events":
        return "only the gateway writes to the events topic of a task"
    if not all(actor.allows_workspace(one) for one in (topic.workspace, declared) if one):
        return f"this credential does not reach the workspace of {text}"
    return None


def _rule_refusal(
    rules: TargetRules, actor: SendActor, target: Target, workspace: str, authority: SendAuthority | None
) -> str | None:
    """Say why rules do not let a sender send to a target; None if they do."""
    topic, declared = target
    more = {} if authority is None else {"authority": authority}
    decision = rules.check_send(actor, topic, workspace=workspace, declared_workspace=declared, **more)
    return None if decision.allowed else decision.reason


@dataclass(slots=True)
class MessageFlowCount:
    """Counts the messages from a sender to a target that were accepted."""

    messages: int = 0


@dataclass(slots=True)
class ResolvedTarget:
    """What the router decided once about a sender's target: topic, refusal."""

    topic: Topic
    declared_workspace: str
    refusal: RequestError | None
    is_final: bool
    """Whether the refusal is the same in the name of any other principal."""
    log_topic: CachedTopic | None
    flow: MessageFlowCount
    is_task_input: bool = False
    """Whether it is the input topic of a task."""
    is_startable: bool = False
    """Whether its receiver may be started when a message for it arrives."""
    sent: int = 0
    """Messages that `take_counts` has not reported yet; their payloads have `sent_bytes`."""
    sent_bytes: int = 0
    reported: bool = False
    """Whether `take_counts` has reported messages to this target before."""


@dataclass(slots=True)
class DelegatedRoute:
    """What the router decided once about messages to a target in another's name."""

    authority: SendAuthority
    target: str
    grant_id: str
    sent: int = 0
    """Messages that `take_counts` has not reported yet; their payloads have `sent_bytes`."""
    sent_bytes: int = 0


_NOTHING_SENT: Final[dict[Any, Any]] = {}
"""Of all sessions that have sent nothing; never written to."""


@dataclass(slots=True)
class Sender:
    """The router's record of one session that sends messages."""

    actor: SendActor
    identity: Identity
    workspace: str
    bucket: TokenBucket
    prefix: bytes
    author: AppendAuthor
    last_append: int = 0
    targets: dict[str | tuple[str, str], ResolvedTarget] = field(default_factory=lambda: _NOTHING_SENT)
    """By target, or by (target, grant) for messages in the name of another principal."""
    suffixes: dict[tuple[int, str] | tuple[int, str, str], tuple[bytes, SendCount]] = field(
        default_factory=lambda: _NOTHING_SENT
    )
    """By type and workspace, and by the grant of such messages."""

    delegated: dict[tuple[str, str] | tuple[str, bytes, bool], DelegatedRoute] = field(
        default_factory=lambda: _NOTHING_SENT
    )
    """By target and grant; by target and what says so in a message, whether that is `extra`."""

    session_id: str = ""

    def forget_decisions(self) -> None:
        """Forget all decisions about targets, as access data have changed."""
        self.targets = self.suffixes = self.delegated = _NOTHING_SENT

    def moved_to(self, workspace: str) -> None:
        """Forget all decisions about targets, as the sender is in another workspace."""
        self.workspace = workspace
        self.forget_decisions()


@dataclass(slots=True)
class SendCount:
    """Counts accepted messages and their payload bytes of one (type, workspace)."""

    messages: int = 0
    payload_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RouterStatistics:
    """Accepted (messages, bytes) by (workspace, type); refused by (workspace, code)."""

    accepted: dict[tuple[str, str], tuple[int, int]]
    refused: dict[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class RouteCount:
    """How many messages a session has sent to a topic, or was refused; for audits.

    `refusal` is the code of refused ones, of which no bytes are counted. `grant_id` and `subject`
    are of messages in the name of another principal, which are in counts of their own; those of
    refused ones are what the sender has claimed.
    """

    identity: Identity
    session_id: str
    workspace: str
    target: str
    messages: int
    payload_bytes: int
    refusal: str = ""
    grant_id: str = ""
    subject: tuple[str, str] = ("", "")


_Route: TypeAlias = tuple[Identity, str, str, ResolvedTarget]
"""A sender's identity, session and workspace when it sent, and the target."""


class Router:
    """Checks messages of clients and appends them to the log.

    * `pick_service(implementation)` returns the topic of a live instance of a service, by turns.
    * `on_task_input(topic, number)` is called after each append to the input topic of a task.
    * `on_absent(topic)` is called after each append for an agent or unique task that is not
      connected to this node.
    * `on_counts()` is called when `take_counts` has something that is to be known soon.

    None of them may block.
    """

    def __init__(
        self,
        log: TopicLog,
        rates: Rates,
        limits: Limits,
        rules: SendRules,
        pick_service: Callable[[str], str | None],
        *,
        strict: bool = True,
        on_task_input: Callable[[str, int], None],
        on_absent: Callable[[str], None],
        on_counts: Callable[[], None] = lambda: None,
    ) -> None:
        self._log = log
        self._topics = log.topics
        self._rates = rates
        self._limits = limits
        self._rules = rules
        self._pick_service = pick_service
        self._strict = strict
        self._on_task_input = on_task_input
        self._on_absent = on_absent
        self._on_counts = on_counts
        self._accepted: dict[tuple[int, str], SendCount] = {}
        self._refused: dict[tuple[str, str], int] = {}
        self._flows: dict[str, dict[tuple[str, str], MessageFlowCount]] = {}
        self._flow_count = 0
        # Routes with messages that are not reported. They are kept here until they are, also when
        # their sender has dropped them or is gone.
        self._fresh_routes: list[_Route] = []
        self._known_routes: list[_Route] = []
        self._denied: dict[tuple[Identity, str, str, str, str, str, tuple[str, str]], int] = {}
        self._delegated: list[tuple[Identity, str, str, DelegatedRoute]] = []

    def send(
        self,
        sender: Sender,
        message: pb.SendMessage,
        forwarded: Forwarded = None,
        route: DelegatedRoute | None = None,
    ) -> None:
        """Check one message of a client and append it to the log. Raises RequestError."""
        rest = message if route is None else None
        self.publish(sender, message.target_topic, message.payload, message.message_type, rest, forwarded, route)

    def route_of(self, sender: Sender, message: pb.SendMessage) -> DelegatedRoute | None:
        """Return what is decided about a message in another's name, if it still holds.

        None if the message has rarer fields, which are looked at each time.
        """
        if _has_more(message):
            return None
        context = message.authorization.SerializeToString()
        return self._held(sender.delegated.get((message.target_topic, context, False)))

    def route_of_frame(self, sender: Sender, target: str, extra: bytes) -> DelegatedRoute | None:
        """Return the same for a frame with a field `extra` that was remembered."""
        return self._held(sender.delegated.get((target, extra, True)))

    def remember_frame(self, sender: Sender, target: str, extra: bytes, rest: pb.SendMessage) -> None:
        """Remember the route of a frame that was published; `extra` is its encoded `rest`."""
        if rest.HasField("authorization") and not _has_more(rest):
            context = rest.authorization.SerializeToString()
            # The context alone is what other transports have.
            route = sender.delegated.pop((target, context, False), None)
            if route is not None:
                _remember(sender, target, extra, route, is_extra=True)

    def _held(self, route: DelegatedRoute | None) -> DelegatedRoute | None:
        return route if route is not None and self._rules.holds(route.authority) else None

    def check_target(self, sender: Sender, target: str, rest: pb.SendMessage) -> Topic:
        """Return the topic of a message that may be sent there. Raises RequestError."""
        resolved = sender.targets.get(target)
        if resolved is None:
            resolved = self._resolve(sender, target)
        context = rest.authorization if rest.HasField("authorization") else None
        if resolved.refusal is not None and (context is None or resolved.is_final):
            raise resolved.refusal.with_traceback(None)
        if context is not None:
            self._authority(sender, target, resolved, context)
        return resolved.topic

    def publish(
        self,
        sender: Sender,
        target: str,
        payload: bytes,
        message_type: int,
        rest: pb.SendMessage | None,
        forwarded: Forwarded = None,
        route: DelegatedRoute | None = None,
    ) -> None:
        """Check a message and append it; `rest` has rarer fields. Raises RequestError.

        `forwarded` is the authority that the message passes on to its receiver, if it asks for it;
        `route` is what `route_of` or `route_of_frame` has returned for it in this step; then `rest`
        is None.
        """
        try:
            resolved = sender.targets.get(target)
            if resolved is None:
                resolved = self._resolve(sender, target)
            topic = resolved.log_topic
            if topic is None:
                topic = self._choose_instance(resolved.topic)
            elif not self._topics.is_current(topic):
                topic = resolved.log_topic = self._topics.ensure(topic.name)
            limits = self._limits
            if len(payload) > limits.payload_bytes:
                raise RequestError(
                    Code.PAYLOAD_TOO_LARGE,
                    f"the payload has {len(payload)} bytes; at most {limits.payload_bytes} are allowed",
                )
            self._rates.take(sender.bucket, sender.workspace, sender.identity.text)
            context = rest.authorization if rest is not None and rest.HasField("authorization") else None
            if resolved.refusal is not None and ((context is None and route is None) or resolved.is_final):
                # else each raise would add its frames to all before
                raise resolved.refusal.with_traceback(None)
            negative = message_type == pb.METRIC and self._check_metric(payload)
            if context is not None:
                route = self._delegated_route(sender, target, resolved, context)
            authority = None if route is None else route.authority
            workspace = self._check_rest(rest, forwarded) if rest is not None else ""
            if negative and not self._rules.may_credit_metrics(sender.actor):
                raise RequestError(
                    Code.METRIC_NEGATIVE_FORBIDDEN,
                    "a negative quantity needs the capability metric_credit at level ADMIN",
                )
            named = workspace
            if named and resolved.topic.kind in _DECLARED and named != resolved.declared_workspace:
                self._check_declared(sender, resolved.topic, named, authority)
            if not workspace:
                workspace = resolved.declared_workspace or sender.workspace
            if route is None:
                known = sender.suffixes.get((message_type, workspace))
            else:
                known = sender.suffixes.get((message_type, workspace, route.grant_id))
            suffix, count = (
                known if known is not None else self._suffix(sender, message_type, workspace, named, authority)
            )
            if rest is not None and rest.HasField("checked_access"):
                suffix += self._receipt(sender, rest.checked_access, authority, topic.name)
            if isinstance(forwarded, pb.ForwardedAuthorization):
                suffix += delivery_suffix(extra=pb.IncomingMessage(forwarded_authorization=forwarded))
        except RequestError as error:
            self._count_refusal(sender, target, error.code, rest, route)
            raise
        if route is not None:
            if not route.sent:
                self._begin_delegated(sender, route)
            route.sent += 1
            route.sent_bytes += len(payload)
        else:
            if not resolved.sent:
                self._begin_count(sender, resolved)
            resolved.sent += 1
            resolved.sent_bytes += len(payload)
        count.messages += 1
        count.payload_bytes += len(payload)
        resolved.flow.messages += 1
        frame = encode_delivery(sender.prefix, payload, suffix)
        sender.last_append = self._log.append_nowait(topic, frame, sender.author)
        if resolved.is_task_input:
            self._on_task_input(topic.name, sender.last_append)
        elif resolved.is_startable and len(topic.subscribers) == topic.watchers:
            self._on_absent(topic.name)

    def _begin_count(self, sender: Sender, resolved: ResolvedTarget) -> None:
        """Keep a route until the messages that are counted on it are reported."""
        route = sender.identity, sender.session_id, sender.workspace, resolved
        if resolved.reported:
            self._known_routes.append(route)
            return
        if not self._fresh_routes:
            self._on_counts()
        self._fresh_routes.append(route)

    def _begin_delegated(self, sender: Sender, route: DelegatedRoute) -> None:
        """Keep a route in another's name until the messages on it are reported."""
        if not self._delegated:
            self._on_counts()
        self._delegated.append((sender.identity, sender.session_id, sender.workspace, route))

    def take_counts(self, *, all_routes: bool) -> list[RouteCount]:
        """Return how many messages went to each target since they were taken last.

        Each message is in one count of one call. Without `all_routes` only targets are looked at
        that have never been reported, so that the first messages to one show soon.
        """
        taken, self._fresh_routes = self._fresh_routes, []
        if all_routes:
            taken += self._known_routes
            self._known_routes = []
        counts: list[RouteCount] = []
        for identity, session_id, workspace, resolved in taken:
            name = resolved.topic.text
            counts.append(RouteCount(identity, session_id, workspace, name, resolved.sent, resolved.sent_bytes))
            resolved.sent = resolved.sent_bytes = 0
            resolved.reported = True
        delegated, self._delegated = self._delegated, []
        merged: dict[tuple[Identity, str, str, str, str, tuple[str, str]], tuple[int, int]] = {}
        for identity, session_id, workspace, route in delegated:
            key = identity, session_id, workspace, route.target, route.grant_id, route.authority.subject
            messages, payload_bytes = merged.get(key, (0, 0))
            merged[key] = messages + route.sent, payload_bytes + route.sent_bytes
            route.sent = route.sent_bytes = 0
        for key, (messages, payload_bytes) in merged.items():
            counts.append(RouteCount(*key[:4], messages, payload_bytes, "", key[4], key[5]))
        denied, self._denied = self._denied, {}
        counts += [RouteCount(*key[:4], times, 0, *key[4:]) for key, times in denied.items()]
        return counts

    def _count_refusal(
        self, sender: Sender, target: str, code: Code, rest: pb.SendMessage | None, route: DelegatedRoute | None
    ) -> None:
        workspace = sender.workspace
        # What a client says may be as long as a message.
        most = MAX_COUNTED_TARGET
        grant_id, subject = "", ("", "")
        if rest is not None and rest.authorization.grant_id:
            named = rest.authorization.subject
            grant_id = rest.authorization.grant_id[:most]
            subject = named.principal_type[:most], named.principal_id[:most]
        elif route is not None:
            grant_id, subject = route.grant_id, route.authority.subject
        denied = (sender.identity, sender.session_id, workspace, target[:most], code.value, grant_id, subject)
        if not self._denied:
            self._on_counts()
        if denied not in self._denied and len(self._denied) >= MAX_SERIES:
            denied = (*denied[:3], OTHER, code.value, "", ("", ""))
        self._denied[denied] = self._denied.get(denied, 0) + 1
        key = (workspace, code.value)
        if key not in self._refused and len(self._refused) >= MAX_SERIES:
            key = (OTHER, code.value)
        self._refused[key] = self._refused.get(key, 0) + 1

    def _delegated_route(
        self, sender: Sender, target: str, own: ResolvedTarget, context: pb.AuthorizationContext
    ) -> DelegatedRoute | None:
        """Return the route of a message in another's name; None if it is in the sender's.

        Raises RequestError if it may not be sent so. `own` is the target in the sender's name.
        """
        authority = self._authority(sender, target, own, context)
        if authority is None:
            return None
        # A client may encode the same context in any number of ways.
        route = sender.delegated.get((target, authority.grant_id))
        if route is None:
            route = DelegatedRoute(authority, own.topic.text, authority.grant_id)
        route.authority = authority  # found anew
        _remember(sender, target, context.SerializeToString(), route)
        return route

    def _authority(
        self, sender: Sender, target: str, own: ResolvedTarget, context: pb.AuthorizationContext
    ) -> SendAuthority | None:
        """Return in whose name a message is sent; None: the sender's.

        Raises RequestError if it may not be sent so. `own` is the target in the sender's name.
        """
        authority = self._rules.send_authority(sender.actor, context)
        if authority.is_direct:
            if own.refusal is not None:
                raise own.refusal.with_traceback(None)
            return None
        resolved = sender.targets.get((target, authority.grant_id))
        if resolved is None:
            resolved = self._resolve(sender, target, authority)
        if resolved.refusal is not None:
            raise resolved.refusal.with_traceback(None)
        return authority

    def _check_rest(self, rest: pb.SendMessage, forwarded: Forwarded) -> str:
        """Check a message's rarer fields; return the workspace that it names, or ""."""
        if isinstance(forwarded, RequestError):
            raise forwarded.with_traceback(None)
        assert forwarded is not None or not rest.HasField("authority_continuation")
        workspace = rest.app_workspace
        if workspace:
            _check_app_workspace(workspace)
        return workspace

    def _check_declared(self, sender: Sender, topic: Topic, workspace: str, authority: SendAuthority | None) -> None:
        """Check an event or metric whose `app_workspace` says what it is about.

        That is the same as to name the workspace in the topic. Raises RequestError.
        """
        why = _rule_refusal(self._rules, sender.actor, Target(topic, workspace), sender.workspace, authority)
        if why is not None:
            raise RequestError(Code.PERMISSION_DENIED, why)

    def _receipt(
        self, sender: Sender, asked: pb.ResourceAccessRequest, authority: SendAuthority | None, target: str
    ) -> bytes:
        """Return the encoded receipt of a message's checked access. Raises RequestError."""
        receipt = self._rules.checked_receipt(sender.actor, asked, authority, target)
        return delivery_suffix(extra=pb.IncomingMessage(access_receipt=receipt))

    def _suffix(
        self, sender: Sender, message_type: int, workspace: str, named: str, authority: SendAuthority | None
    ) -> tuple[bytes, SendCount]:
        """Return the encoded type and workspace of messages, and their counter.

        `named` is the workspace that the message names, which access rules are asked about.
        """
        if workspace and not sender.actor.allows_workspace(workspace):
            raise RequestError(Code.PERMISSION_DENIED, f"this credential does not reach workspace {workspace}")
        if named and named != sender.workspace:
            more = {} if authority is None else {"authority": authority}
            decision = self._rules.check_app_workspace(sender.actor, named, **more)
            if not decision.allowed:
                raise RequestError(Code.PERMISSION_DENIED, decision.reason)
        if not 0 < len(sender.suffixes) < MAX_SUFFIXES:
            sender.suffixes = {}
        counted_type = message_type if message_type in _KNOWN_TYPES else UNKNOWN_TYPE
        counted = (counted_type, sender.workspace)
        if counted not in self._accepted and len(self._accepted) >= MAX_SERIES:
            counted = (counted_type, OTHER)
        count = self._accepted.setdefault(counted, SendCount())
        if authority is None:
            found = sender.suffixes[message_type, workspace] = (delivery_suffix(message_type, workspace), count)
            return found
        subject_type, subject_id = authority.subject
        extra = pb.IncomingMessage(
            on_behalf_subject=pb.PrincipalRef(principal_type=subject_type, principal_id=subject_id)
        )
        found = (delivery_suffix(message_type, workspace, extra=extra), count)
        sender.suffixes[message_type, workspace, authority.grant_id] = found
        return found

    def _resolve(self, sender: Sender, text: str, authority: SendAuthority | None = None) -> ResolvedTarget:
        """Decide once whether and where a sender's messages to a target go."""
        target = resolve_target(text, sender.workspace, self._strict)
        topic, declared = target
        why = final = _final_refusal(sender.actor, target, text)
        if why is None:
            why = _rule_refusal(self._rules, sender.actor, target, sender.workspace, authority)
        refusal = RequestError(Code.PERMISSION_DENIED, why) if why is not None else None
        log_topic: CachedTopic | None = None
        if topic.kind is not TopicKind.SERVICE or len(topic.parts) > 1:
            log_topic = self._topics.ensure(topic.text)
        if not 0 < len(sender.targets) < MAX_TARGETS:
            sender.targets = {}
        is_task_input = topic.kind is TopicKind.TASK_TOPIC and topic.parts[-1] == "input"
        is_startable = topic.kind in _STARTABLE
        flow = self._flow(sender, target) if final is None else MessageFlowCount()
        resolved = ResolvedTarget(
            topic, declared, refusal, final is not None, log_topic, flow, is_task_input, is_startable
        )
        sender.targets[text if authority is None else (text, authority.grant_id)] = resolved
        return resolved

    def _flow(self, sender: Sender, target: Target) -> MessageFlowCount:
        """Return the count of messages from a sender to a target.

        It belongs to the workspace of the sender, or else to that of the target.
        """
        topic, declared = target
        workspace = sender.workspace or topic.workspace or declared
        full = self._flow_count >= MAX_FLOWS
        if full and workspace not in self._flows:
            workspace = OTHER
        flows = self._flows.setdefault(workspace, {})
        pair = (sender.identity.text, topic.text)
        if pair not in flows and (full or len(flows) >= MAX_WORKSPACE_FLOWS):
            pair = (OTHER, OTHER)
        if pair not in flows:
            flows[pair] = MessageFlowCount()
            self._flow_count += 1
        return flows[pair]

    def flows(self, workspace: str) -> list[tuple[str, str, int]]:
        """Return (sender, target topic, messages) of a workspace since start."""
        return [(*pair, flow.messages) for pair, flow in self._flows.get(workspace, {}).items() if flow.messages]

    def messages(self, workspace: str) -> int:
        """Return how many messages senders in a workspace have sent since start."""
        return sum(count.messages for (_, one), count in self._accepted.items() if one == workspace)

    def _choose_instance(self, topic: Topic) -> CachedTopic:
        name = self._pick_service(topic.parts[0])
        if name is None:
            raise RequestError(
                Code.SV_UNAVAILABLE, f"no instance of service {topic.parts[0]} is connected", retry_after_ms=1000
            )
        return self._topics.ensure(name)

    def _check_metric(self, payload: bytes) -> bool:
        if len(payload) > UNCOUNTED_BYTES and too_many_fields(payload, pb.Metric.DESCRIPTOR):
            raise RequestError(Code.METRIC_INVALID, "the Metric has too many fields")
        try:
            metric = pb.Metric.FromString(payload)
        except DecodeError:
            raise RequestError(Code.METRIC_INVALID, "the payload is not a Metric message") from None
        return check_metric(
            [(entry.name, entry.qty) for entry in metric.entries],
            len(metric.metadata),
            max_entries=self._limits.metric_entries,
            max_metadata_keys=self._limits.metric_metadata_keys,
        )

    def statistics(self) -> RouterStatistics:
        """Return the messages accepted and refused since start."""
        accepted: dict[tuple[str, str], tuple[int, int]] = {}
        for (message_type, workspace), count in self._accepted.items():
            key = (workspace, _type_name(message_type))
            messages, payload_bytes = accepted.get(key, (0, 0))
            accepted[key] = (messages + count.messages, payload_bytes + count.payload_bytes)
        return RouterStatistics(accepted, dict(self._refused))


def _has_more(message: pb.SendMessage) -> bool:
    """Return whether a message has more than in whose name it is, and a frame."""
    return bool(
        message.app_workspace or message.HasField("checked_access") or message.HasField("authority_continuation")
    )


def _remember(sender: Sender, target: str, encoded: bytes, route: DelegatedRoute, *, is_extra: bool = False) -> None:
    """Remember a route by what says in whose name a message is, if it is short."""
    if not 0 < len(sender.delegated) < MAX_TARGETS:
        sender.delegated = {}
    sender.delegated[target, route.grant_id] = route
    if len(encoded) <= MAX_ENCODED_BYTES:
        sender.delegated[target, encoded, is_extra] = route


def _type_name(message_type: int) -> str:
    if message_type in _KNOWN_TYPES:
        return pb.MessageType.Name(pb.MessageType.ValueType(message_type)).lower()
    return OTHER


@lru_cache(maxsize=1024)
def _check_app_workspace(workspace: str) -> None:
    try:
        check_token(workspace, "app_workspace", last=True)
    except IdentityError as error:
        raise RequestError(Code.INVALID_ARGUMENT, str(error)) from None

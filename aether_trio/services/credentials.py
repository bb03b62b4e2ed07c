"""Who may connect: API keys and client certificates against the identity that a participant claims.

The session calls `CredentialChecker.check` once, before anything is sent. It either returns what was accepted or raises
the StatusError that ends the stream. Rules, and where they differ from the reference (core.md 1.2-1.3):

* Outside development mode every kind of principal needs a credential. The reference lets orchestrators, the workflow
  engine and the metrics bridge in by network position alone; here they are as dangerous as anyone.
* With client_cert_mode strict, the claim must equal the certificate's name; the reference silently connects the
  participant as somebody else than it said.
* A key that is limited to workspaces cannot be used by principals that work in all of them (services, bridges, ...).
* Token kinds that are not built yet (task tokens, JWT, web sessions) are refused by name, never taken for valid.

Invariants: a key is known by its SHA-256 alone (32 random bytes need no slow hash); all records are compared, in
constant time; a failure is counted before it is answered.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from aether_trio.config import ApiKey, AuthSettings
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import SEPARATOR, Identity, IdentityError, Kind
from aether_trio.transport.link import PeerCertificate

KEY_PREFIX: Final = "aek_"
KEY_BYTES: Final = 32
ANONYMOUS_NAME: Final = "_anonymous"  # a certificate for transport only: it says nothing of its holder

API_KEY_NAMES: Final = ("api_key", "x-api-key")
_OTHER_KINDS: Final = {
    "token": "task tokens",
    "task_token": "task tokens",
    "bearer_token": "bearer tokens (JWT)",
    "authorization": "bearer tokens (JWT)",
    "session_token": "web session tokens",
}

_Method = Literal["api_key", "certificate", "anonymous"]


def hash_api_key(key: str) -> str:
    """How a key is kept in the settings: SHA-256, lower-case hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_api_key(random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """A fresh key, to be shown once: "aek_" and 32 random bytes in base64url without padding."""
    return KEY_PREFIX + base64.urlsafe_b64encode(random_bytes(KEY_BYTES)).rstrip(b"=").decode()


@lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    parts = {"*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(parts.get(one, re.escape(one)) for one in pattern), re.DOTALL)


def matches(pattern: str, text: str) -> bool:
    """`*` and `?` stand for anything but "/", as in the reference; a lone `*` stands for everything."""
    return pattern == "*" or _glob(pattern).fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a participant was let in with. `key_id`, `workspaces` and `identity`, a pattern, belong to an API key."""

    method: _Method
    key_id: str = ""
    workspaces: tuple[str, ...] = ("*",)
    identity: str = "*"

    def allows_workspace(self, workspace: str) -> bool:
        """Whether the credential reaches this workspace; to be asked when a user switches."""
        return any(matches(pattern, workspace) for pattern in self.workspaces)

    def covers(self, identity: Identity) -> bool:
        """Whether a token for this participant would be good for no more than the credential is."""
        if not matches(self.identity, identity.text):
            return False
        return self.allows_workspace(identity.workspace) if identity.workspace else "*" in self.workspaces


class CredentialChecker:
    """Checks claims against the configured keys and the peer's certificate. One per gateway; never blocks."""

    def __init__(self, settings: AuthSettings, clock: Clock) -> None:
        self._settings = settings
        self._throttle = Throttle(settings, clock)

    def check(
        self, identity: Identity, credentials: Mapping[str, str], certificate: PeerCertificate | None = None
    ) -> Accepted:
        """Accept the claim, or raise StatusError (UNAUTHENTICATED: who are you; PERMISSION_DENIED: not you).

        `certificate` must have been verified against tls.client_ca by the transport.
        """
        claimed = str(identity)
        self._throttle.check(claimed)
        try:
            accepted = self._decide(identity, credentials, certificate)
        except StatusError:
            self._throttle.failed(claimed)
            raise
        self._throttle.succeeded(claimed)
        return accepted

    def _decide(
        self, identity: Identity, credentials: Mapping[str, str], certificate: PeerCertificate | None
    ) -> Accepted:
        named = certificate is not None and certificate.common_name != ANONYMOUS_NAME
        if certificate is not None and named:
            check_certificate(certificate.common_name, identity, self._settings.client_cert_mode)
        key = next((credentials[name] for name in API_KEY_NAMES if credentials.get(name)), None)
        if key is not None and (self._settings.api_keys or not self._settings.allow_anonymous):
            return self._check_key(key, identity)
        if named:
            return Accepted("certificate")
        if self._settings.allow_anonymous:
            # Development: unknown tokens pass, because the SDK's orchestrator makes some up for what it starts.
            return Accepted("anonymous")
        raise self._nothing_accepted(identity, credentials)

    def _check_key(self, key: str, identity: Identity) -> Accepted:
        record = find_key(self._settings.api_keys, key)
        if record is None:
            raise StatusError(Status.UNAUTHENTICATED, "credential authentication failed: the API key is not known here")
        problem = key_problem(record, identity)
        if problem:
            raise StatusError(Status.PERMISSION_DENIED, f"API key {record.id!r} {problem}")
        return Accepted("api_key", record.id, record.workspaces, record.identity)

    @staticmethod
    def _nothing_accepted(identity: Identity, credentials: Mapping[str, str]) -> StatusError:
        offered = next((_OTHER_KINDS[name] for name in _OTHER_KINDS if credentials.get(name)), None)
        if offered:
            return StatusError(
                Status.UNAUTHENTICATED,
                f"{offered} are not accepted by this gateway yet; connect with an api_key or a client certificate",
            )
        return StatusError(
            Status.UNAUTHENTICATED,
            f"{identity.kind.with_article} needs a credential here: an api_key (made by `aether keys new`) or a client certificate",
        )


def find_key(records: Sequence[ApiKey], key: str) -> ApiKey | None:
    """The record of this key. Compares with every record, so that the time taken says nothing about where it stopped."""
    digest = hash_api_key(key)
    found: ApiKey | None = None
    for record in records:
        if hmac.compare_digest(record.sha256, digest):
            found = record
    return found


def key_problem(record: ApiKey, identity: Identity) -> str | None:
    """Why this key does not fit this identity, as the end of a sentence; None when it does."""
    if record.principal not in {"*", identity.type_name}:
        return f"is for principals of type {record.principal}, not {identity.type_name}"
    if not (matches(record.identity, str(identity)) or matches(record.identity, identity.canonical_id)):
        return f"is for {record.identity}, not for {identity}"
    if identity.workspace:
        if not any(matches(pattern, identity.workspace) for pattern in record.workspaces):
            return f"does not reach workspace {identity.workspace!r} (it reaches {', '.join(record.workspaces)})"
    elif identity.kind is not Kind.USER and "*" not in record.workspaces:
        return f"is limited to workspaces {', '.join(record.workspaces)}, but {identity.kind.with_article} works in all of them"
    return None


@dataclass(frozen=True, slots=True)
class _Name:
    """What a common name claims: None is "any"."""

    type_name: str
    workspace: str | None = None
    implementation: str | None = None
    identity: Identity | None = None


def parse_common_name(name: str) -> _Name | None:
    """Read a certificate's name: an identity, or one of the partial forms `ga::ws`, `gu::ws`, `tb::ws::impl`, `ta::ws::impl`."""
    parts = name.split(SEPARATOR)
    if all(parts):
        match parts:
            case ["ga", workspace]:
                return _Name("agent", workspace)
            case ["gu", _]:
                return _Name("user")
            case ["tb" | "ta", workspace, implementation]:
                return _Name("task", workspace, implementation)
            case _:
                pass
    try:
        identity = Identity.parse(name)
    except IdentityError:
        return None
    return _Name(identity.type_name, identity.workspace or None, identity.implementation or None, identity)


def check_certificate(name: str, identity: Identity, mode: Literal["strict", "semi-strict", "relaxed"]) -> None:
    """Hold the claim against the verified certificate's name. Raises StatusError.

    In relaxed mode a name that is not an identity (say, a host name) confirms presence and nothing else.
    """
    certified = parse_common_name(name)
    if certified is None or (mode == "strict" and certified.identity is None):
        if mode == "relaxed":
            return
        raise StatusError(
            Status.UNAUTHENTICATED,
            f"invalid client certificate: its common name {name!r} is no identity, such as ag::workspace::implementation::"
            "specifier (auth.client_cert_mode=relaxed would take any name)",
        )
    fits = certified.type_name == identity.type_name
    if mode == "semi-strict":
        fits = (
            fits
            and certified.workspace in {None, identity.workspace}
            and certified.implementation in {None, identity.implementation}
        )
    elif mode == "strict":
        fits = certified.identity == identity
    if not fits:
        raise StatusError(Status.PERMISSION_DENIED, f"identity mismatch: the certificate is for {name}, not {identity}")


class Throttle:
    """Refuses an identity unheard for a while after repeated failures (reference: 5 in 30 s, then 30 s).

    Remembers at most `max_tracked_identities`, the least recently failed leaves first, so that a stranger who makes up
    identities costs bounded memory.
    """

    def __init__(self, settings: AuthSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._until: OrderedDict[str, float] = OrderedDict()

    def check(self, identity: str) -> None:
        until = self._until.get(identity)
        if until is None:
            return
        left_s = until - self._clock.monotonic()
        if left_s > 0:
            raise StatusError(
                Status.UNAUTHENTICATED,
                f"authentication temporarily throttled after {self._settings.max_failures} failures; "
                f"try again in {left_s:.0f} s",
            )
        del self._until[identity]

    def failed(self, identity: str) -> None:
        now = self._clock.monotonic()
        times = self._failures.setdefault(identity, deque(maxlen=self._settings.max_failures))
        self._failures.move_to_end(identity)
        times.append(now)
        recent = sum(1 for one in times if now - one <= self._settings.failure_window_s)
        if recent >= self._settings.max_failures:
            self._until[identity] = now + self._settings.cooldown_s
            self._until.move_to_end(identity)
            del self._failures[identity]
        for tracked in (self._failures, self._until):
            while len(tracked) > self._settings.max_tracked_identities:
                tracked.popitem(last=False)

    def succeeded(self, identity: str) -> None:
        self._failures.pop(identity, None)

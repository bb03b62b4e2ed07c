"""Who may connect: API keys and client certificates against the identity that a participant claims.

The session calls `CredentialChecker.admit` once, before anything is sent. It either returns what was accepted or raises
the StatusError that ends the stream. Rules, and where they differ from the reference (core.md 1.2-1.3):

* Outside development mode every kind of principal needs a credential. The reference lets orchestrators, the workflow
  engine and the metrics bridge in by network position alone; here they are as dangerous as anyone.
* A certificate that names somebody has to fit the claim, whatever else is shown with it: a key and a task token too.
* A certificate whose name is no identity says nothing of its holder, who needs a key as well.
* With client_cert_mode strict, the claim must equal the certificate's name; the reference silently connects the
  participant as somebody else than it said.
* A key that is limited to workspaces cannot be used by principals that work in all of them (services, bridges, ...).
* Token kinds that are not built yet (JWT, web sessions) are refused by name, never taken for valid.

Invariants: a key is known by its SHA-256 alone (32 random bytes need no slow hash); all records are compared, in
constant time; a failure is counted before it is answered.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from aether_trio.config import ApiKey, AuthSettings
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import SEPARATOR, Identity, IdentityError, Kind
from aether_trio.model.patterns import ANY, fits_identity, matches
from aether_trio.model.text import shown
from aether_trio.services.credentials.throttle import Throttle
from aether_trio.session.admission import Authenticated, Claim
from aether_trio.transport.link import Peer, PeerCertificate

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

CertificateMode = Literal["strict", "semi-strict", "relaxed"]
_REFUSALS: Final = frozenset({Status.UNAUTHENTICATED, Status.PERMISSION_DENIED})
_WORKERS: Final = frozenset({"agent", "task"})
_USER: Final = "user"


def hash_api_key(key: str) -> str:
    """How a key is kept in the settings: SHA-256, lower-case hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_api_key(random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """A fresh key, to be shown once: "aek_" and 32 random bytes in base64url without padding."""
    return KEY_PREFIX + base64.urlsafe_b64encode(random_bytes(KEY_BYTES)).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True)
class CertifiedName:
    """What a certificate's common name says of its holder, and how much of it counts; None is "any"."""

    mode: CertificateMode
    type_name: str
    workspace: str | None = None
    implementation: str | None = None
    identity: Identity | None = None

    def fits(self, claimed: Identity) -> bool:
        """Whether the claim is within the name, as far as the mode asks."""
        if self.mode == "strict":
            return self.identity == claimed
        if self.type_name != claimed.type_name:
            return False
        if self.mode == "relaxed":
            return True
        # A user connects in no workspace: the name's is the one that it may enter.
        in_workspace = self.workspace in {None, claimed.workspace} or claimed.kind is Kind.USER
        return in_workspace and self.implementation in {None, claimed.implementation}

    def allows_workspace(self, workspace: str) -> bool:
        """All of them, but for users of one: what agents and tasks may do elsewhere is for access rules to say."""
        return self.everywhere or self.workspace == workspace

    @property
    def everywhere(self) -> bool:
        """See Accepted."""
        return self.mode == "relaxed" or self.type_name != _USER or self.workspace is None


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a participant was let in with: an API key, a certificate that names it, or nothing (development)."""

    key: ApiKey | None = None
    certificate: CertifiedName | None = None

    def allows_workspace(self, workspace: str) -> bool:
        """Whether the credential reaches this workspace; to be asked of each that an operation touches."""
        if self.key is not None:
            return any(matches(pattern, workspace) for pattern in self.key.workspaces)
        return self.certificate is None or self.certificate.allows_workspace(workspace)

    @property
    def everywhere(self) -> bool:
        """Whether it reaches all workspaces, and so what belongs to none."""
        if self.key is not None:
            return ANY in self.key.workspaces
        return self.certificate is None or self.certificate.everywhere

    def covers(self, identity: Identity) -> bool:
        """Whether a token for this participant would be good for no more than the credential is.

        A key for agents is one for tasks here, and the other way round: they give each other work.
        """
        key = self.key
        if key is None:
            return self.certificate is None or self.certificate.fits(identity)
        if key.principal not in {"*", identity.type_name} and not {key.principal, identity.type_name} <= _WORKERS:
            return False
        if not fits_identity(key.identity, identity):
            return False
        return self.allows_workspace(identity.workspace) if identity.workspace else self.everywhere


ANYBODY: Final = Accepted()
"""Nothing was asked for."""


class TokenAdmission(Protocol):
    """What a task token that was accepted is good for: services/tasks/transaction/tokens.py."""

    @property
    def task_id(self) -> str:
        """Of the task that it is for."""
        ...

    @property
    def token(self) -> bytes:
        """Its hash."""
        ...

    @property
    def workspaces(self) -> frozenset[str]:
        """Where its holder may act."""
        ...

    @property
    def lineage(self) -> tuple[str, ...]:
        """The tasks that it ends with."""
        ...

    def covers(self, identity: Identity) -> bool:
        """See Accepted.covers."""
        ...


TokenCheck = Callable[[Identity, Mapping[str, str]], Awaitable[TokenAdmission | None]]
"""Looks at a task token among the credentials: what it is good for, None without one. Raises StatusError."""


async def no_tokens(identity: Identity, credentials: Mapping[str, str]) -> TokenAdmission | None:
    """A TokenCheck of a gateway that makes none."""
    return None


class CredentialChecker:
    """Checks claims against the configured keys, task tokens and the peer's certificate. One per gateway."""

    def __init__(self, settings: AuthSettings, clock: Clock, check_token: TokenCheck = no_tokens) -> None:
        self._settings = settings
        self._check_token = check_token
        self.throttle = Throttle(settings, clock)

    async def admit(self, claim: Claim, peer: Peer) -> Authenticated:
        """Accept the claim, or raise StatusError.

        UNAUTHENTICATED: who are you; PERMISSION_DENIED: not you; UNAVAILABLE: come back. `peer.certificate` must have been verified
        against tls.client_ca by the transport.
        """
        subject = _subject(claim)
        self.throttle.check(peer.address, subject, lambda: _proof(claim, peer))
        try:
            admitted, proven = await self._decide(claim, peer.certificate)
        except StatusError as error:
            if error.status in _REFUSALS:
                self.throttle.failed(peer.address, subject)
            raise
        if proven:
            self.throttle.succeeded(peer.address, subject, _proof(claim, peer))
        return admitted

    async def _decide(self, claim: Claim, certificate: PeerCertificate | None) -> tuple[Authenticated, bool]:
        """What was accepted, and whether the client has proven anything by it."""
        identity = claim.identity
        certified = None if certificate is None else self.check_certificate(identity, certificate)
        token = await self._check_token(identity, claim.credentials)
        if token is not None:
            reaches, covers = token.workspaces.__contains__, token.covers
            return Authenticated(reaches, covers, False, token.task_id, token.token, token.lineage), True
        accepted = self.check(identity, claim.credentials, certified)
        admitted = Authenticated(accepted.allows_workspace, accepted.covers, accepted.everywhere)
        return admitted, accepted is not ANYBODY

    def check_certificate(self, identity: Identity, certificate: PeerCertificate) -> CertifiedName | None:
        """Whom a certificate names; None when it says nothing of its holder. Raises StatusError when that is not `identity`."""
        if certificate.problem:
            raise StatusError(Status.UNAUTHENTICATED, f"invalid client certificate: {certificate.problem}")
        name, mode = certificate.common_name, self._settings.client_cert_mode
        if name == ANONYMOUS_NAME:
            return None
        certified = parse_common_name(name, mode)
        if certified is None and mode == "relaxed":
            return None
        if certified is None or (mode == "strict" and certified.identity is None):
            raise StatusError(
                Status.UNAUTHENTICATED,
                f"invalid client certificate: its common name {shown(name)} is no identity, such as "
                "ag::workspace::implementation::specifier (auth.client_cert_mode=relaxed would take any name, beside a key)",
            )
        if not certified.fits(identity):
            raise StatusError(
                Status.PERMISSION_DENIED, f"identity mismatch: the certificate is for {shown(name)}, not {identity}"
            )
        return certified

    def check(
        self, identity: Identity, credentials: Mapping[str, str], certified: CertifiedName | None = None
    ) -> Accepted:
        """Accept a key, or what the certificate is good for, or anybody in development. Raises StatusError."""
        key = next((credentials[name] for name in API_KEY_NAMES if credentials.get(name)), None)
        if key is not None and (self._settings.api_keys or not self._settings.allow_anonymous):
            return self._check_key(key, identity)
        if certified is not None:
            return Accepted(certificate=certified)
        if self._settings.allow_anonymous:
            # Development: unknown tokens pass, because the SDK's orchestrator makes some up for what it starts.
            return ANYBODY
        raise self._nothing_accepted(identity, credentials)

    def _check_key(self, key: str, identity: Identity) -> Accepted:
        record = find_key(self._settings.api_keys, key)
        if record is None:
            raise StatusError(Status.UNAUTHENTICATED, "credential authentication failed: the API key is not known here")
        problem = key_problem(record, identity)
        if problem:
            raise StatusError(Status.PERMISSION_DENIED, f"API key {record.id!r} {problem}")
        return Accepted(key=record)

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
    if not fits_identity(record.identity, identity):
        return f"is for {record.identity}, not for {identity}"
    if identity.workspace:
        if not any(matches(pattern, identity.workspace) for pattern in record.workspaces):
            return f"does not reach workspace {identity.workspace!r} (it reaches {', '.join(record.workspaces)})"
    elif identity.kind is not Kind.USER and "*" not in record.workspaces:
        return f"is limited to workspaces {', '.join(record.workspaces)}, but {identity.kind.with_article} works in all of them"
    return None


def _subject(claim: Claim) -> str:
    """The claimed identity without the part that the gateway made up: a client could be new to the throttle each time."""
    text = claim.identity.text
    return text.removesuffix(claim.assigned_id) if claim.assigned_id else text


def _proof(claim: Claim, peer: Peer) -> bytes:
    """Tells credentials apart without keeping them."""
    certificate = peer.certificate
    shown_things = (
        sorted(claim.credentials.items()),
        certificate and (certificate.common_name, certificate.serial_number),
    )
    return hashlib.sha256(repr(shown_things).encode()).digest()


def parse_common_name(name: str, mode: CertificateMode) -> CertifiedName | None:
    """Read a certificate's name: an identity, or one of the partial forms `ga::ws`, `gu::ws`, `tb::ws::impl`, `ta::ws::impl`."""
    parts = name.split(SEPARATOR)
    if all(parts):
        match parts:
            case ["ga", workspace]:
                return CertifiedName(mode, "agent", workspace)
            case ["gu", workspace]:
                return CertifiedName(mode, _USER, workspace)
            case ["tb" | "ta", workspace, implementation]:
                return CertifiedName(mode, "task", workspace, implementation)
            case _:
                pass
    try:
        identity = Identity.parse(name)
    except IdentityError:
        return None
    return CertifiedName(
        mode, identity.type_name, identity.workspace or None, identity.implementation or None, identity
    )

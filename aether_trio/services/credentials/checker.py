"""Checks API keys, task tokens and certificates against claimed identities.

The session calls `CredentialChecker.admit` once, before anything is sent. Rules, and where they
differ from the reference (core.md 1.2-1.3):

* Outside development mode every kind of principal needs a credential. The reference admits
  orchestrators, the workflow engine and the metrics bridge by their network position alone.
* A certificate that names an identity has to fit the claim, also if a key or a task token comes
  with it. One whose name is no identity proves nothing, and the client needs a key as well.
* With client_cert_mode strict, the claim must equal the certificate's name; the reference silently
  connects the participant under another identity than it claimed.
* A key that is limited to workspaces is refused for principals that work in all workspaces.
* Kinds of tokens that are not implemented yet (JWT, web sessions) are refused by name.

Invariants: a key is known by its SHA-256 alone (32 random bytes need no slow hash); all records are
compared, in constant time; a failure is counted before it is answered.
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
from aether_trio.session.init_connection import Authenticated, Claim
from aether_trio.transport.link import Peer, PeerCertificate

KEY_PREFIX: Final = "aek_"
KEY_BYTES: Final = 32
ANONYMOUS_NAME: Final = "_anonymous"  # a certificate for transport only: it names no client
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
_WORKERS: Final = frozenset({"agent", "task"})  # they create tasks for each other
_USER: Final = "user"


def hash_api_key(key: str) -> str:
    """Return an API key's hash for the settings: SHA-256 in lower-case hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_api_key(random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """Return a new API key: "aek_" and 32 random bytes in base64url without padding."""
    return KEY_PREFIX + base64.urlsafe_b64encode(random_bytes(KEY_BYTES)).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True)
class CertifiedName:
    """Whom a client certificate names; parts that are None may be anything."""

    mode: CertificateMode
    type_name: str
    workspace: str | None = None
    implementation: str | None = None
    identity: Identity | None = None

    def fits(self, claimed: Identity) -> bool:
        """Whether the claimed identity fits the certificate, as strictly as the mode says."""
        if self.mode == "strict":
            return self.identity == claimed
        if self.type_name != claimed.type_name:
            return False
        if self.mode == "relaxed":
            return True
        # A user connects in no workspace, and the name has the one that it may enter.
        in_workspace = self.workspace in {None, claimed.workspace} or claimed.kind is Kind.USER
        return in_workspace and self.implementation in {None, claimed.implementation}

    def allows_workspace(self, workspace: str) -> bool:
        """Whether the certificate reaches a workspace; it can limit only users."""
        return self.everywhere or self.workspace == workspace

    @property
    def everywhere(self) -> bool:
        return self.mode == "relaxed" or self.type_name != _USER or self.workspace is None


@dataclass(frozen=True, slots=True)
class AcceptedCredential:
    """The API key or certificate that a client was admitted with; in development none."""

    key: ApiKey | None = None
    certificate: CertifiedName | None = None

    def allows_workspace(self, workspace: str) -> bool:
        if self.key is not None:
            return any(matches(pattern, workspace) for pattern in self.key.workspaces)
        return self.certificate is None or self.certificate.allows_workspace(workspace)

    @property
    def everywhere(self) -> bool:
        """Whether the credential reaches all workspaces, and what is in no workspace."""
        if self.key is not None:
            return ANY in self.key.workspaces
        return self.certificate is None or self.certificate.everywhere

    def covers(self, identity: Identity) -> bool:
        """Whether a task token for a participant would reach no more than the credential."""
        key = self.key
        if key is None:
            return self.certificate is None or self.certificate.fits(identity)
        if key.principal not in {"*", identity.type_name} and not {key.principal, identity.type_name} <= _WORKERS:
            return False
        if not fits_identity(key.identity, identity):
            return False
        return self.allows_workspace(identity.workspace) if identity.workspace else self.everywhere


NO_CREDENTIAL: Final = AcceptedCredential()  # for development mode
_ANYONE: Final = Authenticated(NO_CREDENTIAL.allows_workspace, NO_CREDENTIAL.covers, NO_CREDENTIAL.everywhere)


class TokenAdmission(Protocol):
    """What an accepted task token reaches (services/tasks/transaction/tokens.py)."""

    @property
    def task_id(self) -> str:
        """The id of the task that the token is for."""

    @property
    def token(self) -> bytes:
        """The token's hash."""

    @property
    def workspaces(self) -> frozenset[str]:
        """The workspaces that the token reaches."""

    @property
    def lineage(self) -> tuple[str, ...]:
        """The tasks at whose end the token expires."""

    def covers(self, identity: Identity) -> bool:
        """Whether the token reaches all that a token for `identity` would."""


TokenCheck = Callable[[Identity, Mapping[str, str]], Awaitable[TokenAdmission | None]]
"""Checks a task token among the credentials; None without one. Raises StatusError."""


async def no_tokens(identity: Identity, credentials: Mapping[str, str]) -> TokenAdmission | None:
    """Return None: the check of task tokens in a gateway without tasks."""
    return None


class CredentialChecker:
    """Checks claimed identities against keys, task tokens and certificates."""

    def __init__(self, settings: AuthSettings, clock: Clock, check_token: TokenCheck = no_tokens) -> None:
        self._settings = settings
        self._clock = clock
        self._check_token = check_token
        self.throttle = Throttle(settings, clock)

    async def admit(self, claim: Claim, peer: Peer) -> Authenticated:
        """Accept a client's claimed identity, or raise StatusError.

        UNAUTHENTICATED: no valid credential; PERMISSION_DENIED: a credential for another identity;
        UNAVAILABLE: throttled. The transport has verified `peer.certificate` against tls.client_ca.
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
        """Return the accepted authentication, and whether it proves who the client is."""
        identity = claim.identity
        certified = None if certificate is None else self.check_certificate(identity, certificate)
        token = await self._check_token(identity, claim.credentials) if claim.credentials else None
        if token is not None:
            admitted, proven = _of_token(token), True
        else:
            accepted = self.check(identity, claim.credentials, certified)
            proven = accepted is not NO_CREDENTIAL
            admitted = _ANYONE
            if proven or certificate is not None:
                admitted = Authenticated(accepted.allows_workspace, accepted.covers, accepted.everywhere)
                admitted = admitted._replace(credential=_name(accepted, certificate))
        if certificate is not None:
            # A session ends with each of its credentials.
            ends = filter(None, (admitted.expires_ms, certificate.not_after_ms))
            admitted = admitted._replace(expires_ms=min(ends, default=0))
        return admitted, proven

    def check_certificate(self, identity: Identity, certificate: PeerCertificate) -> CertifiedName | None:
        """Return whom a certificate names, or None. Raises StatusError for another name."""
        if certificate.problem:
            raise StatusError(Status.UNAUTHENTICATED, f"invalid client certificate: {certificate.problem}")
        if 0 < certificate.not_after_ms <= self._clock.now_ms():
            # TLS has verified it when the connection began, which may be long ago.
            raise StatusError(Status.UNAUTHENTICATED, "invalid client certificate: it has expired")
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
            why = f"identity mismatch: the certificate is for {shown(name)}, not {identity}"
            raise StatusError(Status.PERMISSION_DENIED, why)
        return certified

    def check(
        self, identity: Identity, credentials: Mapping[str, str], certified: CertifiedName | None = None
    ) -> AcceptedCredential:
        """Accept a key or certificate; in development any client. Raises StatusError."""
        key = next((credentials[name] for name in API_KEY_NAMES if credentials.get(name)), None)
        if key is not None and (self._settings.api_keys or not self._settings.allow_anonymous):
            return self._check_key(key, identity)
        if certified is not None:
            return AcceptedCredential(certificate=certified)
        if self._settings.allow_anonymous:
            return NO_CREDENTIAL  # with any token: the SDK's orchestrator invents some
        offered = next((kind for name, kind in _OTHER_KINDS.items() if credentials.get(name)), None)
        why = f"{identity.kind.with_article} needs a credential here: an api_key (made by `aether keys new`) or a client certificate"
        if offered:
            why = f"{offered} are not accepted by this gateway yet; connect with an api_key or a client certificate"
        raise StatusError(Status.UNAUTHENTICATED, why)

    def _check_key(self, key: str, identity: Identity) -> AcceptedCredential:
        record = find_key(self._settings.api_keys, key)
        if record is None:
            why = "credential authentication failed: this gateway does not know the API key"
            raise StatusError(Status.UNAUTHENTICATED, why)
        problem = key_problem(record, identity)
        if problem:
            raise StatusError(Status.PERMISSION_DENIED, f"API key {record.id!r} {problem}")
        return AcceptedCredential(key=record)


def find_key(records: Sequence[ApiKey], key: str) -> ApiKey | None:
    """Return an API key's record, or None; takes the same time for every key."""
    digest = hash_api_key(key)
    found: ApiKey | None = None
    for record in records:
        if hmac.compare_digest(record.sha256, digest):
            found = record
    return found


def key_problem(record: ApiKey, identity: Identity) -> str | None:
    """Return why an API key does not fit an identity (a sentence's end), or None."""
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
    """Return the claimed identity without the part that the gateway assigned to it."""
    # With that part the client would be new to the throttle at each attempt.
    text = claim.identity.text
    return text.removesuffix(claim.assigned_id) if claim.assigned_id else text


def _of_token(token: TokenAdmission) -> Authenticated:
    reaches, covers, task_id = token.workspaces.__contains__, token.covers, token.task_id
    return Authenticated(reaches, covers, False, task_id, token.token, token.lineage, f"task:{task_id}")


def _name(accepted: AcceptedCredential, certificate: PeerCertificate | None) -> str:
    if accepted.key is not None:
        return f"key:{accepted.key.id}"
    return "" if certificate is None else f"certificate:{certificate.serial_number}"


def _proof(claim: Claim, peer: Peer) -> bytes:
    certificate = peer.certificate and (peer.certificate.common_name, peer.certificate.serial_number)
    return hashlib.sha256(repr((sorted(claim.credentials.items()), certificate)).encode()).digest()


def parse_common_name(name: str, mode: CertificateMode) -> CertifiedName | None:
    """Read a certificate's common name, whole or partial; None if it is no identity."""
    parts = name.split(SEPARATOR)
    if all(parts):
        match parts:
            case ["ga", workspace]:
                return CertifiedName(mode, "agent", workspace)
            case ["gu", workspace]:
                return CertifiedName(mode, _USER, workspace)
            case ["tb" | "ta", workspace, implementation]:
                return CertifiedName(mode, "task", workspace, implementation)
    try:
        named = Identity.parse(name)
    except IdentityError:
        return None
    return CertifiedName(mode, named.type_name, named.workspace or None, named.implementation or None, named)

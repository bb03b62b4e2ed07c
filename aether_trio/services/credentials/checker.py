"""Checks API keys, tokens and certificates against claimed identities.

The session calls `CredentialChecker.admit` once, before anything is sent. Rules, and where they
differ from the reference (core.md 1.2-1.3):

* Outside development mode every kind of principal needs a credential. The reference admits
  orchestrators, the workflow engine and the metrics bridge by their network position alone.
* A name that begins with "_" is the gateway's: no client claims it, in development mode either.
* A certificate that names an identity has to fit the claim, also if a key or a token comes with it,
  and the session reaches what both reach. One whose name is no identity proves nothing, and the
  client needs a key as well.
* With client_cert_mode strict, the claim must equal the certificate's name; the reference silently
  connects the participant under another identity than it claimed.
* A key or token that is limited to workspaces is refused for principals that work in all of them.
* Of several credentials the first in this order counts: a task token, an API key or token, a JSON
  Web Token. Web sessions are refused by name.

A session ends when one of its credentials does: `confirm` finds those that ended while the client
was connecting, and `ended` says which sessions new settings or a revocation end.

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
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.config import ApiKey, AuthSettings, TlsSettings
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.patterns import escape
from aether_trio.model.api_tokens import ApiToken, is_token_text, reserved_part
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import SEPARATOR, Identity, IdentityError, Kind, prefix_of
from aether_trio.model.patterns import ANY, fits_identity, matches
from aether_trio.model.text import shown
from aether_trio.services.credentials.throttle import Throttle
from aether_trio.session.init_connection import Authenticated, Claim, Reached
from aether_trio.transport.link import Peer, PeerCertificate

if TYPE_CHECKING:
    from aether_trio.services.credentials.jwks import ProviderKeys
    from aether_trio.services.credentials.jwt import JwtVerifier, Login
    from aether_trio.services.credentials.revocations import RevokedCertificates
    from aether_trio.session.session import Session

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
_REMEMBERED_S: Final = 600.0
"""How long a revoked token is remembered for clients that are connecting with it."""
_REMEMBERED_TOKENS: Final = 10_000

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
    bounded: bool = False
    """Whether rules rest on names: then it proves no other name, and reaches no other workspace."""

    def fits(self, claimed: Identity) -> bool:
        """Whether the claimed identity fits the certificate, as strictly as the mode says."""
        if self.mode == "strict":
            return self.identity == claimed
        if self.mode == "relaxed":
            return self.type_name == claimed.type_name
        return self.names(claimed)

    def names(self, claimed: Identity) -> bool:
        """Whether the certificate names the claimed identity, but for the specifier."""
        if self.type_name != claimed.type_name:
            return False
        # A user connects in no workspace, and the name has the one that it may enter.
        in_workspace = self.workspace in {None, claimed.workspace} or claimed.kind is Kind.USER
        return in_workspace and self.implementation in {None, claimed.implementation}

    def needs_more(self, claimed: Identity) -> bool:
        """Whether the claimed identity needs a credential beside the certificate."""
        return self.bounded and not self.names(claimed)

    def allows_workspace(self, workspace: str) -> bool:
        """Whether the certificate reaches a workspace; it can limit only users."""
        return self.everywhere or self.workspace == workspace

    @property
    def workspace_patterns(self) -> tuple[str, ...]:
        return (ANY,) if self.everywhere or self.workspace is None else (escape(self.workspace),)

    @property
    def identity_patterns(self) -> tuple[str, ...]:
        """Patterns of the identities that the certificate lets in; () for all of its kind."""
        if self.mode == "relaxed" and not self.bounded:
            return ()
        if self.mode == "strict" and self.identity is not None:
            return (escape(self.identity.text),)
        parts = [ANY if part is None else escape(part) for part in (self.workspace, self.implementation)]
        if self.type_name == "agent":
            return (SEPARATOR.join([prefix_of(Kind.AGENT), *parts, ANY]),)
        if self.type_name == "task":
            return tuple(SEPARATOR.join([prefix_of(kind), *parts, ANY]) for kind in (Kind.TASK, Kind.UNIQUE_TASK))
        return (
            () if self.implementation is None else (f"{ANY}{SEPARATOR}{escape(self.implementation)}{SEPARATOR}{ANY}",)
        )

    @property
    def everywhere(self) -> bool:
        relaxed = self.mode == "relaxed" and not self.bounded
        return relaxed or self.type_name != _USER or self.workspace is None


@dataclass(frozen=True, slots=True)
class AcceptedCredential:
    """The credentials that a client was admitted with; none in development."""

    key: ApiKey | None = None
    certificate: CertifiedName | None = None
    token: ApiToken | None = None
    login: Login | None = None

    @property
    def name(self) -> str:
        """The credential in audits: "key:ID", "token:ID", "jwt:PROVIDER"; "" for others."""
        if self.key is not None:
            return f"key:{self.key.id}"
        if self.token is not None:
            return f"token:{self.token.token_id}"
        return "" if self.login is None else f"jwt:{self.login.provider.name}"

    def allows_workspace(self, workspace: str) -> bool:
        """Whether all of the credentials reach a workspace."""
        if self.key is not None and not any(matches(pattern, workspace) for pattern in self.key.workspaces):
            return False
        others = (self.certificate, self.token, self.login)
        return all(one is None or one.allows_workspace(workspace) for one in others)

    @property
    def everywhere(self) -> bool:
        """Whether the credentials reach all workspaces, and what is in no workspace."""
        if self.key is not None and ANY not in self.key.workspaces:
            return False
        return all(one is None or one.everywhere for one in (self.certificate, self.token, self.login))

    def covers(self, identity: Identity) -> bool:
        """Whether a task token for a participant would reach no more than the credentials."""
        if self.key is None and self.token is None and self.login is None:
            if self.certificate is None:
                return True
            return self.certificate.fits(identity) and not self.certificate.needs_more(identity)
        if self.key is not None and not _key_covers(self.key, identity):
            return False
        if not all(one is None or one.covers(identity) for one in (self.token, self.login)):
            return False
        return self.allows_workspace(identity.workspace) if identity.workspace else self.everywhere

    @property
    def workspace_limits(self) -> list[tuple[str, ...]]:
        """Patterns of the workspaces that each of the credentials reaches."""
        limits = [] if self.key is None else [tuple(map(_as_path_match, self.key.workspaces))]
        return limits + [
            one.workspace_patterns for one in (self.certificate, self.token, self.login) if one is not None
        ]

    @property
    def identity_limits(self) -> list[tuple[str, ...]]:
        """Patterns of the identities that each of the credentials lets in."""
        limits = [one.identity_patterns for one in (self.certificate, self.token, self.login) if one is not None]
        if self.key is not None and self.key.identity != ANY:
            limits.append((_as_path_match(self.key.identity),))
        return [one for one in limits if one]


def _key_covers(key: ApiKey, identity: Identity) -> bool:
    if key.principal not in {"*", identity.type_name} and not {key.principal, identity.type_name} <= _WORKERS:
        return False
    return fits_identity(key.identity, identity)


def _as_path_match(pattern: str) -> str:
    """Return a pattern of a key's record as one of model/access/patterns.py."""
    return pattern.replace("\\", "\\\\").replace("[", "\\[")


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

    @property
    def cap(self) -> AccessLevel:
        """The highest level that its creator's credential gave."""

    @property
    def makers(self) -> tuple[str, ...]:
        """The principals that have made the API token of its creator."""

    @property
    def creators(self) -> tuple[str, ...]:
        """The principals that have created the tasks of its lineage."""

    @property
    def origin(self) -> str:
        """The API token with which it was made, and with which it ends; "" for none."""

    @property
    def origin_key(self) -> str:
        """The id of the secret key under which that API token is stored."""

    def covers(self, identity: Identity) -> bool:
        """Whether the token reaches all that a token for `identity` would."""


TokenCheck = Callable[[Identity, Mapping[str, str]], Awaitable[TokenAdmission | None]]
"""Checks a task token among the credentials; None without one. Raises StatusError."""


async def no_tokens(identity: Identity, credentials: Mapping[str, str]) -> TokenAdmission | None:
    """Return None: the check of task tokens in a gateway without tasks."""
    return None


class TokenLookup(Protocol):
    """Finds API tokens by their text (services/tokens/store.py)."""

    def known(self, text: str) -> ApiToken | None:
        """Return a token that was found before, used now; None if it is to be looked for."""

    async def find(self, text: str) -> ApiToken | None:
        """Return a token, used now; None if there is none. Raises StatusError."""

    def has_key(self, key_id: str) -> bool:
        """Return whether the secret key with this id is among the settings."""


class _NoApiTokens:
    """The look-up in a gateway without API tokens."""

    def known(self, text: str) -> ApiToken | None:
        return None

    async def find(self, text: str) -> ApiToken | None:
        return None

    def has_key(self, key_id: str) -> bool:
        return bool(key_id)


@dataclass(frozen=True, slots=True)
class TaskTokenReach:
    """What a session of a task token reaches, as patterns."""

    workspace_limits: tuple[tuple[str, ...], ...]
    origin: str
    origin_key: str
    identity_limits: tuple[tuple[str, ...], ...] = ()


def token_key_of(accepted: Reached) -> str:
    """Return the id of the secret key of the API token behind a session, or ""."""
    if isinstance(accepted, TaskTokenReach):
        return accepted.origin_key
    return accepted.token.key_id if isinstance(accepted, AcceptedCredential) and accepted.token is not None else ""


class PreparedCredentials(NamedTuple):
    """New settings of the checks, with their files read, for `CredentialChecker.use`."""

    settings: AuthSettings
    jwt: JwtVerifier | None
    sources: dict[str, ProviderKeys]
    revoked: RevokedCertificates | None


class CredentialChecker:
    """Checks claimed identities against keys, tokens and certificates."""

    def __init__(
        self,
        settings: AuthSettings,
        clock: Clock,
        check_token: TokenCheck = no_tokens,
        api_tokens: TokenLookup | None = None,
        *,
        bounded: bool = False,
    ) -> None:
        """`bounded`: rules rest on names, so a certificate proves its own name alone."""
        self._bounded = bounded
        self._settings = settings
        self._keys = frozenset(settings.api_keys)
        self._clock = clock
        self._check_token = check_token
        self._api_tokens = api_tokens or _NoApiTokens()
        self._by_token: dict[str, tuple[AcceptedCredential, Authenticated]] = {}
        """By the id of an API token: what it alone permits, as its record said when it was used."""
        self._jwt: JwtVerifier | None = None
        self._jwt_made = AutoResetEvent()
        self._revoked: RevokedCertificates | None = None
        self._ended_tokens: dict[str, float] = {}
        self.throttle = Throttle(settings, clock)

    # -- settings ----------------------------------------------------------------------------------

    def prepare(self, settings: AuthSettings, tls: TlsSettings) -> PreparedCredentials:
        """Read the files of new settings. Raises OSError, which names the file."""
        verifier, sources = self._jwt, {}
        if settings.jwt.providers:
            # With its libraries it has 7 MiB, and most gateways have no identity provider.
            from aether_trio.services.credentials.jwt import JwtVerifier

            verifier = verifier or JwtVerifier(self._clock)
        if verifier is not None:
            sources = verifier.prepare(settings.jwt.providers)
        revoked: RevokedCertificates | None = None
        if tls.client_crl is not None:
            from aether_trio.services.credentials.revocations import read_revocations

            revoked = read_revocations(tls, self._clock.now_ms())
        return PreparedCredentials(settings, verifier, sources, revoked)

    def use(self, prepared: PreparedCredentials) -> None:
        """Check clients by these settings from now on; see `ended` for sessions."""
        self._settings = prepared.settings
        self._keys = frozenset(prepared.settings.api_keys)
        self._revoked = prepared.revoked
        if prepared.jwt is not None:
            prepared.jwt.replace(prepared.sources)
            if self._jwt is None:
                self._jwt = prepared.jwt
                self._jwt_made.set()

    async def run(self) -> None:
        """Keep the keys of identity providers fresh, until cancelled."""
        while True:
            if self._jwt is None:
                await self._jwt_made.wait()
            else:
                await self._jwt.run()

    # -- the ends of credentials -------------------------------------------------------------------

    def token_ended(self, token_id: str) -> None:
        """Note that an API token was revoked or deleted: it admits no client from now on."""
        now = self._clock.monotonic()
        if len(self._ended_tokens) >= _REMEMBERED_TOKENS:
            self._ended_tokens = {one: at for one, at in self._ended_tokens.items() if now - at < _REMEMBERED_S}
        self._ended_tokens[token_id] = now

    def ended(self, accepted: Reached, certificate: PeerCertificate | None) -> str | None:
        """Return why what let a session in does so no more (a sentence), or None."""
        if certificate is not None and self._revoked is not None and self._revoked.has(certificate):
            return "the client certificate of this session was revoked"
        if isinstance(accepted, TaskTokenReach) and accepted.origin in self._ended_tokens:
            return "the API token with which the task token of this session was made was revoked"
        if (
            isinstance(accepted, TaskTokenReach)
            and accepted.origin
            and not self._api_tokens.has_key(accepted.origin_key)
        ):
            return "the key of the API token with which the task token of this session was made is gone"
        if not isinstance(accepted, AcceptedCredential):
            return None
        if accepted.key is not None and accepted.key not in self._keys:
            return f"the API key {accepted.key.id!r} of this session is not among the settings any more"
        if accepted.token is not None and accepted.token.token_id in self._ended_tokens:
            return f"the API token {accepted.token.name!r} of this session was revoked"
        if accepted.token is not None and not self._api_tokens.has_key(accepted.token.key_id):
            return f"the key of the API token {accepted.token.name!r} is not among the settings any more"
        if accepted.login is not None and accepted.login.provider not in self._settings.jwt.providers:
            return f"the identity provider {accepted.login.provider.name!r} is not among the settings any more"
        return None

    def confirm(self, session: Session) -> None:
        """Refuse a registered session whose credential has ended. Raises StatusError."""
        problem = self.ended(session.accepted, session.link.peer.certificate)
        if problem is not None:
            raise StatusError(Status.UNAUTHENTICATED, problem)

    # -- admission ---------------------------------------------------------------------------------

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
        if (part := reserved_part(identity)) is not None:
            why = f"{shown(part)} is a name of the gateway: a participant has none that begins with _"
            raise StatusError(Status.PERMISSION_DENIED, why)
        certified = None if certificate is None else self.check_certificate(identity, certificate)
        token = await self._check_token(identity, claim.credentials) if claim.credentials else None
        if token is not None:
            admitted, proven = _of_token(token, certified), True
            if (problem := self.ended(admitted.accepted, None)) is not None:
                raise StatusError(Status.UNAUTHENTICATED, problem)
        else:
            accepted = await self._look_up(identity, claim.credentials, certified)
            accepted = accepted or self.check(identity, claim.credentials, certified)
            proven = accepted is not NO_CREDENTIAL
            admitted = self._permitted(accepted, certificate) if proven or certificate is not None else _ANYONE
        if certificate is not None:
            # A session ends with each of its credentials.
            ends = filter(None, (admitted.expires_ms, certificate.not_after_ms))
            admitted = admitted._replace(expires_ms=min(ends, default=0))
        return admitted, proven

    async def _look_up(
        self, identity: Identity, credentials: Mapping[str, str], certified: CertifiedName | None
    ) -> AcceptedCredential | None:
        """Accept an API token or a JWT; None when no such one counts. Raises StatusError."""
        key = _key_of(credentials)
        if key is not None:
            if self._settings.api_keys and find_key(self._settings.api_keys, key) is not None:
                return None
            found = self._api_tokens.known(key)
            if found is None:
                if not is_token_text(key):
                    return None
                found = await self._api_tokens.find(key)
            token = self._check_api_token(found, identity)
            known = self._by_token.get(token.token_id)
            if known is not None and known[0].token is token and certified is None:
                return known[0]
            return AcceptedCredential(certificate=certified, token=token)
        if self._jwt is None or not self._jwt:
            return None
        from aether_trio.services.credentials.jwt import bearer_of

        bearer = bearer_of(credentials)
        if bearer is None:
            return None
        return AcceptedCredential(certificate=certified, login=await self._jwt.login(bearer, identity))

    def _permitted(self, accepted: AcceptedCredential, certificate: PeerCertificate | None) -> Authenticated:
        """Return what a credential permits; for a token that comes again, the same object."""
        token = accepted.token
        if token is None or certificate is not None:
            return _of_credential(accepted, certificate)
        known = self._by_token.get(token.token_id)
        if known is None or known[0] is not accepted:
            if len(self._by_token) >= _REMEMBERED_TOKENS:
                self._by_token.clear()
            known = self._by_token[token.token_id] = accepted, _of_credential(accepted, None)
        return known[1]

    def _check_api_token(self, token: ApiToken | None, identity: Identity) -> ApiToken:
        if token is None or token.token_id in self._ended_tokens:
            why = "credential authentication failed: this gateway does not know the API token"
            raise StatusError(Status.UNAUTHENTICATED, why)
        if why_not := token.ended(self._clock.now_ms()):
            raise StatusError(Status.UNAUTHENTICATED, f"the API token {token.name!r} {why_not}")
        if not token.limits.connect:
            why = f"the API token {token.name!r} has not the scope connect"
            raise StatusError(Status.PERMISSION_DENIED, why)
        if problem := token.problem(identity):
            raise StatusError(Status.PERMISSION_DENIED, f"the API token {token.name!r} {problem}")
        return token

    def check_certificate(self, identity: Identity, certificate: PeerCertificate) -> CertifiedName | None:
        """Return whom a certificate names, or None. Raises StatusError for another name."""
        if certificate.problem:
            raise StatusError(Status.UNAUTHENTICATED, f"invalid client certificate: {certificate.problem}")
        if 0 < certificate.not_after_ms <= self._clock.now_ms():
            # TLS has verified it when the connection began, which may be long ago.
            raise StatusError(Status.UNAUTHENTICATED, "invalid client certificate: it has expired")
        if self._revoked is not None and self._revoked.has(certificate):
            raise StatusError(Status.UNAUTHENTICATED, "invalid client certificate: it was revoked")
        name, mode = certificate.common_name, self._settings.client_cert_mode
        if name == ANONYMOUS_NAME:
            return None
        certified = parse_common_name(name, mode, bounded=self._bounded)
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
        key = _key_of(credentials)
        if key is not None and (self._settings.api_keys or not self._settings.allow_anonymous):
            return AcceptedCredential(self._check_key(key, identity), certified)
        if certified is not None and not certified.needs_more(identity):
            return AcceptedCredential(certificate=certified)
        if self._settings.allow_anonymous:
            return NO_CREDENTIAL  # with any token: the SDK's orchestrator invents some
        offered = next((kind for name, kind in _OTHER_KINDS.items() if credentials.get(name)), None)
        if certified is not None:
            why = (
                f"the certificate names another {identity.type_name}: where access.default is closed, "
                f"{identity} needs a key or a token as well"
            )
            raise StatusError(Status.UNAUTHENTICATED, why)
        why = f"{identity.kind.with_article} needs a credential here: an api_key (made by `aether keys new`) or a client certificate"
        if offered:
            why = f"{offered} are not accepted by this gateway yet; connect with an api_key or a client certificate"
        raise StatusError(Status.UNAUTHENTICATED, why)

    def _check_key(self, key: str, identity: Identity) -> ApiKey:
        record = find_key(self._settings.api_keys, key)
        if record is None:
            why = "credential authentication failed: this gateway does not know the API key"
            raise StatusError(Status.UNAUTHENTICATED, why)
        problem = key_problem(record, identity)
        if problem:
            raise StatusError(Status.PERMISSION_DENIED, f"API key {record.id!r} {problem}")
        return record


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


def _key_of(credentials: Mapping[str, str]) -> str | None:
    return next((credentials[name] for name in API_KEY_NAMES if credentials.get(name)), None)


def _of_token(token: TokenAdmission, certified: CertifiedName | None) -> Authenticated:
    task_id = token.task_id
    workspaces = token.workspaces
    if certified is not None and not certified.everywhere:
        workspaces = frozenset(filter(certified.allows_workspace, workspaces))
    return Authenticated(
        workspaces.__contains__,
        token.covers,
        False,
        task_id,
        token.token,
        token.lineage,
        f"task:{task_id}",
        cap=token.cap,
        accepted=TaskTokenReach((tuple(map(escape, sorted(workspaces))),), token.origin, token.origin_key),
        makers=token.makers,
        creators=token.creators,
        origin=token.origin,
    )


def _of_credential(accepted: AcceptedCredential, certificate: PeerCertificate | None) -> Authenticated:
    name = accepted.name or ("" if certificate is None else f"certificate:{certificate.serial_number}")
    token, login = accepted.token, accepted.login
    alone = token is not None and accepted.certificate is None
    return Authenticated(
        token.allows_workspace if token is not None and alone else accepted.allows_workspace,
        accepted.covers,
        accepted.everywhere,
        credential=name,
        expires_ms=token.expires_ms if token is not None else 0 if login is None else login.expires_ms,
        cap=AccessLevel.SUPERADMIN if token is None else token.limits.cap,
        groups=() if login is None else login.groups,
        accepted=accepted,
        makers=() if token is None else (token.maker,),
        origin="" if token is None else token.token_id,
    )


def _proof(claim: Claim, peer: Peer) -> bytes:
    certificate = peer.certificate and (peer.certificate.common_name, peer.certificate.serial_number)
    credentials = claim.credentials
    items = sorted(credentials.items()) if len(credentials) > 1 else list(credentials.items())
    return hashlib.sha256(repr((items, certificate)).encode()).digest()


def parse_common_name(name: str, mode: CertificateMode, *, bounded: bool = False) -> CertifiedName | None:
    """Read a certificate's common name, whole or partial; None if it is no identity."""
    parts = name.split(SEPARATOR)
    if all(parts):
        match parts:
            case ["ga", workspace]:
                return CertifiedName(mode, "agent", workspace, bounded=bounded)
            case ["gu", workspace]:
                return CertifiedName(mode, _USER, workspace, bounded=bounded)
            case ["tb" | "ta", workspace, implementation]:
                return CertifiedName(mode, "task", workspace, implementation, bounded=bounded)
    try:
        named = Identity.parse(name)
    except IdentityError:
        return None
    return CertifiedName(
        mode, named.type_name, named.workspace or None, named.implementation or None, named, bounded=bounded
    )

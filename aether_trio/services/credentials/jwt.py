"""Checks JSON Web Tokens of identity providers against claims (RFC 8725).

What a token may say is narrow: it has a signature by a key that its issuer publishes, with an
algorithm of RS, ES or PS; it is for this gateway (`aud`) and it ends (`exp`). Headers that bring
keys along or change the meaning of the token (`jwk`, `jku`, `x5u`, `x5c`, `crit`, `b64`) are
refused. No token speaks for an orchestrator, the workflow engine, the metrics bridge, a bridge or a
service, nor for a name that begins with "_".

The claims have to fit the identity that the client claims; they never replace it, as they do in the
reference (security.md 1.5). The claim for the identity is a user's id; of an agent or a task it is
the whole identity, or the implementation alone. An agent or a task is in a workspace that the token
names, or the provider's default. A user without such a claim reaches all workspaces.
"""

from __future__ import annotations

import base64
import errno
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.config import JwtProvider
from aether_trio.model.access.patterns import escape
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import SEPARATOR, Identity, IdentityError, Kind
from aether_trio.model.patterns import ANY
from aether_trio.model.text import TextError, check_text, shown
from aether_trio.services.credentials.jwks import Fetch, JwksError, KeysTooOld, ProviderKeys

MAX_TOKEN_BYTES: Final = 16 * 1024
MAX_GROUPS: Final = 256
MAX_GROUP_BYTES: Final = 256
MAX_WORKSPACES: Final = 64
SKEW_S: Final = 60.0
"""How far a provider's clock may be ahead (`nbf`, `iat`). `exp` has no such grace."""
JWT_NAMES: Final = ("bearer_token", "authorization")
"""Names of credentials that may be JSON Web Tokens."""
_SEGMENTS: Final = 3
_FORBIDDEN_HEADERS: Final = ("crit", "jku", "jwk", "x5u", "x5c", "b64")
_ASSERTABLE: Final[Mapping[str, str]] = {"user": "user", "agent": "agent", "task": "task", "unique_task": "task"}
_WORKERS: Final = frozenset({"agent", "task"})
_PREFIXES: Final[Mapping[str, tuple[str, ...]]] = {"agent": ("ag",), "task": ("ta", "tu")}


@dataclass(frozen=True, slots=True)
class Login:
    """Whom a JSON Web Token speaks for, until when, and in which groups."""

    provider: JwtProvider
    type_name: str
    subject: str
    """A user's id, or the implementation or whole identity of an agent or a task."""
    workspaces: frozenset[str] | None
    """None: all."""
    groups: tuple[str, ...]
    expires_ms: int

    @property
    def everywhere(self) -> bool:
        return self.workspaces is None

    def allows_workspace(self, workspace: str) -> bool:
        """Whether the token reaches a workspace."""
        return self.workspaces is None or workspace in self.workspaces

    @property
    def workspace_patterns(self) -> tuple[str, ...]:
        return (ANY,) if self.workspaces is None else tuple(map(escape, sorted(self.workspaces)))

    @property
    def identity_patterns(self) -> tuple[str, ...]:
        """Patterns of the identities that the token lets in."""
        if self.type_name == "user":
            return (f"us::{escape(self.subject)}::*",)
        if SEPARATOR in self.subject:
            return (escape(self.subject),)
        return tuple(f"{prefix}::*::{escape(self.subject)}::*" for prefix in _PREFIXES[self.type_name])

    def problem(self, identity: Identity) -> str | None:
        """Return why the token does not fit an identity (a sentence's end), or None."""
        if identity.type_name != self.type_name:
            return f"is for a principal of type {self.type_name}, not {identity.type_name}"
        if not self._names(identity):
            return f"is for {shown(self.subject)}, not for {identity.text}"
        if identity.workspace and not self.allows_workspace(identity.workspace):
            return f"does not reach workspace {identity.workspace!r}"
        return None

    def _names(self, identity: Identity) -> bool:
        if identity.kind is Kind.USER or SEPARATOR not in self.subject:
            return self.subject == identity.implementation
        return self.subject == identity.text

    def covers(self, identity: Identity) -> bool:
        """Whether a task token for a participant would reach no more than this token."""
        if self.type_name not in _WORKERS or identity.type_name not in _WORKERS or not self._names(identity):
            return False
        return self.allows_workspace(identity.workspace)


class JwtVerifier:
    """Verifies JSON Web Tokens; `run` keeps the providers' keys fresh."""

    def __init__(self, clock: Clock, fetch: Fetch | None = None) -> None:
        self._clock = clock
        self._fetch = fetch
        self._sources: dict[str, ProviderKeys] = {}
        self._replaced = AutoResetEvent()

    def __bool__(self) -> bool:
        return bool(self._sources)

    def prepare(self, providers: Sequence[JwtProvider]) -> dict[str, ProviderKeys]:
        """Make the key sources of new settings. Raises OSError for a file of keys.

        A provider that has not changed keeps the keys that were fetched.
        """
        sources: dict[str, ProviderKeys] = {}
        for provider in providers:
            old = self._sources.get(provider.name)
            if old is not None and old.provider == provider and provider.jwks_file is None:
                sources[provider.name] = old
                continue
            source = sources[provider.name] = ProviderKeys(provider, self._clock, self._fetch)
            try:
                source.load_file()
            except JwksError as error:
                raise OSError(errno.EINVAL, str(error), provider.jwks_file) from None
        return sources

    def replace(self, sources: dict[str, ProviderKeys]) -> None:
        """Use the key sources that `prepare` has made."""
        self._sources = sources
        self._replaced.set()

    async def run(self) -> None:
        """Keep the keys of all providers fresh, until cancelled."""
        while True:
            async with trio.open_nursery() as nursery:
                for source in self._sources.values():
                    nursery.start_soon(source.run, name=f"jwks-{source.provider.name}")
                await self._replaced.wait()
                nursery.cancel_scope.cancel()

    async def login(self, token: str, identity: Identity) -> Login:
        """Verify a token, and that it speaks for an identity. Raises StatusError.

        UNAUTHENTICATED: not a valid token; PERMISSION_DENIED: one for another identity;
        UNAVAILABLE: the provider's keys could not be fetched.
        """
        # Loaded with the first token: most gateways have no identity provider.
        import jwt

        header, issuer = _look(token)
        algorithm, key_id = _check_header(header)
        sources = [one for one in self._sources.values() if one.provider.issuer == issuer]
        if not sources:
            raise _invalid("its issuer is not among auth.jwt.providers")
        refusal: StatusError | None = None
        for source in sources:
            provider = source.provider
            if algorithm not in provider.algorithms:
                refusal = _invalid(f"the algorithm {algorithm} is not allowed for its issuer")
                continue
            try:
                key = await source.find(key_id, algorithm)
            except KeysTooOld:
                why = f"the keys of the identity provider {provider.name} cannot be fetched; try again later"
                raise StatusError(Status.UNAVAILABLE, why) from None
            if key is None:
                refusal = _invalid("its issuer publishes no key for it")
                continue
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key.public_key,
                    algorithms=[algorithm],
                    audience=provider.audience,
                    issuer=provider.issuer,
                    options={
                        "require": ["exp", "aud", "iss"],
                        "verify_signature": True,
                        "verify_aud": True,
                        "verify_iss": True,
                        # The gateway has another clock than PyJWT (below).
                        "verify_exp": False,
                        "verify_nbf": False,
                        "verify_iat": False,
                    },
                )
            except jwt.InvalidAudienceError:
                refusal = _invalid("it is not for this gateway (aud)")
                continue
            except jwt.InvalidSignatureError:
                raise _invalid("its signature is wrong") from None
            except jwt.MissingRequiredClaimError as error:
                raise _invalid(f"the claim {error.claim} is missing") from None
            except jwt.InvalidTokenError:
                raise _invalid("it is malformed") from None
            login = _login_of(provider, claims, self._check_times(claims))
            if problem := login.problem(identity):
                raise StatusError(Status.PERMISSION_DENIED, f"the token of {provider.name} {problem}")
            return login
        assert refusal is not None
        raise refusal

    def _check_times(self, claims: Mapping[str, Any]) -> int:
        """Return the moment at which a token ends, in Unix ms. Raises StatusError."""
        now_s = self._clock.now_ms() / 1000
        expires_s = _seconds(claims, "exp")
        assert expires_s is not None
        if expires_s <= now_s:
            raise _invalid("it has expired")
        for name in ("nbf", "iat"):
            begins_s = _seconds(claims, name)
            if begins_s is not None and begins_s > now_s + SKEW_S:
                raise _invalid(f"it is from the future ({name})")
        return int(expires_s * 1000)


def bearer_of(credentials: Mapping[str, str]) -> str | None:
    """Return the JSON Web Token among the credentials, without "Bearer "; or None."""
    for name in JWT_NAMES:
        text = credentials.get(name, "")
        scheme, _, rest = text.partition(" ")
        token = rest.strip() if name == "authorization" and scheme.lower() == "bearer" else text
        if token:
            return token
    return None


def _look(token: str) -> tuple[dict[str, Any], str]:
    """Return a token's header and issuer, both unverified. Raises StatusError."""
    if len(token) > MAX_TOKEN_BYTES or not token.isascii() or token.count(".") != _SEGMENTS - 1:
        raise _invalid("it is not a JSON Web Token")
    header, claims, _ = token.split(".")
    issuer = _segment(claims).get("iss")
    if not isinstance(issuer, str):
        raise _invalid("the claim iss is missing")
    return _segment(header), issuer


def _segment(text: str) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        raise _invalid("it is not a JSON Web Token") from None
    if not isinstance(content, dict):
        raise _invalid("it is not a JSON Web Token")
    return content


def _check_header(header: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the algorithm and the key id that a token's header names."""
    for name in _FORBIDDEN_HEADERS:
        if name in header:
            raise _invalid(f"its header {name} is not accepted")
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not (key_id is None or isinstance(key_id, str)):
        raise _invalid("its header is malformed")
    return algorithm, key_id


def _seconds(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None and name != "exp":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1e11:
        raise _invalid(f"the claim {name} is no time")
    return float(value)


def _login_of(provider: JwtProvider, claims: Mapping[str, Any], expires_ms: int) -> Login:
    mapping = provider.claims_mapping
    type_name = _principal_type(provider, _claim(claims, mapping.principal_type))
    subject = _claim(claims, mapping.identity)
    if not isinstance(subject, str) or not subject:
        raise _invalid(f"the claim {mapping.identity}, which names its holder, is missing")
    workspaces = _texts(_claim(claims, mapping.workspace), "workspace", MAX_WORKSPACES)
    if not workspaces and provider.default_workspace:
        workspaces = (provider.default_workspace,)
    if not workspaces and type_name != "user":
        try:
            workspaces = (Identity.parse(subject).workspace,)
        except IdentityError:
            why = f"names no workspace, which a token for a principal of type {type_name} has to"
            raise _denied(provider, why) from None
    for name in (*subject.split(SEPARATOR), *workspaces):
        if name.startswith("_"):
            raise _denied(provider, f"names {shown(name)}: names that begin with _ are the gateway's")
    groups = _texts(_claim(claims, mapping.groups), "groups", MAX_GROUPS)
    return Login(
        provider,
        type_name,
        subject,
        frozenset(workspaces) or None,
        tuple(dict.fromkeys(f"idp:{provider.name}:{group}" for group in groups)),
        expires_ms,
    )


def _principal_type(provider: JwtProvider, claimed: Any) -> str:
    if claimed is None or claimed == "":
        return provider.default_principal
    name = claimed.lower().replace("-", "_") if isinstance(claimed, str) else ""
    if name not in _ASSERTABLE:
        raise _denied(provider, f"claims to be for {shown(claimed)}: it may be for a user, an agent or a task only")
    return _ASSERTABLE[name]


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim by its name or its path (a name with dots); None if missing."""
    if not name:
        return None
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _texts(value: Any, what: str, most: int) -> tuple[str, ...]:
    """Return a claim with a text or a list of texts. Raises StatusError."""
    if value is None or value == "":
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(one, str) and one for one in texts):
        raise _invalid(f"the claim for {what} is no list of names")
    if len(texts) > most:
        raise _invalid(f"the claim for {what} has {len(texts)} names; at most {most} are taken")
    try:
        return tuple(check_text(one, f"the claim for {what}", MAX_GROUP_BYTES) for one in texts)
    except TextError as error:
        raise _invalid(str(error)) from None


def _invalid(why: str) -> StatusError:
    return StatusError(Status.UNAUTHENTICATED, f"the JSON Web Token is not accepted: {why}")


def _denied(provider: JwtProvider, why: str) -> StatusError:
    return StatusError(Status.PERMISSION_DENIED, f"the token of {provider.name} {why}")

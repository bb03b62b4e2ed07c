"""Fetches and keeps the public keys of identity providers (JWKS, RFC 7517).

A provider's keys are fetched when the gateway starts, each REFRESH_S, and when a token names an
unknown key. Between two fetches of one provider are RETRY_S at least, and one runs at a time. Only
clients whose key is unknown wait for a fetch, and each waits for one at most, so a slow provider
delays no other login. Keys are good for LIFETIME_S after the last fetch that worked.

The transport is https with the system's authorities or the provider's `jwks_ca`, follows no
redirect, and takes MAX_BYTES within FETCH_S.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import h11
import msgspec
import structlog
import trio
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from aether_trio.concurrency.events import AutoResetEvent, RepeatedEvent
from aether_trio.config import JwtProvider
from aether_trio.model.clock import Clock
from aether_trio.model.text import shown
from aether_trio.version import __version__

logger = structlog.get_logger("aether.credentials")

REFRESH_S: Final = 3600.0
"""How late the gateway may notice that a provider has withdrawn a key."""
RETRY_S: Final = 30.0
LIFETIME_S: Final = 24 * 3600.0
FETCH_S: Final = 5.0
MAX_BYTES: Final = 1024 * 1024
MAX_KEYS: Final = 128
_READ_BYTES: Final = 64 * 1024
_MIN_RSA_BITS: Final = 2048
_CURVES: Final[Mapping[str, tuple[type[ec.EllipticCurve], str]]] = {
    "P-256": (ec.SECP256R1, "ES256"),
    "P-384": (ec.SECP384R1, "ES384"),
    "P-521": (ec.SECP521R1, "ES512"),
}
_RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
Fetch = Callable[[JwtProvider], Awaitable[bytes]]


class JwksError(Exception):
    """A provider's keys cannot be fetched or read; the message says why."""


class KeysTooOld(Exception):
    """A provider's keys could not be fetched for LIFETIME_S, or never."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key of a provider, and the algorithms whose signatures it verifies."""

    key_id: str
    algorithms: frozenset[str]
    public_key: PublicKey


def parse_jwks(document: bytes) -> tuple[VerificationKey, ...]:
    """Read a key set; keys that are not for signatures are left out. Raises JwksError."""
    try:
        content = msgspec.json.decode(document)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise JwksError("the key set is not JSON") from None
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise JwksError("the key set has no list of keys")
    if len(entries) > MAX_KEYS:
        raise JwksError(f"the key set has {len(entries)} keys; at most {MAX_KEYS} are taken")
    found = [key for entry in entries if isinstance(entry, dict) and (key := _parse_key(entry)) is not None]
    if not found:
        raise JwksError("the key set has no key for signatures (RSA of 2048 bits or more, P-256, P-384, P-521)")
    return tuple(found)


def _parse_key(entry: Mapping[str, Any]) -> VerificationKey | None:
    operations = entry.get("key_ops")
    if entry.get("use", "sig") != "sig" or (isinstance(operations, list) and "verify" not in operations):
        return None
    if "d" in entry or "k" in entry:
        return None  # a secret, which a published set does not hold
    key_id = entry.get("kid", "")
    try:
        match entry.get("kty"):
            case "RSA":
                public: PublicKey = rsa.RSAPublicNumbers(_number(entry["e"]), _number(entry["n"])).public_key()
                algorithms = _RSA_ALGORITHMS if public.key_size >= _MIN_RSA_BITS else frozenset()
            case "EC":
                curve, algorithm = _CURVES[entry["crv"]]
                public = ec.EllipticCurvePublicNumbers(_number(entry["x"]), _number(entry["y"]), curve()).public_key()
                algorithms = frozenset({algorithm})
            case _:
                return None
    except (KeyError, TypeError, ValueError):
        return None
    if "alg" in entry:
        algorithms &= {entry["alg"]} if isinstance(entry["alg"], str) else frozenset()
    return VerificationKey(key_id, algorithms, public) if algorithms and isinstance(key_id, str) else None


def _number(text: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")


class ProviderKeys:
    """The keys of one identity provider; `run` keeps them fresh."""

    def __init__(self, provider: JwtProvider, clock: Clock, fetch: Fetch | None = None) -> None:
        self.provider = provider
        self._clock = clock
        self._fetch = fetch or fetch_jwks
        self._keys: tuple[VerificationKey, ...] = ()
        self._fetched: float | None = None
        self._attempted: float | None = None
        self._fetching = False
        self._wanted = AutoResetEvent()
        self._attempt_over = RepeatedEvent()

    def load_file(self) -> None:
        """Read the keys of a provider with `jwks_file`. Raises OSError or JwksError."""
        if self.provider.jwks_file is not None:
            self._keys = parse_jwks(Path(self.provider.jwks_file).read_bytes())

    async def find(self, key_id: str | None, algorithm: str) -> VerificationKey | None:
        """Return the key for a token, or None; may wait for one fetch. Raises KeysTooOld.

        A token without a key id fits if a single key fits its algorithm.
        """
        found = self._known(key_id, algorithm)
        if self.provider.jwks_file is not None:
            return found
        if found is None and self._may_fetch():
            over = self._attempt_over
            self._wanted.set()
            with trio.move_on_after(FETCH_S + 1):
                await over.wait()
            found = self._known(key_id, algorithm)
        now = self._clock.monotonic()
        if self._fetched is None or now - self._fetched > LIFETIME_S:
            raise KeysTooOld
        return found

    def _known(self, key_id: str | None, algorithm: str) -> VerificationKey | None:
        fitting = [one for one in self._keys if algorithm in one.algorithms]
        if key_id is None:
            return fitting[0] if len(fitting) == 1 else None
        return next((one for one in fitting if one.key_id == key_id), None)

    def _may_fetch(self) -> bool:
        """Whether a fetch runs that will end, or may begin."""
        return self._fetching or self._attempted is None or self._clock.monotonic() - self._attempted >= RETRY_S

    async def run(self) -> None:
        """Fetch the keys now, each REFRESH_S and when asked, until cancelled."""
        if self.provider.jwks_url is None:
            return
        while True:
            if self._attempted is None or self._clock.monotonic() - self._attempted >= RETRY_S:
                await self._attempt()
            stale = self._fetched is None or self._fetched != self._attempted
            with trio.move_on_after(RETRY_S if stale else REFRESH_S):
                await self._wanted.wait()

    async def _attempt(self) -> None:
        self._attempted = now = self._clock.monotonic()
        self._fetching = True
        try:
            with trio.fail_after(FETCH_S):
                document = await self._fetch(self.provider)
            self._keys = parse_jwks(document)
            self._fetched = now
        except (JwksError, trio.TooSlowError, OSError, ValueError) as error:
            reason = f"no answer within {FETCH_S:g} seconds" if isinstance(error, trio.TooSlowError) else str(error)
            logger.warning(
                "the keys of an identity provider cannot be fetched", provider=self.provider.name, reason=reason
            )
        finally:
            self._fetching = False
            self._attempt_over.set()


async def fetch_jwks(provider: JwtProvider) -> bytes:
    """Get the document at a provider's `jwks_url`. Raises JwksError or OSError."""
    assert provider.jwks_url is not None
    url = urlsplit(provider.jwks_url)
    host, secure = url.hostname or "", url.scheme == "https"
    try:
        stream: trio.abc.Stream = await trio.open_tcp_stream(host, url.port or (443 if secure else 80))
        try:
            if secure:
                context = ssl.create_default_context(cafile=provider.jwks_ca)
                context.minimum_version = ssl.TLSVersion.TLSv1_2
                context.set_alpn_protocols(["http/1.1"])
                stream = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
            target = (url.path or "/") + (f"?{url.query}" if url.query else "")
            return await _get(stream, url.netloc, target)
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
    except trio.BrokenResourceError as error:
        raise JwksError(f"the connection broke: {error.__cause__ or error}") from error
    except h11.ProtocolError as error:
        raise JwksError(f"the answer is not HTTP: {error}") from error


async def _get(stream: trio.abc.Stream, host: str, target: str) -> bytes:
    connection = h11.Connection(h11.CLIENT)
    headers = [
        ("host", host),
        ("accept", "application/json, application/jwk-set+json"),
        ("accept-encoding", "identity"),
        ("user-agent", f"aether-trio/{__version__}"),
        ("connection", "close"),
    ]
    request = h11.Request(method="GET", target=target, headers=headers)
    await stream.send_all((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    body = bytearray()
    while True:
        event = connection.next_event()
        match event:
            case h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
            case h11.Response() if event.status_code != 200:
                raise JwksError(f"the provider answered with the HTTP status {event.status_code}")
            case h11.Data():
                body += event.data
                if len(body) > MAX_BYTES:
                    raise JwksError(f"the key set has more than {MAX_BYTES} bytes")
            case h11.EndOfMessage():
                return bytes(body)
            case h11.Response() | h11.InformationalResponse():
                pass
            case _:
                raise JwksError(f"the provider ended the connection early ({shown(type(event).__name__)})")

"""Takes over new settings of TLS and credentials while the gateway runs (SIGHUP).

    read all new files ──▶ every one is good: use them ──▶ sessions end whose credential is gone
                       └─▶ one is not: nothing changes

What can change: the server's certificate, the authorities and revoked certificates of clients, API
keys, identity providers, and the keys of API tokens. Other settings need a restart; the log names
those that differ.
"""

from __future__ import annotations

import errno
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from aether_trio.config import Settings, all_keys
from aether_trio.gateway.certificates import expiry_times
from aether_trio.gateway.limits import tls_settings
from aether_trio.model.audit import AuditEvent, EventType
from aether_trio.model.clock import Clock, SystemClock
from aether_trio.services.credentials.checker import CredentialChecker
from aether_trio.services.credentials.ends import CredentialEnds
from aether_trio.services.tokens import TokenStore, read_hmac_keys
from aether_trio.transport.socket.ports import Ports
from aether_trio.transport.socket.tls import server_context

logger = structlog.get_logger("aether.gateway")

RELOADED: Final = frozenset(
    {
        "auth.api_keys",
        "auth.jwt.plain_http_on_loopback",
        "auth.jwt.providers",
        "auth.token_hmac_keys",
        "tls.cert",
        "tls.client_ca",
        "tls.client_crl",
        "tls.key",
        "tls.require_client_cert",
    }
)
"""The settings that count from a reload on; of files, also their content."""


class SettingsReload:
    """Replaces the settings of TLS and credentials of one gateway."""

    def __init__(
        self,
        settings: Settings,
        credentials: CredentialChecker,
        ends: CredentialEnds,
        store: TokenStore,
        ports: Ports,
        put_audit: Callable[[AuditEvent], None],
        clock: Clock,
    ) -> None:
        self._settings = settings
        self.expiries = expiry_times(settings.tls)
        """Unix times (s) at which the files of TLS in use expire, by setting."""
        self._authorities = frozenset(_authorities(settings))
        self._digests = _digests(settings)
        self._credentials = credentials
        self._ends = ends
        self._store = store
        self._ports = ports
        self._put_audit = put_audit
        self._clock = clock

    def apply(self, wanted: Settings) -> None:
        """Use new settings, all or none. Raises OSError, which names the file."""
        old = self._settings
        if (old.tls.cert is None) != (wanted.tls.cert is None):
            raise OSError(errno.EINVAL, "TLS cannot be switched on or off by a reload; restart the gateway")
        auth = msgspec.structs.replace(
            old.auth,
            api_keys=wanted.auth.api_keys,
            jwt=wanted.auth.jwt,
            token_hmac_keys=wanted.auth.token_hmac_keys,
        )
        prepared = self._credentials.prepare(auth, wanted.tls)
        keys = read_hmac_keys(auth, dev=old.gateway.dev)
        files = tls_settings(wanted.tls)
        contexts = [] if files is None else self._ports.prepare_tls(files)
        authorities = frozenset(_authorities(wanted))
        expiries = expiry_times(wanted.tls)
        digests = _digests(wanted)

        # From here on nothing fails.
        self._credentials.use(prepared)
        replaced, self._store.keys = self._store.keys.replaced_by(keys), keys
        if contexts:
            self._ports.use_tls(contexts)
        self._settings = msgspec.structs.replace(old, auth=auth, tls=wanted.tls)
        ended = self._ends.end_sessions({name for name, _ in self._authorities - authorities}, replaced)
        self._authorities = authorities
        self.expiries = expiries
        renewed = {name for name in digests if digests[name] != self._digests[name]}
        changed = sorted({*_differences(old, self._settings), *renewed})
        self._digests = digests
        self._put_audit(
            AuditEvent(
                at_ms=self._clock.now_ms(),
                event_type=EventType.ADMIN,
                operation="admin_config_change",
                actor_type="operator",
                resource_type="settings",
                metadata={"changed": changed, "ended_sessions": ended},
            )
        )
        logger.info("the settings of TLS and credentials were read anew", changed=changed, ended_sessions=ended)
        if ignored := [name for name in _differences(self._settings, wanted) if name not in RELOADED]:
            logger.warning("these settings differ and need a restart", settings=ignored)


def read_files(settings: Settings) -> None:
    """Read the files of TLS and credentials, as a start does. Raises OSError."""
    CredentialChecker(settings.auth, SystemClock()).prepare(settings.auth, settings.tls)
    read_hmac_keys(settings.auth, dev=settings.gateway.dev)
    if (files := tls_settings(settings.tls)) is not None:
        server_context(files)
    _authorities(settings)


def _differences(one: Settings, other: Settings) -> list[str]:
    return [
        key.name
        for key in all_keys().values()
        if functools.reduce(getattr, key.path, one) != functools.reduce(getattr, key.path, other)
    ]


def _digests(settings: Settings) -> dict[str, bytes]:
    """Return, by setting, a digest of the files that it names, which a reload reads."""
    auth = settings.auth
    files: dict[str, list[str | None]] = {
        f"tls.{leaf}": [getattr(settings.tls, leaf)] for leaf in ("cert", "key", "client_ca", "client_crl")
    }
    files["auth.token_hmac_keys"] = [key.file for key in auth.token_hmac_keys]
    files["auth.jwt.providers"] = [file for one in auth.jwt.providers for file in (one.jwks_file, one.jwks_ca)]
    return {
        name: hashlib.sha256(b"".join(Path(one).read_bytes() for one in several if one is not None)).digest()
        for name, several in files.items()
    }


def _authorities(settings: Settings) -> Sequence[tuple[bytes, bytes]]:
    """Return names, as `PeerCertificate.issuer` has them, and keys of tls.client_ca.

    An authority that is made anew, as by `aether init --force`, has the name of the old one.
    """
    if settings.tls.client_ca is None:
        return ()
    from aether_trio.services.credentials.revocations import trusted_authorities

    return trusted_authorities(Path(settings.tls.client_ca))

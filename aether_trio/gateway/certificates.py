"""Tells when the certificates in use expire, for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import structlog

from aether_trio.config import TlsSettings
from aether_trio.services.tokens.keys import open_to_others

logger = structlog.get_logger("aether.gateway")


def expiry_times(tls: TlsSettings) -> Mapping[tuple[str], float]:
    """Return the first Unix time (s) at which a file of each setting expires.

    Warns of a private key that others may read. Raises OSError for a file that cannot be read. One
    that is read by TLS alone is left out.
    """
    if tls.cert is None:
        return {}
    if tls.key is not None and open_to_others(Path(tls.key).stat()):
        logger.warning("other users may read the private key of TLS; make its mode 0600", file=tls.key)
    from cryptography import x509

    from aether_trio.services.credentials.revocations import lists_due

    found: dict[tuple[str], float] = {}
    for setting, file in (("tls.cert", tls.cert), ("tls.client_ca", tls.client_ca)):
        if file is None:
            continue
        try:
            certificates = x509.load_pem_x509_certificates(Path(file).read_bytes())
        except ValueError as error:
            logger.warning("it is not known when a certificate expires", setting=setting, reason=str(error))
            continue
        found[setting,] = min(one.not_valid_after_utc.timestamp() for one in certificates)
    if tls.client_crl is not None and (due := lists_due(Path(tls.client_crl))) is not None:
        found["tls.client_crl",] = due
    return found

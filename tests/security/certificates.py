"""A private certificate authority for the gateway and clients of a test."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY: Final = dt.timedelta(days=1)


class Authority:
    """Issues certificates, and holds the files that a gateway is started with."""

    def __init__(
        self, directory: Path, *, name: str | None = None, unit: str | None = None, days: float = 3650
    ) -> None:
        """The server's certificate is good for `days`."""
        self._directory = directory
        self._ca = trustme.CA(organization_name=name, organization_unit_name=unit)
        self._ca.cert_pem.write_to_path(directory / "ca.pem")
        server = self._ca.issue_cert("127.0.0.1", not_after=dt.datetime.now(dt.UTC) + days * _DAY)
        server.private_key_pem.write_to_path(directory / "key.pem")
        for position, pem in enumerate(server.cert_chain_pems):
            pem.write_to_path(directory / "cert.pem", append=position > 0)

    @property
    def tls(self) -> dict[str, Any]:
        """The section `tls` of the gateway."""
        home = self._directory
        return {"cert": str(home / "cert.pem"), "key": str(home / "key.pem"), "client_ca": str(home / "ca.pem")}

    def context(self, certificate: Path | None = None, *, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """For a client of the gateway, with a certificate made by `issue`."""
        context = ssl.create_default_context()
        self._ca.configure_trust(context)
        if certificate is not None:
            context.load_cert_chain(certificate)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def revoke(self, *certificates: Path, der: bool = False, due: dt.datetime | None = None) -> Path:
        """Write the list of the certificates that are revoked."""
        signer = serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(x509.load_pem_x509_certificate(self._ca.cert_pem.bytes()).subject)
            .last_update(now - _DAY)
            .next_update(due or now + _DAY)
        )
        for path in certificates:
            serial = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        written = self._directory / "revoked.crl"
        encoding = serialization.Encoding.DER if der else serialization.Encoding.PEM
        written.write_bytes(builder.sign(signer, hashes.SHA256()).public_bytes(encoding))
        return written

    def issue(
        self,
        *common_names: str,
        authority: bool | None = False,
        usages: Sequence[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.CLIENT_AUTH,),
    ) -> Path:
        """Write a certificate and key as PEM; None leaves an extension out."""
        signer = serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names]))
            .issuer_name(x509.load_pem_x509_certificate(self._ca.cert_pem.bytes()).subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )
        if authority is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        if usages is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        certificate = builder.sign(signer, hashes.SHA256())
        path = self._directory / f"client-{certificate.serial_number}.pem"
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        secret = key.private_bytes(pem, pkcs8, serialization.NoEncryption())
        path.write_bytes(secret + certificate.public_bytes(pem))
        return path

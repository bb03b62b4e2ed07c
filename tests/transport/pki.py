"""A private authority, and what it certifies."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

from aether_trio.transport.socket.tls import ClientCertificates, TlsFiles


class Pki:
    """An authority, and certificates of this machine and of a client, as files."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca)
        self.cert, self.key = self._issue(folder, "server", "127.0.0.1", "localhost")
        self.client_cert, self.client_key = self._issue(folder, "client", "agent.example", common_name="agent-7")

    def _issue(self, folder: Path, name: str, *identities: str, common_name: str | None = None) -> tuple[Path, Path]:
        leaf = self._authority.issue_cert(*identities, common_name=common_name)
        cert, key = folder / f"{name}.pem", folder / f"{name}.key"
        leaf.cert_chain_pems[0].write_to_path(cert)
        leaf.private_key_pem.write_to_path(key)
        return cert, key

    def files(self, mode: ClientCertificates | None = ClientCertificates.OPTIONAL) -> TlsFiles:
        """The files of a server; with mode None it asks for no certificate of its clients."""
        return TlsFiles(self.cert, self.key) if mode is None else TlsFiles(self.cert, self.key, self.ca, mode)

    def context(self, *alpn: str, certificate: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if certificate:
            context.load_cert_chain(self.client_cert, self.client_key)
        return context

"""Write ca.pem and agent.pem, which the TLS example of docs/clients.md names."""

import trustme

ca = trustme.CA()
ca.cert_pem.write_to_path("ca.pem")
ca.issue_cert("agent.example").private_key_and_cert_chain_pem.write_to_path("agent.pem")

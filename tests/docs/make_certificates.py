"""Write the certificates that examples of TLS on the pages name."""

import trustme

ca = trustme.CA()
for name in ("ca.pem", "clients-ca.pem"):
    ca.cert_pem.write_to_path(name)
ca.issue_cert("agent.example").private_key_and_cert_chain_pem.write_to_path("agent.pem")
gateway = ca.issue_cert("gateway.example")
gateway.cert_chain_pems[0].write_to_path("chain.pem")
gateway.private_key_pem.write_to_path("key.pem")

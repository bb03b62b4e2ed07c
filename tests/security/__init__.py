"""What clients may do on every transport, from the findings of a security review."""

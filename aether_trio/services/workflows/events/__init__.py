"""Events of the gateway, as workflows take them: each once."""

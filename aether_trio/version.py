"""The version, read by the build, `aether version` and ConnectionAck."""

# Not annotated: the build finds it with a pattern that knows plain assignments only.
__version__ = "0.1.0"

"""The version of this program, in one place: the build, `aether version` and ConnectionAck read it
here.
"""

# Not annotated: the build finds it with a pattern that knows plain assignments only.
__version__ = "0.1.0"

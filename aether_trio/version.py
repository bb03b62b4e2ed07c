"""The version of this program, in one place: the build, `aether version` and ConnectionAck read it here."""

from typing import Final

__version__: Final = "0.1.0"

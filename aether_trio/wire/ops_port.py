"""Names that the ops port and its clients share."""

from typing import Final

OPS_SERVER: Final = "aether-trio-ops"
"""The Server header, by which `aether tail` knows an ops port."""
ASKED_BY: Final = "x-aether-asked-by"
"""The header of a request that changes something."""

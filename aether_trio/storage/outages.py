"""What a client is told when storage could not do what it asked for: that it was not done, or that this is not known."""

from __future__ import annotations

from aether_trio.model.errors import AetherError, Code
from aether_trio.storage.base import CommitUnknown, StorageUnavailable


def outage(error: StorageUnavailable) -> AetherError:
    """Retryable only if nothing was done: a client that obeys is not to do a thing twice."""
    if isinstance(error, CommitUnknown):
        return AetherError(
            Code.OUTCOME_UNKNOWN,
            f"the gateway's storage did not say whether this was done; look before you try again: {error}",
        )
    return AetherError(Code.CIRCUIT_OPEN, f"the gateway's storage does not answer: {error}")


def outage_text(error: StorageUnavailable) -> str:
    """For typed answers without a code: only what is not known has one in front."""
    told = outage(error)
    return str(told) if isinstance(error, CommitUnknown) else told.message

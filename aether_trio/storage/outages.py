"""The error that a client gets when its request failed in storage, or may have."""

from __future__ import annotations

from aether_trio.model.errors import Code, RequestError
from aether_trio.storage.base import CommitUnknown, StorageUnavailable


def outage(error: StorageUnavailable) -> RequestError:
    """Make the client's error for a storage failure: retryable if nothing was done."""
    if isinstance(error, CommitUnknown):
        return RequestError(
            Code.OUTCOME_UNKNOWN,
            f"the gateway's storage did not say whether this was done; look before you try again: {error}",
        )
    return RequestError(Code.CIRCUIT_OPEN, f"the gateway's storage does not answer: {error}")


def outage_text(error: StorageUnavailable) -> str:
    """Make the text of a storage failure, for answers without an error code."""
    told = outage(error)
    return str(told) if isinstance(error, CommitUnknown) else told.message

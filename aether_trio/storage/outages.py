"""The error that a client gets when storage failed.

It says that the request was not done, or that this is not known.
"""

from __future__ import annotations

from aether_trio.model.errors import Code, RequestError
from aether_trio.storage.base import CommitUnknown, StorageUnavailable


def outage(error: StorageUnavailable) -> RequestError:
    """Make the client's error: retryable only if nothing was done.

    So no request is done twice.
    """
    if isinstance(error, CommitUnknown):
        return RequestError(
            Code.OUTCOME_UNKNOWN,
            f"the gateway's storage did not say whether this was done; look before you try again: {error}",
        )
    return RequestError(Code.CIRCUIT_OPEN, f"the gateway's storage does not answer: {error}")


def outage_text(error: StorageUnavailable) -> str:
    """Make the text of answers without an error code; "unknown" has its code."""
    told = outage(error)
    return str(told) if isinstance(error, CommitUnknown) else told.message

"""Gives an old connection a moment to end before a new one is a duplicate."""

from __future__ import annotations

import trio

from aether_trio.model.errors import Status
from aether_trio.session.init_connection import Claim
from aether_trio.session.registry import SessionRegistry

DUPLICATE_GRACE_S = 0.1


async def let_predecessor_end(registry: SessionRegistry, claim: Claim) -> None:
    """Wait up to DUPLICATE_GRACE_S for an identity's old session that is ending.

    A script's next client can arrive before the end of the one that it has closed.
    """
    owner = registry.holder(claim.identity.text)
    if owner is not None and owner.session_id != claim.resume_session_id:
        with trio.move_on_after(DUPLICATE_GRACE_S):
            await owner.wait_detached()
        if not owner.detached and owner.link.peer_has_ended():
            owner.end(Status.CANCELLED, "the stream had ended")  # and its task hangs in storage

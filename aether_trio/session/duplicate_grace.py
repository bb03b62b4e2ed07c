"""Gives an old connection a moment to end before a new one is a duplicate.

A session of the gateway itself that gives way (`Peer.gives_way`) ends at once, for a client. It
does not for another part of a gateway, which says so: its `resume_session_id` is IN_PROCESS, the id
of no session.
"""

from __future__ import annotations

import trio

from aether_trio.model.errors import Status
from aether_trio.session.init_connection import Claim
from aether_trio.session.registry import SessionRegistry
from aether_trio.session.session import Session
from aether_trio.transport.link import IN_PROCESS

DUPLICATE_GRACE_S = 0.1
GAVE_WAY = "another client has taken this identity, to which the gateway's own part gives way"


async def let_predecessor_end(registry: SessionRegistry, claim: Claim) -> None:
    """Wait up to DUPLICATE_GRACE_S for an identity's old session that is ending.

    A script's next client can arrive before the end of the one that it has closed.
    """
    owner = registry.holder(claim.identity.text)
    if owner is not None and owner.session_id != claim.resume_session_id:
        if yields_at_once(owner, claim.resume_session_id):
            owner.end(Status.CANCELLED, GAVE_WAY)
            return
        with trio.move_on_after(DUPLICATE_GRACE_S):
            await owner.wait_detached()
        if not owner.detached and owner.link.peer_has_ended():
            owner.end(Status.CANCELLED, "the stream had ended")  # and its task hangs in storage


def yields_at_once(owner: Session, resume_session_id: str) -> bool:
    """Return whether a session ends for one with this `resume_session_id`."""
    return owner.link.peer.gives_way and resume_session_id != IN_PROCESS

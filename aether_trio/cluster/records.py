"""What the parts of the cluster tell each other and the session layer. Times are Unix milliseconds, limits are seconds."""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from aether_trio.model.ownership import IdentityLock


@dataclass(frozen=True, slots=True)
class ClusterLimits:
    """How long a node waits for what."""

    lease_grace_s: float = 5.0
    """How long a node may be without its lease before its sessions are cancelled, and how long somebody who wants an identity waits for
    a word from the node that holds it."""
    probe_s: float = 2.0
    """Between two looks at the lease, which are also looks for questions that got lost. Less than `lease_grace_s`."""
    probe_timeout_s: float = 3.0
    """A connection that does not answer for that long is given up."""
    statement_s: float = 5.0
    """The same for a connection that claims or releases, whose statements may wait for each other."""
    ask_again_s: float = 1.0
    ending_s: float = 10.0
    """How long a claim waits for a holder that has agreed to end."""
    sweep_s: float = 5.0
    """Between two looks for nodes that nobody has missed yet, and for what may be forgotten."""
    poll_s: float = 5.0
    """Between two looks whether there are other nodes, which a hint would have told."""
    look_again_s: float = 3.0
    """After a sweep has found a node without a lease, or a silent one, before the second look that decides. More than `probe_s`."""
    silent_s: float = 10.0
    """A node that has not looked at its lease for that long stands still. More than `lease_grace_s` and what a probe may take."""
    tombstone_s: float = 24 * 3600.0
    """How long a session that has ended can be resumed with its history, on any node."""
    connections_per_workspace: int = 0
    """Cluster-wide; 0 is no limit."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a node says of itself. `address` is where people reach it, for listings."""

    name: str
    address: str = ""
    version: str = ""


class Answer(enum.StrEnum):
    """What a holder says when it is asked for an identity. The values are those of the column `asks.answer`."""

    NONE = ""
    ALIVE = "alive"
    ENDING = "ending"


class SessionHost(Protocol):
    """The sessions of a node, as the cluster sees them. All but `asked` are called in one step, and do not raise."""

    def lease_lost(self) -> None:
        """Stop reading input: whether this node still holds what it holds is open. Called once until one of the next two."""
        ...

    def lease_back(self, lost: Sequence[IdentityLock], kept: Collection[str] | None) -> None:
        """Go on. The sessions of `lost` have been taken by others, or nobody knows of them any more: they are to end now.

        `kept` None: nobody has missed this node. Otherwise it was declared dead, and these identities nobody has taken.
        """
        ...

    def lease_gone(self) -> None:
        """Cancel every session: others may hold all of it. Their holds need no release."""
        ...

    async def asked(self, hold: IdentityLock, resume_session_id: str) -> bool:
        """Another node has somebody who wants `hold.identity` and names this session to take it over, or "".

        False when the session lives on. Otherwise it has ended, and what it appended and read is settled: when this returns
        True, the hold is released.
        """
        ...

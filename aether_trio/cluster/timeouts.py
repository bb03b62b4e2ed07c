"""Timeouts of a cluster node in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClusterLimits:
    """Timeouts of a cluster node in seconds."""

    lease_grace_s: float = 5.0
    """How long a node may be without its lease before its sessions are ended, and how long a claim
    waits for an answer of the owner's node."""
    probe_s: float = 2.0  # between two probes of the lease; less than `lease_grace_s`
    probe_timeout_s: float = 3.0  # a connection that does not answer for that long is given up
    statement_s: float = 5.0  # the same while it claims or releases
    ask_again_s: float = 1.0  # between two attempts of a claim
    ending_s: float = 10.0  # how long a claim waits for an owner that has agreed to end
    sweep_s: float = 5.0  # between two looks for dead nodes and for old rows
    poll_s: float = 5.0  # between two looks for other nodes, which make up for lost notifications
    look_again_s: float = 3.0  # between the two looks that end a lease. More than `probe_s`
    silent_s: float = 10.0
    """A node that has not probed its lease for that long stands still. More than `lease_grace_s`
    and the time of a probe."""
    tombstone_s: float = 24 * 3600.0  # how long an ended session can be resumed
